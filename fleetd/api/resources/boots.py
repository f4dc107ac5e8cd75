"""Why a host does not come up: what the boot service and the desk saw of it, and what that means."""

from __future__ import annotations

from typing import Any

from litestar import Request, get

from fleetd.api import auth, params, views
from fleetd.api.state import desks
from fleetd.model.bootresource import BootDoctorView

Req = Request[Any, Any, Any]


@get("/v1/hosts/{ref:str}/boot", guards=[auth.viewer])
async def boot_doctor(request: Req, ref: params.Ref) -> BootDoctorView:
    """The host's open boot, the trail of its way up, and one diagnosis with its remedy."""
    services = desks(request).services
    host = await services.hosts.get(ref)
    boot, trail, found = await services.boots.doctor(host)
    return views.boot(host, boot, trail, found, services.boots.remembers_since)


HANDLERS = [boot_doctor]
