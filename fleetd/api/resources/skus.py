"""SKUs: the profiles hosts must match."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from litestar import Request, get

from fleetd.api import auth, params
from fleetd.api.state import desks
from fleetd.model.resource import Page, SkuView
from fleetd.model.sku import Sku
from fleetd.store import hosts, inventory

Req = Request[Any, Any, Any]


def _view(sku: Sku, members: int) -> SkuView:
    profile: dict[str, Any] = msgspec.to_builtins(sku)
    return SkuView(
        name=sku.sku,
        vendor=sku.vendor,
        model=sku.model,
        gpus=sku.gpu_count,
        gpu=sku.gpu.name if sku.gpu is not None else "",
        image=sku.image,
        hosts=members,
        digest=sku.digest,
        profile=profile,
    )


@get("/v1/skus", guards=[auth.tenant])
async def list_skus(request: Req) -> Page[SkuView]:
    """All SKUs."""
    db = desks(request).services.db
    members = Counter(host.spec.sku for host in await hosts.every(db))
    return Page(items=[_view(sku, members[name]) for name, sku in sorted((await inventory.skus(db)).items())])


@get("/v1/skus/{name:str}", guards=[auth.tenant])
async def get_sku(request: Req, name: params.Name) -> SkuView:
    """One SKU, with its whole profile."""
    db = desks(request).services.db
    sku = await inventory.sku(db, name)
    return _view(sku, len(await hosts.every(db, sku=name)))


HANDLERS = [list_skus, get_sku]
