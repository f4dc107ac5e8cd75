"""Claims: one owner a host, tokens that only grow, and nothing written by who lost it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from fleetd.kit.errors import Conflict, StaleClaim
from fleetd.model.run import RunHostState
from fleetd.store import claims, events, hosts, runs
from fleetd.store.database import Database
from tests.store.samples import NOW, a_host, a_run, a_step, in_run


async def test_take_renew_drop(db: Database) -> None:
    await db.commit([hosts.insert(a_host(1))])
    key = "host-00001"
    assert await claims.current(db, key) is None
    first = await claims.take(db, key, "a", now=NOW, ttl=30)
    assert first is not None
    assert (first.token, first.expires) == (1, NOW + 30)
    assert await claims.current(db, key) == first
    assert await claims.take(db, key, "b", now=NOW + 29, ttl=30) is None
    await db.commit([claims.renew(first, now=NOW + 20, ttl=30)])
    assert await claims.take(db, key, "b", now=NOW + 31, ttl=30) is None
    again = await claims.take(db, key, "a", now=NOW + 21, ttl=30)
    assert again is not None
    assert again.token == 2
    with pytest.raises(StaleClaim):
        await db.commit([claims.renew(first, now=NOW, ttl=30)])
    await db.commit([claims.drop(first)])
    assert await claims.current(db, key) == again
    await db.commit([claims.drop(again)])
    assert await claims.current(db, key) is None
    taken = await claims.take(db, key, "b", now=NOW, ttl=30)
    assert taken is not None
    assert taken.token == 3
    expired = await claims.take(db, key, "c", now=NOW + 30, ttl=30)
    assert expired is not None
    assert expired.token == 4
    with pytest.raises(Conflict, match="does not exist"):
        await claims.take(db, "host-none", "a", now=NOW, ttl=30)


async def test_a_renewal_never_shortens_a_claim(db: Database) -> None:
    """A tick's renewal that was on its way while a wipe asked for hours must not take those hours back."""
    await db.commit([hosts.insert(a_host(1))])
    claim = await claims.take(db, "host-00001", "a", now=NOW, ttl=60)
    assert claim is not None
    await db.commit([claims.renew(claim, now=NOW, ttl=14_400)])
    await db.commit([claims.renew(claim, now=NOW + 1, ttl=60)])
    assert await claims.current(db, "host-00001") == msgspec.structs.replace(claim, expires=NOW + 14_400)


async def test_a_stale_claim_writes_nothing(db: Database) -> None:
    host, run = a_host(1), a_run("1")
    place = in_run(run, host, state=RunHostState.ACTIVE)
    await db.commit([hosts.insert(host), hosts.insert(a_host(2)), runs.insert(run), runs.insert_host(place)])
    old = await claims.take(db, host.id, "a", now=NOW, ttl=1)
    other = await claims.take(db, "host-00002", "a", now=NOW, ttl=99)
    assert old is not None
    assert other is not None
    step = a_step(run, host)
    await db.commit([hosts.save(host, claim=old), runs.begin_step(step, claim=old)])
    host = await hosts.get(db, host.id)
    new = await claims.take(db, host.id, "b", now=NOW + 2, ttl=30)
    assert new is not None
    ended = msgspec.structs.replace(step, ended=NOW + 3, outcome="advance")
    for claim in (old, msgspec.structs.replace(new, owner="a"), msgspec.structs.replace(old, token=99)):
        for op in (
            hosts.save(host, claim=claim),
            runs.save_host(place, claim=claim),
            runs.begin_step(a_step(run, host, 1), claim=claim),
            runs.end_step(ended, claim=claim),
        ):
            with pytest.raises(StaleClaim):
                await db.commit([op])
            with pytest.raises(StaleClaim):  # behind another op as well
                await db.commit([claims.renew(new, now=NOW, ttl=9), op])
    with pytest.raises((StaleClaim, Conflict)):  # a good claim of another host opens nothing
        await db.commit([hosts.save(host, claim=other)])
    assert await hosts.get(db, host.id) == host
    assert await runs.open_step(db, run.id, host.id) == step
    await db.commit([hosts.save(host, claim=new), runs.end_step(ended, claim=new), runs.save_host(place, claim=new)])
    assert (await hosts.get(db, host.id)).version == host.version + 1


async def test_a_good_claim_does_not_excuse_an_old_version(db: Database) -> None:
    await db.commit([hosts.insert(a_host(1))])
    claim = await claims.take(db, "host-00001", "a", now=NOW, ttl=30)
    assert claim is not None
    with pytest.raises(Conflict, match="changed since"):
        await db.commit([hosts.save(msgspec.structs.replace(a_host(1), version=2), claim=claim)])


async def test_of_many_takers_one_wins(db: Database) -> None:
    await db.commit([hosts.insert(a_host(n)) for n in range(4)])
    outcomes = await asyncio.gather(
        *(claims.take(db, f"host-{n % 4:05d}", f"daemon-{n}", now=NOW, ttl=30) for n in range(64))
    )
    won = [claim for claim in outcomes if claim is not None]
    assert sorted(claim.host for claim in won) == [f"host-{n:05d}" for n in range(4)]
    for claim in won:
        assert await claims.current(db, claim.host) == claim


async def test_the_owner_dying_loses_no_event_order(db: Database) -> None:
    """Two owners alternate; every accepted write has its event, every refused one has none."""
    await db.commit([hosts.insert(a_host(1))])
    accepted = 0
    old = None
    for turn in range(6):
        claim = await claims.take(db, "host-00001", f"d{turn % 2}", now=NOW + turn * 10, ttl=5)
        assert claim is not None
        host = await hosts.get(db, "host-00001")
        event = events.Event(kind="host.state", at=NOW, host=host.id)
        if old is not None:
            with pytest.raises(StaleClaim):
                await db.commit([hosts.save(host, claim=old), events.append(event)])
        await db.commit([hosts.save(host, claim=claim), events.append(event)])
        accepted += 1
        old = claim
    assert len(await events.of_host(db, "host-00001", 99)) == accepted
    assert (await hosts.get(db, "host-00001")).version == accepted + 1
