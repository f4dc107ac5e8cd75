"""How a simulated host in this process fetches its image: by the host side's own rules, on the loop, over the real wire.

A thread a host would cost the loop more than the whole fetch; `probe.host.source.Route` knows no wire, so both share it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

import aiohttp

from fleetd.probe.host.source import CONNECT, STALL, Dead, Full, Route, SourceFailed


class Arrived:
    """A `probe.host.source.Source` whose bytes are here already, or whose failure is."""

    def __init__(self, chunks: list[bytes], route: Route, failure: SourceFailed | None) -> None:
        self._chunks, self._failure = chunks, failure
        self.url, self.used, self.resumed = route.url, route.used, route.resumed

    def chunks(self) -> Iterator[bytes]:
        yield from self._chunks
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Nothing is under way."""


async def fetch(urls: Sequence[str], length: int, address: str) -> Arrived:
    """All of it, as far as it can be had, from the local `address`. Never raises for what servers do."""
    route, chunks = Route(urls, length, time.monotonic), list[bytes]()
    connector = aiohttp.TCPConnector(local_addr=(address, 0) if address else None, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=STALL)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False, timeout=timeout) as session:
        while route.left:
            try:
                target, pause = route.turn()
            except SourceFailed as failure:
                return Arrived(chunks, route, failure)
            if pause:
                await asyncio.sleep(pause)
                continue
            try:
                headers = route.headers(target)
                async with session.get(target.url, headers=headers, allow_redirects=False) as answer:
                    skip = route.judge(target, answer.status, answer.headers.get)
                    async for chunk in answer.content.iter_any():
                        fresh, skip = chunk[skip:], max(0, skip - len(chunk))
                        if fresh:
                            chunks.append(fresh)
                            route.took(target, len(fresh))
                if route.left:
                    raise OSError("the stream was cut")
            except (OSError, aiohttp.ClientError, TimeoutError, ValueError, Dead, Full) as error:
                route.failed(target, error)
    return Arrived(chunks, route, None)
