"""Sends a file, and gives up on who does not take it: a slow or dead client must not hold its slot for ever.

The kernel copies (sendfile, on asyncio's own loop; uvloop has none and copies through Python). How far the client has
come is asked of the kernel too: TCP_INFO counts the bytes it acknowledged, whatever way they were sent.

What a client has a part of may be replaced before it comes for the rest: aiohttp reads only dates in If-Range, and of these
takes an older file for the same one, so that is judged here.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from multidict import CIMultiDict

WINDOW = 60.0  # seconds over which the rate is judged
STEP = 5.0  # seconds between two looks
_READ = ("Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since")
_ACKED = 120  # offset of tcpi_bytes_acked in struct tcp_info (linux/tcp.h)


class Transfer(web.FileResponse):
    """A FileResponse that its handler sends itself, within its slot; the server then finds it sent."""

    async def prepare(self, request: web.BaseRequest):  # type: ignore[no-untyped-def]  # aiohttp's writer type is private
        if self.prepared:
            return None
        return await super().prepare(request)


async def send(request: web.Request, path: Path, *, min_rate: int, headers: dict[str, str]) -> web.StreamResponse:
    """Send `path` as Range, If-Range and the method ask; returns when the kernel has all of it, or the client is gone.

    This very file, as it lies there: never a packed neighbour (`<name>.gz`) because the client takes such. One that changes
    while it flows ends the connection, so that the client does not wait for what is not there any more.

    Args:
        min_rate: bytes a second, over a minute, below which the client is cut off.
    """
    response = Transfer(path, chunk_size=1024 * 1024, headers=headers)
    response.content_type = "application/octet-stream"
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client is gone")
    before = await asyncio.get_running_loop().run_in_executor(None, _stat, path)
    try:
        async with _moving(transport, min_rate):
            await response.prepare(_asked(request, before))
            await response.write_eof()
        if request.method != "HEAD" and _stat(path) != before:  # in the kernel's memory by now: no thread for it
            response.force_close()
    except (ConnectionError, TimeoutError) as error:
        transport.abort()
        raise ConnectionResetError(str(error)) from error
    return response


def _stat(path: Path) -> tuple[int, int] | None:
    """Nanosecond of the last change and size; None when it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _asked(request: web.Request, stat: tuple[int, int] | None) -> web.Request:
    """The request with no more than we mean, of what aiohttp would read in it."""
    headers = CIMultiDict((name, text) for name in _READ if (text := request.headers.get(name, "")) and text.isascii())
    since = request.headers.get("If-Range")
    if since is not None and (stat is None or since.strip() not in _names(*stat)):
        headers.popall("Range", None)
    return request.clone(headers=headers)


def _names(mtime_ns: int, size: int) -> tuple[str, str]:
    """ETag and Last-Modified, as aiohttp tells them of such a file."""
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(math.ceil(mtime_ns / 1e9)))
    return f'"{mtime_ns:x}-{size:x}"', date


@asynccontextmanager
async def _moving(transport: asyncio.Transport, min_rate: int) -> AsyncIterator[None]:
    """Raises TimeoutError in the body once a window went by with fewer than `min_rate` bytes a second acknowledged."""
    loop = asyncio.get_running_loop()
    started, looks = loop.time(), [(loop.time(), _acked(transport))]
    timer: asyncio.TimerHandle | None = None

    async with asyncio.timeout(None) as limit:

        def look() -> None:
            nonlocal timer
            now, acked = loop.time(), _acked(transport)
            looks.append((now, acked))
            while len(looks) > 2 and now - looks[1][0] >= WINDOW:
                looks.pop(0)
            since, before = looks[0]
            if now - started >= WINDOW and acked - before < min_rate * (now - since):
                limit.reschedule(now)
            else:
                timer = loop.call_later(STEP, look)

        timer = loop.call_later(STEP, look)
        try:
            yield
        finally:
            timer.cancel()


def _acked(transport: asyncio.Transport) -> int:
    """Bytes that the client's kernel has acknowledged on this connection; 0 when it is closed."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return 0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED + 8)
    except OSError:  # closed under us: no progress
        return 0
    return int(struct.unpack_from("=Q", info, _ACKED)[0]) if len(info) >= _ACKED + 8 else 0
