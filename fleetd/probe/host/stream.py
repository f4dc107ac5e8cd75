"""The image as a stream of plain blocks: fetched, hashed, unpacked and hashed again, all at the same time.

Nothing that comes out of it is believed before `check`: the stream must have ended where the order says, with both of
the order's checksums. Every thread and process of it has ended when its `with` block is left, whatever happened.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import queue
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any

from .ahead import Ahead
from .decompress import Plain, StreamBroken, opened
from .order import Image
from .source import Source, SourceFailed

BLOCK = 4 << 20
BUFFERS = 6


class WriteFailed(Exception):
    """`code` as in the report."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason[:600]


def said(error: BaseException) -> str:
    """The error for people, at most 200 characters."""
    text = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
    return text[:200]


class Buffer:
    """Page-aligned memory with one block: `length` bytes of the image from `at` on."""

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size)
        self.at = self.length = 0

    def view(self, length: int) -> memoryview:
        return memoryview(self.memory)[:length]


class Stream:
    """A context manager; iterate over it, and give each buffer back when it is done with.

    Args:
        sector: blocks are padded with zeros to whole sectors of so many bytes.
    """

    def __init__(self, image: Image, source: Source, sector: int) -> None:
        self._image, self._source, self._sector = image, source, sector
        self._packed, self._plain = hashlib.sha256(), hashlib.sha256()
        self._broken: StreamBroken | None = None
        self._pool: queue.SimpleQueue[Buffer | None] = queue.SimpleQueue()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def padded(self, length: int) -> int:
        return -(-length // self._sector) * self._sector

    def give_back(self, buffer: Buffer) -> None:
        self._pool.put(buffer)

    def __iter__(self) -> Iterator[Buffer]:
        """The blocks in order, until the end or the first damage (`check` tells). Raises WriteFailed `image-source`."""
        try:
            yield from self._stages()
        except StreamBroken as error:
            self._broken = error
        except SourceFailed as error:
            raise WriteFailed("image-source", str(error)) from error

    def check(self) -> None:
        """After the last block: raises WriteFailed unless this was the image. A damaged transfer is not a bad image."""
        if self._packed.hexdigest() != self._image.sha256:
            raise WriteFailed("image-checksum", "the bytes received are not the image: their SHA-256 differs")
        if self._broken is not None:
            raise WriteFailed("image-stream", str(self._broken)) from self._broken
        if self._plain.hexdigest() != self._image.raw_sha256:
            raise WriteFailed("image-checksum", "the image unpacks to another disk than its manifest says")

    def _stages(self) -> Iterator[Buffer]:
        chunks = _hashed(self._source.chunks(), self._packed)
        lonely = max(self._image.raw_bytes, self._image.bytes) <= BLOCK  # one block: nothing could overlap
        for _ in range(1 if lonely else BUFFERS):
            self._pool.put(Buffer(min(BLOCK, self.padded(self._image.raw_bytes))))
        if lonely:
            self._stack.callback(chunks.close)
            return self._hashed_blocks(self._filled(self._unpacked(chunks)))
        fetched = Ahead(chunks, 8, interrupt=self._source.close)
        self._stack.callback(fetched.close)
        plain = self._unpacked(fetched)

        def interrupt() -> None:
            fetched.close()
            plain.interrupt()
            self._pool.put(None)

        read = Ahead(self._filled(plain), 2, interrupt=interrupt)
        self._stack.callback(read.close)
        hashing = Ahead(self._hashed_blocks(read), 2, interrupt=read.close)
        self._stack.callback(hashing.close)
        return hashing

    def _unpacked(self, chunks: Iterator[bytes]) -> Plain:
        try:
            plain = opened(chunks, self._image.format)
        except OSError as error:
            raise WriteFailed("image-stream", f"the unpacker cannot be started: {said(error)}") from error
        self._stack.callback(plain.close)
        return plain

    def _filled(self, plain: Plain) -> Generator[Buffer, None, None]:
        """The plain image in blocks; exactly as long as the order says. Raises StreamBroken."""
        at, total = 0, self._image.raw_bytes
        while at < total:
            buffer = self._pool.get()
            if buffer is None:
                return
            want = min(BLOCK, total - at)
            with buffer.view(self.padded(want)) as view:
                got = 0
                while got < want:
                    with view[got:want] as rest:
                        taken = plain.readinto(rest)
                    if not taken:
                        raise StreamBroken(f"the image ends after {at + got} of {total} bytes")
                    got += taken
                if got < len(view):
                    view[got:] = bytes(len(view) - got)
            buffer.at, buffer.length = at, want
            at += want
            yield buffer
        if plain.readinto(memoryview(bytearray(1))):
            plain.drain()
            raise StreamBroken(f"the image is longer than the {total} bytes it should have")

    def _hashed_blocks(self, buffers: Iterator[Buffer]) -> Generator[Buffer, None, None]:
        for buffer in buffers:
            with buffer.view(buffer.length) as view:
                self._plain.update(view)
            yield buffer


def _hashed(chunks: Iterator[bytes], digest: Any) -> Generator[bytes, None, None]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
