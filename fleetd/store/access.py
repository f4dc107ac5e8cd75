"""Tokens, answers to repeated requests, and the daemon's few settings (freezes, the last clock)."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Integer, bindparam, delete, func, select, update

from fleetd.kit.errors import Conflict, NotFound
from fleetd.model.access import Token
from fleetd.store.database import Database, Op, Row, Statement
from fleetd.store.dialects import insert_into, upsert
from fleetd.store.rows import pack, unpack
from fleetd.store.tables import answers
from fleetd.store.tables import settings as _settings
from fleetd.store.tables import tokens as _tokens

# Tokens -----------------------------------------------------------------------------------------------------------

_INSERT: Final = Statement(insert_into(_tokens))
_BY_HASH: Final = Statement(
    select(_tokens.c.id, _tokens.c.doc, _tokens.c.revoked).where(_tokens.c.hash == bindparam("of_hash"))
)
_TOKENS: Final = Statement(
    select(_tokens.c.id, _tokens.c.doc, _tokens.c.revoked).order_by(_tokens.c.created, _tokens.c.id)
)
_REVOKE: Final = Statement(
    update(_tokens)
    .where(_tokens.c.id == bindparam("of_id"))
    .values(revoked=func.coalesce(_tokens.c.revoked, bindparam("at", type_=_tokens.c.revoked.type)))
)


def insert_token(token: Token) -> Op:
    """A new token; only its hash is there. Raises Conflict at commit when id or hash exists."""
    return Op(
        _INSERT,
        {
            "id": token.id,
            "hash": token.hash,
            "created": token.created,
            "revoked": token.revoked,
            "doc": pack(token),
        },
        conflict=lambda: Conflict(f"token {token.id} exists"),
    )


def _token(row: Row) -> Token:
    key, doc, revoked = row
    return msgspec.structs.replace(unpack(Token, doc, "tokens", key), revoked=revoked)


async def token_by_hash(db: Database, token_hash: str) -> Token | None:
    """The token with this sha256 (hex), revoked and expired ones too: the caller judges."""
    for row in await db.fetch(_BY_HASH, {"of_hash": token_hash}):
        return _token(row)
    return None


async def tokens(db: Database) -> list[Token]:
    """Every token, oldest first."""
    return [_token(row) for row in await db.fetch(_TOKENS, {})]


def revoke_token(token_id: str, at: float) -> Op:
    """Void from `at` (the first time counts). Raises NotFound at commit."""
    return Op(_REVOKE, {"of_id": token_id, "at": at}, 1, lambda: NotFound(f"there is no token {token_id}"))


# Answers ----------------------------------------------------------------------------------------------------------

_REMEMBER: Final = Statement(insert_into(answers))
_RECALL: Final = Statement(
    select(answers.c.fingerprint, answers.c.status, answers.c.body, answers.c.at).where(
        answers.c.principal == bindparam("principal"),
        answers.c.route == bindparam("route"),
        answers.c.key == bindparam("key"),
    )
)
_FORGET: Final = Statement(delete(answers).where(answers.c.at < bindparam("before")))


class Remembered(NamedTuple):
    """The answer that a request with this key got. `fingerprint` is of the request; `at` in wall seconds."""

    fingerprint: str
    status: int
    body: bytes
    at: float


def remember(principal: str, route: str, key: str, fingerprint: str, status: int, body: bytes, at: float) -> Op:
    """Keep the answer in the unit that did the work. Raises Conflict at commit when the key was used before."""
    params = {
        "principal": principal,
        "route": route,
        "key": key,
        "fingerprint": fingerprint,
        "status": status,
        "body": body,
        "at": at,
    }
    return Op(_REMEMBER, params, conflict=lambda: Conflict(f"the idempotency key `{key}` was used before"))


async def recall(db: Database, principal: str, route: str, key: str) -> Remembered | None:
    """The answer kept under this key."""
    for fingerprint, status, body, at in await db.fetch(_RECALL, {"principal": principal, "route": route, "key": key}):
        return Remembered(fingerprint, status, bytes(body), at)
    return None


def forget_answers(before: float) -> Op:
    """Drop answers older than `before` (wall seconds)."""
    return Op(_FORGET, {"before": before})


# Settings ---------------------------------------------------------------------------------------------------------

_SETTING: Final = Statement(select(_settings.c.value).where(_settings.c.name == bindparam("of_name")))
_PREFIX: Final = Statement(
    select(_settings.c.name, _settings.c.value)
    .where(
        func.substr(_settings.c.name, bindparam("one", type_=Integer), bindparam("length", type_=Integer))
        == bindparam("prefix")
    )
    .order_by(_settings.c.name)
)
_SET: Final = Statement(upsert(_settings))
_DROP: Final = Statement(delete(_settings).where(_settings.c.name == bindparam("of_name")))


async def setting(db: Database, name: str) -> str | None:
    """A setting's text."""
    for (value,) in await db.fetch(_SETTING, {"of_name": name}):
        return str(value)
    return None


async def settings(db: Database, prefix: str) -> dict[str, str]:
    """Every setting whose name begins so (`freeze:`)."""
    return dict(await db.fetch(_PREFIX, {"one": 1, "length": len(prefix), "prefix": prefix}))


def set_setting(name: str, value: str) -> Op:
    """Write or overwrite."""
    return Op(_SET, {"name": name, "value": value})


def drop_setting(name: str) -> Op:
    """Remove; nothing happens when it is not there."""
    return Op(_DROP, {"of_name": name})
