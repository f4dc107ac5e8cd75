"""The app: all routes, in the order auth, bounds, idempotency, audit; and the OpenAPI document made from them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Litestar, Request, get
from litestar.datastructures import State
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.spec import Components, License, SecurityScheme, Tag
from prometheus_client import REGISTRY, CollectorRegistry

from fleetd import __version__
from fleetd.api import metrics, problems
from fleetd.api.asgi import ASGIApp, Message, Receive, Scope, Send, is_http
from fleetd.api.audit import Audit
from fleetd.api.auth import Gatekeeper
from fleetd.api.bounds import Bounds
from fleetd.api.idempotency import Idempotency
from fleetd.api.peers import SocketPolicy
from fleetd.api.resources import (
    boots,
    brakes,
    capacity,
    certificates,
    checks,
    events,
    health,
    hosts,
    images,
    inventory,
    leases,
    playbooks,
    racks,
    runs,
    sites,
    skus,
)
from fleetd.api.state import Desks
from fleetd.model.resource import Problem

if TYPE_CHECKING:
    from fleetd.lifecycle.services import Services

HEARTBEAT_SECONDS = 15.0
_NOUNS = {
    "hosts": hosts,
    "runs": runs,
    "leases": leases,
    "inventory": inventory,
    "capacity": capacity,
    "certificates": certificates,
    "events": events,
    "sites": sites,
    "racks": racks,
    "skus": skus,
    "images": images,
    "boots": boots,
    "playbooks": playbooks,
    "checks": checks,
    "brakes": brakes,
    "health": health,
}


class _Counted:
    """Outermost middleware: counts answers by route template."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_http(scope):
            await self._app(scope, receive, send)
            return
        counter = scope["litestar_app"].state.requests
        route = min(scope["route_handler"].paths, default="").replace(":str}", "}")

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                counter.labels(scope["method"], route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counting)


@get("/v1/openapi.json", include_in_schema=False)
async def openapi_json(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """The document that describes this API."""
    document: dict[str, Any] = request.app.state.openapi
    return document


def _config() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="fleetd",
        version=__version__,
        description=(
            "Turns racked GPU servers into rentable compute. Errors are RFC 9457 problems; lists are"
            ' `{"items": […], "next": …}`; POST takes an Idempotency-Key; what carries an ETag takes If-Match.'
        ),
        license=License(name="Apache-2.0", identifier="Apache-2.0"),
        components=Components(security_schemes={"token": SecurityScheme(type="http", scheme="bearer")}),
        security=[{"token": []}],
        tags=[Tag(name=name) for name in _NOUNS],
        use_handler_docstrings=True,
        operation_id_creator=lambda handler, _method, _path: handler.handler_name,
    )


def _litestar(state: dict[str, Any]) -> Litestar:
    for name, module in _NOUNS.items():
        for handler in module.HANDLERS:
            handler.tags = [name]
    return Litestar(
        route_handlers=[*(handler for module in _NOUNS.values() for handler in module.HANDLERS), openapi_json],
        middleware=[_Counted, Gatekeeper, Bounds, Idempotency, Audit],
        exception_handlers=problems.HANDLERS,
        openapi_config=_config(),
        state=State(state),
        request_max_body_size=None,  # Bounds counts, route by route
        logging_config=None,
    )


def build_app(
    services: Services,
    *,
    engine_age: Callable[[], float | None] = lambda: None,
    clock_status: Callable[[], Mapping[str, Any]] = dict,
    socket_policy: SocketPolicy = SocketPolicy(),  # noqa: B008 -- frozen
    registry: CollectorRegistry = REGISTRY,
    heartbeat: float = HEARTBEAT_SECONDS,
) -> Litestar:
    """The app over these services.

    Args:
        engine_age: seconds since the engine's last heartbeat, None before the first.
        clock_status: what the clock brake says (`why` not empty while expiries are suspended).
        socket_policy: what callers on the unix socket may do.
        registry: where the other rooms keep their counters; its metrics join the scrape.
        heartbeat: seconds between beats of an event stream.
    """
    own = CollectorRegistry()
    desks = Desks(
        services,
        socket_policy=socket_policy,
        engine_age=engine_age,
        clock_status=clock_status,
        registries=(own, registry),
        stopping=asyncio.Event(),
        heartbeat=heartbeat,
    )
    return _litestar({"desks": desks, "requests": metrics.requests_counter(own), "openapi": openapi_document()})


def openapi_document() -> dict[str, Any]:
    """OpenAPI 3.1 as committed in docs/reference/openapi.json: deterministic, every operation with its problem answer."""
    document = _renamed(_litestar({}).openapi_schema.to_schema())
    problem = {
        "description": "A problem: what, why, and what to do.",
        "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for path in document["paths"].values():
        for method, operation in path.items():
            operation["responses"].pop("400", None)
            operation["responses"]["default"] = problem
            operation.pop("summary", None)  # only the function's name again
            if method == "post":
                operation.setdefault("parameters", []).append(_header("Idempotency-Key", "Send twice, done once."))
            if operation["operationId"] in _CONDITIONAL:
                operation.setdefault("parameters", []).append(
                    _header("If-Match", "The ETag you saw; 412 when it changed.")
                )
            if operation["operationId"] == "upload_image":
                stream = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
                operation["requestBody"] = {"required": True, "content": {"application/octet-stream": stream}}
            if operation["operationId"] == "follow_events":
                operation["parameters"].append(_header("Last-Event-ID", "The last seq you have."))
    document["components"]["schemas"]["Problem"] = msgspec.json.schema(Problem)["$defs"]["Problem"]
    document["paths"] = dict(sorted(document["paths"].items()))
    document["components"]["schemas"] = dict(sorted(document["components"]["schemas"].items()))
    return document


_CONDITIONAL = frozenset(
    {
        "power_host",
        "boot_host",
        "identify_host",
        "quarantine_host",
        "maintenance_host",
        "release_host",
        "retire_host",
        "cancel_run",
        "extend_lease",
        "release_lease",
    }
)
_PAGE = re.compile(r"Page_fleetd\.model\.\w+\.(\w+?)View_")


def _renamed(document: dict[str, Any]) -> dict[str, Any]:
    """`Page_fleetd.model.resource.HostView_` is nobody's name for a page of hosts."""
    text = _PAGE.sub(r"\1Page", msgspec.json.encode(document).decode())
    renamed: dict[str, Any] = msgspec.json.decode(text)
    return renamed


def _header(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
