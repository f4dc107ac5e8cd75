"""The image's plain bytes from its compressed ones, never more than the order says.

gzip is unpacked in process; zstd by zstd(1), whose memory is bounded by the window it accepts. Each is a `Plain`: a
file to read into buffers from. When an unpacker meets damage it still takes the rest of the stream, so that the
checksum can tell a damaged transfer from a damaged image.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Iterator
from typing import Protocol

ZSTD = "/usr/bin/zstd"
WINDOW_LOG = 27  # 128 MiB: what `zstd --long=27` writes at most
_PIPE = 1 << 20
_PIECE = 1 << 20


class StreamBroken(Exception):
    """The compressed stream cannot be unpacked."""


class Plain(Protocol):
    """Bytes of the disk."""

    def readinto(self, buffer: memoryview) -> int:
        """Up to len(buffer) bytes; 0 only at the end of a stream that ended well. Raises StreamBroken."""

    def drain(self) -> None:
        """Take the rest of the compressed stream without unpacking it."""

    def interrupt(self) -> None:
        """From any thread: make a `readinto` that waits end soon."""

    def close(self) -> None:
        """After `interrupt`, and after the iterator it reads from was ended. Idempotent."""


def opened(chunks: Iterator[bytes], kind: str) -> Plain:
    """`kind`: raw, raw.gz, raw.zst. Raises OSError when zstd(1) is not there, ValueError for another kind."""
    if kind == "raw":
        return _Raw(chunks)
    if kind == "raw.gz":
        return _Gzip(chunks)
    if kind == "raw.zst":
        return _Zstd(chunks)
    raise ValueError(f"there is no image format {kind!r}")


class _Raw:
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readinto(self, buffer: memoryview) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        taken = min(len(buffer), len(self._left))
        buffer[:taken] = self._left[:taken]
        self._left = self._left[taken:]
        return taken

    def drain(self) -> None:
        _drain(self._chunks)

    def interrupt(self) -> None:
        """It waits for its iterator only, and that is its owner's to end."""

    def close(self) -> None:
        self._left = memoryview(b"")


class _Gzip(_Raw):
    """Also several members one after the other, as parallel compressors write them."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__(self._members(chunks))
        self._packed = chunks

    def drain(self) -> None:
        _drain(self._packed)

    def _members(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        member = zlib.decompressobj(wbits=31)
        fresh = True
        try:
            for chunk in chunks:
                data = chunk
                while data:
                    if member.eof:
                        member, fresh = zlib.decompressobj(wbits=31), False
                    plain = member.decompress(data, _PIECE)
                    data = member.unused_data if member.eof else member.unconsumed_tail
                    if plain:
                        yield plain
                while not member.eof and (plain := member.decompress(b"", _PIECE)):
                    yield plain  # what it held back for the bound
        except zlib.error as error:
            _drain(chunks)
            what = "behind its first part" if not fresh else "in its data"
            raise StreamBroken(f"the gzip stream is damaged {what}: {error}"[:200]) from error
        if not member.eof:
            raise StreamBroken("the gzip stream ends in the middle")


class _Zstd:
    """zstd(1), fed by a thread."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        try:
            self._process = subprocess.Popen(
                [ZSTD, "-d", "-c", "-q", f"--long={WINDOW_LOG}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            )
        except BaseException:
            self._stderr.close()
            raise
        assert self._process.stdout is not None
        self._out = self._process.stdout.fileno()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # more than a user may have: the pipe stays as it is
                fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)
        self._error: BaseException | None = None
        self._feeder = threading.Thread(target=self._feed, args=(chunks,), name="fleetd-zstd", daemon=True)
        self._feeder.start()

    def _feed(self, chunks: Iterator[bytes]) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            try:
                for chunk in chunks:
                    view = memoryview(chunk)
                    while view:
                        view = view[stdin.write(view) :]
            finally:
                stdin.close()
        except BrokenPipeError:
            try:
                _drain(chunks)
            except BaseException as raised:  # noqa: BLE001  raised again by `readinto`
                self._error = raised
        except BaseException as raised:  # noqa: BLE001  raised again by `readinto`
            self._error = raised

    def readinto(self, buffer: memoryview) -> int:
        taken = os.readv(self._out, [buffer])
        if taken:
            return taken
        self._feeder.join()
        code = self._process.wait()
        if self._error is not None:
            raise self._error
        if code:
            self._stderr.seek(0)
            said = self._stderr.read(400).decode("utf-8", "replace").replace("\n", " ").strip()
            raise StreamBroken(f"zstd: {said or f'exit code {code}'}"[:200])
        return 0

    def drain(self) -> None:
        self.interrupt()
        self._feeder.join()
        if self._error is not None:
            raise self._error

    def interrupt(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def close(self) -> None:
        self.interrupt()
        self._process.wait()
        self._feeder.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._stderr.close()


def _drain(chunks: Iterator[bytes]) -> None:
    for _ in chunks:
        continue
