"""Reading, unpacking, hashing and writing at the same time: each stage an iterator that runs ahead in a thread.

zlib, hashlib and file reads release the interpreter lock, so the stages overlap on two processors and more. The queue
between two stages is short; whoever stops listening ends the thread behind it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Iterates over `items` in a thread of its own, at most `depth` of them ahead.

    Args:
        items: closed in that thread, at its end or after `close`.
        interrupt: called by `close` to wake a thread that waits for a wire or a process.
    """

    def __init__(
        self, items: Generator[T, None, None], depth: int, interrupt: Callable[[], None] | None = None
    ) -> None:
        self._items, self._depth, self._interrupt = items, depth, interrupt
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._over = self._stop = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fleetd-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                with self._changed:
                    while len(self._ready) >= self._depth and not self._stop:
                        self._changed.wait()
                    if self._stop:
                        break
                    self._ready.append(item)
                    self._changed.notify_all()
            self._items.close()
        except BaseException as raised:  # noqa: BLE001  it is raised again where the items are taken
            error = raised
        with self._changed:
            self._over, self._error = True, error
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            while not self._ready and not self._over:
                self._changed.wait()
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
        self._thread.join()
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """End the thread and wait for it. Idempotent."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        if self._interrupt is not None and self._thread.is_alive():
            self._interrupt()
        self._thread.join()
