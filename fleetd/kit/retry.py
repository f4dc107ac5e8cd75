"""How long to wait before the next try: doubling, capped, jittered, so that a hall of hosts does not knock in step."""

from __future__ import annotations

import random


def backoff(attempt: int, *, first: float = 0.5, cap: float = 30.0, spread: float = 0.25) -> float:
    """Seconds before try number `attempt` + 1 (attempt counts from 1): doubling, capped, jittered by ±`spread`."""
    base = min(cap, first * 2.0 ** min(attempt - 1, 16))
    return base * random.uniform(1 - spread, 1 + spread)
