"""What a disk image file is: its own digest and that of the disk it unpacks to, in one pass, within bounds.

Server and hand measure by the same code, so that both mean the same bytes. Raw needs nothing, gzip is unpacked in this
process, zstd by zstd(1) in a process of its own. Nothing is unpacked further than the caller allows.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Final, NamedTuple

from fleetd.kit.errors import DeadlineExceeded, Invalid, Permanent, Unsupported

CHUNK: Final = 1024 * 1024
SECTOR: Final = 512
RAW, RAW_ZST, RAW_GZ, QCOW2 = "raw", "raw.zst", "raw.gz", "qcow2"
_MAGIC: Final = {b"\x28\xb5\x2f\xfd": RAW_ZST, b"QFI\xfb": QCOW2}
_GZIP: Final = b"\x1f\x8b\x08"
_SKIPPABLE: Final = b"\x2a\x4d\x18"
_WINDOW: Final = "--long=27"  # 128 MiB of memory at most: the host side has the same bound
_STOP_SECONDS: Final = 10.0

Progress = Callable[[int], None]  # bytes of the file read so far
Chunks = Generator[bytes, None, None]  # closed by whoever reads it, also after an error


class Measured(NamedTuple):
    """Sizes in bytes, digests sha256 in hex. `raw_…`: of the disk it unpacks to."""

    bytes: int
    sha256: str
    raw_bytes: int
    raw_sha256: str


class Stopped(Exception):
    """The caller wants no more of it."""


def format_of(path: Path) -> str:
    """By its first bytes, never by its name. Raises Invalid when it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise Invalid("the image cannot be read", why=error.strerror or str(error), where=str(path)) from error
    if head.startswith(_GZIP):
        return RAW_GZ
    if head[1:] == _SKIPPABLE and head[0] & 0xF0 == 0x50:  # zstd's parallel compressors may begin with such a frame
        return RAW_ZST
    return _MAGIC.get(head, RAW)


def program(name: str, package: str = "") -> str:
    """The absolute path of a program. Raises Unsupported."""
    found = shutil.which(name)
    if found is None:
        raise Unsupported(
            f"the program {name} is not installed here",
            why=f"looked in {os.environ.get('PATH', '')[:200]}",
            remedy=f"apt-get install {package or name}",
        )
    return found


