"""Racks: how many hosts stand where in their life."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from litestar import Request, get

from fleetd.api import auth, params
from fleetd.api.state import Desks, desks
from fleetd.kit.errors import NotFound
from fleetd.model.host import Host
from fleetd.model.resource import Page, RackView
from fleetd.store import hosts, inventory

Req = Request[Any, Any, Any]


async def _views(state: Desks, only: str | None = None) -> list[RackView]:
    db, now = state.services.db, state.services.clock.wall()
    await state.services.brakes.frozen()  # the reasons below show the brakes as last read
    members: defaultdict[str, list[Host]] = defaultdict(list)
    for host in await hosts.every(db, rack=only):
        members[host.spec.rack].append(host)
    return [
        RackView(
            name=name,
            site=rack.site,
            hall=rack.hall,
            power_budget=rack.power.budget if rack.power is not None else None,
            nvlink_domain=rack.nvlink_domain,
            hosts=len(members[name]),
            leaseable=sum(not state.services.hosts.reasons(host, now) for host in members[name]),
            by_state=dict(sorted(Counter(str(host.state) for host in members[name]).items())),
        )
        for name, rack in sorted((await inventory.racks(db)).items())
        if only in (None, name)
    ]


@get("/v1/racks", guards=[auth.viewer])
async def list_racks(request: Req, site: params.Word = None) -> Page[RackView]:
    """All racks, or those of a site."""
    return Page(items=[view for view in await _views(desks(request)) if site in (None, view.site)])


@get("/v1/racks/{name:str}", guards=[auth.viewer])
async def get_rack(request: Req, name: params.Name) -> RackView:
    """One rack."""
    found = await _views(desks(request), name)
    if not found:
        raise NotFound(f"there is no rack {name}", remedy="fleetctl rack list")
    return found[0]


HANDLERS = [list_racks, get_rack]
