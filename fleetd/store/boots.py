"""Boots that fleetd started: at most one open a host, found by the nonce that comes home."""

from __future__ import annotations

from typing import Final

import msgspec
from sqlalchemy import bindparam, literal_column, select, text, update

from fleetd.kit.errors import Conflict, NotFound
from fleetd.model.boot import Boot
from fleetd.store.database import Database, Op, Row, Statement
from fleetd.store.dialects import insert_into
from fleetd.store.rows import pack, unpack
from fleetd.store.tables import boots, hosts

_INSERT: Final = Statement(insert_into(boots))
_CLOSE: Final = Statement(
    update(boots)
    .where(boots.c.host == bindparam("of_host"), text("boots.closed IS NULL"))
    .values(closed=bindparam("at"), private_key=literal_column("''"), version=boots.c.version + literal_column("1"))
)
_CLOSE_ONE: Final = Statement(
    update(boots)
    .where(boots.c.id == bindparam("of_id"), text("boots.closed IS NULL"))
    .values(closed=bindparam("at"), private_key=literal_column("''"), version=boots.c.version + literal_column("1"))
)
_SAVE: Final = Statement(
    update(boots)
    .where(boots.c.id == bindparam("of_id"), boots.c.version == bindparam("read"))
    .values(
        met=bindparam("met"),
        closed=bindparam("closed"),
        private_key=bindparam("private_key"),
        doc=bindparam("doc"),
        version=boots.c.version + literal_column("1"),
    )
)
_SELECT: Final = select(boots.c.id, boots.c.doc, boots.c.private_key, boots.c.closed, boots.c.version)
_GET: Final = Statement(_SELECT.where(boots.c.id == bindparam("of_id")))
_BY_TOKEN: Final = Statement(
    _SELECT.where(boots.c.token_hash == bindparam("hash"))
    .order_by(text("boots.closed IS NOT NULL"), boots.c.id.desc())  # ids sort by birth
    .limit(literal_column("1"))
)
_OPEN: Final = Statement(_SELECT.where(boots.c.host == bindparam("of_host"), text("boots.closed IS NULL")))
_NEWEST: Final = Statement(
    _SELECT.where(boots.c.host == bindparam("of_host")).order_by(boots.c.id.desc()).limit(literal_column("1"))
)
_ARMED: Final = Statement(
    _SELECT.select_from(boots.join(hosts, hosts.c.id == boots.c.host)).where(
        hosts.c.boot_mac == bindparam("mac"),
        text("NOT hosts.retired"),
        text("boots.closed IS NULL"),
        boots.c.met.is_(None),
        text("boots.environment = 'deploy'"),
    )
)


def _doc(boot: Boot, version: int) -> str:
    # The key stands in its own column, so that closing a boot can blank it.
    return pack(msgspec.structs.replace(boot, private_key="", version=version))


def _boot(row: Row) -> Boot:
    key, doc, private_key, closed, version = row
    boot = unpack(Boot, doc, "boots", key)
    return msgspec.structs.replace(boot, private_key=private_key, closed=closed, version=version)


def insert(boot: Boot) -> list[Op]:
    """Arm a boot; every open one of the host is closed first, and its key forgotten."""
    params = {
        "id": boot.id,
        "host": boot.host,
        "token_hash": boot.token_hash,
        "environment": boot.environment,
        "private_key": boot.private_key,
        "met": boot.met,
        "closed": boot.closed,
        "doc": _doc(boot, boot.version),
        "version": boot.version,
    }
    return [
        Op(_CLOSE, {"of_host": boot.host, "at": boot.armed}),
        Op(_INSERT, params, conflict=lambda: Conflict(f"boot {boot.id} or its nonce exists")),
    ]


def close(boot_id: str, at: float) -> Op:
    """End this boot at wall second `at`, and forget its key; one that is closed stays as it is."""
    return Op(_CLOSE_ONE, {"of_id": boot_id, "at": at})


def save(boot: Boot) -> Op:
    """Write all of it; guard: nobody wrote since `boot.version` was read. A closed boot loses its key.

    Raises at commit: Conflict when it changed since (a newer boot may have closed it).
    """
    return Op(
        _SAVE,
        {
            "of_id": boot.id,
            "read": boot.version,
            "met": boot.met,
            "closed": boot.closed,
            "private_key": boot.private_key if boot.closed is None else "",
            "doc": _doc(boot, boot.version + 1),
        },
        1,
        lambda: Conflict(f"boot {boot.id} changed since it was read", why="a newer boot may have closed it"),
    )


async def get(db: Database, boot_id: str) -> Boot:
    """Raises NotFound."""
    for row in await db.fetch(_GET, {"of_id": boot_id}):
        return _boot(row)
    raise NotFound(f"there is no boot {boot_id}")


async def by_token(db: Database, token_hash: str) -> Boot | None:
    """The boot whose nonce has this sha256 (hex), open or closed: the caller judges."""
    for row in await db.fetch(_BY_TOKEN, {"hash": token_hash}):
        return _boot(row)
    return None


async def open_of(db: Database, host_id: str) -> Boot | None:
    """The host's open boot, met or not."""
    for row in await db.fetch(_OPEN, {"of_host": host_id}):
        return _boot(row)
    return None


async def newest_of(db: Database, host_id: str) -> Boot | None:
    """The host's last boot, open or closed."""
    for row in await db.fetch(_NEWEST, {"of_host": host_id}):
        return _boot(row)
    return None


async def armed_for_mac(db: Database, mac: str) -> Boot | None:
    """The open deploy boot, not met yet, of the host with this boot MAC; whether it expired the caller judges."""
    for row in await db.fetch(_ARMED, {"mac": mac}):
        return _boot(row)
    return None
