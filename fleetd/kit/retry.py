"""Retries with a bound: a Temporary is tried again, a Permanent never, and the last failure is what the caller sees."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fleetd.kit.clock import Clock
from fleetd.kit.errors import DeadlineExceeded, Temporary

T = TypeVar("T")


def backoff(attempt: int, *, first: float = 0.5, cap: float = 30.0, spread: float = 0.25) -> float:
    """Seconds before try number `attempt` + 1 (attempt counts from 1): doubling, capped, jittered by ±`spread`."""
    base = min(cap, first * 2.0 ** min(attempt - 1, 16))
    return base * random.uniform(1 - spread, 1 + spread)


async def retry(
    call: Callable[[], Awaitable[T]],
    *,
    clock: Clock,
    attempts: int,
    within: float,
    first: float = 0.5,
    cap: float = 30.0,
) -> T:
    """Call until it returns, at most `attempts` times and never past `within` seconds from now.

    Raises:
        Temporary: the last one, when tries or time are used up.
        Permanent: at once, whatever the call raised.
    """
    end = clock.steady() + within
    for attempt in range(1, attempts + 1):
        try:
            return await call()
        except Temporary as error:
            pause = error.retry_after if error.retry_after is not None else backoff(attempt, first=first, cap=cap)
            if attempt == attempts or clock.steady() + pause >= end:
                raise
            await clock.sleep(pause)
    raise DeadlineExceeded("no try was allowed", why="attempts must be at least 1")
