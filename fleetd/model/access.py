"""Who may do what: principals and roles."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Role(StrEnum):
    """Each role may do all that the ones before it may; `tenant` stands aside: only its own leases."""

    TENANT = "tenant"
    VIEWER = "viewer"
    TECHNICIAN = "technician"
    OPERATOR = "operator"
    ADMIN = "admin"

    def covers(self, other: Role) -> bool:
        """True if this role may do what `other` may."""
        if Role.TENANT in (self, other):
            return self is other or self is Role.ADMIN
        ladder = [Role.VIEWER, Role.TECHNICIAN, Role.OPERATOR, Role.ADMIN]
        return ladder.index(self) >= ladder.index(other)


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """A caller. `name` stands in the audit: "root" or "uid:1000" on the socket, the token's name beyond it."""

    name: str
    role: Role
    tenant: str | None = None


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """An API token; only its sha256 is stored. Times in wall seconds."""

    id: str
    name: str
    role: Role
    hash: str
    created: float
    expires: float | None = None
    revoked: float | None = None
    tenant: str | None = None
