"""Checks: what is proven, and why it matters."""

from __future__ import annotations

from typing import Any

from litestar import Request, get

from fleetd.api import auth, params
from fleetd.checks import registry
from fleetd.kit.errors import NotFound
from fleetd.model.check import CheckInfo
from fleetd.model.resource import CheckView, Page

Req = Request[Any, Any, Any]


def _view(info: CheckInfo) -> CheckView:
    return CheckView(id=info.id, title=info.title, subject=info.subject, source=info.source, why=info.why)


@get("/v1/checks", guards=[auth.viewer], sync_to_thread=False)
def list_checks() -> Page[CheckView]:
    """All checks this fleetd has."""
    return Page(items=[_view(info) for info in registry.every()])


@get("/v1/checks/{name:str}", guards=[auth.viewer], sync_to_thread=False)
def get_check(name: params.Name) -> CheckView:
    """One check."""
    found = registry.find(name)
    if found is None:
        raise NotFound(f"there is no check {name[:80]}", remedy="fleetctl check list")
    return _view(found.info)


HANDLERS = [list_checks, get_check]
