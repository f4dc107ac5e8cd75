"""Who calls, and what they may do: peer credentials on the unix socket, bearer tokens everywhere."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import secrets
import socket
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.types import Guard

from fleetd.api.problems import unauthenticated
from fleetd.api.state import desks
from fleetd.kit.errors import Denied
from fleetd.model.access import Principal, Role
from fleetd.store import access

TOKEN_PREFIX = "flt_"
PEER = "fleetd_peer"  # key of the connection's state, set by server.PeerProtocol and by nobody else
_SO_PEERGROUPS = 59  # linux/socket.h; Python 3.11 has no name for it
_MAX_GROUPS = 1024


class Peer(NamedTuple):
    """The process at the other end of a unix socket, as the kernel says."""

    pid: int
    uid: int
    gids: frozenset[int]


def peer_of(sock: Any) -> Peer | None:
    """SO_PEERCRED and SO_PEERGROUPS of a connected unix socket; None for any other socket."""
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
    except OSError:  # more groups than fit: the primary one alone still counts
        raw = b""
    return Peer(pid, uid, frozenset({gid, *struct.unpack(f"{len(raw) // 4}I", raw)}))


class SocketPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller on the unix socket may be. `groups` maps a group's name to a role; `others` None denies the rest."""

    groups: Mapping[str, Role] = msgspec.field(default_factory=lambda: {"fleetd-ops": Role.OPERATOR})
    others: Role | None = None


def principal_of_peer(peer: Peer, policy: SocketPolicy) -> Principal:
    """root and the daemon's own user are admin; then the strongest role of their groups; then `others`.

    Raises:
        Denied: the policy has nothing for them.
    """
    try:
        user = pwd.getpwuid(peer.uid).pw_name
    except KeyError:
        user = f"uid:{peer.uid}"
    if peer.uid in (0, os.geteuid()):
        return Principal(name=user, role=Role.ADMIN)
    best = policy.others
    for name, role in policy.groups.items():
        try:
            group = grp.getgrnam(name)
        except KeyError:
            continue
        if (group.gr_gid in peer.gids or user in group.gr_mem) and (best is None or role.covers(best)):
            best = role
    if best is None:
        names = ", ".join(sorted(policy.groups)) or "an admitted group"
        raise Denied(
            f"{user} may not use this socket",
            why=f"not in {names}",
            remedy=f"sudo usermod -aG {names.split(',')[0]} {user}",
        )
    return Principal(name=user, role=best)


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
