"""How often something may be written down: whoever can make us log must not be able to fill the ledger with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class Meter:
    """A token bucket per key, for at most `keys` keys (the one unused longest is forgotten).

    Args:
        most: how many at once; also how many a `seconds` may come on.
        seconds: the period in which an empty bucket fills again.
    """

    def __init__(self, most: int, seconds: float, *, keys: int = 1024) -> None:
        self._most, self._seconds, self._keys = most, seconds, keys
        self._buckets: OrderedDict[Hashable, tuple[float, float, int]] = OrderedDict()  # left, at, held back

    def take(self, key: Hashable, now: float) -> int | None:
        """How many were held back since the last that passed; None: this one is held back too. `now`: steady seconds."""
        left, at, held = self._buckets.pop(key, (float(self._most), now, 0))
        left = min(float(self._most), left + max(0.0, now - at) * self._most / self._seconds)
        passes = left >= 1.0
        self._buckets[key] = (left - 1.0, now, 0) if passes else (left, now, held + 1)
        while len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)
        return held if passes else None
