"""Playbooks, as loaded and proven legal."""

from __future__ import annotations

from typing import Any

from litestar import Request, get

from fleetd.api import auth, params, views
from fleetd.api.state import desks
from fleetd.model.resource import Page, PlaybookView

Req = Request[Any, Any, Any]


@get("/v1/playbooks", guards=[auth.viewer])
async def list_playbooks(request: Req) -> Page[PlaybookView]:
    """All playbooks."""
    found = await desks(request).services.runs.playbooks()
    return Page(items=[views.playbook(p) for p in sorted(found, key=lambda p: p.name)])


@get("/v1/playbooks/{name:str}", guards=[auth.viewer])
async def get_playbook(request: Req, name: params.Name) -> PlaybookView:
    """One playbook with its steps."""
    return views.playbook(desks(request).services.runs.playbook(name))


HANDLERS = [list_playbooks, get_playbook]
