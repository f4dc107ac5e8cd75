"""The rehearsal's second hand: break, repair and mark hosts of a running simulator, over a local socket of its own.

One JSON object a line in, one out. fleetd does not know this socket; who plays technician or tenant uses it::

    {"do": "hosts"}                       -> {"ok": true, "hosts": [{name, power, running, serial, faults}, …]}
    {"do": "break", "host": "lou-a01-02", "kind": "gpu-off-bus", "params": {"gpu": 3}, "count": null}
    {"do": "repair", "host": "lou-a01-02", "kind": "gpu-off-bus"}     without a kind: everything
    {"do": "mark", "host": "lou-a01-02", "what": "tenant.begin", "data": {"lease": "lease-…"}}

An answer that is not ok carries `error`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from pathlib import Path
from typing import Any, Protocol

import msgspec

from fleetd.kit.errors import Conflict, FleetError, Garbled, Unreachable
from fleetd.kit.tasks import deadline

MAX_LINE = 64 * 1024
IDLE = 600.0  # seconds a silent client may stay
MAX_CLIENTS = 16


class Hands(Protocol):
    """What the socket may do; SimSite does it."""

    def describe(self) -> list[dict[str, Any]]: ...

    def break_host(
        self, host: str, kind: str, params: dict[str, int | str | float] | None = None, count: int | None = None
    ) -> None: ...

    def repair(self, host: str, kind: str | None = None) -> int: ...

    def mark(self, host: str, what: str, **data: Any) -> None: ...


class _List(msgspec.Struct, tag_field="do", tag="hosts", forbid_unknown_fields=True):
    pass


class _Break(msgspec.Struct, tag_field="do", tag="break", forbid_unknown_fields=True, kw_only=True):
    host: str
    kind: str
    params: dict[str, int | str | float] = {}
    count: int | None = None


class _Repair(msgspec.Struct, tag_field="do", tag="repair", forbid_unknown_fields=True, kw_only=True):
    host: str
    kind: str | None = None


class _Mark(msgspec.Struct, tag_field="do", tag="mark", forbid_unknown_fields=True, kw_only=True):
    host: str
    what: str
    data: dict[str, Any] = {}


_Order = _List | _Break | _Repair | _Mark
_DECODER = msgspec.json.Decoder(_Order)


class Control:
    """The listener. The socket is made 0600; a leftover of a dead simulator is replaced, a live one is refused."""

    def __init__(self, path: Path, hands: Hands) -> None:
        self._path, self._hands = path, hands
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Raises Conflict when another simulator listens there, or when the path is no socket."""
        if self._path.exists():
            if not stat.S_ISSOCK(self._path.stat().st_mode):
                raise Conflict(
                    f"{self._path} exists and is no socket", remedy="name another `control` in the site file"
                )
            try:
                _, writer = await deadline(asyncio.open_unix_connection(self._path), 2.0)
                await _hang_up(writer)
            except (OSError, TimeoutError):
                self._path.unlink(missing_ok=True)
            else:
                raise Conflict(
                    f"another simulator listens on {self._path}",
                    remedy="stop it, or name another `control` in the site file",
                )
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=MAX_LINE)
        except OSError as error:  # too long a path (107 bytes), no such folder, no permission
            remedy = "work in a folder with a shorter path, or name another `control`"
            raise Conflict(f"the control socket {self._path} cannot be made", why=str(error), remedy=remedy) from error
        finally:
            os.umask(before)

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        clients = tuple(self._clients)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            while len(self._clients) <= MAX_CLIENTS and (line := await deadline(reader.readline(), IDLE)):
                writer.write(msgspec.json.encode(self._obey(line)) + b"\n")
                await deadline(writer.drain(), IDLE)
        except (OSError, TimeoutError, ValueError):  # ValueError: a line longer than MAX_LINE
            pass
        finally:
            await _hang_up(writer)
            self._clients.discard(task)

    def _obey(self, line: bytes) -> dict[str, Any]:
        try:
            order = _DECODER.decode(line)
            match order:
                case _List():
                    return {"ok": True, "hosts": self._hands.describe()}
                case _Break():
                    self._hands.break_host(order.host, order.kind, order.params, order.count)
                case _Repair():
                    return {"ok": True, "repaired": self._hands.repair(order.host, order.kind)}
                case _Mark():
                    self._hands.mark(order.host, order.what, **order.data)
        except (msgspec.DecodeError, RecursionError, FleetError, TypeError) as error:
            return {"ok": False, "error": str(error)}
        return {"ok": True}


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def ask(path: Path, order: dict[str, Any], *, timeout: float = 5.0) -> dict[str, Any]:
    """Send one order to a running simulator. Raises Unreachable, or Garbled with what it answered."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(path, limit=4 * 1024 * 1024)
            try:
                writer.write(msgspec.json.encode(order) + b"\n")
                await writer.drain()
                line = await reader.readline()
            finally:
                await _hang_up(writer)
    except (OSError, TimeoutError) as error:
        raise Unreachable(f"no simulator answers on {path}", why=str(error)) from error
    try:
        answer = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Garbled(f"the simulator's answer on {path} cannot be read", why=str(error)) from error
    if not answer.get("ok"):
        raise Garbled("the simulator refused the order", why=str(answer.get("error", "")))
    return answer
