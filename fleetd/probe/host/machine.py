"""What the commands need of the host they run on: its serial, its boot's marker, its drives, a journal of intents.

Three kinds exist: the real host (reads only, drives that refuse), a directory that stands for a host (`--root`), and
the simulator's own in memory, which implements the same protocol.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from typing import Any, Protocol

from .order import Refusal
from .simulated import SimulatedDrive

MARKER = "/run/fleetd/deploy"
INTENTS = "/run/fleetd/intents"


class Drive(Protocol):
    """One drive. Raises OSError where the drive itself fails."""

    name: str
    serial: str
    model: str
    size: int  # bytes

    def erase(self, intent: str) -> str:
        """Erase it; returns the method used. A return proves nothing."""

    def write(self, intent: str, payload: bytes) -> None:
        """Write `payload` at the start of the drive."""

    def read(self, offset: int, length: int) -> bytes: ...


class Machine(Protocol):
    """`began` journals before the act: the entry that already stood there, or None when it is ours to act."""

    def serial(self) -> str: ...

    def marker(self) -> str:
        """Text of the marker that the deploy boot wrote; empty when this is no deploy boot."""

    def drives(self) -> Sequence[Drive]: ...

    def began(self, intent: str, entry: dict[str, Any]) -> dict[str, Any] | None: ...

    def ended(self, intent: str, entry: dict[str, Any]) -> None: ...

    def entry(self, intent: str) -> dict[str, Any] | None: ...

    def note(self, what: str, **data: Any) -> None:
        """Tell the owner of simulated drives what is being done; nothing on a real host."""


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
        """Journal it; returns the entry that already stood there. Of two at once exactly one gets None."""
        part = self._part({**entry, "pid": os.getpid()})
        try:
            os.link(part, self._path(intent))  # fails if it exists, unlike rename
        except FileExistsError:
            return self.entry(intent)
        finally:
            os.unlink(part)
        _sync(self._directory)
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
        if value.get("state") == "running" and not _alive(value.get("pid")):
            value["state"] = "interrupted"
        return value


def _alive(pid: object) -> bool:
    """Whether that process still exists. The journal lives in RAM, so the id is of this boot."""
    if not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _first_line(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(4096).decode("utf-8", "replace").strip()
    except OSError:
        return ""


class RealMachine:
    """This host. It is read, and its drives refuse: writing to metal has not landed."""

    def __init__(self) -> None:
        self._journal = Journal(INTENTS)

    def serial(self) -> str:
        return _first_line("/sys/class/dmi/id/product_serial")

    def marker(self) -> str:
        return _first_line(MARKER)

    def drives(self) -> Sequence[Drive]:
        found: list[Drive] = []
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir("/sys/class/nvme")):
                at = f"/sys/class/nvme/{name}"
                size = _first_line(f"{at}/{name}n1/size")
                found.append(
                    RealDrive(name, _first_line(f"{at}/serial"), _first_line(f"{at}/model"), int(size or 0) * 512)
                )
        return found

    def began(self, intent: str, entry: dict[str, Any]) -> dict[str, Any] | None:
        raise Refusal("imaging-not-landed", "this version of fleetd acts on simulated drives only")

    def ended(self, intent: str, entry: dict[str, Any]) -> None:
        self._journal.ended(intent, entry)

    def entry(self, intent: str) -> dict[str, Any] | None:
        return self._journal.entry(intent)

    def note(self, what: str, **data: Any) -> None:
        """Nobody listens on a real host."""


class RealDrive:
    """A drive of metal. Every verb refuses; there is no code here that opens it."""

    def __init__(self, name: str, serial: str, model: str, size: int) -> None:
        self.name, self.serial, self.model, self.size = name, serial, model, size

    def erase(self, intent: str) -> str:
        raise Refusal("imaging-not-landed", "this version of fleetd acts on simulated drives only")

    def write(self, intent: str, payload: bytes) -> None:
        raise Refusal("imaging-not-landed", "this version of fleetd acts on simulated drives only")

    def read(self, offset: int, length: int) -> bytes:
        raise Refusal("imaging-not-landed", "this version of fleetd acts on simulated drives only")


class RootMachine:
    """A directory that stands for a host: drives are JSON files in ROOT/drives, whose log.jsonl tells each act."""

    def __init__(self, root: str) -> None:
        self._root = os.path.abspath(root)
        if self._root == "/":
            raise Refusal("bad-order", "--root must not be /")
        self._journal = Journal(self._root + INTENTS)
        self.began, self.ended, self.entry = self._journal.began, self._journal.ended, self._journal.entry

    def serial(self) -> str:
        return _first_line(self._root + "/sys/class/dmi/id/product_serial")

    def marker(self) -> str:
        return _first_line(self._root + MARKER)

    def drives(self) -> Sequence[Drive]:
        directory = os.path.join(self._root, "drives")
        found = []
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
            path = os.path.join(directory, name)
            if re.fullmatch(r"[a-z0-9]+\.json", name) and os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    state = json.load(file)

                def save(changed: dict[str, Any], path: str = path) -> None:
                    part = path + ".part"
                    with open(part, "w", encoding="utf-8") as file:
                        json.dump(changed, file)
                        file.flush()
                        os.fsync(file.fileno())
                    os.replace(part, path)

                found.append(SimulatedDrive(state, save=save, note=self.note))
        return found

    def note(self, what: str, **data: Any) -> None:
        with open(os.path.join(self._root, "drives", "log.jsonl"), "ab", buffering=0) as file:
            file.write(json.dumps({"what": what, "data": data}).encode() + b"\n")
