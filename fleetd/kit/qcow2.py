"""qcow2 made raw, once, with a stranger's file in mind: it may name other files, claim any size, and cost any time.

The header is read here before qemu-img sees it: one that leans on a backing file or an external data file would make
qemu-img open whatever path it names (CVE-2024-4467), so it is refused unseen. Layout: QEMU docs/interop/qcow2.rst.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Final, NamedTuple

from fleetd.kit.diskimage import RAW, SECTOR, Measured, Progress, Stopped, digest_of, last_words, program
from fleetd.kit.diskimage import measure as raw_measure
from fleetd.kit.errors import Conflict, DeadlineExceeded, Garbled, Invalid

MAGIC: Final = b"QFI\xfb"
_FIXED: Final = struct.Struct(">4sIQIIQIIQQIIQ")  # version 2, 72 bytes
_FEATURES: Final = struct.Struct(">QQQII")  # version 3, from byte 72
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = 1, 2, 4, 8, 16
_KNOWN: Final = _DIRTY | _COMPRESSION | _EXTENDED_L2
_EXTENSION_END, _EXTENSION_BACKING, _EXTENSION_DATA = 0, 0xE2792ACA, 0x44415441
_MAX_HEADER: Final = 4096
MEMORY: Final = 1024**3  # bytes of address space for qemu-img
INFO_SECONDS: Final = 30
HAND_SECONDS: Final = 3600.0
ROOM_EVERY: Final = 0.5  # seconds between looks at the room left, while qemu-img writes


class Header(NamedTuple):
    """Sizes in bytes."""

    version: int
    virtual_size: int
    cluster_bits: int


def read_header(data: bytes, most: int) -> Header:
    """The bounds of a qcow2 file, from its first 4 KiB.

    Args:
        most: bytes the disk may have at most.

    Raises:
        Invalid: no qcow2, or one that this house does not open: backing file, external data file, encryption, damage.
    """
    if len(data) < _FIXED.size or data[:4] != MAGIC:
        raise _refused("it is no qcow2 file")
    _, version, backing, backing_size, cluster_bits, size, crypt, *_ = _FIXED.unpack_from(data)
    if version not in (2, 3):
        raise _refused(f"its version is {version}, known are 2 and 3")
    if backing or backing_size:
        raise _refused("it leans on a backing file", remedy="flatten it: `qemu-img convert -O qcow2 IN OUT`")
    if crypt:
        raise _refused("it is encrypted", remedy="decrypt it: `qemu-img convert` with its key")
    if not 9 <= cluster_bits <= 21:
        raise _refused(f"its clusters have 2^{cluster_bits} bytes")
    if not 0 < size <= most or size % SECTOR:
        raise _refused(f"its disk has {size} bytes", remedy=f"whole sectors, at most {most} bytes")
    if version == 3:
        _features(data)
    return Header(version, size, cluster_bits)


def _features(data: bytes) -> None:
    if len(data) < _FIXED.size + _FEATURES.size:
        raise _refused("its header is cut off")
    incompatible, _, _, _, length = _FEATURES.unpack_from(data, _FIXED.size)
    if incompatible & _DATA_FILE:
        raise _refused("its data stands in another file", remedy="flatten it: `qemu-img convert -O qcow2 IN OUT`")
    if incompatible & _CORRUPT:
        raise _refused("it is marked as damaged", remedy="`qemu-img check -r all FILE`, if you trust what is left")
    if incompatible & ~_KNOWN:
        raise _refused(f"it has features nobody here knows ({incompatible:#x})")
    at = length
    while True:
        if not 0 < at <= min(len(data), _MAX_HEADER) - 8:
            raise _refused("its header is cut off")
        kind, size = struct.unpack_from(">II", data, at)
        if kind == _EXTENSION_END:
            return
        if kind in (_EXTENSION_BACKING, _EXTENSION_DATA):
            raise _refused("it names another file", remedy="flatten it: `qemu-img convert -O qcow2 IN OUT`")
        at += 8 + (size + 7) // 8 * 8


def inspect(path: Path, most: int) -> Header:
    """Header and qemu-img agree on what it is. Raises Invalid, Unsupported, DeadlineExceeded, Garbled."""
    try:
        with path.open("rb") as file:
            header = read_header(file.read(_MAX_HEADER), most)
    except OSError as error:
        raise Invalid("the image cannot be read", why=error.strerror or str(error), where=str(path)) from error
    command = [*_bounded(INFO_SECONDS, 0), "info", "--output=json", "-f", "qcow2", "--", str(path)]
    with tempfile.TemporaryFile() as words:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=words,
                timeout=INFO_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DeadlineExceeded("qemu-img does not read the image", why=f"{INFO_SECONDS} s") from error
        if done.returncode != 0:
            raise _refused(last_words(words) or f"qemu-img exited {done.returncode}")
    try:
        said = json.loads(done.stdout)
        form, size = said["format"], said["virtual-size"]
        specific = said.get("format-specific", {}).get("data", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Garbled("qemu-img says what nobody expects", why=str(error)[:200]) from error
    if form != "qcow2" or size != header.virtual_size:
        raise _refused(f"its header says {header.virtual_size} bytes, qemu-img {form} of {size}")
    if "backing-filename" in said or "full-backing-filename" in said or "data-file" in specific:
        raise _refused("it leans on another file")
    return header


def to_raw(
    path: Path,
    target: Path,
    *,
    most: int,
    seconds: float,
    reserve: int,
    stop: threading.Event | None = None,
) -> int:
    """Write the disk of a qcow2 file as a sparse raw file; returns its bytes. Runs long: call it in a thread.

    Args:
        most: bytes the disk may have. seconds: that qemu-img may take. reserve: bytes that must stay free beside it.

    Raises:
        Invalid, Unsupported, Garbled: as `inspect`, or qemu-img found it damaged.
        Conflict: no room. DeadlineExceeded. Stopped: `stop` was set.
    """
    size = inspect(path, most).virtual_size
    cache = "none" if _direct(path) else "writeback"
    command = [*_bounded(seconds, size + SECTOR), "convert", "-q", "-f", "qcow2", "-O", "raw", "-T", cache, "-W"]
    end = _Steady(seconds)
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            [*command, "--", str(path), str(target)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=words
        )
        try:
            while True:
                try:
                    code = process.wait(ROOM_EVERY)
                    break
                except subprocess.TimeoutExpired:
                    if stop is not None and stop.is_set():
                        raise Stopped from None
                    if end.over:
                        raise DeadlineExceeded("the image was not converted in time", why=f"{seconds:.0f} s") from None
                    require_room(target.parent, 0, reserve)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if code != 0:
            raise _refused(last_words(words) or f"qemu-img exited {code}")
    written = target.stat().st_size
    if written != size:
        raise _refused(f"its disk has {written} bytes, its header says {size}")
    return size


def measure(path: Path, *, most: int, most_raw: int, progress: Progress | None = None) -> Measured:
    """As `diskimage.measure`, by way of a raw copy among the temporary files. For the hand; the server has its own place.

    Raises: as `to_raw`.
    """
    size, digest = digest_of(path, most=most, progress=progress)
    with tempfile.TemporaryDirectory(prefix="fleetctl-image-") as folder:
        raw = Path(folder) / "disk.raw"
        disk = to_raw(path.absolute(), raw, most=most_raw, seconds=HAND_SECONDS, reserve=0)
        found = raw_measure(raw, RAW, most=disk, most_raw=disk)
    return Measured(size, digest, found.raw_bytes, found.raw_sha256)


def require_room(folder: Path, need: int, reserve: int) -> None:
    """Raises Conflict unless `need` bytes fit and `reserve` stay free."""
    state = os.statvfs(folder)
    free = state.f_bavail * state.f_frsize
    if free < need + reserve:
        raise Conflict(
            f"there is no room in {folder}",
            why=f"{free // 1024**2} MiB are free, {(need + reserve) // 1024**2} MiB are needed",
            remedy="remove images nobody uses (`fleetctl image list`), or give images.dir a larger file system",
        )


class _Steady:
    def __init__(self, seconds: float) -> None:
        from fleetd.kit import pause

        self._now, self._end = pause.steady, pause.steady() + seconds

    @property
    def over(self) -> bool:
        return self._now() > self._end


def _bounded(seconds: float, file_bytes: int) -> list[str]:
    """qemu-img under prlimit: so much memory, processor time, and file size at most; no core dump."""
    return [
        program("prlimit", "util-linux"),
        f"--as={MEMORY}",
        f"--cpu={int(seconds) + 1}",
        f"--fsize={file_bytes}",
        "--core=0",
        "--",
        program("qemu-img", "qemu-utils"),
    ]


def _direct(path: Path) -> bool:
    """Can it be read past the page cache? tmpfs cannot, everywhere."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def _refused(why: str, *, remedy: str = "") -> Invalid:
    return Invalid(
        "this qcow2 image is not taken", why=why, remedy=remedy or "convert it to raw on a machine you trust"
    )
