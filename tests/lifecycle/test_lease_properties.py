"""Whatever is claimed, handed over, broken, released and reclaimed, in whatever order: no host is in two live leases."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetd.kit.errors import Conflict, Refused
from fleetd.model.host import State
from fleetd.model.lease import LeaseState
from fleetd.model.run import RunHostState
from fleetd.store import hosts as host_rows
from fleetd.store import leases as lease_rows
from fleetd.store import runs as run_rows
from tests.lifecycle.fleet import WHO, Fleet, inventory, ledger

MOVES = st.lists(
    st.tuples(
        st.sampled_from(["claim", "claim", "hand-over", "hand-over", "fail", "release", "reclaim", "hours", "break"]),
        st.integers(1, 5),
    ),
    min_size=20,
    max_size=60,
)
REACHED: Counter[str] = Counter()


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(MOVES)
@pytest.mark.slow
def test_no_host_is_ever_in_two_live_leases(moves: list[tuple[str, int]]) -> None:
    """Whatever is claimed, handed over, broken, released, expired and reclaimed in whatever order."""
    asyncio.run(_play(moves))


@pytest.mark.slow
def test_the_property_above_reached_every_corner() -> None:
    """A property that never hands over proves nothing."""
    if not REACHED:
        test_no_host_is_ever_in_two_live_leases()
    assert set(REACHED) == {"claim", "hand-over", "fail", "release", "reclaim", "hours", "break"}
    assert min(REACHED.values()) >= 10, REACHED


async def _play(moves: list[tuple[str, int]]) -> None:
    async with ledger() as db:
        fleet = Fleet(db, grace=7200.0)
        await fleet.fill(inventory({"lou-a01": 3, "lou-a02": 3}))
        for move, n in moves:
            with contextlib.suppress(Conflict, Refused):  # the desk may say no; what it left behind is looked at below
                REACHED[move] += await _move(fleet, move, n)
            await _check(fleet)


async def _move(fleet: Fleet, move: str, n: int) -> bool:
    """One move; False when no lease is in a state for it."""
    if move == "claim":
        await fleet.claim(n, days=n / 12)
    elif move == "hours":
        await fleet.leases.look(fleet.clock.go(n * 3600))
    elif move == "break":
        host = f"lou-a01-0{1 + n % 3}"
        if (await fleet.named(host)).state is State.QUARANTINED:
            await fleet.put(await fleet.named(host), state=State.AVAILABLE, certificate=f"c-{n}", expires=9e5)
        else:
            await fleet.hosts.quarantine(host, "broken", who=WHO)
    else:
        fits = {
            "hand-over": (LeaseState.DELIVERING,),
            "fail": (LeaseState.DELIVERING,),
            "release": (LeaseState.DELIVERING, LeaseState.ACTIVE),
            "reclaim": (LeaseState.ENDING, LeaseState.FAILED),
        }[move]
        leases = [lease for lease in await lease_rows.every(fleet.db, live=True) if lease.state in fits]
        if not leases:
            return False
        lease = leases[n % len(leases)]
        if move == "hand-over":
            await fleet.hand_over(lease)
        elif move == "fail":
            one = lease.hosts[n % len(lease.hosts)]
            await fleet.run_ends(lease.run or "", RunHostState.FAILED, lambda h: {"state": State.RECLAIMING}, only=one)
        elif move == "release":
            await fleet.leases.release(lease.id, who=WHO, wipe_now=n % 2 == 0)
        else:
            run = await run_rows.get(fleet.db, lease.run or "")
            if run.playbook == "handover":  # what the engine does with the hosts of a cancelled run
                aside = {"state": State.RECLAIMING}
                await fleet.run_ends(run.id, RunHostState.HELD, lambda h: {} if h.state is State.LEASED else aside)
            await fleet.leases.look(fleet.clock.go(1))
            run = await run_rows.get(fleet.db, (await fleet.leases.get(lease.id)).run or "")
            if run.playbook != "reclaim":
                return False
            await fleet.reclaim(lease)
    return True


async def _check(fleet: Fleet) -> None:
    bound: dict[str, str] = {}
    live = {lease.id: lease for lease in await lease_rows.every(fleet.db, live=True)}
    for host in await host_rows.every(fleet.db):
        leases = [lease.id for lease in live.values() if host.id in lease.hosts and host.lease == lease.id]
        assert len(leases) <= 1
        if host.state in (State.DELIVERING, State.LEASED, State.RECLAIMING):
            assert host.lease in live, f"{host.name} is {host.state} under no lease"
        if host.state is State.AVAILABLE and host.lease is None:
            assert host.tenant_data != "possible"
        if host.lease is not None:
            bound[host.id] = host.lease
            assert fleet.hosts.reasons(host, fleet.clock.wall()), "a bound host is never leaseable"
    for lease in live.values():
        if lease.state in (LeaseState.DELIVERING, LeaseState.ACTIVE):
            assert all(bound.get(host) == lease.id for host in lease.hosts), "a running lease holds all of its hosts"
