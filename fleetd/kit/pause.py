"""Time for programs without a loop (the technician's hand): the same two clocks, and a sleep that Ctrl-C ends at once."""

from __future__ import annotations

import time


def wall() -> float:
    """Seconds since 1970-01-01 UTC."""
    return time.time()


def steady() -> float:
    """Seconds of a clock that never jumps; only differences mean anything."""
    return time.monotonic()


def sleep(seconds: float) -> None:
    """Do nothing for that long."""
    time.sleep(max(0.0, seconds))
