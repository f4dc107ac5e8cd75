"""Runs: start, watch, cancel, try again. Long work is answered 202 with the place to look."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Request, Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody, QueryParameter
from litestar.status_codes import HTTP_200_OK, HTTP_202_ACCEPTED

from fleetd.api import auth, paging, params, views
from fleetd.api.conditions import etag, if_match
from fleetd.api.state import Desks, desks
from fleetd.kit.errors import NotFound
from fleetd.model.resource import (
    Page,
    RunHostView,
    RunOrder,
    RunPlanHost,
    RunPlanSkip,
    RunPlanView,
    RunView,
    StepRecordView,
)
from fleetd.model.run import Run, RunState
from fleetd.store import hosts as host_rows

Req = Request[Any, Any, Any]
MAX_RUNS = 10_000  # how far back the list looks
OfState = Annotated[RunState | None, QueryParameter(name="state", description="Only runs in this state.")]


async def _view(state: Desks, run: Run) -> RunView:
    return views.run(run, await state.services.runs.hosts(run.id))


async def _started(state: Desks, run: Run) -> Response[RunView | RunPlanView]:
    headers = {"Location": f"/v1/runs/{run.id}", "ETag": etag(run.version)}
    return Response(await _view(state, run), status_code=HTTP_202_ACCEPTED, headers=headers)


@get("/v1/runs", guards=[auth.viewer])
async def list_runs(
    request: Req, limit: params.Limit = paging.DEFAULT_LIMIT, cursor: params.Cursor = None, of_state: OfState = None
) -> Page[RunView]:
    """Runs, newest first."""
    state = desks(request)
    found = await state.services.runs.every(limit=MAX_RUNS, state=of_state)
    page, following = paging.page(found, lambda r: (r.id,), limit=limit, cursor=cursor, descending=True)
    return Page(items=[await _view(state, run) for run in page], next=following)


@post(
    "/v1/runs",
    status_code=HTTP_202_ACCEPTED,
    guards=[auth.technician],
    responses={HTTP_200_OK: ResponseSpec(RunPlanView, description="A dry run.", generate_examples=False)},
)
async def start_run(request: Req, data: JSONBody[RunOrder]) -> Response[RunView | RunPlanView]:
    """Start a playbook over a host range. With `dry_run`: 200 and what it would do; nothing is changed."""
    state = desks(request)
    started = await state.services.runs.start(data.playbook, data.hosts, who=request.user, dry_run=data.dry_run)
    if isinstance(started, Run):
        return await _started(state, started)
    plan = RunPlanView(
        playbook=data.playbook,
        hosts=[RunPlanHost(host=h.host, name=h.name, wave=h.wave, steps=list(h.steps)) for h in started.hosts],
        skipped=[RunPlanSkip(host=s.host, name=s.name, why=s.why) for s in started.skipped],
    )
    return Response(plan, status_code=HTTP_200_OK)


@get("/v1/runs/{run_id:str}", guards=[auth.viewer])
async def get_run(request: Req, run_id: params.Id) -> Response[RunView]:
    """One run, with its hosts counted by state."""
    state = desks(request)
    run = await state.services.runs.get(run_id)
    return Response(await _view(state, run), headers={"ETag": etag(run.version)})


@get("/v1/runs/{run_id:str}/hosts", guards=[auth.viewer])
async def list_run_hosts(
    request: Req, run_id: params.Id, limit: params.Limit = paging.DEFAULT_LIMIT, cursor: params.Cursor = None
) -> Page[RunHostView]:
    """The hosts of a run by wave and name, each with the step it works on and the finding that stopped it."""
    state = desks(request)
    run = await state.services.runs.get(run_id)
    members = await state.services.runs.hosts(run_id)
    hosts = {host.id: host for host in await host_rows.every(state.services.db)}
    page, following = paging.page(
        members,
        lambda m: (m.wave, hosts[m.host].name if m.host in hosts else "", m.host),
        limit=limit,
        cursor=cursor,
    )
    return Page(items=[views.run_host(m, hosts.get(m.host), run.steps) for m in page], next=following)


@get("/v1/runs/{run_id:str}/hosts/{host:str}/steps", guards=[auth.viewer])
async def list_run_steps(request: Req, run_id: params.Id, host: params.Ref) -> Page[StepRecordView]:
    """The journal of one host in one run: each try of each step, its intent and its result."""
    state = desks(request)
    await state.services.runs.get(run_id)
    found = await state.services.hosts.get(host)
    if not any(member.host == found.id for member in await state.services.runs.hosts(run_id)):
        raise NotFound(f"host {found.name} is not in run {run_id}", remedy=f"fleetctl run show {run_id}")
    return Page(items=[views.step_record(step) for step in await state.services.runs.steps(run_id, found.id)])


@post("/v1/runs/{run_id:str}/cancel", status_code=HTTP_200_OK, guards=[auth.technician])
async def cancel_run(request: Req, run_id: params.Id) -> Response[RunView]:
    """Start no further host; those that run stop at the next safe place."""
    state = desks(request)
    if_match(request, (await state.services.runs.get(run_id)).version)
    run = await state.services.runs.cancel(run_id, who=request.user)
    return Response(await _view(state, run), headers={"ETag": etag(run.version)})


@post("/v1/runs/{run_id:str}/retry", status_code=HTTP_202_ACCEPTED, guards=[auth.technician])
async def retry_run(request: Req, run_id: params.Id) -> Response[RunView | RunPlanView]:
    """A new run over the hosts that failed or were held."""
    state = desks(request)
    return await _started(state, await state.services.runs.retry(run_id, who=request.user))


HANDLERS = [list_runs, start_run, get_run, list_run_hosts, list_run_steps, cancel_run, retry_run]
