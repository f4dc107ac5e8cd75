"""The control socket obeys, refuses, and survives what is thrown at it."""

from __future__ import annotations

import asyncio
import contextlib
import stat
from pathlib import Path
from typing import Any

import pytest

from fleetd.kit.errors import Conflict, Garbled, Invalid, NotFound, Unreachable
from fleetd.sim.control import MAX_LINE, Control, ask


class Bench:
    """Hands that note what they were told; host `a` exists."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def describe(self) -> list[dict[str, Any]]:
        return [{"name": "a", "power": "off"}]

    def break_host(
        self, host: str, kind: str, params: dict[str, int | str | float] | None = None, count: int | None = None
    ) -> None:
        if host != "a":
            raise NotFound(f"host `{host}` is not simulated here")
        self.done.append((host, kind, params, count))

    def repair(self, host: str, kind: str | None = None) -> int:
        self.done.append((host, kind))
        return 1

    def mark(self, host: str, what: str, **data: Any) -> None:
        if what == "wipe.done":
            raise Invalid("cannot be marked")
        self.done.append((host, what, data))


async def test_orders_are_obeyed(tmp_path: Path) -> None:
    bench, path = Bench(), tmp_path / "c.sock"
    control = Control(path, bench)
    await control.start()
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await ask(path, {"do": "hosts"}))["hosts"] == [{"name": "a", "power": "off"}]
        await ask(path, {"do": "break", "host": "a", "kind": "xid", "params": {"gpu": 1}, "count": 2})
        assert (await ask(path, {"do": "repair", "host": "a"}))["repaired"] == 1
        await ask(path, {"do": "mark", "host": "a", "what": "tenant.begin", "data": {"lease": "l"}})
        assert bench.done == [("a", "xid", {"gpu": 1}, 2), ("a", None), ("a", "tenant.begin", {"lease": "l"})]
    finally:
        await control.stop()
    assert not path.exists()
    with pytest.raises(Unreachable):
        await ask(path, {"do": "hosts"})


@pytest.mark.parametrize(
    "order",
    [
        {"do": "dance"},
        {"do": "break", "host": "a"},
        {"do": "break", "host": "a", "kind": "xid", "colour": 1},
        {"do": "break", "host": "b", "kind": "xid"},
        {"do": "mark", "host": "a", "what": "wipe.done"},
        {"do": "mark", "host": "a", "what": "note.x", "data": {"host": "b"}},
        {},
    ],
)
async def test_a_wrong_order_is_refused_and_the_next_one_served(tmp_path: Path, order: dict[str, Any]) -> None:
    control = Control(tmp_path / "c.sock", Bench())
    await control.start()
    try:
        with pytest.raises(Garbled):
            await ask(tmp_path / "c.sock", order)
        await ask(tmp_path / "c.sock", {"do": "hosts"})
    finally:
        await control.stop()


@pytest.mark.parametrize("noise", [b"\x00\xff\n", b"[" * 5000 + b"\n", b"x" * (MAX_LINE * 2), b"", b"{"])
async def test_noise_does_not_stop_it(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "c.sock"
    control = Control(path, Bench())
    await control.start()
    try:
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(noise)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        await ask(path, {"do": "hosts"})
    finally:
        await control.stop()


async def test_a_leftover_is_replaced_and_a_live_one_respected(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    first = Control(path, Bench())
    await first.start()
    with pytest.raises(Conflict, match="another simulator"):
        await Control(path, Bench()).start()
    await first.stop()
    await first.stop()
    server = await asyncio.start_unix_server(lambda *_: None, path)
    server.close()
    await server.wait_closed()
    assert path.exists()
    second = Control(path, Bench())
    await second.start()
    await second.stop()
    path.write_text("a file")
    with pytest.raises(Conflict, match="no socket"):
        await Control(path, Bench()).start()
    with pytest.raises(Conflict, match="cannot be made"):
        await Control(tmp_path / ("x" * 120), Bench()).start()
