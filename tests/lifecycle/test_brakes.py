"""The brakes hold, hold again after a restart, and let go only when they may. Clocks are moved by hand or by the loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import looptime
import pytest

from fleetd.kit.clock import LoopClock
from fleetd.kit.errors import Invalid, NotFound
from fleetd.lifecycle.brakes import BrakeDesk, ClockBrake, Limits, MassBrake
from fleetd.model.host import State
from fleetd.store import access, events
from fleetd.store import hosts as host_rows
from fleetd.store.database import Database
from tests.lifecycle.fleet import START, WHO, Fleet, HandClock, inventory, ledger

DAY = 86_400.0


@pytest.fixture
async def db() -> AsyncIterator[Database]:
    async with ledger() as opened:
        yield opened


@pytest.fixture
async def fleet(db: Database) -> Fleet:
    fleet = Fleet(db)
    await fleet.fill(inventory({"lou-a01": 4, "lou-a02": 6}))
    return fleet


# --- freezes


async def test_a_freeze_covers_its_scope_and_nothing_else(fleet: Fleet) -> None:
    one, other = await fleet.named("lou-a01-01"), await fleet.named("lou-a02-01")
    assert await fleet.brakes.blocked(one) is None
    await fleet.brakes.freeze("rack:lou-a01", "water on the floor", who=WHO)
    assert "water on the floor (by ada" in (await fleet.brakes.blocked(one) or "")
    assert await fleet.brakes.blocked(other) is None
    for scope in ("site:louisiana", "all"):
        await fleet.brakes.freeze(scope, "audit", who=WHO)
        assert scope in (await fleet.brakes.blocked(other) or "")
        await fleet.brakes.thaw(scope, who=WHO)
    assert set(await fleet.brakes.frozen()) == {"rack:lou-a01"}
    kinds = [e.kind for e in await events.after(fleet.db, 0, limit=100) if e.kind.startswith("brake.")]
    assert kinds == ["brake.freeze"] * 2 + ["brake.thaw", "brake.freeze", "brake.thaw"]


async def test_a_freeze_outlives_the_daemon_and_is_read_again_each_time(fleet: Fleet) -> None:
    host = await fleet.named("lou-a01-01")
    other_daemon = BrakeDesk(fleet.db, fleet.clock)
    assert other_daemon.seen(host) is None
    await fleet.brakes.freeze("all", "stop", who=WHO)
    assert other_daemon.seen(host) is None, "a list may lag"
    assert await other_daemon.blocked(host) is not None, "a destructive call may not"


@pytest.mark.parametrize("scope", ["", "site:", "rack:Lou A01", "everything", "host:x", "all ", "site:a\n"])
async def test_a_scope_is_all_site_or_rack(db: Database, scope: str) -> None:
    brakes = BrakeDesk(db, HandClock())
    with pytest.raises(Invalid):
        await brakes.freeze(scope, "x", who=WHO)


async def test_what_is_not_frozen_is_not_thawed(db: Database) -> None:
    brakes = BrakeDesk(db, HandClock())
    with pytest.raises(NotFound):
        await brakes.thaw("all", who=WHO)
    with pytest.raises(NotFound):
        await brakes.lift("lease-expiry", who=WHO)
    with pytest.raises(Invalid):
        await brakes.freeze("all", "  ", who=WHO)


async def test_an_unreadable_freeze_is_a_freeze(fleet: Fleet) -> None:
    await fleet.db.commit([access.set_setting("freeze:all", "{broken")])
    assert await fleet.brakes.blocked(await fleet.named("lou-a01-01")) is not None


# --- the mass brake


async def fails(fleet: Fleet, check: str, names: list[str]) -> list[str | None]:
    return [await fleet.mass.failing(check, await fleet.named(name), fleet.clock.wall()) for name in names]


async def test_many_idle_hosts_failing_one_check_hold(fleet: Fleet) -> None:
    said = await fails(fleet, "gpu.count", ["lou-a01-01", "lou-a01-01", "lou-a01-02", "lou-a02-01"])
    assert said[:3] == [None, None, None], "two hosts of ten are two broken hosts"
    assert "3 of 10 idle hosts failed gpu.count" in (said[3] or "")
    assert set(await fleet.brakes.holds()) == {"check:gpu.count"}
    assert await fails(fleet, "nvlink.links", ["lou-a01-01"]) == [None], "another check is another matter"
    assert (await fails(fleet, "gpu.count", ["lou-a02-05"]))[0] is not None
    await fleet.brakes.lift("check:gpu.count", who=WHO)
    assert await fails(fleet, "gpu.count", ["lou-a02-02", "lou-a02-03", "lou-a02-04", "lou-a02-05"]) == [None] * 4


async def test_failures_apart_in_time_do_not_add_up(fleet: Fleet) -> None:
    for name in ("lou-a01-01", "lou-a01-02", "lou-a02-01", "lou-a02-02"):
        assert await fails(fleet, "gpu.count", [name]) == [None]
        fleet.clock.go(3601)


async def test_hosts_already_out_still_count(fleet: Fleet) -> None:
    for i, name in enumerate(["lou-a01-01", "lou-a01-02", "lou-a02-01"]):
        (said,) = await fails(fleet, "gpu.count", [name])
        assert (said is None) == (i < 2)
        await fleet.put(await fleet.named(name), state=State.QUARANTINED)


async def test_a_restart_in_the_middle_goes_on_counting(fleet: Fleet) -> None:
    await fails(fleet, "gpu.count", ["lou-a01-01", "lou-a01-02"])
    again = MassBrake(fleet.db, fleet.clock, BrakeDesk(fleet.db, fleet.clock))
    assert await again.failing("gpu.count", await fleet.named("lou-a02-01"), fleet.clock.wall()) is not None


async def test_concurrent_failures_are_all_counted(fleet: Fleet) -> None:
    hosts = await host_rows.every(fleet.db)
    mass = MassBrake(fleet.db, fleet.clock, fleet.brakes, Limits(max_failing=0.5))
    said = await asyncio.gather(*(mass.failing("pcie.link", host, fleet.clock.wall()) for host in hosts))
    assert [s is None for s in said] == [True] * 5 + [False] * 5


async def test_expiries_add_up_over_the_window(db: Database) -> None:
    clock = HandClock()
    brakes = BrakeDesk(db, clock)
    mass = MassBrake(db, clock, brakes, Limits(max_ending=4))
    assert await mass.may_end(["a", "b"], clock.wall()) is None
    assert await mass.may_end(["b", "c", "d"], clock.go(600)) is None
    assert await mass.may_end(["e"], clock.go(600)) is not None
    assert await mass.may_end(["e"], clock.go(7200)) is not None, "until a person lifts it"
    await brakes.lift("lease-expiry", who=WHO)
    assert await mass.may_end(list("efghij"), clock.wall()) is None
    assert await mass.may_end(list("klmnop"), clock.go(3601)) is not None, "a lift counts for an hour"


# --- the clock brake


async def clock_events(db: Database) -> list[str]:
    return [e.kind for e in await events.after(db, 0, limit=100) if e.kind.startswith("brake.clock")]


async def test_before_the_first_look_nothing_expires(db: Database) -> None:
    brake = ClockBrake(db, HandClock())
    assert brake.suspended is not None
    assert await brake.tick() is None
    assert brake.suspended is None


@pytest.mark.parametrize(
    ("jump", "stops"), [(-301, True), (-299, False), (3601, True), (3599, False), (90 * DAY, True)]
)
async def test_a_jump_suspends(db: Database, jump: float, stops: bool) -> None:
    clock = HandClock()
    brake = ClockBrake(db, clock)
    await brake.tick()
    clock.go(30)
    clock.jump(jump)
    assert (await brake.tick() is not None) is stops
    assert await clock_events(db) == (["brake.clock.suspended"] if stops else [])
    assert await brake.tick() == brake.suspended
    assert len(await clock_events(db)) <= 1, "said once"


async def test_it_goes_on_by_itself_after_agreeing_for_ten_minutes(db: Database) -> None:
    clock = HandClock()
    brake = ClockBrake(db, clock)
    await brake.tick()
    clock.jump(7200)
    await brake.tick()
    clock.go(60)
    clock.jump(-7200)
    await brake.tick()
    for _ in range(10):
        assert brake.suspended is not None
        clock.go(60)
        await brake.tick()
    assert brake.suspended is None
    assert await clock_events(db) == ["brake.clock.suspended", "brake.clock.resumed"]


async def test_a_wrong_time_does_not_become_the_truth(db: Database) -> None:
    clock = HandClock()
    brake = ClockBrake(db, clock)
    await brake.tick()
    clock.jump(90 * DAY)
    for _ in range(50):
        clock.go(60)
        assert await brake.tick() is not None
    assert await access.setting(db, "clock.last") == repr(START)
    # Not even through a restart: nothing shows to the new process that it is wrong, so a person must say.
    again = ClockBrake(db, clock)
    for _ in range(50):
        assert await again.tick() is not None
        clock.go(60)
    await again.clear(who=WHO)
    assert await again.tick() is None
    assert [e.principal for e in await events.after(db, 0, limit=9)][-1] == "ada"


async def test_a_synchronised_clock_ends_an_inherited_doubt(db: Database) -> None:
    clock = HandClock()
    brake = ClockBrake(db, clock)
    await brake.tick()
    clock.jump(DAY)
    await brake.tick()
    again = ClockBrake(db, clock, synchronised=lambda: True)
    for _ in range(12):
        await again.tick()
        clock.go(60)
    assert again.suspended is None


async def test_back_behind_the_stored_time_across_a_restart(db: Database) -> None:
    clock = HandClock()
    await ClockBrake(db, clock).tick()
    clock.jump(-DAY)
    again = ClockBrake(db, clock)
    assert "behind" in (await again.tick() or "")
    assert again.latest() >= START
    clock.jump(3 * DAY)  # NTP found the true time: how long the daemon was down is not known, so this is no jump
    for _ in range(12):
        await again.tick()
        clock.go(60)
    assert again.suspended is None


async def test_days_of_downtime_are_no_jump(db: Database) -> None:
    clock = HandClock()
    await ClockBrake(db, clock).tick()
    clock.jump(9 * DAY)
    assert await ClockBrake(db, clock).tick() is None


async def test_an_unsynchronised_clock_suspends(db: Database) -> None:
    clock, believed = HandClock(), [False]
    brake = ClockBrake(db, clock, synchronised=lambda: believed[0])
    assert await brake.tick() == "the wall clock is not synchronised"
    believed[0] = True
    for _ in range(12):
        await brake.tick()
        clock.go(60)
    assert brake.suspended is None


async def test_latest_never_goes_back(db: Database) -> None:
    clock = HandClock()
    brake = ClockBrake(db, clock)
    await brake.tick()
    clock.go(100)
    clock.jump(-50)
    assert brake.latest() == START + 100
    clock.jump(80)
    assert brake.latest() == START + 130


def test_a_week_of_virtual_time_passes_without_a_word() -> None:
    """The loop's own virtual clock: wall and steady move together, so the brake has nothing to say."""
    loop = looptime.new_event_loop()

    async def week() -> None:
        async with ledger() as db:
            clock = LoopClock()
            brake = ClockBrake(db, clock)
            for _ in range(7 * 24):
                assert await brake.tick() is None
                await clock.sleep(3600)
            assert await clock_events(db) == []
            assert float(await access.setting(db, "clock.last") or 0) == pytest.approx(START + 7 * DAY - 3600)

    try:
        loop.run_until_complete(week())
    finally:
        loop.close()
