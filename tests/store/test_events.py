"""The one order of events: by commit, without gaps for whoever watches."""

from __future__ import annotations

import asyncio

from fleetd.model.event import Event
from fleetd.store import access, events
from fleetd.store.database import Database, open_database
from tests.store.samples import NOW


def _event(kind: str, **fields: object) -> Event:
    return Event(kind=kind, at=NOW, **fields)  # type: ignore[arg-type]


async def test_round_trip_and_filters(db: Database) -> None:
    written = [
        _event("host.state", host="h1", site="louisiana", data={"to": "available", "nul": "\0"}),
        _event("audit", principal="root"),
        _event("step.done", host="h1", run="r1"),
        _event("lease.active", lease="l1"),
    ]
    last = await db.commit([events.append(event) for event in written])
    read = await events.after(db, 0, limit=10)
    assert [event.seq for event in read] == sorted(event.seq for event in read)
    assert read[-1].seq == last == await events.last(db)
    assert [Event(**{f: getattr(e, f) for f in e.__struct_fields__ if f != "seq"}) for e in read] == written
    assert [event.kind for event in await events.after(db, 0, limit=10, host="h1")] == ["host.state", "step.done"]
    assert [event.kind for event in await events.after(db, 0, limit=10, host="h1", run="r1")] == ["step.done"]
    assert [event.kind for event in await events.after(db, 0, limit=9, kinds=["audit", "x"])] == ["audit"]
    assert await events.after(db, 0, limit=9, kinds=[]) == []
    assert len(await events.after(db, 0, limit=2)) == 2
    assert await events.after(db, last, limit=9) == []
    assert [event.kind for event in await events.of_host(db, "h1", 1)] == ["step.done"]


async def test_a_number_is_never_given_twice(url: str) -> None:
    async with await open_database(url) as db:
        last = await db.commit([events.append(_event("a")), events.append(_event("b"))])
        await db.commit([events.prune(last)])
        assert await events.after(db, 0, limit=9) == []
    async with await open_database(url) as db:
        assert await db.commit([events.append(_event("c"))]) > last


async def test_seq_follows_commit_order_and_a_resumed_watcher_misses_nothing(db: Database) -> None:
    """Writers race, some units fail; the watcher stops and resumes after its last seq all the time."""
    acknowledged: list[int] = []
    seen: list[int] = []

    async def write(worker: int) -> None:
        for number in range(10):
            acknowledged.append(await db.commit([events.append(_event("x", host=f"h{worker}", data={"n": number}))]))
            assert acknowledged[-1] <= await events.last(db)

    async def watch() -> None:
        after = 0
        while len(seen) < 400:
            assert await db.wait_events(after, 10)
            for event in await events.after(db, after, limit=7):
                seen.append(event.seq)
                after = event.seq

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        for worker in range(40):
            group.create_task(write(worker))
    assert seen == sorted(set(acknowledged))
    assert len(set(acknowledged)) == 400
    for worker in range(40):
        numbers = [event.data["n"] for event in await events.after(db, 0, limit=99, host=f"h{worker}")]
        assert numbers == list(range(10))


async def test_waiting_ends_with_its_time_and_other_writes_do_not_wake(db: Database) -> None:
    assert await db.wait_events(0, 0) is False
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(db.wait_events(0, 0.05))
        await db.commit([access.set_setting("a", "1")])
    assert waiting.result() is False
    await db.commit([events.append(_event("x"))])
    assert await db.wait_events(0, 0) is True


async def test_events_from_before_are_seen_after_a_restart(url: str) -> None:
    async with await open_database(url) as db:
        await db.commit([events.append(_event("x"))])
    async with await open_database(url) as db:
        assert await db.wait_events(0, 1) is True
