"""Units of work: all or none, each for itself, durable on return, and every failure typed."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import asyncpg
import msgspec
import pytest

from fleetd.kit.errors import Busy, Conflict, FleetError, Garbled, Invalid, NotFound, Temporary, Unreachable
from fleetd.model.event import Event
from fleetd.store import access, events, failures, hosts, runs
from fleetd.store.database import Database, open_database
from tests.store.samples import NOW, a_host, a_run, a_spec, in_run


def _said(word: str) -> Event:
    return Event(kind=word, at=NOW)


async def test_a_unit_is_all_or_none(db: Database) -> None:
    await db.commit([hosts.insert(a_host(1))])
    stale = msgspec.structs.replace(a_host(1), version=7)
    with pytest.raises(Conflict, match="changed since"):
        await db.commit([access.set_setting("a", "1"), events.append(_said("x")), hosts.save(stale)])
    assert await access.setting(db, "a") is None
    assert await events.last(db) == 0


async def test_a_unit_that_fails_late_hurts_no_other_in_its_transaction(db: Database) -> None:
    await db.commit([hosts.insert(a_host(1))])
    stale = msgspec.structs.replace(a_host(1), version=7)

    def unit(number: int) -> list[object]:
        ops = [access.set_setting(f"s{number:02d}", "1"), events.append(_said("x"))]
        return [*ops, hosts.save(stale)] if number % 3 == 0 else [*ops, access.set_setting(f"t{number:02d}", "1")]

    outcomes = await asyncio.gather(*(db.commit(unit(number)) for number in range(30)), return_exceptions=True)  # type: ignore[arg-type]
    for number, outcome in enumerate(outcomes):
        assert isinstance(outcome, Conflict if number % 3 == 0 else int)
    good = [f"s{number:02d}" for number in range(30) if number % 3]
    assert sorted(await access.settings(db, "s")) == good
    assert sorted(await access.settings(db, "t")) == [name.replace("s", "t") for name in good]
    seqs = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert [event.seq for event in await events.after(db, 0, limit=99)] == sorted(seqs)


async def test_a_unit_that_the_database_refuses_hurts_no_other(db: Database) -> None:
    same = [a_host(1), a_host(2, spec=a_spec(2, serial="7XK00001")), a_host(3)]
    outcomes = await asyncio.gather(
        *(db.commit([hosts.insert(host), events.append(_said("host.new"))]) for host in same), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [int, Conflict, int]
    assert "hosts.serial" in str(outcomes[1])
    assert [host.id for host in await hosts.every(db)] == ["host-00001", "host-00003"]
    assert len(await events.after(db, 0, limit=9)) == 2


async def test_the_same_op_twice_in_a_unit_is_undone_with_it(db: Database) -> None:
    op = access.insert_token(
        msgspec.convert({"id": "t", "name": "t", "role": "viewer", "hash": "h", "created": NOW}, type=access.Token)
    )
    with pytest.raises(Conflict):
        await db.commit([op, op])
    assert await access.tokens(db) == []


async def test_writes_read_back_at_once(db: Database) -> None:
    for number in range(20):
        await db.commit([access.set_setting("n", str(number))])
        assert await access.setting(db, "n") == str(number)


async def test_an_empty_unit_is_nothing(db: Database) -> None:
    assert await db.commit([]) == 0


async def test_a_row_that_names_no_other_is_a_conflict(db: Database) -> None:
    run = a_run("1")
    await db.commit([runs.insert(run)])
    with pytest.raises(Conflict, match="does not exist"):
        await db.commit([runs.insert_host(in_run(run, a_host(9)))])


@pytest.mark.parametrize("text", ["half \ud800 pair", "nul \0 inside"])
async def test_hostile_text_is_refused_or_kept_never_fatal(db: Database, text: str) -> None:
    outcomes = await asyncio.gather(
        db.commit([access.set_setting("bad", text)]),
        db.commit([access.set_setting("good", "1")]),
        return_exceptions=True,
    )
    assert outcomes[0] == 0 or isinstance(outcomes[0], Invalid)
    assert await access.setting(db, "good") == "1"
    assert await access.setting(db, "bad") in (None, text)


async def test_a_number_too_large_is_invalid(db: Database) -> None:
    with pytest.raises(Invalid):
        await db.commit([hosts.insert(a_host(1, spec_version=2**70))])


async def test_a_fault_of_ours_is_an_error_and_the_next_write_works(db: Database) -> None:
    op = access.set_setting("a", "1")
    with pytest.raises(Exception, match=r"value|ledger"):
        await asyncio.wait_for(db.commit([op._replace(params={"name": "a"})]), 5)
    await db.commit([op])
    assert await access.setting(db, "a") == "1"


async def test_an_unreadable_row_is_named(db: Database, sql: object) -> None:
    await db.commit([hosts.insert(a_host(1)), hosts.insert(a_host(2))])
    assert callable(sql)
    sql("UPDATE hosts SET status = '{\"power\": 7}' WHERE id = 'host-00001'")
    with pytest.raises(Garbled) as caught:
        await hosts.get(db, "host-00001")
    assert caught.value.where == "hosts/host-00001"
    sql("UPDATE hosts SET state = 'dancing' WHERE id = 'host-00002'")
    with pytest.raises(Garbled, match="hosts/host-00002"):
        await hosts.get(db, "host-00002")


async def test_who_gives_up_waiting_hurts_no_other(db: Database) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(db.commit([access.set_setting(f"k{n}", "1")])) for n in range(10)]
        await asyncio.sleep(0)
        tasks[3].cancel()
    assert len(await access.settings(db, "k")) >= 9


async def test_close_keeps_what_was_queued_and_then_refuses(url: str) -> None:
    db = await open_database(url)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(db.commit([access.set_setting(f"k{n}", "1")])) for n in range(50)]
        await asyncio.sleep(0)
        await db.close()
    assert [task.result() for task in tasks] == [0] * 50
    await db.close()
    with pytest.raises(Unreachable):
        await db.commit([access.set_setting("late", "1")])
    with pytest.raises(Unreachable):
        await access.setting(db, "late")
    async with await open_database(url) as again:
        assert len(await access.settings(again, "k")) == 50


@pytest.mark.parametrize(
    "url", ["mysql://x/y", "sqlite:relative.db", "", "sqlite:///:memory:", "/var/lib/fleetd/ledger.db"]
)
async def test_a_wrong_url_is_invalid(url: str) -> None:
    with pytest.raises(Invalid):
        await open_database(url)


# SQLite alone --------------------------------------------------------------------------------------------------------


async def test_the_file_is_private_and_wal_and_full(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with await open_database(f"sqlite:///{path}") as db:
        await db.migrate()
        await db.commit([access.set_setting("a", "1")])
        assert {f.stat().st_mode & 0o777 for f in tmp_path.iterdir()} == {0o600}
        writer: sqlite3.Connection = db._engine._writer  # type: ignore[attr-defined]
        assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert writer.execute("PRAGMA synchronous").fetchone() == (2,)
        assert writer.execute("PRAGMA foreign_keys").fetchone() == (1,)


async def test_a_full_disk_is_temporary_and_passes(tmp_path: Path) -> None:
    async with await open_database(f"sqlite:///{tmp_path}/ledger.db") as db:
        await db.migrate()
        writer: sqlite3.Connection = db._engine._writer  # type: ignore[attr-defined]
        pages = writer.execute("PRAGMA page_count").fetchone()[0]
        writer.execute(f"PRAGMA max_page_count = {pages + 3}")
        outcomes = await asyncio.gather(
            *(db.commit([access.set_setting(f"big{n}", "x" * 9000)]) for n in range(5)), return_exceptions=True
        )
        assert all(isinstance(outcome, Temporary) and "disk" in outcome.remedy for outcome in outcomes)
        assert await access.settings(db, "big") == {}
        writer.execute("PRAGMA max_page_count = 100000")
        await db.commit([access.set_setting("big", "x" * 9000)])
        assert len(await access.settings(db, "big")) == 1


async def test_another_process_holding_the_lock_delays_and_does_not_stall_the_loop(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with await open_database(f"sqlite:///{path}") as db:
        await db.migrate()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        async with asyncio.TaskGroup() as group:
            write = group.create_task(db.commit([access.set_setting("a", "1")]))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not write.done()
            assert await access.setting(db, "a") is None
            other.execute("COMMIT")
        other.close()
        assert await access.setting(db, "a") == "1"


async def test_a_lock_that_stays_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetd.store.sqlite.BUSY_MS", 20)
    path = tmp_path / "ledger.db"
    async with await open_database(f"sqlite:///{path}") as db:
        await db.migrate()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Busy):
            await db.commit([access.set_setting("a", "1")])
        other.execute("COMMIT")
        other.close()
        await db.commit([access.set_setting("a", "1")])


async def test_a_file_that_is_no_ledger_is_garbled(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(Garbled):
        await open_database(f"sqlite:///{tmp_path}/ledger.db")


async def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Temporary, match="No such file"):
        await open_database(f"sqlite:///{tmp_path}/absent/ledger.db")


async def test_inline_in_memory_behaves_the_same() -> None:
    async with await open_database("sqlite:///:memory:", inline=True) as db:
        await db.migrate()
        assert await db.commit([hosts.insert(a_host(1)), events.append(_said("x"))]) == 1
        with pytest.raises(Conflict):
            await db.commit([access.set_setting("a", "1"), hosts.insert(a_host(1))])
        assert await access.setting(db, "a") is None
        assert (await hosts.get(db, "host-00001")).name == "lou-a00-02"
        with pytest.raises(NotFound):
            await hosts.get(db, "host-x")
        assert await db.wait_events(0, 1) is True
        assert await db.wait_events(1, 0.01) is False


async def test_every_error_of_the_ledger_has_a_remedy(db: Database) -> None:
    await db.commit([hosts.insert(a_host(1))])
    with pytest.raises(FleetError) as caught:
        await db.commit([hosts.insert(a_host(1))])
    assert caught.value.remedy
    assert caught.value.why


@pytest.mark.parametrize(
    "error", [asyncpg.InternalClientError("another operation (2) is in progress"), OSError("reset")]
)
def test_a_session_that_ended_under_a_statement_is_lost_and_tried_again(error):
    assert isinstance(error, failures.DRIVER)
    assert failures.is_lost(error)
    assert isinstance(failures.from_postgres(error), Unreachable)
