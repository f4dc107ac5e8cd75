"""Claiming hosts for a lease: all or none, only under every guard, and never a host in two."""

from __future__ import annotations

import asyncio
import random
import time

import msgspec
import pytest

from fleetd.kit.errors import Conflict, NotFound
from fleetd.model.host import Alert, Classification, HostStatus, State
from fleetd.model.lease import LeaseState
from fleetd.store import hosts, leases
from fleetd.store.database import Database
from tests.store.samples import LATER, NOW, a_lease, ready

replace = msgspec.structs.replace
BLOCKED = HostStatus(
    alerts=(
        Alert(id="a", target="t", since=NOW, message="m", remedy="r", classifications=(Classification.PREVENTS_LEASE,)),
    )
)


async def test_a_life(db: Database) -> None:
    pair = [ready(1), ready(2, tenant_data="erased")]
    await db.commit([hosts.insert(host) for host in pair])
    lease = a_lease("1", pair)
    await db.commit([*leases.claim(lease, pair, NOW), *(hosts.save(replace(h, state=State.DELIVERING)) for h in pair)])
    assert await leases.get(db, lease.id) == lease
    held = await leases.of_host(db, "host-00002")
    assert held == lease
    await db.commit([leases.save(replace(lease, state=LeaseState.FAILED))])
    with pytest.raises(Conflict, match="changed since"):
        await db.commit([leases.save(lease)])
    assert [(x.state, x.version) for x in await leases.every(db, live=True)] == [(LeaseState.FAILED, 2)]
    await db.commit([leases.release_binding(lease.id, host.id, NOW) for host in pair])
    with pytest.raises(Conflict, match="does not bind"):
        await db.commit([leases.release_binding(lease.id, "host-00001", NOW)])
    assert await leases.of_host(db, "host-00001") is None
    assert await leases.every(db, live=True) == []
    assert [x.id for x in await leases.every(db)] == [lease.id]
    with pytest.raises(NotFound):
        await leases.get(db, "lease-none")
    with pytest.raises(Conflict, match="exists"):
        await db.commit(leases.claim(lease, [], NOW))
    # Back in the inventory, the same host can be bound again, by the same lease too.
    again = replace(ready(1), version=2)
    await db.commit([hosts.save(again)])
    await db.commit([leases.bind(lease.id, replace(again, version=3), NOW)])
    assert await leases.of_host(db, "host-00001") is not None


async def test_every_filters(db: Database) -> None:
    other = a_lease("x", [])
    other = replace(other, request=replace(other.request, tenant="initech"), state=LeaseState.ENDED)
    await db.commit([leases.insert(a_lease("1", [], created=NOW)), leases.insert(a_lease("2", [], created=NOW + 1))])
    await db.commit([leases.insert(other)])
    assert [x.id for x in await leases.every(db, tenant="acme")] == ["lease-2", "lease-1"]
    assert [x.id for x in await leases.every(db, state=LeaseState.ENDED)] == ["lease-x"]
    assert await leases.every(db, tenant="initech", live=True) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": State.VALIDATING},
        {"state": State.MAINTENANCE},
        {"certificate_expires": NOW},
        {"certificate_expires": None},
        {"certificate": None},
        {"tenant_data": "possible"},
        {"status": BLOCKED},
        {"version": 2},
    ],
)
async def test_one_host_that_is_not_ready_and_nothing_is_claimed(db: Database, wrong: dict[str, object]) -> None:
    trio = [ready(1), ready(2, **wrong), ready(3)]
    await db.commit([hosts.insert(host) for host in trio])
    read = [replace(host, version=1) for host in trio]
    with pytest.raises(Conflict, match="lou-a00-03"):
        await db.commit(leases.claim(a_lease("1", read), read, NOW))
    assert await leases.every(db) == []
    assert [await leases.of_host(db, host.id) for host in trio] == [None] * 3
    await db.commit(leases.claim(a_lease("2", [trio[0], trio[2]]), [trio[0], trio[2]], NOW))


async def test_a_bound_host_is_not_bound_again(db: Database) -> None:
    host = ready(1)
    await db.commit([hosts.insert(host)])
    await db.commit(leases.claim(a_lease("1", [host]), [host], NOW))
    with pytest.raises(Conflict, match="lou-a00-02"):
        await db.commit(leases.claim(a_lease("2", [host]), [host], NOW))


async def test_the_index_forbids_what_the_guard_let_through(db: Database, sql: object) -> None:
    assert callable(sql)
    host = ready(1)
    await db.commit([hosts.insert(host)])
    await db.commit(leases.claim(a_lease("1", [host]), [host], NOW))
    with pytest.raises(Exception, match=r"(?i)unique|returned non-zero"):
        sql("INSERT INTO bindings (lease, host, bound) SELECT lease, host, bound FROM bindings")


async def test_64_concurrent_claims_of_overlapping_hosts_double_none(db: Database) -> None:
    fleet = [ready(number) for number in range(40)]
    await db.commit([hosts.insert(host) for host in fleet])
    dice = random.Random(7)

    async def claim(number: int) -> list[str]:
        wanted = dice.sample(fleet, 3)
        lease = a_lease(str(number), wanted)
        try:
            await db.commit(
                [
                    *leases.claim(lease, wanted, NOW),
                    *(hosts.save(replace(host, state=State.DELIVERING)) for host in wanted),
                ]
            )
        except Conflict:
            return []
        return [host.id for host in wanted]

    won = await asyncio.gather(*(claim(number) for number in range(64)))
    bound = [host for group in won for host in group]
    assert len(bound) == len(set(bound)) >= 12
    live = await leases.every(db, live=True)
    assert sorted(host for lease in live for host in lease.hosts) == sorted(bound)
    by_state = {host.id for host in await hosts.every(db, state=State.DELIVERING)}
    assert by_state == set(bound)
    for host in await hosts.every(db):
        assert (host.lease is not None) == (host.id in by_state)


async def test_the_same_pair_in_opposite_order(db: Database) -> None:
    """Two leases that each want both hosts: one gets both, the other none, and nobody waits for ever."""
    for turn in range(5):
        pair = [ready(2 * turn), ready(2 * turn + 1)]
        await db.commit([hosts.insert(host) for host in pair])
        outcomes = await asyncio.gather(
            db.commit(leases.claim(a_lease(f"{turn}a", pair), pair, NOW)),
            db.commit(leases.claim(a_lease(f"{turn}b", pair[::-1]), pair[::-1], NOW)),
            return_exceptions=True,
        )
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict", "int"]


@pytest.mark.slow
async def test_a_thousand_hosts_in_one_transaction(db: Database) -> None:
    fleet = [ready(number) for number in range(1000)]
    await db.commit([hosts.insert(host) for host in fleet])
    began = time.perf_counter()
    await db.commit(
        [
            *leases.claim(a_lease("big", fleet), fleet, NOW),
            *(hosts.save(replace(host, state=State.DELIVERING)) for host in fleet),
        ]
    )
    assert time.perf_counter() - began < 5  # the bench measures; this only catches a blunder
    assert all(host.lease == "lease-big" for host in await hosts.every(db))
    assert (await leases.get(db, "lease-big")).ends == LATER
