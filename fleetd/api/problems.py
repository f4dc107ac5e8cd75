"""Errors as RFC 9457 problems, with the same words the hand prints: one tree of errors, one way to say them."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ExceptionHandlersMap

from fleetd.kit import logs
from fleetd.kit.errors import Denied, FleetError, Invalid, NotFound, Refused, Temporary
from fleetd.model.resource import Problem

TYPE = "urn:fleetd:error:"  # explained in docs/reference/errors.md
MEDIA_TYPE = "application/problem+json"
_log = logs.get("api")


class HttpProblem(Exception):
    """A fleetd error that HTTP has a more exact status for (401, 412, 413 …) than the tree of errors."""

    def __init__(self, error: FleetError, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.status = status
        self.headers = dict(headers or {})


def unauthenticated(what: str, *, why: str = "") -> HttpProblem:
    """Nobody we know: 401, and how to become somebody."""
    error = Denied(what, why=why, remedy="send a token: `fleetctl --token-file FILE …`; an admin makes one")
    return HttpProblem(error, 401, {"WWW-Authenticate": 'Bearer realm="fleetd"'})


def problem(error: FleetError, instance: str = "", status: int | None = None) -> Problem:
    """The problem document of an error. `type` ends in the code, which docs/reference/errors.md explains."""
    return Problem(
        type=f"{TYPE}{error.code}",
        title=error.title,
        status=status or error.status,
        detail=f"{error.what}: {error.why}" if error.why else error.what,
        what=error.what,
        why=error.why,
        code=error.code,
        remedy=error.remedy,
        retryable=error.retryable,
        where=error.where,
        instance=instance,
    )


def answer(
    request: Request[Any, Any, Any],
    error: FleetError,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response[Problem]:
    """The whole HTTP answer for an error."""
    sent = dict(headers or {})
    if isinstance(error, Temporary):
        sent.setdefault("Retry-After", str(max(1, round(error.retry_after or 1))))
    document = problem(error, request.scope["path"], status)
    return Response(document, status_code=document.status, headers=sent, media_type=MEDIA_TYPE)


def _fleet(request: Request[Any, Any, Any], error: FleetError) -> Response[Problem]:
    if error.status >= 500 and not isinstance(error, Temporary):
        _log.warning("request failed", path=request.scope["path"], code=error.code, error=str(error))
    return answer(request, error)


def _field(message: str, key: str) -> tuple[str, str]:
    """msgspec names an unknown field in its message and its parent in the path: join both to one place."""
    place = re.search(r" - at `\$?\.?([^`]*)`", message)
    text = message.split(" - at `")[0]
    unknown = re.search(r"(?:unknown field|missing required field) `([^`]+)`", text)
    parts = [
        key if key not in ("", "data") else "",
        place.group(1) if place else "",
        unknown.group(1) if unknown else "",
    ]
    return text, ".".join(part for part in parts if part) or "body"


def _validation(request: Request[Any, Any, Any], error: ValidationException) -> Response[Problem]:
    first = error.extra[0] if isinstance(error.extra, list) and error.extra else {"message": error.detail, "key": ""}
    text, where = _field(str(first.get("message", error.detail)), str(first.get("key", "")))
    return answer(request, Invalid("the request does not fit", why=text, where=where))


def _http(request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    """What Litestar itself refuses: no such route, wrong method, not JSON."""
    path, status = request.scope["path"], error.status_code
    if status == 404:
        return answer(request, NotFound(f"there is no {path}", remedy="read /v1/openapi.json for what there is"))
    if status == 405:
        refused = Refused(f"{path} does not take {request.method}", remedy="read /v1/openapi.json for what it takes")
        return answer(request, refused, status, error.headers)
    if status == 400:
        return answer(request, Invalid("the body cannot be read", why=error.detail, where="body"), status)
    _log.error("unexpected HTTP error", path=path, status=status, detail=error.detail)
    return answer(request, FleetError("the API could not answer", why=f"HTTP {status}"))


def _exact(request: Request[Any, Any, Any], error: HttpProblem) -> Response[Problem]:
    return answer(request, error.error, error.status, error.headers)


def _deep(request: Request[Any, Any, Any], _: RecursionError) -> Response[Problem]:
    return answer(request, Invalid("the body is nested too deep", where="body"), 400)


def _bug(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """Ours to mend: the whole story goes to the log, none of it to the caller."""
    # As text: a renderer that shows the locals of each frame would show tokens too.
    _log.error("bug in a request", path=request.scope["path"], trace="".join(traceback.format_exception(error)))
    return answer(
        request, FleetError("fleetd failed on this request", why=f"a {type(error).__name__} that nobody expected")
    )


HANDLERS: ExceptionHandlersMap = {
    FleetError: _fleet,
    HttpProblem: _exact,
    ValidationException: _validation,
    HTTPException: _http,
    RecursionError: _deep,
    Exception: _bug,
}
