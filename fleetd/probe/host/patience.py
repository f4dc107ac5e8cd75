"""Waiting for a drive: a command that blocks in the kernel for hours, and one that is asked how far it is.

Both yield while they wait, so that whoever watches sees that this host lives; both end, whatever the drive does.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator

BEAT = 5.0  # s between two signs of life
STALL = 1800.0  # s without any progress after which a drive counts as stuck


def background(act: Callable[[], object], beat: float = BEAT) -> Iterator[float]:
    """Run a blocking call in a thread and yield 0.0 on every beat. Raises what the call raises.

    The call carries its own time limit (the kernel's, for a command to a drive): a thread cannot be cancelled.
    """
    failed: list[BaseException] = []

    def work() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001  carried to the caller below, of whatever kind
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(beat)
        yield 0.0
    if failed:
        raise failed[0]


def polled(
    ask: Callable[[], float | None],
    what: str,
    *,
    every: float = 1.0,
    stall: float = STALL,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[float]:
    """Ask how far the drive is (a fraction, None when it is done) until it is. No drive tells of its own accord.

    Raises OSError ETIMEDOUT when the answer does not move for `stall` seconds.
    """
    last, moved = -1.0, clock()
    while (fraction := ask()) is not None:
        if fraction != last:
            last, moved = fraction, clock()
        elif clock() - moved > stall:
            raise OSError(errno.ETIMEDOUT, f"{what}: stuck at {fraction:.0%} for {stall:.0f} s")
        yield min(max(fraction, 0.0), 1.0)
        sleep(every)
