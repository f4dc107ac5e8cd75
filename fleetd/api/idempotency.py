"""Idempotency-Key: a POST that is sent twice, because the first answer was lost, is done once and answered alike.

Our own semantics (the IETF draft has expired): a key counts per principal and route; only an answer that changed something
(2xx) is remembered; the same key with another request is 422; while the first still works it is 409.
"""

from __future__ import annotations

import hashlib

import msgspec

from fleetd.api.asgi import (
    ASGIApp,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    Incoming,
    Message,
    Read,
    Receive,
    Scope,
    Send,
    is_http,
)
from fleetd.api.problems import HttpProblem
from fleetd.api.state import Desks
from fleetd.kit.errors import Conflict, Invalid
from fleetd.model.access import Principal
from fleetd.store import access

MAX_KEY = 255
_KEPT = (b"content-type", b"location", b"etag")


class _Answer(msgspec.Struct, frozen=True, array_like=True):
    """What is remembered beside the status."""

    headers: list[tuple[str, str]]
    body: bytes


class Idempotency:
    """ASGI middleware; stands after authentication and before the audit, so that a replay is not audited again."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _key_of(scope)
        if key is None or not is_http(scope):
            await self._app(scope, receive, send)
            return
        desks: Desks = scope["litestar_app"].state.desks
        who: Principal = scope["user"]
        route = f"{scope['method']} {scope['path']}"
        body = await _whole_body(receive)
        fingerprint = hashlib.sha256(scope.get("query_string", b"") + b"\n" + body).hexdigest()
        place = (who.name, route, key)
        if place in desks.in_flight:
            raise HttpProblem(
                Conflict("the first request with this Idempotency-Key still works"), 409, {"Retry-After": "1"}
            )
        desks.in_flight.add(place)
        try:
            known = await access.recall(desks.services.db, who.name, route, key)
            if known is not None:
                if known.fingerprint != fingerprint:
                    raise Invalid(
                        "this Idempotency-Key was used for another request",
                        where="Idempotency-Key",
                        remedy="take a new key for a new request",
                    )
                await _replay(msgspec.msgpack.decode(known.body, type=_Answer), known.status, send)
                return
            recorder = _Recorder(send)
            await self._app(scope, _once(body, receive), recorder)
            if 200 <= recorder.status < 300:
                kept = msgspec.msgpack.encode(_Answer(recorder.headers, bytes(recorder.body)))
                op = access.remember(
                    who.name, route, key, fingerprint, recorder.status, kept, desks.services.clock.wall()
                )
                await desks.services.db.commit([op])
            await recorder.release()
        finally:
            desks.in_flight.discard(place)


class _Recorder:
    """Holds the answer back until it is remembered: what the caller has seen, a replay will say too."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[Message] = []
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = [(n.decode(), v.decode()) for n, v in message["headers"] if n.lower() in _KEPT]
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")
        self._held.append(message)

    async def release(self) -> None:
        """Let it go."""
        for message in self._held:
            await self._send(message)


def _key_of(scope: Scope) -> str | None:
    if not is_http(scope) or scope["method"] != "POST":
        return None
    for name, value in scope["headers"]:
        if name == b"idempotency-key":
            text = value.decode("latin-1").strip()
            if not text or len(text) > MAX_KEY or not text.isprintable() or not text.isascii():
                raise Invalid(
                    "the Idempotency-Key is not one",
                    why=f"1 to {MAX_KEY} printable characters",
                    where="Idempotency-Key",
                )
            return text
    return None


async def _whole_body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def _once(body: bytes, receive: Receive) -> Read:
    """A receive that gives the body we already read, then goes on with the real one."""
    given = False

    async def again() -> Incoming:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _replay(answer: _Answer, status: int, send: Send) -> None:
    start: HTTPResponseStartEvent = {
        "type": "http.response.start",
        "status": status,
        "headers": [
            *((name.encode(), value.encode()) for name, value in answer.headers),
            (b"content-length", str(len(answer.body)).encode()),
            (b"idempotency-replayed", b"true"),
        ],
    }
    await send(start)
    end: HTTPResponseBodyEvent = {"type": "http.response.body", "body": answer.body, "more_body": False}
    await send(end)
