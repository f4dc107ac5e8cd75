"""Events: as a stream to follow, and as a list to page through."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Request, get
from litestar.params import QueryParameter
from litestar.response import Stream

from fleetd.api import auth, events, paging, params, views
from fleetd.api.state import Desks, desks
from fleetd.kit.errors import Invalid
from fleetd.model.access import Role
from fleetd.model.resource import EventView, Page
from fleetd.store import events as event_rows

Req = Request[Any, Any, Any]
Kinds = Annotated[
    str | None, QueryParameter(description="Kinds, separated by commas: `host.state,run.finished`.", max_length=1000)
]
OfHost = Annotated[str | None, QueryParameter(name="host", description="Only of this host (id, name or serial).")]
OfRun = Annotated[str | None, QueryParameter(name="run", description="Only of this run (id).")]
After = Annotated[int | None, QueryParameter(ge=0, description="Only later than this seq.")]


async def _filter(request: Req, kinds: str | None, host: str | None, run: str | None) -> events.Filter:
    who = request.user
    if host is not None and who.role is not Role.TENANT:
        host = (await desks(request).services.hosts.get(host)).id
    return events.Filter(
        host=host,
        run=run,
        kinds=tuple(k.strip() for k in kinds.split(",") if k.strip()) if kinds else None,
        tenant=who.tenant if who.role is Role.TENANT else None,
    )


async def _start(request: Req, state: Desks, after: int | None) -> int:
    """Where to begin: Last-Event-ID, else `after`, else now. What lies ahead of the ledger was never ours."""
    last = await event_rows.last(state.services.db)
    sent = request.headers.get("last-event-id")
    if sent is not None:
        if not sent.isascii() or not sent.isdigit() or len(sent) > 18:
            raise Invalid("Last-Event-ID is no seq", where="Last-Event-ID")
        after = int(sent)
    if after is None:
        return last
    if after > last:
        raise Invalid(
            f"event {after} has not happened yet",
            why=f"the last one is {last}; was the ledger restored from a backup?",
            where="Last-Event-ID" if sent is not None else "after",
            remedy="list everything again, then follow from the newest event",
        )
    return after


@get("/v1/events", guards=[auth.tenant], media_type="text/event-stream")
async def follow_events(
    request: Req, kinds: Kinds = None, of_host: OfHost = None, of_run: OfRun = None, after: After = None
) -> Stream:
    """Server-sent events, without end. `id` is the seq: send it back as Last-Event-ID and nothing is missed."""
    state = desks(request)
    events.admit(state)
    wanted = await _filter(request, kinds, of_host, of_run)
    start = await _start(request, state, after)
    return Stream(
        events.watch(state, start, wanted),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@get("/v1/events/list", guards=[auth.tenant])
async def list_events(
    request: Req,
    kinds: Kinds = None,
    of_host: OfHost = None,
    of_run: OfRun = None,
    after: After = None,
    limit: params.Limit = paging.DEFAULT_LIMIT,
    cursor: params.Cursor = None,
) -> Page[EventView]:
    """Events in their order, oldest first. `next` is null at the end of the ledger."""
    state = desks(request)
    wanted = await _filter(request, kinds, of_host, of_run)
    start = int(paging.decode(cursor, (0,))[0]) if cursor is not None else after or 0
    found, seen = await events.read(state, start, limit, wanted)
    more = seen < await event_rows.last(state.services.db)
    return Page(items=[views.event(e) for e in found], next=paging.encode((seen,)) if more else None)


HANDLERS = [follow_events, list_events]
