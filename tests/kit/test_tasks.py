"""Tasks have owners: nothing runs on unseen, no failure is lost, no wake-up either."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fleetd.kit.errors import Busy, Invalid
from fleetd.kit.tasks import Workers, beside, gather_bounded, in_thread, unless_stopping


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


async def watch(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("watch")


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
    ended: list[str] = []

    async def fail() -> None:
        raise ValueError("beside")

    async with beside(watch(ended), name="watch"):
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
    ended: list[str] = []

    async def body() -> None:
        async with beside(watch(ended), name="watch"):
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["watch"]


@pytest.mark.parametrize("end", ["cancelled", "raises"])
async def test_what_failed_beside_does_not_take_the_place_of_how_the_body_ended(end: str) -> None:
    """A cancelled task whose cancellation is lost would go on; a lost claim would read as something else."""

    async def fail() -> None:
        raise ValueError("beside")

    async def body() -> None:
        async with beside(fail(), name="fail"):
            await settle()
            if end == "raises":
                raise Invalid("the body")
            await asyncio.Event().wait()

    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: told.append(said.get("exception")))
    task = asyncio.create_task(body())
    await settle()
    await settle()
    task.cancel()
    with pytest.raises(Invalid if end == "raises" else asyncio.CancelledError):
        await task
    assert [str(error) for error in told] == ["beside"], "it is still told"


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


async def test_a_cancelled_caller_ends_with_its_thread_and_not_before() -> None:
    began, stop, ended = threading.Event(), threading.Event(), []

    def work() -> None:
        began.set()
        assert stop.wait(10)
        ended.append("work")

    task = asyncio.create_task(in_thread(work, stop=stop.set))
    await asyncio.to_thread(began.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["work"]
    assert await in_thread(lambda: 7) == 7


async def test_long_work_ends_with_the_daemon_and_says_so() -> None:
    stopping, undone = asyncio.Event(), False

    async def never() -> None:
        nonlocal undone
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            undone = True

    async def quick() -> int:
        return 7

    async def broken() -> int:
        raise Invalid("no")

    assert await unless_stopping(stopping, quick()) == 7
    with pytest.raises(Invalid, match="no"):
        await unless_stopping(stopping, broken())
    waiting = asyncio.ensure_future(unless_stopping(stopping, never()))
    await asyncio.sleep(0)
    stopping.set()
    with pytest.raises(Busy, match="stopping"):
        await waiting
    assert undone


async def test_a_caller_that_goes_takes_its_work_along() -> None:
    begun, undone = asyncio.Event(), False

    async def never() -> None:
        nonlocal undone
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            undone = True

    calling = asyncio.ensure_future(unless_stopping(asyncio.Event(), never()))
    await begun.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert undone
