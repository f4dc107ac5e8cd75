"""What the commands need of the host they run on: its drives, its firmware, its boot's marker, a journal of intents.

Three kinds exist: the real host (`real.py`), a directory that stands for a host (`--root`, `simulated.py`), and the
simulator's own in memory. All destructive work goes through `Drive` and `Blocks`, so one flow serves all three.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from .order import Refusal
from .source import Source

MARKER = "/run/fleetd/deploy"
INTENTS = "/run/fleetd/intents"


class Blocks(Protocol):
    """A drive opened for this program alone. Context manager; every verb raises OSError where the drive itself fails.

    Offsets and lengths in bytes, multiples of `sector`; a verb that reaches beyond `size` is an OSError (EINVAL).
    What `read` returns comes from the medium, never from a cache of this host. The verbs may be called from another
    thread than the one that opened it, but never by two at the same time.
    """

    size: int  # bytes
    sector: int  # logical sector in bytes: 512 or 4096

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """All of `data`. A view of page-aligned memory (an mmap) need not be copied."""

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, by the drive's own means where it has them."""

    def flush(self) -> None:
        """Return when everything written is on the medium."""

    def close(self) -> None:
        """Idempotent; does not flush."""

    def __enter__(self) -> Blocks: ...

    def __exit__(self, *_: object) -> None: ...


class Drive(Protocol):
    """One drive of this host."""

    name: str  # "nvme0n1", "sda"
    serial: str
    model: str
    firmware: str
    size: int  # bytes

    def methods(self) -> list[str]:
        """Erase methods in order of preference, by what the drive says it can; "overwrite" is always the last."""

    def erase(self, method: str, intent: str) -> Iterator[float]:
        """Erase the whole drive by this method; yields fractions 0..1 done. Its end proves nothing.

        Raises OSError with the drive's own answer in `strerror` when it refuses or fails.
        """

    def open(self) -> Blocks:
        """Open it exclusively. Raises OSError, also when anything on this host uses it."""


class Machine(Protocol):
    """`began` journals before the act: the entry that already stood there, or None when it is ours to act.

    It raises Refusal `busy` where the order of another intent is being carried out: two would spoil each other's proof.
    """

    lanes: int  # how many drives are erased at once, each in a thread of its own; 1: one after the other, no thread

    def serial(self) -> str: ...

    def marker(self) -> str:
        """Text of the marker that the deploy boot wrote; empty when this is no deploy boot."""

    def drives(self) -> Sequence[Drive]: ...

    def began(self, intent: str, entry: dict[str, Any]) -> dict[str, Any] | None: ...

    def ended(self, intent: str, entry: dict[str, Any]) -> None: ...

    def entry(self, intent: str) -> dict[str, Any] | None: ...

    def note(self, what: str, **data: Any) -> None:
        """Tell the owner of simulated drives what is being done; nothing on a real host."""

    def source(self, urls: Sequence[str], length: int) -> Source:
        """Where the image comes from: `length` bytes from the first of `urls` that delivers them."""

    def seed_volume(self, files: dict[str, bytes], length: int, sector: int) -> bytes:
        """A volume labelled CIDATA of exactly `length` bytes that holds these files in its root. Raises OSError."""

    def inspect(self) -> dict[str, Any]:
        """The read-only snapshot: {"bios", "board", "drives", "nics", "pci", "efi", "tpm"}. What cannot be read is
        empty, never an exception."""

    def clear_tpm(self) -> dict[str, Any]:
        """{"present", "cleared", "method", "pending_reboot", "reason"}. Raises OSError."""

    def boot_order(self, drive: Drive | None) -> dict[str, Any]:
        """{"efi": as in `inspect`, "removed": ["0004"], "first": "0003" or "", "reason": ""}. Raises OSError.

        Removes entries that a tenant added; puts "fleetd disk" on the EFI system partition of `drive` first where the
        drive has one (`partition.system_partition`); None: no drive has one, so it only removes.
        """


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Journal:
    """One file an intent, created whole or not at all, on disk before the act."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def _path(self, intent: str) -> str:
        return os.path.join(self._directory, f"{intent}.json")

    def _part(self, entry: dict[str, Any]) -> str:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        fd, part = tempfile.mkstemp(dir=self._directory, prefix=".part-")
        with os.fdopen(fd, "wb") as file:
            file.write(json.dumps(entry).encode())
            file.flush()
            os.fsync(file.fileno())
        return part

    def began(self, intent: str, entry: dict[str, Any]) -> dict[str, Any] | None:
        """Journal it; returns the entry that already stood there. Of two at once exactly one gets None.

        Raises Refusal `busy` while the program of another intent works.
        """
        part = self._part({**entry, "pid": os.getpid(), "started": started(os.getpid())})
        try:
            os.link(part, self._path(intent))  # fails if it exists, unlike rename
        except FileExistsError:
            return self.entry(intent)
        finally:
            os.unlink(part)
        _sync(self._directory)
        if (other := self._at_work(intent)) is not None:
            os.unlink(self._path(intent))  # it did nothing, and may be ordered again
            raise Refusal("busy", f"the order of intent {other} is being carried out here")
        return None

    def _at_work(self, intent: str) -> str | None:
        """Another intent whose program works now: its order came late, or whoever gave it stopped listening.

        Two that begin at the same time may both find each other, and both give way.
        """
        for name in sorted(os.listdir(self._directory)):
            other = name.removesuffix(".json")
            if other not in (intent, name) and (self.entry(other) or {}).get("state") == "running":
                return other
        return None

    def ended(self, intent: str, entry: dict[str, Any]) -> None:
        os.replace(self._part(entry), self._path(intent))
        _sync(self._directory)

    def entry(self, intent: str) -> dict[str, Any] | None:
        """What is journalled; None for an intent never seen here. A damaged entry counts as begun."""
        try:
            with open(self._path(intent), "rb") as file:
                value = json.load(file)
        except FileNotFoundError:
            return None
        except ValueError:
            value = {}
        if not isinstance(value, dict):
            return {}
        if value.get("state") == "running" and not _alive(value.get("pid"), value.get("started")):
            value["state"] = "interrupted"
        return value


def _alive(pid: object, since: object) -> bool:
    """Whether that very process still works. The journal lives in RAM, so id and start are of this boot.

    The kernel gives the id of a dead process to another one: that one started later.
    """
    if not isinstance(pid, int) or not isinstance(since, int) or pid < 1 or since < 1:
        return False
    return started(pid) == since


def started(pid: int, proc: str = "/proc") -> int:
    """When it started, in clock ticks since the boot (proc(5), stat field 22); 0 when there is none, or only its remains."""
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            # the name, field 2, may hold spaces and brackets: the fields go on behind its last bracket, with the state
            fields = file.read(4096).rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[19]) if len(fields) > 19 and fields[0] not in (b"Z", b"X") else 0


def first_line(path: str) -> str:
    """The file's text up to 4 KiB, stripped; empty when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(4096).decode("utf-8", "replace").strip()
    except OSError:
        return ""
