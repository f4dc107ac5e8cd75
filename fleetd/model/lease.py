"""Leases: a tenant's hold on hosts for a term. One host is in at most one live lease, by constraint of the ledger."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Placement(StrEnum):
    ANY = "any"
    SAME_RACK = "same-rack"
    SAME_NVLINK_DOMAIN = "same-nvlink-domain"


class LeaseState(StrEnum):
    DELIVERING = "delivering"
    ACTIVE = "active"
    ENDING = "ending"  # released or expired; hosts are being reclaimed
    ENDED = "ended"
    FAILED = "failed"  # hand-over failed; hosts are being reclaimed


class LeaseRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tenant asks for. `ends_at` is RFC 3339."""

    tenant: str
    sku: str
    count: int
    placement: Placement = Placement.ANY
    site: str | None = None
    ends_at: str
    image: str | None = None
    ssh_keys: tuple[str, ...] = ()
    user_data: str | None = None


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the ledger. Times in wall seconds. `token` is the fencing token of the hold."""

    id: str
    request: LeaseRequest
    state: LeaseState
    hosts: tuple[str, ...]
    created: float
    starts: float
    ends: float
    activated: float | None = None
    released: float | None = None
    reclaim_at: float | None = None  # from when its hosts may be wiped: the end, plus the grace
    ended: float | None = None
    reason: str = ""
    run: str | None = None
    token: int = 1
    principal: str = ""
    version: int = 1
