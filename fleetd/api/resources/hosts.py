"""Hosts: what they are, why they are so, and the orders a person may give one."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.params import JSONBody, QueryParameter
from litestar.status_codes import HTTP_200_OK, HTTP_202_ACCEPTED

from fleetd.api import audit, auth, paging, params, views
from fleetd.api.conditions import etag, if_match
from fleetd.api.state import Desks, desks
from fleetd.kit.clock import parse_rfc3339
from fleetd.kit.errors import Denied, Invalid, NotFound
from fleetd.model.access import Role
from fleetd.model.host import Host
from fleetd.model.power import BootDevice, PowerVerb
from fleetd.model.resource import (
    BootOrder,
    DoneView,
    EventView,
    HostView,
    IdentifyOrder,
    MaintenanceOrder,
    Page,
    PowerOrder,
    PowerView,
    QuarantineOrder,
    RunView,
    StepRecordView,
)
from fleetd.store import leases, runs

Req = Request[Any, Any, Any]
HostRange = Annotated[
    str | None,
    QueryParameter(
        description="A host range, such as `lou-a01-[01-18]` or `state=available,rack=lou-a01`.", max_length=65_536
    ),
]
MAX_REASON = 500


def view(state: Desks, host: Host) -> HostView:
    """A host with today's reasons."""
    return views.host(host, state.services.hosts.reasons(host, state.services.clock.wall()))


def answer(state: Desks, host: Host, status: int = HTTP_200_OK) -> Response[HostView]:
    """A host with its ETag."""
    return Response(view(state, host), status_code=status, headers={"ETag": etag(host.version)})


async def _mean(request: Req, ref: params.Ref) -> Host:
    """The host an order is about; it must still have the version the caller saw."""
    host = await desks(request).services.hosts.get(ref)
    audit.about(request, host)
    if_match(request, host.version)
    return host


def reason_of(text: str) -> str:
    """A reason that says something. Raises Invalid."""
    if not text.strip() or len(text) > MAX_REASON:
        raise Invalid("a reason is needed", why=f"1 to {MAX_REASON} characters", where="reason")
    return text.strip()


def moment(text: str, where: str) -> float:
    """Wall seconds of a time in a body. Raises Invalid naming the field."""
    try:
        return parse_rfc3339(text)
    except (ValueError, OverflowError) as error:
        raise Invalid(
            "this is no time", why=str(error)[:200], where=where, remedy="write 2026-11-23T04:00:00Z"
        ) from error


@get("/v1/hosts", guards=[auth.viewer])
async def list_hosts(
    request: Req, hosts: HostRange = None, limit: params.Limit = paging.DEFAULT_LIMIT, cursor: params.Cursor = None
) -> Page[HostView]:
    """All hosts, or those a host range names, by site, rack and position. A range that names nothing is 404."""
    state = desks(request)
    try:
        found = await state.services.hosts.select("all" if hosts is None else hosts)
    except NotFound:
        if hosts is not None:
            raise
        found = []  # an empty house is no error
    page, following = paging.page(
        found, lambda h: (h.spec.site, h.spec.rack, h.spec.position, h.id), limit=limit, cursor=cursor
    )
    return Page(items=[view(state, host) for host in page], next=following)


@get("/v1/hosts/{ref:str}", guards=[auth.viewer])
async def get_host(request: Req, ref: params.Ref) -> Response[HostView]:
    """One host, by id, name or serial."""
    state = desks(request)
    return answer(state, await state.services.hosts.get(ref))


@get("/v1/hosts/{ref:str}/why", guards=[auth.viewer])
async def why_host(request: Req, ref: params.Ref) -> dict[str, Any]:
    """Why it is where it is: waits, last outcome and the place in the code that said so, run and step, findings."""
    state = desks(request)
    said: dict[str, Any] = await state.services.hosts.why(ref)
    host = await state.services.hosts.get(ref)
    return {**said, "host": msgspec.to_builtins(view(state, host))}


@get("/v1/hosts/{ref:str}/history", guards=[auth.viewer])
async def history_host(request: Req, ref: params.Ref, limit: params.Limit = paging.DEFAULT_LIMIT) -> Page[EventView]:
    """What happened to it, newest first."""
    found = await desks(request).services.hosts.history(ref, limit=limit)
    return Page(items=[views.event(event) for event in found])


@get("/v1/hosts/{ref:str}/steps", guards=[auth.viewer])
async def steps_host(request: Req, ref: params.Ref, limit: params.Limit = paging.DEFAULT_LIMIT) -> Page[StepRecordView]:
    """The journal of what was done to it, whatever the run."""
    state = desks(request)
    host = await state.services.hosts.get(ref)
    return Page(items=[views.step_record(s) for s in await runs.steps_of_host(state.services.db, host.id, limit)])


