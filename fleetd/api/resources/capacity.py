"""Capacity: how much of each SKU, where, in what state, free when, and why the rest is not leaseable."""

from __future__ import annotations

from typing import Any

from litestar import Request, get

from fleetd.api import auth, params
from fleetd.api.state import desks
from fleetd.kit.clock import rfc3339
from fleetd.model.resource import CapacityView, Page


@get("/v1/capacity", guards=[auth.tenant])
async def list_capacity(
    request: Request[Any, Any, Any], sku: params.Word = None, site: params.Word = None, by_rack: params.Flag = False
) -> Page[CapacityView]:
    """One row a SKU and site, or with `by_rack` a SKU and rack. `reasons` counts hosts by what keeps them from being leased."""
    rows = await desks(request).services.hosts.capacity(by_rack=by_rack)
    return Page(
        items=[
            CapacityView(
                sku=row.sku,
                site=row.site,
                rack=row.rack,
                total=row.total,
                leaseable=row.leaseable,
                by_state=row.by_state,
                reasons=row.reasons,
                free_at=rfc3339(row.free_at),
            )
            for row in rows
            if sku in (None, row.sku) and site in (None, row.site)
        ]
    )


HANDLERS = [list_capacity]
