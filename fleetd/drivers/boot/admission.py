"""Who may fetch an image now. A thousand hosts at one uplink finish no sooner together than in turn, and in turn none starves.

First come, first served, as far as the rack has room; one host holds one slot, however many connections it has open. Who
was told to come again later keeps its place for a grace. Others may pass it while it is away, but only so often: then the
next slot is kept free for it until it is back or its grace is over. So every wait is bounded by those who came before.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from fleetd.kit.errors import Busy

PATIENCE = 20.0  # seconds a request is held before it is sent away
GRACE = 45.0  # seconds a place is kept for who was sent away
RETRY_AFTER = 3.0  # seconds it is told to stay away
PASSES = 3  # so often others may pass a place whose host is away
PER_HOST = 4  # connections of one host at once
MOST_WAITING = 8192


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Transfers of images at once. `min_rate`: bytes a second below which a client counts as dead (over a minute)."""

    server: int = 64
    rack: int = 16
    min_rate: int = 128 * 1024


class Counters(msgspec.Struct, kw_only=True):
    """What happened since the start. `longest_wait` in seconds, of one held request."""

    admitted: int = 0
    sent_away: int = 0
    given_up: int = 0  # places whose grace went by
    most_active: int = 0
    most_in_a_rack: int = 0
    longest_wait: float = 0.0


class _Place:
    """A host in the queue. `left`: loop second since when it is away, None while a request of it waits."""

    __slots__ = ("host", "left", "passed", "rack", "waiting")

    def __init__(self, host: str, rack: str) -> None:
        self.host, self.rack = host, rack
        self.waiting: list[asyncio.Future[None]] = []
        self.left: float | None = None
        self.passed = 0


class Admission:
    """Slots and the queue before them. All in one loop; nothing here awaits but the wait for a slot itself."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.counters = Counters()
        self._active: dict[str, tuple[str, int]] = {}  # host -> rack, connections
        self._racks: Counter[str] = Counter()
        self._queue: dict[str, _Place] = {}  # in order of arrival
        self._closed = False

    @property
    def active(self) -> int:
        """Hosts that hold a slot."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Hosts that have a place in the queue, here or away."""
        return len(self._queue)

    def set_limits(self, limits: Limits) -> None:
        """Takes effect on the next slot; what flows goes on."""
        self.limits = limits
        self._serve()

    def close(self) -> None:
        """Send away all who wait, and whoever comes."""
        self._closed = True
        for place in list(self._queue.values()):
            for future in place.waiting:
                if not future.done():
                    future.set_exception(_busy("the boot service stops"))
        self._queue.clear()

    @asynccontextmanager
    async def slot(self, host: str, rack: str, *, patience: float | None = None) -> AsyncIterator[None]:
        """Hold a slot for this host, waiting at most `patience` seconds (20 unless told).

        Raises:
            Busy: with `retry_after`; the place in the queue is kept for a grace.
        """
        await self._take(host, rack, PATIENCE if patience is None else patience)
        try:
            yield
        finally:
            self._give_back(host)

    async def _take(self, host: str, rack: str, patience: float) -> None:
        if self._closed:
            raise _busy("the boot service stops")
        held = self._active.get(host)
        if held is not None:
            if held[1] >= PER_HOST:
                raise _busy("this host has enough connections open")
            self._active[host] = (held[0], held[1] + 1)
            return
        loop = asyncio.get_running_loop()
        place = self._queue.get(host)
        if place is None:
            if len(self._queue) >= MOST_WAITING:
                raise _busy("the queue is full")
            place = self._queue[host] = _Place(host, rack)
        elif len(place.waiting) >= PER_HOST:
            raise _busy("this host waits already")
        place.left = None
        future: asyncio.Future[None] = loop.create_future()
        place.waiting.append(future)
        since = loop.time()
        self._serve()
        try:
            async with asyncio.timeout(patience):
                await asyncio.shield(future)
        except BaseException as error:
            self._leave(place, future)
            if isinstance(error, TimeoutError):
                self.counters.sent_away += 1
                raise _busy("all slots are taken") from error
            raise
        finally:
            self.counters.longest_wait = max(self.counters.longest_wait, loop.time() - since)

    def _leave(self, place: _Place, future: asyncio.Future[None]) -> None:
        """A request ends without its slot: keep the place; give back what was granted in the same instant."""
        if future.done():
            if not future.cancelled() and future.exception() is None:
                self._give_back(place.host)
            return
        future.cancel()
        place.waiting.remove(future)
        if not place.waiting and self._queue.get(place.host) is place:
            loop = asyncio.get_running_loop()
            place.left = loop.time()
            loop.call_later(GRACE, self._expire, place, place.left)
            self._serve()

    def _expire(self, place: _Place, left: float) -> None:
        if place.left == left and self._queue.get(place.host) is place:
            del self._queue[place.host]
            self.counters.given_up += 1
            self._serve()

    def _give_back(self, host: str) -> None:
        rack, connections = self._active[host]
        if connections > 1:
            self._active[host] = (rack, connections - 1)
            return
        del self._active[host]
        self._racks[rack] -= 1
        if not self._racks[rack]:
            del self._racks[rack]
        self._serve()

    def _serve(self) -> None:
        """Give what is free to those who came first, as far as their racks have room."""
        free = self.limits.server - len(self._active)
        kept: Counter[str] = Counter()  # slots kept for hosts that are away and were passed too often
        passed: list[_Place] = []
        for place in list(self._queue.values()):
            if free <= 0:
                return
            if self._racks[place.rack] + kept[place.rack] >= self.limits.rack:
                continue
            if place.waiting:
                self._admit(place)
                for other in passed:
                    other.passed += 1
                passed = [other for other in passed if other.passed < PASSES]
                free -= 1
            elif place.passed >= PASSES:
                kept[place.rack] += 1
                free -= 1
            else:
                passed.append(place)

    def _admit(self, place: _Place) -> None:
        del self._queue[place.host]
        self._active[place.host] = (place.rack, len(place.waiting))
        self._racks[place.rack] += 1
        self.counters.admitted += 1
        self.counters.most_active = max(self.counters.most_active, len(self._active))
        self.counters.most_in_a_rack = max(self.counters.most_in_a_rack, self._racks[place.rack])
        for future in place.waiting:
            future.set_result(None)


def _busy(why: str) -> Busy:
    return Busy("the boot service is full", why=why, retry_after=RETRY_AFTER)
