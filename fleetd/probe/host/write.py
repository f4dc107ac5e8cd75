"""Writing an image: streamed, unpacked, written, read back whole, seeded; the disk can boot only when all of it is good.

The first block of the image is kept in memory to the end. The disk's first and last MiB are zeroed before anything else
is written; the stream must have its checksums, everything behind the first block must have been read back from the
medium, and the seed must lie on the disk, before the first block (with the table that names it all) is written. So a
power cut, a killed program or a damaged stream leaves a disk that no firmware starts. Whatever fails later zeroes both
ends again and reads them back.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

from . import partition
from .ahead import Ahead
from .machine import Blocks, Drive, Machine
from .order import Image
from .source import Source
from .stream import BLOCK, Stream, WriteFailed, said

ENDS = 1 << 20  # what is zeroed at both ends of a disk that must not boot
MOST_ZERO = 1 << 30  # bytes in one `zero`, so that progress is told between two
_PIECE = 64 << 10
_ZERO = bytes(BLOCK)
Progress = dict[str, Any]


@dataclass
class Tally:
    """What stands in the report about one drive. Bytes."""

    wrote_bytes: int = 0
    zero_bytes: int = 0
    read_bytes: int = 0
    url: str = ""
    resumed: int = 0


class _Pace:
    """At most one progress line a second."""

    def __init__(self, what: str, of: int) -> None:
        self._what, self._of, self._told = what, of, time.monotonic()

    def due(self, done: int) -> Iterator[Progress]:
        now = time.monotonic()
        if now - self._told >= 1.0 or done == self._of:
            self._told = now
            yield {"event": "progress", "what": self._what, "done": done, "of": self._of}


def write_image(
    image: Image, files: dict[str, bytes], drive: Drive, machine: Machine, tally: Tally
) -> Generator[Progress, None, str]:
    """Write, read back, seed. Returns the sha256 of the plain image as it was read back, in hex.

    Raises WriteFailed; then the disk cannot boot, or the reason says why that is not known.
    """
    if drive.size < image.raw_bytes + partition.ROOM:
        raise WriteFailed(
            "drive-too-small",
            f"the drive has {drive.size} bytes, the image needs {image.raw_bytes + partition.ROOM} with its seed",
        )
    try:
        blocks = drive.open()
    except OSError as error:
        raise WriteFailed("drive-write", f"the drive cannot be opened: {said(error)}") from error
    with contextlib.closing(blocks):
        work = _Work(image, files, blocks, machine, tally)
        try:
            return (yield from work.run())
        except WriteFailed as failure:
            if work.touched or failure.code in ("image-checksum", "image-stream"):
                raise WriteFailed(failure.code, f"{failure.reason}; {_unboot(blocks)}") from failure
            raise WriteFailed(failure.code, f"{failure.reason}; nothing was written") from failure


@contextlib.contextmanager
def _failing(code: str) -> Iterator[None]:
    """What the drive does wrong in here is a WriteFailed of this code."""
    try:
        yield
    except OSError as error:
        raise WriteFailed(code, said(error)) from error


def _is_zero(view: memoryview) -> bool:
    # a memoryview compares element by element: bytes are compared at once, and most blocks differ at their start
    return bytes(view[:4096]) == _ZERO[: len(view[:4096])] and bytes(view) == _ZERO[: len(view)]


def _unboot(blocks: Blocks) -> str:
    """Zero both ends and prove it; a word on what came of it."""
    ends = [(0, min(ENDS, blocks.size)), (max(0, blocks.size - ENDS), min(ENDS, blocks.size))]
    try:
        for offset, length in ends:
            blocks.write(offset, bytes(length))
        blocks.flush()
        if any(blocks.read(offset, length) != bytes(length) for offset, length in ends):
            return "its first and last MiB do not read back as zeros: THE DISK MAY STILL BOOT"
    except OSError as error:
        return f"its ends could not be zeroed ({said(error)}): THE DISK MAY STILL BOOT"
    return "the disk is unbootable: its first and last MiB are zeroed and read back"


class _Work:
    """One image onto one opened drive."""

    def __init__(self, image: Image, files: dict[str, bytes], blocks: Blocks, machine: Machine, tally: Tally) -> None:
        self._image, self._files, self._blocks, self._machine, self._tally = image, files, blocks, machine, tally
        self.touched = False
        self._first = b""

    def run(self) -> Generator[Progress, None, str]:
        urls = list(self._image.urls)
        while True:
            source = self._machine.source(urls, self._image.bytes)
            try:
                yield from self._stream(source)
                break
            except WriteFailed as failure:
                # what one server has wrong another may have right
                left = [url for url in urls if url.partition("?")[0] not in source.used]
                if failure.code not in ("image-checksum", "image-stream") or not left or left == urls:
                    raise
                urls = left
                yield {"event": "again", "reason": failure.reason}
            finally:
                source.close()
                self._tally.url, self._tally.resumed = source.url, self._tally.resumed + source.resumed
        with _failing("drive-write"):
            self._blocks.flush()
        digest = yield from self._read_back()
        self._seed()
        return digest

    # --- the stream --------------------------------------------------------------------------------------------------------

    def _stream(self, source: Source) -> Generator[Progress, None, None]:
        """From the wire to the drive, but for the first block. Raises WriteFailed."""
        with Stream(self._image, source, self._blocks.sector) as stream:
            yield from self._put(stream)
        stream.check()

    def _put(self, stream: Stream) -> Generator[Progress, None, None]:
        """Write what comes, zeros by the drive's own means, the first block into memory. Raises WriteFailed."""
        pace = _Pace("write", self._image.raw_bytes)
        blank_from = blank_to = 0
        for buffer in stream:
            if not self.touched:
                self._begin()
            length = stream.padded(buffer.length)
            with buffer.view(length) as view:
                if not buffer.at:
                    self._first = bytes(view)
                    blank_from = blank_to = length
                elif _is_zero(view):
                    blank_to = buffer.at + length
                else:
                    yield from self._blank(blank_from, blank_to, pace)
                    with _failing("drive-write"):
                        self._blocks.write(buffer.at, view)
                    self._tally.wrote_bytes += length
                    blank_from = blank_to = buffer.at + length
            done = buffer.at + buffer.length
            stream.give_back(buffer)
            yield from pace.due(done)
        yield from self._blank(blank_from, blank_to, pace)

    def _padded(self, length: int) -> int:
        return -(-length // self._blocks.sector) * self._blocks.sector

    def _begin(self) -> None:
        self.touched = True
        with _failing("drive-write"):
            self._blocks.zero(0, ENDS)
            self._blocks.zero(self._blocks.size - ENDS, ENDS)
            self._blocks.flush()

    def _blank(self, start: int, end: int, pace: _Pace) -> Generator[Progress, None, None]:
        while start < end:
            length = min(end - start, MOST_ZERO)
            with _failing("drive-write"):
                self._blocks.zero(start, length)
            self._tally.zero_bytes += length
            start += length
            yield from pace.due(start)

    # --- the proof, the seed, and only then the first block -------------------------------------------------------------------

    def _read_back(self) -> Generator[Progress, None, str]:
        """Everything behind the first block, from the medium. Returns the digest of the image. Raises WriteFailed."""
        total, at = self._image.raw_bytes, min(len(self._first), self._image.raw_bytes)
        digest = hashlib.sha256(self._first[:at])
        pace = _Pace("read-back", total)
        pieces: Generator[bytes, None, None] = self._pieces(at)
        with contextlib.ExitStack() as stack:
            source: Iterator[bytes] = pieces
            if total > BLOCK:
                ahead = Ahead(pieces, 2)
                stack.callback(ahead.close)
                source = ahead
            with _failing("drive-read-back"):
                for piece in source:
                    digest.update(piece)
                    at += len(piece)
                    yield from pace.due(at)
        if digest.hexdigest() != self._image.raw_sha256:
            raise WriteFailed("drive-read-back", "the drive reads back something else than was written")
        return digest.hexdigest()

    def _pieces(self, at: int) -> Generator[bytes, None, None]:
        total = self._image.raw_bytes
        while at < total:
            length = min(BLOCK, total - at)
            piece = self._blocks.read(at, self._padded(length))
            self._tally.read_bytes += length
            yield piece[:length] if len(piece) > length else piece
            at += length

    def _seed(self) -> None:
        """The table, the seed's volume, and last of all the first block. Raises WriteFailed."""
        head = _Held(self._blocks, self._first)
        with _failing("drive-write"):
            try:
                part = partition.fit(head, beyond=self._image.raw_bytes)
            except partition.BadTable as error:
                raise WriteFailed("partition-table", str(error)) from error
            pieces = self._volume(part)
            self._blocks.zero(part.start, part.length)
            for offset, piece in pieces:
                head.write(offset, piece)
            self._blocks.flush()
        with _failing("drive-read-back"):
            if any(self._blocks.read(offset, len(data)) != data for offset, data in head.through):
                raise WriteFailed("drive-read-back", "the drive reads back another seed than was written")
        with _failing("drive-write"):
            # A sector is written whole or not at all, 4 MiB are not. So what the table names comes before the table, and
            # last of all the first sector: from there on the disk boots, and everything else is on the medium.
            end = len(head.head)
            for start in (ENDS, self._blocks.sector, 0):
                if start < end:
                    self._blocks.write(start, head.head[start:end])
                    self._blocks.flush()
                    end = start
        self._tally.wrote_bytes += len(head.head)
        with _failing("drive-read-back"):
            back = self._blocks.read(0, len(head.head))
        self._tally.read_bytes += len(back)
        if back != head.head:
            raise WriteFailed("drive-read-back", "the drive reads back something else than was written")

    def _volume(self, part: partition.Partition) -> list[tuple[int, bytes]]:
        """The seed's volume as (offset on the disk, bytes) where it is not zero. Raises WriteFailed."""
        try:
            volume = self._machine.seed_volume(self._files, part.length, self._blocks.sector)
        except OSError as error:
            raise WriteFailed("seed", said(error)) from error
        if len(volume) > part.length:
            raise WriteFailed("seed", "the seed's volume is larger than its partition")
        volume = volume.ljust(self._padded(len(volume)), b"\0")
        pieces = ((at, volume[at : at + _PIECE]) for at in range(0, len(volume), _PIECE))
        return [(part.start + at, piece) for at, piece in pieces if piece != bytes(len(piece))]


class _Held:
    """Blocks whose first bytes are kept in memory (`head`); what went to the drive is in `through`."""

    def __init__(self, blocks: Blocks, head: bytes) -> None:
        self._blocks, self.head = blocks, bytearray(head)
        self.size, self.sector = blocks.size, blocks.sector
        self.through: list[tuple[int, bytes]] = []

    def read(self, offset: int, length: int) -> bytes:
        cut = max(0, min(length, len(self.head) - offset))
        front = bytes(self.head[offset : offset + cut])
        return front + self._blocks.read(offset + cut, length - cut) if length > cut else front

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        whole = bytes(data)
        cut = max(0, min(len(whole), len(self.head) - offset))
        self.head[offset : offset + cut] = whole[:cut]
        if whole[cut:]:
            self._blocks.write(offset + cut, whole[cut:])
            self.through.append((offset + cut, whole[cut:]))
