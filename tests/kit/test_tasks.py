"""Tasks have owners: nothing runs on unseen, no failure is lost, no wake-up either."""

from __future__ import annotations

import asyncio

import pytest

from fleetd.kit.tasks import Workers, beside, gather_bounded


class Work:
    """Notes what it was asked to do; holds each key until told."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.go = asyncio.Event()
        self.errors: list[tuple[str, Exception]] = []

    async def __call__(self, key: str) -> None:
        self.began.append(key)
        await self.go.wait()
        if key == "bad":
            raise ValueError(key)

    def failed(self, key: str, error: Exception) -> None:
        self.errors.append((key, error))


async def settle() -> None:
    """Let all tasks come as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_wake_up_during_the_work_is_one_more_call_and_ten_are_no_more() -> None:
    work = Work()
    async with Workers(work, work.failed, width=4) as workers:
        workers.wake("a")
        await settle()
        for _ in range(10):
            workers.wake("a")
        await settle()
        assert work.began == ["a"], "one worker a key"
        work.go.set()
    assert work.began == ["a", "a"]


async def test_one_keys_failure_is_told_and_ends_no_other() -> None:
    work = Work()
    work.go.set()
    async with Workers(work, work.failed, width=1) as workers:
        for key in ("bad", "good"):
            workers.wake(key)
    assert work.began == ["bad", "good"]
    assert [(key, str(error)) for key, error in work.errors] == [("bad", "bad")]


async def test_no_more_work_at_once_than_its_width() -> None:
    work = Work()
    async with Workers(work, work.failed, width=2) as workers:
        for key in "abcd":
            workers.wake(key)
        await settle()
        assert (work.began, workers.busy) == (["a", "b"], 4)
        work.go.set()
    assert sorted(work.began) == ["a", "b", "c", "d"]
    assert workers.busy == 0


async def test_a_drain_takes_nothing_new_and_cancels_what_does_not_end() -> None:
    work = Work()
    async with Workers(work, work.failed, width=2) as workers:
        workers.wake("a")
        await settle()
        await workers.drain(0.01)
        workers.wake("b")
        await settle()
    assert (work.began, workers.busy, work.errors) == (["a"], 0, [])


async def test_what_runs_beside_ends_with_the_body_and_its_failure_is_not_lost() -> None:
    ended = []

    async def watch() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("watch")

    async def fail() -> None:
        raise ValueError("beside")

    async with beside(watch(), name="watch"):
        await settle()
        assert not ended
    assert ended == ["watch"]
    done = []

    async def body() -> None:
        async with beside(fail(), name="fail"):
            await settle()
            done.append("the body was not disturbed")

    with pytest.raises(ValueError, match="beside"):
        await body()
    assert done


async def test_the_body_is_cancelled_and_so_is_what_runs_beside() -> None:
    ended = []

    async def watch() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("watch")

    async def body() -> None:
        async with beside(watch(), name="watch"):
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["watch"]


async def test_failures_are_values_in_their_callers_order() -> None:
    running, most = 0, 0

    async def one(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await settle()
        running -= 1
        if n == 2:
            raise ValueError(n)
        return n

    found = await gather_bounded([lambda n=n: one(n) for n in range(5)], width=2)
    assert [str(one) for one in found] == ["0", "1", "2", "3", "4"]
    assert isinstance(found[2], ValueError)
    assert most == 2
