"""Structured concurrency with names: every task has an owner that waits for it, and a failure is never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, TypeVar

from fleetd.kit.errors import Busy

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


async def deadline(awaitable: Awaitable[T], seconds: float) -> T:
    """Await at most `seconds`; raises TimeoutError, which a wire translates to its own typed error."""
    async with asyncio.timeout(seconds):
        return await awaitable


async def gather_bounded(calls: Iterable[Callable[[], Awaitable[T]]], *, width: int) -> list[T | Exception]:
    """Run all calls, at most `width` at once; results in order, an exception in the place of what failed.

    One bad host must not cancel the others, so exceptions are values here; cancellation still cancels all.
    """
    gate = asyncio.Semaphore(width)

    async def one(call: Callable[[], Awaitable[T]]) -> T | Exception:
        async with gate:
            try:
                return await call()
            except Exception as error:  # noqa: BLE001 -- returned as a value: the caller judges each
                return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(call)) for call in calls]
    return [task.result() for task in tasks]


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None], *, name: str) -> AsyncIterator[None]:
    """`work` runs while the body does, and has ended when the body has: cancelled, if need be.

    It does not disturb the body; what it raised comes out at the body's end, and goes to the loop's handler when the body
    was cancelled or raised itself.
    """
    task = asyncio.create_task(work, name=name)
    try:
        yield
    except BaseException:
        if (error := await _ended(task)) is not None:
            said = {"message": f"{name} failed beside what failed", "exception": error, "task": task}
            asyncio.get_running_loop().call_exception_handler(said)
        raise
    if (error := await _ended(task)) is not None:
        raise error


async def _ended(task: asyncio.Task[None]) -> BaseException | None:
    """Cancel it, wait for its end; what it raised, None when it had nothing to say."""
    task.cancel()
    await asyncio.wait((task,))
    return None if task.cancelled() else task.exception()


async def in_thread(work: Callable[[], T], *, stop: Callable[[], None] = lambda: None) -> T:
    """In a thread. A cancelled caller calls `stop` and still waits: the thread works on what the caller will clean up."""
    task = asyncio.create_task(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop()
        with suppress(Exception):  # nobody asks for its result any more
            await task
        raise


async def unless_stopping(stopping: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """Work of minutes must not hold up a stop, nor end in it as if it were broken.

    Raises: as `work`. Busy: `stopping` was set, and the work was cancelled.
    """
    task, stop = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if task.cancelled():
        raise Busy("fleetd is stopping", remedy="order it again when it runs; what is there already changes nothing")
    return task.result()


class Workers(Generic[K]):
    """One sequential worker per key, made on need and gone when idle; wake-ups while it works are not lost.

    `work(key)` is called again as long as the key was woken since its last call began. Its exceptions go to `on_error`;
    they never kill the group. `drain` stops taking wake-ups and waits for what runs.
    """

    def __init__(
        self,
        work: Callable[[K], Coroutine[Any, Any, None]],
        on_error: Callable[[K, Exception], None],
        *,
        width: int,
    ) -> None:
        self._work = work
        self._on_error = on_error
        self._gate = asyncio.Semaphore(width)
        self._dirty: set[K] = set()
        self._running: dict[K, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._draining = False

    async def __aenter__(self) -> Workers[K]:
        self._group = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        group, self._group = self._group, None
        assert group is not None
        if exc[0] is not None:
            for task in self._running.values():
                task.cancel()
        await group.__aexit__(*exc)

    @property
    def busy(self) -> int:
        """How many keys have a live worker."""
        return len(self._running)

    def wake(self, key: K) -> None:
        """Make sure `work(key)` is called after this instant."""
        if self._draining or self._group is None:
            return
        self._dirty.add(key)
        if key not in self._running:
            self._running[key] = self._group.create_task(self._loop(key), name=f"worker:{key}")

    async def _loop(self, key: K) -> None:
        try:
            while key in self._dirty and not self._draining:
                async with self._gate:
                    self._dirty.discard(key)
                    try:
                        await self._work(key)
                    except Exception as error:  # noqa: BLE001 -- handed on: one key's failure must not end the group
                        self._on_error(key, error)
        finally:
            del self._running[key]

    async def drain(self, patience: float) -> None:
        """Take no more work; wait `patience` seconds for what runs, then cancel it."""
        self._draining = True
        running = list(self._running.values())
        if running:
            _, late = await asyncio.wait(running, timeout=patience)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