def measure(
    path: Path,
    form: str,
    *,
    most: int,
    most_raw: int,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Measured:
    """Read the file once. Runs long: call it in a thread.

    Args:
        form: raw, raw.zst or raw.gz. most, most_raw: bytes of file and disk after which it is refused.
        stop: set by the caller to end it early.

    Raises:
        Invalid: it cannot be unpacked, is larger than allowed, or no disk of whole sectors.
        Unsupported: zstd is missing. Stopped: `stop` was set.
    """
    outer, inner = _Counted("the image file", most), _Counted("the disk in the image", most_raw)
    if form in (RAW_GZ, RAW_ZST) and (found := format_of(path)) != form:  # zstd(1) would unpack gzip too
        raise Invalid("the image cannot be unpacked", why=f"it is said to be {form}, and is {found}")

    def chunks() -> Chunks:
        for chunk in _read(path, stop):
            outer.add(chunk)
            if progress is not None:
                progress(outer.size)
            yield chunk

    with contextlib.closing(unpacked(chunks(), form)) as disk:
        for chunk in disk:
            inner.add(chunk)
    if inner.size == 0 or inner.size % SECTOR:
        raise Invalid("the image is no disk", why=f"{inner.size} bytes are not whole sectors of {SECTOR}")
    return Measured(outer.size, outer.digest.hexdigest(), inner.size, inner.digest.hexdigest())


def digest_of(
    path: Path, *, most: int, progress: Progress | None = None, stop: threading.Event | None = None
) -> tuple[int, str]:
    """Size and sha256 (hex) of a file as it is. Raises as `measure`."""
    counted = _Counted("the image file", most)
    for chunk in _read(path, stop):
        counted.add(chunk)
        if progress is not None:
            progress(counted.size)
    return counted.size, counted.digest.hexdigest()


def _read(path: Path, stop: threading.Event | None) -> Chunks:
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                if stop is not None and stop.is_set():
                    raise Stopped
                yield chunk
    except OSError as error:
        raise Invalid("the image cannot be read", why=error.strerror or str(error), where=str(path)) from error


class _Counted:
    def __init__(self, what: str, most: int) -> None:
        self._what, self._most = what, most
        self.size = 0
        self.digest = hashlib.sha256()

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.size > self._most:
            raise Invalid(f"{self._what} is larger than allowed", why=f"more than {self._most} bytes")
        self.digest.update(chunk)


def unpacked(chunks: Chunks, form: str) -> Chunks:
    """The disk's bytes. Raises Invalid, Unsupported."""
    if form == RAW:
        return chunks
    if form == RAW_GZ:
        return _gunzip(chunks)
    if form == RAW_ZST:
        return through([program("zstd"), "-dc", "-q", "--no-progress", _WINDOW], chunks)
    raise Invalid(f"an image of format {form} is not served", remedy="give raw, raw.zst or raw.gz")


def _gunzip(chunks: Chunks) -> Chunks:
    """Also several members one after the other, as parallel compressors write them; anything else behind is damage."""
    member = zlib.decompressobj(wbits=31)
    try:
        for chunk in chunks:
            data = chunk
            while data:
                if member.eof:
                    member = zlib.decompressobj(wbits=31)
                plain = member.decompress(data, CHUNK)
                data = member.unused_data if member.eof else member.unconsumed_tail
                if plain:
                    yield plain
            while not member.eof and (plain := member.decompress(b"", CHUNK)):
                yield plain  # what it held back for the bound
    except zlib.error as error:
        raise Invalid("the image cannot be unpacked", why=str(error)) from error
    if not member.eof:
        raise Invalid("the image cannot be unpacked", why="the gzip file ends in the middle")


def through(command: list[str], chunks: Chunks) -> Chunks:
    """What a filter program makes of the chunks. Closing the iterator ends the program.

    Raises:
        Invalid: the program failed; its last words are the reason. What `chunks` raises, too.
    """
    with tempfile.TemporaryFile() as words:  # a file, so that much of it blocks nobody
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            env={"LC_ALL": "C", "PATH": os.environ.get("PATH", "")},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        failed: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        feeder = threading.Thread(target=_feed, args=(process.stdin, chunks, failed), name="image-feeder")
        feeder.start()
        try:
            while out := process.stdout.read(CHUNK):
                yield out
            feeder.join()
            if not failed.empty():
                raise failed.get()
            try:
                code = process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise DeadlineExceeded(f"{Path(command[0]).name} does not end") from error
            if code != 0:
                raise Invalid("the image cannot be unpacked", why=last_words(words) or f"exit {code}")
        finally:
            process.stdout.close()
            if process.poll() is None:
                process.kill()
                process.wait()
            feeder.join()


def _feed(pipe: IO[bytes], chunks: Chunks, failed: queue.SimpleQueue[BaseException]) -> None:
    try:
        for chunk in chunks:
            pipe.write(chunk)
    except BrokenPipeError:
        return  # the program had enough: its exit code tells why
    except BaseException as error:  # noqa: BLE001 -- raised again by whoever reads the output
        failed.put(error)
    finally:
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


def last_words(words: IO[bytes], most: int = 300) -> str:
    """The end of what a program said, in one line."""
    end = words.seek(0, os.SEEK_END)
    words.seek(max(0, end - most))
    return " ".join(words.read(most).decode("utf-8", "replace").split())


def sync_folder(folder: Path) -> None:
    """Make a rename in it durable. Raises Permanent."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise Permanent(f"{folder} cannot be written", why=error.strerror or str(error)) from error
