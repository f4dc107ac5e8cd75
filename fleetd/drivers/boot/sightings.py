"""What was seen of machines on their way up, told to the desk in batches: a flood of requests is no flood of calls."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from fleetd.drivers.boot.capabilities import BootDesk, Sighting
from fleetd.kit.clock import Clock, SystemClock
from fleetd.kit.errors import FleetError
from fleetd.kit.logs import get

BATCH = 200
KEPT = 2000  # the oldest are dropped: the trail is for people, and bounded there too
PAUSE = 0.5  # seconds from the first sighting to the call
DESK_SECONDS = 10.0
RETRY = 5.0
SAME = 20.0  # seconds within which the same sighting again is no news (a BMC reads an ISO in thousands of ranges)
REMEMBERED = 1024

log = get("boot")


class Sightings:
    """Collects, and tells the desk while there is something to tell. `close` tells what is left, once."""

    def __init__(self, desk: BootDesk, clock: Clock | None = None) -> None:
        self._desk = desk
        self._clock = clock or SystemClock()
        self._waiting: deque[Sighting] = deque(maxlen=KEPT)
        self._recent: OrderedDict[tuple[str, str, str, str], float] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def add(self, stage: str, *, mac: str = "", source: str = "", detail: str = "") -> None:
        """Remember it; repeats within seconds count once."""
        if self._closed:
            return
        now = self._clock.steady()
        key = (stage, mac, source, detail)
        last = self._recent.pop(key, None)
        self._recent[key] = now if last is None or now - last >= SAME else last
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)
        if last is not None and now - last < SAME:
            return
        self._waiting.append(Sighting(stage=stage, mac=mac, source=source, detail=detail[:200], at=self._clock.wall()))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._tell(), name="sightings")

    async def close(self) -> None:
        """Tell what is left, without trying again."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._waiting:
            await self._send()

    async def _tell(self) -> None:
        pause = PAUSE
        while self._waiting:
            await self._clock.sleep(pause)
            pause = PAUSE if await self._send() else RETRY

    async def _send(self) -> bool:
        """One batch; what the desk did not take waits for the next."""
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        try:
            async with asyncio.timeout(DESK_SECONDS):
                await self._desk.seen(batch)
        except (FleetError, TimeoutError) as error:
            log.info("boot.sightings.kept", count=len(batch), error=str(error))
            self._waiting.extendleft(reversed(batch[: KEPT - len(self._waiting)]))
            return False
        return True
