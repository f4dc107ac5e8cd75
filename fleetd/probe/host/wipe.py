"""Erasing a drive with proof: a known pattern before, zeros after, at places nobody can know beforehand.

A return code proves nothing. Before each method a pattern of this very intent is written to the samples and read back,
so that even a blank drive shows whether the erase did anything; after it, every sample must read as zeros. A method
that fails, or leaves one sample, is not believed, stands in the report with its reason, and the next one is tried:
nothing is downgraded silently. A crypto erase may leave noise instead of zeros; noise is not told apart from data that
stayed, so it too must be followed by a method that brings zeros.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
import time
from collections.abc import Generator, Sequence
from typing import Any

from . import partition
from .machine import Blocks, Drive
from .stream import said

BLOCK = 4096
_ZERO = bytes(BLOCK)
SAMPLES = 64  # besides the ends and the backup table
Progress = dict[str, Any]
Result = dict[str, Any]


def sample_offsets(size: int, intent: str, serial: str) -> list[int]:
    """Both ends, where a backup table lies, and one block in each of 64 equal parts, chosen by intent and serial.

    The last one ends with the drive; none overlaps another. `size` in bytes, at least one block.
    """
    blocks = max(1, (size - BLOCK) // BLOCK)  # whole ones before the last
    chosen = {0, blocks - 1, min(blocks - 1, partition.backup_area(size) // BLOCK)}
    words = hashlib.shake_128(f"{intent}/{serial}".encode()).digest(8 * SAMPLES)
    for i in range(SAMPLES):
        low, high = blocks * i // SAMPLES, blocks * (i + 1) // SAMPLES
        if high > low:
            chosen.add(low + int.from_bytes(words[8 * i : 8 * i + 8], "big") % (high - low))
    last = max(0, size - BLOCK)
    return sorted({block * BLOCK for block in chosen if (block + 1) * BLOCK <= last} | {last})


def pattern(intent: str, serial: str, offset: int) -> bytes:
    """What is written at this place: never zeros, and another for each place, drive and intent."""
    return hashlib.sha256(f"fleetd wipe {intent}/{serial}/{offset}".encode()).digest() * (BLOCK // 32)


def wipe_drives(drives: Sequence[Drive], intent: str, lanes: int) -> Generator[Progress, None, list[Result]]:
    """All of them, `lanes` at once. Returns a result for each, in their order; never raises for what a drive does."""
    results: list[Result] = [{} for _ in drives]
    works = [_numbered(drive, intent, n, len(drives), results) for n, drive in enumerate(drives)]
    if lanes <= 1 or len(drives) <= 1:
        for work in works:
            yield from work
    else:
        yield from _abreast(works, lanes)
    return results


def _numbered(drive: Drive, intent: str, n: int, of: int, results: list[Result]) -> Generator[Progress, None, None]:
    yield {"event": "erasing", "drive": drive.serial, "n": n + 1, "of": of}
    results[n] = yield from wipe_drive(drive, intent)
    yield {"event": "erased" if results[n]["erased"] else "kept", "drive": drive.serial, "n": n + 1, "of": of}


def _abreast(works: list[Generator[Progress, None, None]], lanes: int) -> Generator[Progress, None, None]:
    """Each work in a thread, so many at once. When the caller stops listening, no new drive is begun."""
    said: queue.SimpleQueue[Progress | BaseException | None] = queue.SimpleQueue()
    waiting: queue.SimpleQueue[Generator[Progress, None, None]] = queue.SimpleQueue()
    for work in works:
        waiting.put(work)
    stopped = threading.Event()

    def lane() -> None:
        try:
            with contextlib.suppress(queue.Empty):
                while not stopped.is_set():
                    for progress in waiting.get_nowait():
                        said.put(progress)
        except BaseException as error:  # noqa: BLE001  raised again where the progress is read
            said.put(error)
        said.put(None)

    threads = [threading.Thread(target=lane, name="fleetd-wipe", daemon=True) for _ in range(min(lanes, len(works)))]
    for thread in threads:
        thread.start()
    try:
        left = len(threads)
        while left:
            progress = said.get()
            if isinstance(progress, BaseException):
                raise progress
            if progress is None:
                left -= 1
            else:
                yield progress
    finally:
        stopped.set()


def wipe_drive(drive: Drive, intent: str) -> Generator[Progress, None, Result]:
    """One drive, by its methods in order until one is proven."""
    offsets = sample_offsets(drive.size, intent, drive.serial)
    patterns = {offset: pattern(intent, drive.serial, offset) for offset in offsets}
    result: Result = {
        "name": drive.name,
        "serial": drive.serial,
        "model": drive.model,
        "bytes": drive.size,
        "method": "",
        "seconds": 0.0,
        "samples": 0,
        "nonzero": 0,
        "pattern_written": 0,
        "pattern_left": 0,
        "erased": False,
        "reason": "",
        "tried": [],
    }
    began = time.monotonic()
    try:
        methods = drive.methods()
    except OSError as error:
        methods, result["reason"] = [], f"the drive does not say how it can be erased: {said(error)}"
    for method in methods:
        reason = yield from _attempt(drive, method, intent, patterns, result)
        result["tried"].append({"method": method, "reason": reason})
        if not reason:
            result["method"], result["erased"], result["reason"] = method, True, ""
            break
        result["reason"] = "; ".join(f"{one['method']}: {one['reason']}" for one in result["tried"])[:500]
    if not result["erased"] and not result["reason"]:
        result["reason"] = "the drive offers no way to erase it"
    result["seconds"] = round(time.monotonic() - began, 3)
    return result


def _attempt(
    drive: Drive, method: str, intent: str, patterns: dict[int, bytes], result: Result
) -> Generator[Progress, None, str]:
    """Pattern, erase, read back: empty when it is proven, else why not. `result` gets the counts of this attempt."""
    result.update(samples=0, nonzero=0, pattern_left=0, pattern_written=0)
    unmarked = ""
    try:
        with drive.open() as blocks:
            result["pattern_written"] = _mark(blocks, patterns)
    except OSError as error:
        unmarked = f"the drive takes no writes: {said(error)}"
    if not unmarked and result["pattern_written"] != len(patterns):
        unmarked = f"{len(patterns) - result['pattern_written']} of {len(patterns)} written samples did not read back"
    try:
        began = told = time.monotonic()
        for fraction in drive.erase(method, intent):
            now = time.monotonic()
            if now - told >= pause(now - began):
                told = now
                done = int(fraction * drive.size)
                yield {"event": "progress", "what": "erase", "drive": drive.serial, "done": done, "of": drive.size}
    except OSError as error:
        return said(error)
    try:
        with drive.open() as blocks:
            for offset, written in patterns.items():
                found = blocks.read(offset, BLOCK)
                result["samples"] += 1
                result["nonzero"] += found != _ZERO
                result["pattern_left"] += found == written
    except OSError as error:
        return f"the samples cannot be read back: {said(error)}"
    if result["pattern_left"]:
        return (
            f"the drive said erased, and its data is still there: {result['pattern_left']} of {len(patterns)} samples"
        )
    if result["nonzero"]:
        return f"{result['nonzero']} of {len(patterns)} samples are not zero after it"
    return f"{unmarked}; so its zeros prove nothing" if unmarked else ""


def pause(since: float) -> float:
    """Seconds between two lines of progress of an erase that began so long ago: many drives in many hours stay brief."""
    return min(30.0, max(1.0, since / 60))


def _mark(blocks: Blocks, patterns: dict[int, bytes]) -> int:
    """How many samples hold their pattern, as read back."""
    for offset, written in patterns.items():
        blocks.write(offset, written)
    blocks.flush()
    return sum(blocks.read(offset, BLOCK) == written for offset, written in patterns.items())