async def _tenant_may(request: Req, host: Host) -> None:
    """A tenant has the power switch of the hosts in its own live lease, and of no other."""
    who = request.user
    if who.role is not Role.TENANT:
        return
    lease = await leases.of_host(desks(request).services.db, host.id)
    if lease is None or lease.request.tenant != who.tenant:
        raise Denied(f"{who.name} has no lease on this host")


@post("/v1/hosts/{ref:str}/power", status_code=HTTP_200_OK, guards=[auth.need(Role.TECHNICIAN, Role.TENANT)])
async def power_host(request: Req, ref: params.Ref, data: JSONBody[PowerOrder]) -> PowerView:
    """Do it, and say what the read-back says."""
    if request.user.role is Role.TENANT:
        # Whether a host exists is not a tenant's to learn: unknown and foreign answer alike.
        try:
            host = await desks(request).services.hosts.get(ref)
        except NotFound as error:
            raise Denied(f"{request.user.name} has no lease on this host") from error
        await _tenant_may(request, host)
    host = await _mean(request, ref)
    verb = None if data.verb == "read" else PowerVerb(data.verb)
    power = await desks(request).services.hosts.power(ref, verb, who=request.user)
    return PowerView(host=host.name, power=str(power))


@post("/v1/hosts/{ref:str}/boot", status_code=HTTP_200_OK, guards=[auth.technician])
async def boot_host(request: Req, ref: params.Ref, data: JSONBody[BootOrder]) -> DoneView:
    """Set where the next boot comes from, once."""
    host = await _mean(request, ref)
    await desks(request).services.hosts.boot(ref, BootDevice(data.device), who=request.user)
    return DoneView(host=host.name, done=f"the next boot comes from {data.device}")


@post("/v1/hosts/{ref:str}/identify", status_code=HTTP_200_OK, guards=[auth.technician])
async def identify_host(request: Req, ref: params.Ref, data: JSONBody[IdentifyOrder]) -> DoneView:
    """The identify LED on or off."""
    host = await _mean(request, ref)
    await desks(request).services.hosts.identify(ref, data.on, who=request.user)
    return DoneView(host=host.name, done="the identify LED is " + ("on" if data.on else "off"))


@post("/v1/hosts/{ref:str}/quarantine", status_code=HTTP_200_OK, guards=[auth.technician])
async def quarantine_host(request: Req, ref: params.Ref, data: JSONBody[QuarantineOrder]) -> Response[HostView]:
    """Take it out of inventory; the reason stands as its finding."""
    state = desks(request)
    reason = reason_of(data.reason)
    await _mean(request, ref)
    return answer(state, await state.services.hosts.quarantine(ref, reason, who=request.user))


@post("/v1/hosts/{ref:str}/maintenance", status_code=HTTP_200_OK, guards=[auth.technician])
async def maintenance_host(request: Req, ref: params.Ref, data: JSONBody[MaintenanceOrder]) -> Response[HostView]:
    """A person takes it. On a leased host it is recorded, and takes effect when the lease ends."""
    state = desks(request)
    reason, until = reason_of(data.reason), moment(data.until, "until")
    if until <= state.services.clock.wall():
        raise Invalid("maintenance would be over already", where="until")
    await _mean(request, ref)
    return answer(state, await state.services.hosts.maintenance(ref, reason=reason, until=until, who=request.user))


@post("/v1/hosts/{ref:str}/release", status_code=HTTP_202_ACCEPTED, guards=[auth.technician])
async def release_host(request: Req, ref: params.Ref) -> Response[RunView]:
    """Back from quarantine or maintenance: a run that proves it again."""
    state = desks(request)
    await _mean(request, ref)
    run = await state.services.hosts.release(ref, who=request.user)
    body = views.run(run, await state.services.runs.hosts(run.id))
    return Response(body, status_code=HTTP_202_ACCEPTED, headers={"Location": f"/v1/runs/{run.id}"})


@post("/v1/hosts/{ref:str}/retire", status_code=HTTP_200_OK, guards=[auth.operator])
async def retire_host(request: Req, ref: params.Ref) -> Response[HostView]:
    """Gone for good; its record is kept."""
    state = desks(request)
    await _mean(request, ref)
    return answer(state, await state.services.hosts.retire(ref, who=request.user))


HANDLERS = [
    list_hosts,
    get_host,
    why_host,
    history_host,
    steps_host,
    power_host,
    boot_host,
    identify_host,
    quarantine_host,
    maintenance_host,
    release_host,
    retire_host,
]
