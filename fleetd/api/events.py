"""The ledger's events as a stream that can be cut and taken up again without missing one (SSE with Last-Event-ID)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from fleetd.api import views
from fleetd.api.state import Desks
from fleetd.kit.errors import Busy
from fleetd.model.event import Event
from fleetd.store import events, leases

MAX_WATCHERS = 256
BATCH = 500
SLICE = 1.0  # seconds between looks at the stop flag: so long a watcher may delay the daemon's end


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """What a watcher wants; None wants all. `tenant` narrows to that tenant's leases whatever else is asked."""

    host: str | None = None
    run: str | None = None
    kinds: tuple[str, ...] | None = None
    tenant: str | None = None


async def read(desks: Desks, after: int, limit: int, wanted: Filter) -> tuple[list[Event], int]:
    """Events after `after`, and the seq up to which everything was looked at.

    The end of the ledger is read *before* the events: what is committed between the two is found by the next call.
    """
    db = desks.services.db
    end = await events.last(db)
    found = await events.after(
        db, after, limit=limit, host=wanted.host, run=wanted.run, kinds=list(wanted.kinds) if wanted.kinds else None
    )
    seen = found[-1].seq if len(found) >= limit else max(end, after, found[-1].seq if found else 0)
    if wanted.tenant is not None:
        own = {lease.id for lease in await leases.every(db, tenant=wanted.tenant)}
        found = [event for event in found if event.lease in own]
    return found, seen


async def stream(desks: Desks, after: int, wanted: Filter) -> AsyncIterator[bytes]:
    """SSE lines from `after` on, for ever or until the daemon stops; a heartbeat names the seq reached so far.

    Raises:
        Busy: there are already MAX_WATCHERS.
    """
    clock = desks.services.clock
    yield f": fleetd events\nretry: 1000\nid: {after}\n\n".encode()  # so that a cut before the first event resumes here
    beat = clock.steady()
    while not desks.stopping.is_set():
        found, after = await read(desks, after, BATCH, wanted)
        for event in found:
            yield frame(event)
        if found:
            beat = clock.steady()
            continue
        if clock.steady() - beat >= desks.heartbeat:
            beat = clock.steady()
            yield f": beat\nid: {after}\n\n".encode()
        await desks.services.db.wait_events(after, min(SLICE, desks.heartbeat))


async def watch(desks: Desks, after: int, wanted: Filter) -> AsyncIterator[bytes]:
    """`stream`, counted among the watchers."""
    desks.watchers += 1
    try:
        async for piece in stream(desks, after, wanted):
            yield piece
    finally:
        desks.watchers -= 1


def admit(desks: Desks) -> None:
    """Raises Busy when there are too many watchers: each holds a connection."""
    if desks.watchers >= MAX_WATCHERS:
        raise Busy("too many watchers", why=f"{MAX_WATCHERS} follow the events already", retry_after=10)


def frame(event: Event) -> bytes:
    """One event as SSE."""
    body: Any = msgspec.json.encode(views.event(event))
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.kind.encode(), body)
