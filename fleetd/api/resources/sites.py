"""Sites."""

from __future__ import annotations

from collections import Counter
from typing import Any

from litestar import Request, get

from fleetd.api import auth, params
from fleetd.api.state import Desks, desks
from fleetd.kit.errors import NotFound
from fleetd.model.resource import Page, SiteView
from fleetd.store import hosts, inventory

Req = Request[Any, Any, Any]


async def _views(state: Desks) -> list[SiteView]:
    db = state.services.db
    racks = Counter(rack.site for rack in (await inventory.racks(db)).values())
    members = Counter(host.spec.site for host in await hosts.every(db))
    return [
        SiteView(
            name=name, halls=site.halls, pdus=tuple(p.name for p in site.pdus), racks=racks[name], hosts=members[name]
        )
        for name, site in sorted((await inventory.sites(db)).items())
    ]


@get("/v1/sites", guards=[auth.viewer])
async def list_sites(request: Req) -> Page[SiteView]:
    """All sites of this ledger."""
    return Page(items=await _views(desks(request)))


@get("/v1/sites/{name:str}", guards=[auth.viewer])
async def get_site(request: Req, name: params.Name) -> SiteView:
    """One site."""
    for view in await _views(desks(request)):
        if view.name == name:
            return view
    raise NotFound(f"there is no site {name}", remedy="fleetctl site list")


HANDLERS = [list_sites, get_site]
