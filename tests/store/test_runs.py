"""Runs, one active run a host, and the journal that a restarted daemon trusts."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from fleetd.kit.errors import Conflict, NotFound
from fleetd.model.check import Finding
from fleetd.model.run import RunHostState, RunState
from fleetd.store import hosts, runs
from fleetd.store.database import Database
from tests.store.samples import NOW, a_host, a_run, a_step, in_run

replace = msgspec.structs.replace


async def test_a_run(db: Database) -> None:
    run = a_run("1")
    await db.commit([runs.insert(run)])
    assert await runs.get(db, run.id) == run
    with pytest.raises(Conflict, match="exists"):
        await db.commit([runs.insert(run)])
    await db.commit([runs.save(replace(run, wave=1))])
    with pytest.raises(Conflict, match="changed since"):
        await db.commit([runs.save(run)])
    assert await runs.get(db, run.id) == replace(run, wave=1, version=2)
    done = a_run("2", state=RunState.PASSED, created=NOW + 1)
    await db.commit([runs.insert(done)])
    assert [r.id for r in await runs.every(db)] == ["run-2", "run-1"]
    assert [r.id for r in await runs.every(db, limit=1)] == ["run-2"]
    assert [r.id for r in await runs.every(db, state=RunState.RUNNING)] == ["run-1"]
    assert [r.id for r in await runs.active(db)] == ["run-1"]
    with pytest.raises(NotFound):
        await runs.get(db, "run-none")


async def test_a_host_is_in_at_most_one_active_run(db: Database) -> None:
    host, one, two = a_host(1), a_run("1"), a_run("2")
    await db.commit([hosts.insert(host), runs.insert(one), runs.insert(two), runs.insert_host(in_run(one, host))])
    with pytest.raises(Conflict, match="host-00001 is already in an active run"):
        await db.commit([runs.insert_host(in_run(two, host))])
    await db.commit([runs.save_host(in_run(one, host, state=RunHostState.ACTIVE, step=1))])
    with pytest.raises(Conflict):
        await db.commit([runs.insert_host(in_run(two, host))])
    active = await runs.active_of(db, host.id)
    assert active is not None
    assert (active.run, active.step) == (one.id, 1)
    assert await runs.active_hosts(db) == [active]
    finding = Finding(code="gpu.count", message="7 of 8", remedy="reseat GPU 3", at=NOW)
    await db.commit([runs.save_host(in_run(one, host, state=RunHostState.FAILED, finding=finding))])
    assert (await runs.host(db, one.id, host.id)).finding == finding
    assert await runs.active_of(db, host.id) is None
    await db.commit([runs.insert_host(in_run(two, host))])
    with pytest.raises(Conflict):  # the old one cannot take it back meanwhile
        await db.commit([runs.save_host(in_run(one, host))])
    with pytest.raises(NotFound):
        await db.commit([runs.save_host(in_run(a_run("3"), host))])
    with pytest.raises(NotFound):
        await runs.host(db, "run-3", host.id)


async def test_of_many_runs_that_want_a_host_one_gets_it(db: Database) -> None:
    host = a_host(1)
    await db.commit([hosts.insert(host)])
    outcomes = await asyncio.gather(
        *(db.commit([runs.insert(run), runs.insert_host(in_run(run, host))]) for run in map(a_run, "abcdefgh")),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes].count(Conflict) == 7
    assert len(await runs.every(db)) == 1


async def test_hosts_of_a_run_by_wave(db: Database) -> None:
    run, fleet = a_run("1"), [a_host(n) for n in range(4)]
    await db.commit([runs.insert(run), *(hosts.insert(h) for h in fleet)])
    await db.commit(
        [runs.insert_host(msgspec.structs.replace(in_run(run, h), wave=3 - n)) for n, h in enumerate(fleet)]
    )
    assert [rh.host for rh in await runs.hosts(db, run.id)] == [h.id for h in fleet[::-1]]


async def test_the_journal(db: Database) -> None:
    host, run = a_host(1), a_run("1")
    await db.commit([hosts.insert(host), runs.insert(run), runs.insert_host(in_run(run, host))])
    first = a_step(run, host, 0, evidence={"serial": "\0\N{SNOWMAN}"})
    await db.commit([runs.begin_step(first, claim=None)])
    with pytest.raises(Conflict, match="began already"):
        await db.commit([runs.begin_step(first, claim=None)])
    assert await runs.open_step(db, run.id, host.id) == first
    ended = replace(first, ended=NOW + 5, outcome="retry", text="no answer")
    await db.commit([runs.end_step(ended, claim=None)])
    with pytest.raises(Conflict, match="is not open"):
        await db.commit([runs.end_step(ended, claim=None)])
    with pytest.raises(Conflict, match="is not open"):
        await db.commit([runs.end_step(a_step(run, host, 5), claim=None)])
    assert await runs.open_step(db, run.id, host.id) is None
    second = a_step(run, host, 0, 2)
    third = a_step(run, host, 1)
    await db.commit([runs.begin_step(second, claim=None), runs.begin_step(third, claim=None)])
    assert await runs.steps(db, run.id, host.id) == [ended, second, third]
    assert await runs.open_step(db, run.id, host.id) == third
    assert await runs.steps_of_host(db, host.id, 2) == [third, second]
    with pytest.raises(Conflict, match="does not exist"):
        await db.commit([runs.begin_step(a_step(a_run("9"), host), claim=None)])
