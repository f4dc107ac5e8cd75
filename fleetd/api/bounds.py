"""What a caller may send, in bytes and in seconds: a body that is huge or never ends must not fill or hold the daemon."""

from __future__ import annotations

import asyncio

from fleetd.api.asgi import ASGIApp, Incoming, Receive, Scope, Send, is_http
from fleetd.api.problems import HttpProblem
from fleetd.kit.errors import DeadlineExceeded, Invalid

MAX_BODY = 256 * 1024  # bytes; a route that takes more says so with opt `max_body`
BODY_SECONDS = 30.0


class Bounds:
    """Counts and times the body as it comes in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_http(scope):
            await self._app(scope, receive, send)
            return
        most = int(scope["route_handler"].opt.get("max_body", MAX_BODY))
        for name, value in scope["headers"]:
            if name == b"content-length" and (not value.isdigit() or len(value) > 15 or int(value) > most):
                raise _too_large(most)
        taken = 0
        complete = False

        async def bounded() -> Incoming:
            nonlocal taken, complete
            if complete:
                return await receive()  # waits for the disconnect: that may take as long as it likes
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    message = await receive()
            except TimeoutError as error:
                late = DeadlineExceeded("the body did not arrive", why=f"nothing for {BODY_SECONDS:.0f} s")
                raise HttpProblem(late, 408, {"Connection": "close"}) from error
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if taken > most:
                    raise _too_large(most)
            return message

        await self._app(scope, bounded, send)


def _too_large(most: int) -> HttpProblem:
    return HttpProblem(Invalid("the body is too large", why=f"at most {most} bytes are taken here", where="body"), 413)
