"""Who changed what: every mutation that was let in leaves an `audit` event before its caller gets the answer."""

from __future__ import annotations

from typing import Any

from litestar.connection import ASGIConnection

from fleetd.api.asgi import ASGIApp, HTTPScope, Message, Receive, Scope, Send, is_http
from fleetd.api.state import Desks
from fleetd.kit import logs
from fleetd.model.access import Principal
from fleetd.model.event import Event
from fleetd.model.host import Host
from fleetd.store import events

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_CHANGED_NOTHING = frozenset({400, 401, 404, 405, 408, 412, 413, 415, 422})
_MARK = "fleetd_audit"
_log = logs.get("audit")


def about(connection: ASGIConnection[Any, Any, Any, Any], host: Host) -> None:
    """Say which host this request is about, so that its history shows who asked."""
    connection.scope["state"][_MARK] = host


class Audit:
    """ASGI middleware. Refusals (403) are only logged: whoever may do nothing must not be able to fill the ledger."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_http(scope) or scope["method"] in _READS or scope["route_handler"].opt.get("reads"):
            await self._app(scope, receive, send)
            return
        who: Principal = scope["user"]

        async def witnessed(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                if status == 403:
                    _log.warning(
                        "denied", principal=who.name, role=str(who.role), method=scope["method"], path=scope["path"]
                    )
                elif status not in _CHANGED_NOTHING:
                    await _append(scope, who, status)
            await send(message)

        await self._app(scope, receive, witnessed)


async def _append(scope: HTTPScope, who: Principal, status: int) -> None:
    desks: Desks = scope["litestar_app"].state.desks
    host: Host | None = scope["state"].get(_MARK)
    method = str(scope["method"])
    event = Event(
        kind="audit",
        at=desks.services.clock.wall(),
        site=host.spec.site if host is not None else "",
        host=host.id if host is not None else None,
        principal=who.name,
        data={"method": method, "path": scope["path"][:300], "status": status, "role": str(who.role)},
    )
    await desks.services.db.commit([events.append(event)])
