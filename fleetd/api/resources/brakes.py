"""Brakes: what a person froze, and what fleetd itself holds because too much happened at once."""

from __future__ import annotations

import re
from typing import Any

from litestar import Request, delete, get, put
from litestar.params import JSONBody
from litestar.status_codes import HTTP_200_OK, HTTP_204_NO_CONTENT

from fleetd.api import auth, params
from fleetd.api.resources.hosts import reason_of
from fleetd.api.state import desks
from fleetd.kit.errors import Invalid
from fleetd.model.resource import FreezeOrder, FreezeView, HoldView, Page

Req = Request[Any, Any, Any]
_SCOPE = re.compile(r"^(all|(site|rack):[a-z0-9][a-z0-9.-]{0,62})$")


def _scope(text: str) -> str:
    if not _SCOPE.match(text):
        raise Invalid(
            "this is no scope", why=repr(text[:80]), where="scope", remedy="write all, site:NAME or rack:NAME"
        )
    return text


@get("/v1/freezes", guards=[auth.viewer])
async def list_freezes(request: Req) -> Page[FreezeView]:
    """The brakes that are on."""
    found = await desks(request).services.brakes.frozen()
    return Page(items=[FreezeView(scope=scope, reason=reason) for scope, reason in sorted(found.items())])


@put("/v1/freezes/{place:str}", status_code=HTTP_200_OK, guards=[auth.technician])
async def freeze(request: Req, place: params.Scope, data: JSONBody[FreezeOrder]) -> FreezeView:
    """Put the brake on: any technician may."""
    brakes = desks(request).services.brakes
    await brakes.freeze(_scope(place), reason_of(data.reason), who=request.user)
    return FreezeView(scope=place, reason=(await brakes.frozen()).get(place, data.reason))


@delete("/v1/freezes/{place:str}", status_code=HTTP_204_NO_CONTENT, guards=[auth.operator])
async def thaw(request: Req, place: params.Scope) -> None:
    """Take it off: an operator's decision."""
    await desks(request).services.brakes.thaw(_scope(place), who=request.user)


@get("/v1/holds", guards=[auth.viewer])
async def list_holds(request: Req) -> Page[HoldView]:
    """What fleetd stopped by itself."""
    found = await desks(request).services.brakes.holds()
    return Page(items=[HoldView(name=name, reason=reason) for name, reason in sorted(found.items())])


@delete("/v1/holds/{name:str}", status_code=HTTP_204_NO_CONTENT, guards=[auth.operator])
async def lift_hold(request: Req, name: params.Name) -> None:
    """A person looked: go on, and do not hold the same again for an hour."""
    await desks(request).services.brakes.lift(name, who=request.user)


HANDLERS = [list_freezes, freeze, thaw, list_holds, lift_hold]
