"""Waiting with no fixed limits: what is watched may take as long as it moves. What stands still is ended, with all logs' ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
STALL = 240.0  # seconds in which nothing at all moved
WHOLE = 1500.0  # seconds: a machine that restarts for ever moves too
LOOK = 1.0


class Stalled(AssertionError):
    """Nothing moved, or it moved for ever. The message is the ends of all logs."""


class Progress:
    """Looks at whatever tells that work goes on: console bytes, log bytes, blocks of drives.

    Args:
        watched: files; a change of size, blocks or time of writing is progress.
        logs: what is shown when nothing moves.
    """

    def __init__(self, watched: Callable[[], list[Path]], logs: Callable[[], list[Path]]) -> None:
        self._watched, self._logs = watched, logs

    def _seen(self) -> dict[Path, tuple[int, int, int]]:
        found = {}
        for path in self._watched():
            if path.exists():
                state = path.stat()
                found[path] = (state.st_size, state.st_blocks, state.st_mtime_ns)
        return found

    async def watch(self, work: Awaitable[T], what: str, *, stall: float = STALL, whole: float = WHOLE) -> T:
        """The result of `work`. Raises Stalled, after it cancelled the work."""
        task = asyncio.ensure_future(work)
        began = moved = time.monotonic()
        seen = self._seen()
        try:
            while not (await asyncio.wait((task,), timeout=LOOK))[0]:
                now, fresh = time.monotonic(), self._seen()
                if fresh != seen:
                    seen, moved = fresh, now
                if now - moved > stall or now - began > whole:
                    raise Stalled(
                        f"{what}: after {now - began:.0f} s; nothing moved for {now - moved:.0f} s\n{self.ends()}"
                    )
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))

    async def until(self, met: Callable[[], bool], what: str, *, stall: float = STALL, pause: float = 0.05) -> None:
        """Until `met`. Raises Stalled."""

        async def poll() -> None:
            while not met():
                await asyncio.sleep(pause)

        await self.watch(poll(), what, stall=stall)

    def ends(self, lines: int = 25) -> str:
        """The last lines of every log."""
        parts = []
        for path in self._logs():
            if path.exists() and path.stat().st_size:
                tail = path.read_bytes()[-16_000:].decode(errors="replace").replace("\0", "").splitlines()[-lines:]
                parts.append(f"--- {path}\n" + "\n".join(tail))
        return "\n".join(parts)


class Stages:
    """How long each stage took; printed at the end of the test run."""

    def __init__(self) -> None:
        self.took: list[tuple[str, float]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.took.append((name, time.monotonic() - began))

    def table(self) -> str:
        width = max((len(name) for name, _ in self.took), default=0)
        return "\n".join(f"{name:<{width}}  {seconds:7.1f} s" for name, seconds in self.took)


STAGES = Stages()
