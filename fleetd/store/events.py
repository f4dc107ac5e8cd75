"""What happened, in the one order that commit gave it: a watcher that resumes after a seq misses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import bindparam, delete, select

from fleetd.model.event import Event
from fleetd.store.database import LAST_EVENT, Database, Op, Params, Row, Statement
from fleetd.store.dialects import insert_into, listed
from fleetd.store.rows import pack, unpack
from fleetd.store.tables import events

_COLUMNS: Final = (
    events.c.seq,
    events.c.kind,
    events.c.at,
    events.c.site,
    events.c.host,
    events.c.run,
    events.c.lease,
    events.c.principal,
    events.c.data,
)
_APPEND: Final = Statement(insert_into(events, without=("seq",)), sequenced=True)
_NEWEST: Final = Statement(
    select(*_COLUMNS).where(events.c.host == bindparam("host")).order_by(events.c.seq.desc()).limit(bindparam("limit")),
    wide=True,
)
_PRUNE: Final = Statement(delete(events).where(events.c.seq <= bindparam("upto")))


def append(event: Event) -> Op:
    """Add one event; its own `seq` is ignored, commit assigns it."""
    return Op(
        _APPEND,
        {
            "kind": event.kind,
            "at": event.at,
            "site": event.site,
            "host": event.host,
            "run": event.run,
            "lease": event.lease,
            "principal": event.principal,
            "data": pack(event.data),
        },
    )


@cache
def _after(host: bool, run: bool, kinds: bool) -> Statement:
    query = select(*_COLUMNS).where(events.c.seq > bindparam("seq"))
    if host:
        query = query.where(events.c.host == bindparam("host"))
    if run:
        query = query.where(events.c.run == bindparam("run"))
    if kinds:
        query = query.where(events.c.kind.in_(listed("kinds")))
    return Statement(query.order_by(events.c.seq).limit(bindparam("limit")), wide=True)


def _event(row: Row) -> Event:
    seq, kind, at, site, host, run, lease, principal, data = row
    return Event(
        seq=seq,
        kind=kind,
        at=at,
        site=site,
        host=host,
        run=run,
        lease=lease,
        principal=principal,
        data=unpack(dict[str, Any], data, "events", seq),
    )


async def after(
    db: Database,
    seq: int,
    *,
    limit: int,
    host: str | None = None,
    run: str | None = None,
    kinds: Sequence[str] | None = None,
) -> list[Event]:
    """Events behind `seq`, oldest first, at most `limit`; `kinds` None is every kind, an empty one is none."""
    params: Params = {"seq": seq, "limit": limit, "host": host, "run": run}
    if kinds is not None:
        params["kinds"] = pack(list(kinds))
    return [_event(row) for row in await db.fetch(_after(host is not None, run is not None, kinds is not None), params)]


async def last(db: Database) -> int:
    """The newest seq, 0 in an empty ledger."""
    return int((await db.fetch(LAST_EVENT, {}))[0][0])


async def of_host(db: Database, host_id: str, limit: int) -> list[Event]:
    """A host's events, newest first."""
    return [_event(row) for row in await db.fetch(_NEWEST, {"host": host_id, "limit": limit})]


def prune(upto: int) -> Op:
    """Forget events up to and with this seq; numbers are never given again."""
    return Op(_PRUNE, {"upto": upto})
