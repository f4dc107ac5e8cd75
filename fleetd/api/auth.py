"""Who calls, and what they may do: the process behind the unix socket, bearer tokens everywhere."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.types import Guard

from fleetd.api.peers import principal_of_peer
from fleetd.api.problems import unauthenticated
from fleetd.api.state import desks
from fleetd.kit.errors import Denied
from fleetd.model.access import Principal, Role
from fleetd.store import access

TOKEN_PREFIX = "flt_"
PEER = "fleetd_peer"  # key of the connection's state, set by server.PeerProtocol and by nobody else


def token_hash(text: str) -> str:
    """What the ledger keeps of a token: it is random enough that a plain sha256 hides it."""
    return hashlib.sha256(text.encode()).hexdigest()


def new_token() -> str:
    """192 bits, with a prefix that secret scanners know."""
    return TOKEN_PREFIX + secrets.token_urlsafe(24)


class Gatekeeper(AbstractAuthenticationMiddleware):
    """Puts the Principal of every request into the connection. A bearer token wins over peer credentials."""

    async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
        state = desks(connection)
        header = connection.headers.get("authorization")
        if header is not None:
            principal = await self._bearer(header, connection)
        else:
            peer = connection.scope["state"].get(PEER)
            if peer is None:
                raise unauthenticated("no token was sent", why="beyond the unix socket every request needs one")
            principal = principal_of_peer(peer, state.socket_policy)
        return AuthenticationResult(user=principal, auth=None)

    @staticmethod
    async def _bearer(header: str, connection: ASGIConnection[Any, Any, Any, Any]) -> Principal:
        scheme, _, text = header.partition(" ")
        if scheme.lower() != "bearer" or not text.startswith(TOKEN_PREFIX) or len(text) > 128:
            raise unauthenticated("this is no fleetd token", why=f"a token reads `Bearer {TOKEN_PREFIX}…`")
        state = desks(connection)
        token = await access.token_by_hash(state.services.db, token_hash(text))
        now = state.services.clock.wall()
        if token is None or token.revoked is not None or (token.expires is not None and token.expires <= now):
            raise unauthenticated("the token is unknown, expired or revoked")
        if token.role is Role.TENANT and not token.tenant:
            raise Denied("the token names no tenant")
        return Principal(name=token.name, role=token.role, tenant=token.tenant)


def need(*roles: Role) -> Guard:
    """A guard: the caller's role must cover one of these."""

    def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        who: Principal = connection.user
        if not any(who.role.covers(role) for role in roles):
            raise Denied(
                f"{who.name} may not do this",
                why=f"it needs the role {' or '.join(roles)}, {who.name} is {who.role}",
                remedy=f"ask an admin for a token: `fleetd token create --role {roles[0]}`",
            )

    return guard


viewer = need(Role.VIEWER)
technician = need(Role.TECHNICIAN)
operator = need(Role.OPERATOR)
tenant = need(Role.VIEWER, Role.TENANT)
tenant_write = need(Role.OPERATOR, Role.TENANT)
