"""qcow2 to raw.zst, once, on the server: hosts get one format they can stream, and no qcow2 reader runs on them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from pathlib import Path
from typing import Final

from fleetd.kit import qcow2
from fleetd.kit.diskimage import CHUNK, Chunks, Measured, Stopped, digest_of, program, through

SECONDS_EACH: Final = 30.0 / 1024**3  # a byte: 30 s a GiB, on the slowest disk that one would serve images from
SECONDS_LEAST: Final = 120.0
ROOM_EACH: Final = 64 * 1024**2


def hash_only(path: Path, *, most: int, stop: threading.Event) -> Measured:
    """Size and digest of the file as it is; the raw half is 0. Raises Invalid when it is larger than `most` bytes."""
    size, digest = digest_of(path, most=most, stop=stop)
    return Measured(size, digest, 0, "")


def convert(path: Path, raw: Path, packed: Path, *, most: int, reserve: int, stop: threading.Event) -> Measured:
    """Write `packed` (raw.zst, durable) by way of `raw`, which the caller removes. Runs long: call it in a thread.

    Args:
        most: bytes the disk may have. reserve: bytes that must stay free.

    Raises:
        Invalid, Conflict, Unsupported, Garbled, DeadlineExceeded: as `kit.qcow2.to_raw`. Stopped: `stop` was set.
    """
    command = [program("zstd"), "-q", "--no-progress", "-T1", "-3", "-c"]
    size = qcow2.to_raw(
        path, raw, most=most, seconds=max(SECONDS_LEAST, most * SECONDS_EACH), reserve=reserve, stop=stop
    )
    inner, outer = hashlib.sha256(), hashlib.sha256()

    def chunks() -> Chunks:
        with raw.open("rb") as file:
            while chunk := file.read(CHUNK):
                if stop.is_set():
                    raise Stopped
                inner.update(chunk)
                yield chunk

    written = looked = 0
    with packed.open("xb") as target, contextlib.closing(through(command, chunks())) as stream:
        for chunk in stream:
            target.write(chunk)
            outer.update(chunk)
            written += len(chunk)
            if written - looked >= ROOM_EACH:
                qcow2.require_room(packed.parent, 0, reserve)
                looked = written
        target.flush()
        os.fsync(target.fileno())
    return Measured(written, outer.hexdigest(), size, inner.hexdigest())
