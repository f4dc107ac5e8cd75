"""What only PostgreSQL can do to us: other daemons on the same ledger, and a server that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count

import asyncpg
import msgspec
import pytest

from fleetd.kit.errors import Busy, Conflict, DeadlineExceeded, Permanent, StaleClaim, Temporary, Unreachable
from fleetd.model.event import Event
from fleetd.store import access, claims, events, hosts, leases
from fleetd.store.database import Database, open_database
from fleetd.store.postgres import LOCK
from tests.store.postgres_server import PostgresServer
from tests.store.samples import NOW, a_host, a_lease, ready

pytestmark = pytest.mark.peers
_names = count(1)


@pytest.fixture
def shared_url(postgres: PostgresServer) -> str:
    return postgres.copy("template", f"shared{next(_names)}")


@pytest.fixture
async def daemons(shared_url: str) -> AsyncIterator[list[Database]]:
    opened = [await open_database(shared_url) for _ in range(3)]
    yield opened
    for db in opened:
        await db.close()


async def test_daemons_claiming_the_same_hosts_double_none(daemons: list[Database]) -> None:
    fleet = [ready(number) for number in range(30)]
    await daemons[0].commit([hosts.insert(host) for host in fleet])

    async def claim(number: int) -> list[str]:
        wanted = [fleet[(number * 7 + step * 11) % 30] for step in range(3)]
        try:
            await daemons[number % 3].commit(leases.claim(a_lease(str(number), wanted), wanted, NOW))
        except Conflict:
            return []
        return [host.id for host in wanted]

    won = [host for group in await asyncio.gather(*map(claim, range(64))) for host in group]
    assert len(won) == len(set(won)) >= 9
    assert {host.id for host in await hosts.every(daemons[1]) if host.lease} == set(won)


async def test_events_of_all_daemons_are_in_one_order_for_a_watcher_of_any(daemons: list[Database]) -> None:
    seen: list[int] = []

    async def write(db: Database, number: int) -> None:
        for _ in range(10):
            await db.commit([events.append(Event(kind="x", at=NOW, host=f"h{number}"))])

    async def watch(db: Database) -> None:
        after = 0
        while len(seen) < 300:
            assert await db.wait_events(after, 10)
            found = await events.after(db, after, limit=1000)
            seen.extend(event.seq for event in found)
            after = seen[-1]

    async with asyncio.TaskGroup() as group:
        group.create_task(watch(daemons[2]))
        for number in range(30):
            group.create_task(write(daemons[number % 3], number))
    assert seen == sorted(set(seen))
    assert len(seen) == 300


async def test_a_daemon_that_lost_its_claim_writes_nothing(daemons: list[Database]) -> None:
    await daemons[0].commit([hosts.insert(a_host(1))])
    old = await claims.take(daemons[0], "host-00001", "a", now=NOW, ttl=5)
    new = await claims.take(daemons[1], "host-00001", "b", now=NOW + 6, ttl=5)
    assert old is not None
    assert new is not None
    host = await hosts.get(daemons[0], "host-00001")
    outcomes = await asyncio.gather(
        *(daemons[0].commit([hosts.save(host, claim=old)]) for _ in range(5)),
        daemons[1].commit([hosts.save(host, claim=new)]),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [StaleClaim] * 5 + [int]


async def test_a_transaction_nobody_continues_is_thrown_out(shared_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon stopped inside a transaction must not stop the others."""
    monkeypatch.setattr("fleetd.store.postgres.IDLE_MS", 50)
    async with await open_database(shared_url) as stopped, await open_database(shared_url) as other:
        await stopped._engine._writer.execute(f"BEGIN; SELECT pg_advisory_xact_lock({LOCK})")  # type: ignore[attr-defined]
        await asyncio.wait_for(other.commit([access.set_setting("a", "1")]), 10)
        assert await access.setting(other, "a") == "1"
        await _until(stopped.commit, [access.set_setting("b", "1")])  # its session is gone, it makes a new one
        assert await access.setting(other, "b") == "1"


async def test_a_killed_session_is_temporary_and_made_anew(shared_url: str, postgres: PostgresServer) -> None:
    async with await open_database(shared_url) as db:
        await db.commit([hosts.insert(a_host(1)), events.append(Event(kind="a", at=NOW))])
        name = shared_url.rpartition("/")[2]
        postgres.run(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' "
            "AND application_name LIKE 'fleetd%'",
            "postgres",
        )
        host = await _until(hosts.get, db, "host-00001")
        await _until(db.commit, [hosts.save(host), events.append(Event(kind="b", at=NOW))])
        assert [event.kind for event in await events.after(db, 0, limit=9)] == ["a", "b"]
        assert (await hosts.get(db, "host-00001")).version == 2


async def _until(call: object, *args: object) -> object:
    """Try again on Temporary, as every worker does; anything else is a fault."""
    assert callable(call)
    for _ in range(10):
        try:
            return await call(*args)
        except Temporary:
            continue
    raise AssertionError("still failing after ten tries")


@pytest.mark.slow
async def test_a_server_cut_off_keeps_what_was_acknowledged() -> None:
    with PostgresServer() as server:
        async with await open_database(server.database("cut")) as db:
            await db.migrate()
            await db.commit([hosts.insert(a_host(number)) for number in range(10)])
            acknowledged = {f"host-{number:05d}": 1 for number in range(10)}

            async def work(number: int) -> None:
                host = a_host(number)
                while True:
                    try:
                        await db.commit([hosts.save(host)])
                    except Temporary as error:
                        assert isinstance(error, Unreachable | Busy | DeadlineExceeded)
                        return
                    host = msgspec.structs.replace(host, version=host.version + 1)
                    acknowledged[host.id] = host.version

            async with asyncio.TaskGroup() as group:
                for number in range(10):
                    group.create_task(work(number))
                await asyncio.sleep(0.1)
                await asyncio.to_thread(server.stop)
            with pytest.raises(Unreachable):
                await hosts.get(db, "host-00000")
            await asyncio.to_thread(server.start)
            for host in await _until(hosts.every, db):  # type: ignore[attr-defined]
                assert host.version in (acknowledged[host.id], acknowledged[host.id] + 1)
            await _until(db.commit, [access.set_setting("a", "1")])


async def test_nobody_there_and_login_refused(postgres: PostgresServer) -> None:
    with pytest.raises(Unreachable):
        await open_database("postgresql://fleetd@127.0.0.1:1/x")
    with pytest.raises(Permanent):
        await open_database(postgres.url("no_such_database"))
    with pytest.raises(Permanent) as caught:
        await open_database(postgres.url("template").replace("fleetd@", "nobody:s3cret@"))
    assert "s3cret" not in str(caught.value)


async def test_readers_cannot_write(daemons: list[Database]) -> None:
    with pytest.raises(asyncpg.exceptions.ReadOnlySQLTransactionError):
        await daemons[0]._engine._pool.execute("DELETE FROM hosts")  # type: ignore[attr-defined]
