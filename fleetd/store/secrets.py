"""Passwords and keys, sealed before they reach the ledger: a copy of its file opens nothing without the key."""

from __future__ import annotations

import base64
import binascii
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import bindparam, delete, literal_column, select, text, update

from fleetd.kit.errors import Conflict, Garbled, Invalid
from fleetd.store.database import Database, Op, Statement
from fleetd.store.dialects import upsert
from fleetd.store.tables import secrets

KEY_BYTES: Final = 32
_NONCE: Final = 12
_FORMAT: Final = "v1:"


class Sealer:
    """AES-256-GCM with a random nonce. The context (owner, kind) is authenticated: a sealed text moved to another row
    does not open there.

    Raises:
        Invalid: the key is not 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise Invalid(
                f"the sealing key has {len(key)} bytes, not {KEY_BYTES}", remedy="make one: `head -c 32 /dev/urandom`"
            )
        self._cipher = AESGCM(key)
        self._key = key

    def derive(self, purpose: str) -> bytes:
        """32 bytes for another use than sealing: one purpose, one key, and none tells of another (HKDF-SHA256)."""
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=b"fleetd/" + purpose.encode()).derive(
            self._key
        )

    def __repr__(self) -> str:
        return "Sealer(***)"

    def seal(self, text: str, *, context: str) -> str:
        """Text that can be stored; the same text never seals to the same twice."""
        nonce = os.urandom(_NONCE)
        sealed = nonce + self._cipher.encrypt(nonce, text.encode(), context.encode())
        return _FORMAT + base64.b64encode(sealed).decode()

    def open(self, blob: str, *, context: str) -> str:
        """What was sealed under this key and context.

        Raises:
            Garbled: another key, another context, or it was changed. The error says nothing of the content.
        """
        try:
            if not blob.startswith(_FORMAT):
                raise ValueError("unknown format")
            raw = base64.b64decode(blob.removeprefix(_FORMAT), validate=True)
            return self._cipher.decrypt(raw[:_NONCE], raw[_NONCE:], context.encode()).decode()
        except (InvalidTag, ValueError, binascii.Error):
            raise Garbled(
                "a sealed secret does not open",
                why="another key sealed it, or the row was changed",
                remedy="start fleetd with the key that this ledger was sealed with",
                where=f"secrets/{context}",
            ) from None


_PUT: Final = Statement(upsert(secrets))
_OWN: Final = (secrets.c.owner == bindparam("of_owner"), secrets.c.kind == bindparam("of_kind"))
_GET: Final = Statement(select(secrets.c.status, secrets.c.sealed).where(*_OWN))
_PENDING: Final = Statement(
    update(secrets)
    .where(*_OWN, text("status = 'pending'"))
    .values(status=literal_column("'current'"), at=bindparam("at"))
)
_RETIRE: Final = Statement(
    update(secrets).where(*_OWN, text("status = 'current'")).values(status=literal_column("'old'"), at=bindparam("at"))
)
_FORGET_OLD: Final = Statement(delete(secrets).where(*_OWN, text("status = 'old'")))
_FORGET: Final = Statement(delete(secrets).where(*_OWN))


def put(owner: str, kind: str, status: str, sealed: str, at: float) -> list[Op]:
    """Keep a sealed secret as `current`, `pending` or `old`; one of the same three is replaced.

    Raises:
        Invalid: `sealed` does not come from a Sealer, or the status is another word.
    """
    if not sealed.startswith(_FORMAT):
        raise Invalid(f"the {kind} of {owner} is not sealed")
    if status not in ("current", "pending", "old"):
        raise Invalid(f"a secret is current, pending or old, not `{status}`")
    return [Op(_PUT, {"owner": owner, "kind": kind, "status": status, "sealed": sealed, "at": at})]


async def get(db: Database, owner: str, kind: str) -> dict[str, str]:
    """Sealed texts by status; empty when there is none."""
    return dict(await db.fetch(_GET, {"of_owner": owner, "of_kind": kind}))


def promote(owner: str, kind: str, at: float) -> list[Op]:
    """The pending secret becomes current, the current one old. Raises Conflict at commit when none is pending."""
    params = {"of_owner": owner, "of_kind": kind, "at": at}
    return [
        Op(_FORGET_OLD, params),
        Op(_RETIRE, params),
        Op(_PENDING, params, 1, lambda: Conflict(f"no {kind} of {owner} is pending")),
    ]


def forget(owner: str, kind: str) -> Op:
    """Remove it in every status."""
    return Op(_FORGET, {"of_owner": owner, "of_kind": kind})
