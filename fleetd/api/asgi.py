"""The few ASGI types our middlewares share, and the question whether a scope is HTTP at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeGuard

from litestar.enums import ScopeType
from litestar.types import (
    ASGIApp,
    HTTPReceiveMessage,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    HTTPScope,
    Message,
    Receive,
    Scope,
    Send,
    WebSocketReceiveMessage,
)

Incoming = HTTPReceiveMessage | WebSocketReceiveMessage
Read = Callable[[], Awaitable[Incoming]]

__all__ = [
    "ASGIApp",
    "HTTPResponseBodyEvent",
    "HTTPResponseStartEvent",
    "HTTPScope",
    "Incoming",
    "Message",
    "Read",
    "Receive",
    "Scope",
    "Send",
    "is_http",
]


def is_http(scope: Scope) -> TypeGuard[HTTPScope]:
    """True for an HTTP request; there are no WebSockets here, but the types know both."""
    return scope["type"] == ScopeType.HTTP
