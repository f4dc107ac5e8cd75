"""How the daemon itself is: for `fleetctl doctor`, for a load balancer and for Prometheus."""

from __future__ import annotations

from collections import Counter
from typing import Any

from litestar import Request, Response, get

from fleetd import __version__
from fleetd.api import auth, metrics
from fleetd.api.state import Desks, desks
from fleetd.kit.clock import rfc3339
from fleetd.kit.errors import FleetError
from fleetd.model.access import Principal
from fleetd.model.resource import HealthView
from fleetd.model.run import RunState
from fleetd.store import events, hosts

Req = Request[Any, Any, Any]
SHOWN = 8  # names of each kind
ENGINE_LATE = 60.0  # seconds without a heartbeat after which the engine counts as stuck


async def gather(state: Desks, who: Principal) -> HealthView:
    """Look at everything the daemon leans on. A database that fails is a finding here, not an error."""
    clock = state.services.clock
    began = clock.steady()
    problems: list[str] = []
    counts: Counter[str] = Counter()
    past, runs, frozen, holds = 0, 0, dict[str, str](), dict[str, str]()
    database: dict[str, Any] = {"dialect": state.services.db.dialect, "ok": True}
    try:
        database["last_event"] = await events.last(state.services.db)
        database["seconds"] = round(clock.steady() - began, 4)
        everything = await hosts.every(state.services.db)
        counts = Counter(str(host.state) for host in everything)
        past = sum(host.deadline is not None and host.deadline < clock.wall() for host in everything)
        runs = len(await state.services.runs.every(limit=1000, state=RunState.RUNNING))
        frozen, holds = await state.services.brakes.frozen(), await state.services.brakes.holds()
    except FleetError as error:
        database |= {"ok": False, "error": str(error)}
        problems.append(f"the database does not answer: {error}")
    images = await _images(state, problems) if database["ok"] else {}
    age = state.engine_age()
    if age is None:
        problems.append("the engine has not started yet")
    elif age > ENGINE_LATE:
        problems.append(f"the engine shows no sign of life for {age:.0f} s")
    watch = dict(state.clock_status())
    if watch.get("why"):
        problems.append(f"expiries are suspended: {watch['why']}")
    if past:
        problems.append(f"{past} hosts are past their deadline")
    problems += [f"hold {name}: {reason}" for name, reason in sorted(holds.items())]
    return HealthView(
        status="degraded" if problems else "ok",
        version=__version__,
        time=rfc3339(clock.wall()) or "",
        database=database,
        engine={"heartbeat_age": age},
        clock=watch,
        hosts=dict(sorted(counts.items())),
        past_deadline=past,
        runs_active=runs,
        watchers=state.watchers,
        freezes=frozen,
        holds=holds,
        problems=problems,
        images=images,
        who=who.name,
        role=str(who.role),
    )


async def _images(state: Desks, problems: list[str]) -> dict[str, Any]:
    try:
        found = await state.services.images.survey()
    except FleetError as error:
        problems.append(f"the images cannot be looked at: {error}")
        return {}
    problems += [f"the file of image {name} is gone, or has another size: add it again" for name in found.gone[:SHOWN]]
    return {
        "kept": found.kept,
        "gone": list(found.gone),
        "unnamed": len(found.strangers),
        "unnamed_bytes": sum(stranger.bytes for stranger in found.strangers),
        "unnamed_names": [stranger.name[:255] for stranger in found.strangers[:SHOWN]],
    }


@get("/v1/health", guards=[auth.viewer])
async def health(request: Req) -> Response[HealthView]:
    """200 when all is well, 503 with the same body when the database does not answer."""
    found = await gather(desks(request), request.user)
    return Response(found, status_code=200 if found.database["ok"] else 503, headers={"Cache-Control": "no-store"})


@get("/metrics", guards=[auth.viewer], include_in_schema=False)
async def prometheus(request: Req) -> Response[bytes]:
    """Prometheus text. Labels are site, SKU and state, never a host."""
    return Response(await metrics.render(desks(request)), media_type=metrics.CONTENT_TYPE)


HANDLERS = [health, prometheus]
