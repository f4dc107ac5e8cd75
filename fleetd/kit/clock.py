"""The only source of time. Whoever asks the operating system directly escapes virtual time and the clock brake.

Two clocks exist: *wall* (seconds since 1970, may jump, is stored and shown) and *steady* (seconds of the running loop,
never jumps, measures deadlines). Under `looptime` the loop's time is virtual, and `LoopClock` derives the wall from it.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What every room may ask about time. Units: seconds."""

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC."""

    def steady(self) -> float:
        """Seconds of a clock that never jumps; only differences mean anything."""

    async def sleep(self, seconds: float) -> None:
        """Let others run for that long."""


class SystemClock:
    """The real one."""

    def wall(self) -> float:
        return time.time()

    def steady(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class LoopClock:
    """Wall derived from the loop's time: under a virtual-time loop both move together.

    Args:
        start: wall seconds shown at the instant of construction.
    """

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._zero = self._loop.time()
        self._start = start

    def wall(self) -> float:
        return self._start + (self._loop.time() - self._zero)

    def steady(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def rfc3339(seconds: float | None) -> str | None:
    """Wall seconds as the API writes them: UTC, milliseconds, a trailing Z. None stays None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_rfc3339(text: str) -> float:
    """Wall seconds of an RFC 3339 time; a time without zone is refused with ValueError."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00") if text.endswith("Z") else text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} names no time zone; write 2026-11-23T04:00:00Z")
    return moment.timestamp()


def human_duration(seconds: float) -> str:
    """`42 s`, `12 m`, `3 h 05 m`, `9 d 4 h`: what a person reads at a glance."""
    whole = int(abs(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
