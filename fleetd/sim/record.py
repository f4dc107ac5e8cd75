"""The simulator's own log of what was really done to its hosts. Tests and the demo judge by it, not by what fleetd believes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One command received or one thing that happened. `at` in steady seconds of the simulator."""

    n: int
    at: float
    host: str  # name
    what: (
        str  # "power.off", "boot.deploy", "wipe.begin", "wipe.done", "image.write", "account.password", "fault.fired" …
    )
    data: dict[str, Any] = {}


class Record:
    """Append-only, in memory and, if a path is given, as JSON lines flushed at once (it must survive kill -9)."""

    def __init__(self, path: Path | None = None) -> None:
        self.entries: list[Entry] = []
        self._file = path.open("ab", buffering=0) if path is not None else None

    def add(self, at: float, host: str, what: str, **data: Any) -> None:
        entry = Entry(n=len(self.entries), at=at, host=host, what=what, data=data)
        self.entries.append(entry)
        if self._file is not None:
            self._file.write(msgspec.json.encode(entry) + b"\n")

    def of(self, host: str | None = None, what: str | None = None) -> Iterator[Entry]:
        """Entries of one host and one kind; `what` may end in a dot to mean a family ("power.")."""
        for entry in self.entries:
            if host is not None and entry.host != host:
                continue
            if what is not None and not (entry.what == what or (what.endswith(".") and entry.what.startswith(what))):
                continue
            yield entry

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_record(path: Path) -> list[Entry]:
    """Entries of a log file; a line cut short by a kill is left out."""
    whole = (line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))
    return [msgspec.json.decode(line, type=Entry) for line in whole]
