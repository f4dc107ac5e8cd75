"""What was seen reaches the desk in batches, once, bounded, and waits while the daemon is away. In virtual time."""

from __future__ import annotations

import asyncio

import pytest

from fleetd.drivers.boot import sightings
from fleetd.drivers.boot.sightings import Sightings
from fleetd.kit.clock import LoopClock
from fleetd.kit.errors import Unreachable
from tests.host_rig import Desk

pytestmark = pytest.mark.looptime


class Flaky(Desk):
    down = False
    calls = 0

    async def seen(self, found):
        self.calls += 1
        if self.down:
            raise Unreachable("the daemon is not there")
        await super().seen(found)


async def test_many_are_one_call_and_repeats_count_once():
    desk = Flaky()
    seen = Sightings(desk, LoopClock())
    for n in range(50):
        seen.add("dhcp", mac=f"m{n}")
        seen.add("iso", source="10.0.0.1", detail="deploy.iso")
    await asyncio.sleep(1)
    assert (desk.calls, len(desk.sightings)) == (1, 51)
    await asyncio.sleep(sightings.SAME)
    seen.add("iso", source="10.0.0.1", detail="deploy.iso")
    await asyncio.sleep(1)
    assert len(desk.sightings) == 52
    await seen.close()


async def test_they_wait_for_the_daemon_in_order_and_the_oldest_go_first():
    desk = Flaky()
    desk.down = True
    seen = Sightings(desk, LoopClock())
    for n in range(sightings.KEPT + 100):
        seen.add("dhcp", mac=f"m{n}")
    await asyncio.sleep(60)
    assert 5 < desk.calls < 20, "it does not knock in a tight loop"
    desk.down = False
    await asyncio.sleep(60)
    assert [s.mac for s in desk.sightings] == [f"m{n}" for n in range(100, sightings.KEPT + 100)]
    assert all(s.at < 1_800_000_001 for s in desk.sightings), "the time is that of the sighting"
    await seen.close()


async def test_closing_tells_what_is_left_and_never_hangs():
    class Mute(Desk):
        async def seen(self, found):
            await asyncio.Event().wait()

    desk = Flaky()
    seen = Sightings(desk, LoopClock())
    seen.add("dhcp", mac="m")
    await seen.close()
    assert [s.mac for s in desk.sightings] == ["m"]
    seen.add("dhcp", mac="late")
    mute = Sightings(Mute(), LoopClock())
    mute.add("dhcp", mac="m")
    await mute.close()
