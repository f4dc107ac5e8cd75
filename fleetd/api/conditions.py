"""ETag and If-Match: an order given on what one saw is refused when the thing has changed since."""

from __future__ import annotations

from typing import Any

from litestar.connection import ASGIConnection

from fleetd.api.problems import HttpProblem
from fleetd.kit.errors import Conflict


def etag(version: int) -> str:
    """A strong tag of a version."""
    return f'"{version}"'


def if_match(connection: ASGIConnection[Any, Any, Any, Any], version: int) -> None:
    """Raises 412 when If-Match was sent and names neither this version nor `*`."""
    sent = connection.headers.get("if-match")
    if sent is None:
        return
    tags = {tag.strip() for tag in sent.split(",")}
    if "*" not in tags and etag(version) not in tags:
        changed = Conflict(
            "it changed meanwhile", why=f"it is at version {version} now", where="If-Match", remedy="read it again"
        )
        raise HttpProblem(changed, 412, {"ETag": etag(version)})
