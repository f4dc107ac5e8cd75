"""Admission in virtual time: limits are never exceeded, nobody starves, and places are kept for who was sent away."""

from __future__ import annotations

import asyncio
import contextlib
import random

import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetd.drivers.boot import admission
from fleetd.drivers.boot.admission import Admission, Limits
from fleetd.kit.errors import Busy

pytestmark = pytest.mark.looptime


async def holding(
    desk: Admission, host: str, rack: str, seconds: float, order: list[str] | None = None, **more
) -> None:
    async with desk.slot(host, rack, **more):
        if order is not None:
            order.append(host)
        await asyncio.sleep(seconds)


async def test_first_come_first_served():
    desk, order = Admission(Limits(server=2, rack=2)), []
    async with asyncio.TaskGroup() as group:
        for n in range(8):
            group.create_task(holding(desk, f"h{n}", "r", 3, order))
            await asyncio.sleep(0.01)
    assert order == [f"h{n}" for n in range(8)]
    assert (desk.counters.most_active, desk.active, desk.waiting) == (2, 0, 0)


async def test_a_full_rack_does_not_hold_up_another():
    desk, order = Admission(Limits(server=3, rack=1)), []
    async with asyncio.TaskGroup() as group:
        for host, rack in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")):
            group.create_task(holding(desk, host, rack, 5, order))
            await asyncio.sleep(0.01)
    assert order == ["a1", "b1", "a2", "a3"]
    assert desk.counters.most_in_a_rack == 1


async def test_connections_of_one_host_are_one_slot_and_bounded():
    desk = Admission(Limits(server=1, rack=1))
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(admission.PER_HOST):
            await stack.enter_async_context(desk.slot("h", "r"))
        assert desk.active == 1
        with pytest.raises(Busy):
            await stack.enter_async_context(desk.slot("h", "r"))
        with pytest.raises(Busy) as refused:
            await stack.enter_async_context(desk.slot("other", "r", patience=5))
        assert refused.value.retry_after == admission.RETRY_AFTER
    assert desk.active == 0


async def test_who_was_sent_away_keeps_its_place():
    desk, order = Admission(Limits(server=1, rack=1)), []
    async with asyncio.TaskGroup() as group:
        group.create_task(holding(desk, "first", "r", 30, order))
        await asyncio.sleep(0.1)
        with pytest.raises(Busy):
            await holding(desk, "second", "r", 1, order)  # away at 20.1 s
        group.create_task(holding(desk, "third", "r", 1, order, patience=60))
        await asyncio.sleep(3)
        group.create_task(holding(desk, "second", "r", 1, order))
    assert order == ["first", "second", "third"]


async def test_a_place_is_passed_only_so_often_and_then_kept_until_its_grace_is_over():
    desk, order = Admission(Limits(server=1, rack=1)), []
    async with asyncio.TaskGroup() as group:
        group.create_task(holding(desk, "first", "r", 1, order))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await holding(desk, "away", "r", 1, order, patience=0.5)
        for n in range(6):
            group.create_task(holding(desk, f"n{n}", "r", 1, order, patience=200))
        await asyncio.sleep(10)
        assert order == ["first", "n0", "n1", "n2"]
        assert desk.active == 0, "the slot is kept for the one that is away"
        await asyncio.sleep(admission.GRACE)
    assert order[4:] == ["n3", "n4", "n5"]
    assert desk.counters.given_up == 1


async def test_a_client_that_goes_while_it_waits_leaves_its_place_and_no_slot_is_lost():
    desk = Admission(Limits(server=1, rack=1))
    holder = asyncio.create_task(holding(desk, "first", "r", 5))
    await asyncio.sleep(0.1)
    gone = asyncio.create_task(holding(desk, "gone", "r", 5))
    await asyncio.sleep(0.1)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await holder
    async with desk.slot("next", "r"):
        assert desk.active == 1
    await asyncio.sleep(admission.GRACE + 1)
    assert (desk.active, desk.waiting) == (0, 0)


async def test_a_request_cut_off_in_the_instant_it_is_admitted_gives_its_slot_back():
    desk = Admission(Limits(server=1, rack=1))
    holder = asyncio.create_task(holding(desk, "first", "r", 5))
    await asyncio.sleep(0.1)
    gone = asyncio.create_task(holding(desk, "gone", "r", 5))
    await asyncio.sleep(0.1)
    holder.add_done_callback(lambda _: gone.cancel())
    await asyncio.gather(holder, gone, return_exceptions=True)
    assert (desk.active, desk.waiting) == (0, 0)


async def test_closing_sends_all_away():
    desk = Admission(Limits(server=1, rack=1))
    async with desk.slot("first", "r"):
        waiting = asyncio.create_task(holding(desk, "second", "r", 1))
        await asyncio.sleep(0.1)
        desk.close()
        with pytest.raises(Busy):
            await waiting
        with pytest.raises(Busy):
            await holding(desk, "third", "r", 1)
    assert desk.active == 0


async def test_more_room_is_given_at_once():
    desk, order = Admission(Limits(server=1, rack=1)), []
    async with asyncio.TaskGroup() as group:
        for n in range(3):
            group.create_task(holding(desk, f"h{n}", "r", 10, order))
        await asyncio.sleep(1)
        desk.set_limits(Limits(server=3, rack=3))
        await asyncio.sleep(1)
        assert order == ["h0", "h1", "h2"]


async def _crowd(seed: int, hosts: int, racks: int, limits: Limits) -> tuple[list[float], Admission]:
    """All come at once; each comes again as it is told until it was served; some are slow, some lose their connection."""
    chance = random.Random(seed)
    desk = Admission(limits)
    active: dict[str, str] = {}
    waits: list[float] = []
    loop = asyncio.get_running_loop()

    async def one(n: int) -> None:
        host, rack = f"h{n}", f"r{n % racks}"
        await asyncio.sleep(chance.random() * 5)
        came = loop.time()
        while True:
            try:
                async with desk.slot(host, rack):
                    active[host] = rack
                    assert len(active) <= limits.server
                    assert sum(r == rack for r in active.values()) <= limits.rack
                    try:
                        await asyncio.sleep(chance.choice((0.5, 8.0, 60.0)))
                    finally:
                        del active[host]
                if chance.random() < 0.9:
                    waits.append(loop.time() - came)
                    return
            except Busy as busy:
                await asyncio.sleep((busy.retry_after or 0) * chance.uniform(1.0, 2.0))

    async with asyncio.TaskGroup() as group:
        for n in range(hosts):
            group.create_task(one(n))
    return waits, desk


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    hosts=st.integers(1, 60),
    racks=st.integers(1, 5),
    server=st.integers(1, 12),
    rack=st.integers(1, 6),
)
def test_limits_hold_and_none_starves(seed, hosts, racks, server, rack):
    limits = Limits(server=server, rack=rack)
    loop = looptime.new_event_loop()
    try:
        waits, desk = loop.run_until_complete(_crowd(seed, hosts, racks, limits))
    finally:
        loop.close()
    assert len(waits) == hosts
    assert (desk.active, desk.waiting) == (0, 0)
    # Every one before it takes at most a minute and some grace; and one in ten comes twice or more.
    width = min(server, rack)
    assert max(waits) <= (hosts / width + 2) * (60 + admission.GRACE) * 3
