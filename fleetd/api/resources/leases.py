"""Leases: a tenant sees and touches its own; whoever asks for another's hears that it does not exist."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Request, Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody, QueryParameter
from litestar.status_codes import HTTP_200_OK, HTTP_201_CREATED

from fleetd.api import auth, paging, params, views
from fleetd.api.conditions import etag, if_match
from fleetd.api.resources.hosts import moment
from fleetd.api.state import Desks, desks
from fleetd.kit.errors import Denied, NotFound
from fleetd.model.access import Role
from fleetd.model.lease import Lease, LeaseRequest
from fleetd.model.resource import ExtendOrder, LeaseOrder, LeasePlanView, LeaseView, Page, ReleaseOrder
from fleetd.store import hosts as host_rows

Req = Request[Any, Any, Any]
OfTenant = Annotated[
    str | None, QueryParameter(name="tenant", description="Only this tenant's leases.", max_length=200)
]
MAX_BODY = 512 * 1024  # user_data may be a cloud-init file


async def _names(state: Desks, leases: list[Lease]) -> dict[str, str]:
    wanted = {host for lease in leases for host in lease.hosts}
    return {h.id: h.name for h in await host_rows.every(state.services.db) if h.id in wanted} if wanted else {}


async def _answer(state: Desks, lease: Lease, status: int = HTTP_200_OK) -> Response[Any]:
    headers = {"ETag": etag(lease.version)}
    if status == HTTP_201_CREATED:
        headers["Location"] = f"/v1/leases/{lease.id}"
    return Response(views.lease(lease, await _names(state, [lease])), status_code=status, headers=headers)


async def _own(request: Req, lease_id: str) -> Lease:
    """The lease, if it is the caller's to see. Raises NotFound."""
    who = request.user
    lease = await desks(request).services.leases.get(lease_id)
    if who.role is Role.TENANT and lease.request.tenant != who.tenant:
        raise NotFound(f"there is no lease {lease_id}", remedy="fleetctl lease list")
    return lease


@get("/v1/leases", guards=[auth.tenant])
async def list_leases(
    request: Req,
    limit: params.Limit = paging.DEFAULT_LIMIT,
    cursor: params.Cursor = None,
    of_tenant: OfTenant = None,
    live: params.Flag = False,
) -> Page[LeaseView]:
    """Leases, newest first; `live` leaves out those that ended."""
    state, who = desks(request), request.user
    if who.role is Role.TENANT:
        of_tenant = who.tenant
    found = await state.services.leases.every(tenant=of_tenant, live=live)
    page, following = paging.page(found, lambda r: (r.id,), limit=limit, cursor=cursor, descending=True)
    names = await _names(state, page)
    return Page(items=[views.lease(lease, names) for lease in page], next=following)


@post(
    "/v1/leases",
    status_code=HTTP_201_CREATED,
    guards=[auth.tenant_write],
    opt={"max_body": MAX_BODY},
    responses={HTTP_200_OK: ResponseSpec(LeasePlanView, description="A dry run.", generate_examples=False)},
)
async def create_lease(request: Req, data: JSONBody[LeaseOrder]) -> Response[LeaseView | LeasePlanView]:
    """Claim hosts, all or none. The answer names them; hand-over goes on (`state` delivering, then active).

    With `dry_run`: 200 and the hosts it would be now, or the same refusal; nothing is claimed.
    """
    state, who = desks(request), request.user
    if who.role is Role.TENANT and data.tenant != who.tenant:
        raise Denied(f"{who.name} leases for {who.tenant} only", where="tenant")
    asked = LeaseRequest(**{field: getattr(data, field) for field in LeaseRequest.__struct_fields__})
    if data.dry_run:
        return Response(views.lease_plan(await state.services.leases.plan(asked, who=who)), status_code=HTTP_200_OK)
    return await _answer(state, await state.services.leases.create(asked, who=who), HTTP_201_CREATED)


@get("/v1/leases/{lease_id:str}", guards=[auth.tenant])
async def get_lease(request: Req, lease_id: params.Id) -> Response[LeaseView]:
    """One lease."""
    return await _answer(desks(request), await _own(request, lease_id))


@post("/v1/leases/{lease_id:str}/extend", status_code=HTTP_200_OK, guards=[auth.tenant_write])
async def extend_lease(request: Req, lease_id: params.Id, data: JSONBody[ExtendOrder]) -> Response[LeaseView]:
    """Move the end."""
    state = desks(request)
    ends = moment(data.ends_at, "ends_at")
    if_match(request, (await _own(request, lease_id)).version)
    return await _answer(state, await state.services.leases.extend(lease_id, ends, who=request.user))


@post("/v1/leases/{lease_id:str}/release", status_code=HTTP_200_OK, guards=[auth.tenant_write])
async def release_lease(request: Req, lease_id: params.Id, data: JSONBody[ReleaseOrder]) -> Response[LeaseView]:
    """End it: power off at once, wipe, prove, publish again."""
    state = desks(request)
    if_match(request, (await _own(request, lease_id)).version)
    return await _answer(state, await state.services.leases.release(lease_id, who=request.user, wipe_now=data.wipe_now))


HANDLERS = [list_leases, create_lease, get_lease, extend_lease, release_lease]
