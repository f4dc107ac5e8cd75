"""The inventory as files: plan, apply exactly what was planned, and give it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litestar import Request, get, post
from litestar.params import JSONBody
from litestar.status_codes import HTTP_200_OK

from fleetd.api import auth
from fleetd.api.state import desks
from fleetd.kit.errors import Invalid
from fleetd.model.resource import ChangeView, InventoryOrder, InventoryView, PlanView

if TYPE_CHECKING:
    from fleetd.lifecycle.plan import Plan

Req = Request[Any, Any, Any]
MAX_BODY = 32 * 1024 * 1024
MAX_FILES = 5000
MAX_NAME = 300


def _files(order: InventoryOrder) -> dict[str, str]:
    """Names are only labels for file:line, never opened; still they must be plain relative paths."""
    if not order.files:
        raise Invalid("no files were sent", where="files", remedy="send {files: {name: text}}")
    if len(order.files) > MAX_FILES:
        raise Invalid(f"more than {MAX_FILES} files", where="files")
    for name in order.files:
        if not name.isprintable() or len(name) > MAX_NAME or name.startswith("/") or ".." in name.split("/"):
            raise Invalid("a file name must be a plain relative path", why=repr(name[:80]), where="files")
    return order.files


def _view(plan: Plan) -> PlanView:
    changes = [
        ChangeView(action=c.action, kind=c.kind, name=c.name, field=c.field, before=c.before, after=c.after, why=c.why)
        for c in plan.changes
    ]
    return PlanView(digest=plan.digest, changes=changes, applied=plan.applied)


@get("/v1/inventory", guards=[auth.viewer])
async def get_inventory(request: Req) -> InventoryView:
    """The ledger's inventory as files; planning them again changes nothing."""
    return InventoryView(files=await desks(request).services.inventory.export())


@post(
    "/v1/inventory/plan",
    status_code=HTTP_200_OK,
    guards=[auth.technician],
    opt={"max_body": MAX_BODY, "reads": True},
)
async def plan_inventory(request: Req, data: JSONBody[InventoryOrder]) -> PlanView:
    """What these files would change. Changes nothing."""
    return _view(await desks(request).services.inventory.plan(_files(data)))


@post("/v1/inventory/apply", status_code=HTTP_200_OK, guards=[auth.operator], opt={"max_body": MAX_BODY})
async def apply_inventory(request: Req, data: JSONBody[InventoryOrder]) -> PlanView:
    """Change it. With `expect` only if the plan is still the one that was shown; else 409. Never deletes a host."""
    applied = await desks(request).services.inventory.apply(_files(data), who=request.user, expect=data.expect)
    return _view(applied)


HANDLERS = [get_inventory, plan_inventory, apply_inventory]
