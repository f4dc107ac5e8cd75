"""What a command on a host says, bounded: its output, its progress, the tail of what else it said, and a refusal."""

from __future__ import annotations

import msgspec

from fleetd.drivers.ssh.capabilities import Progress
from fleetd.kit.errors import Garbled

MAX_LINE = 16 * 1024
MAX_TALK = 8 * 1024 * 1024  # bytes of standard error of one command, and for each second that it may take so many more:
TALK_RATE = 256  # sixteen drives that tell every half minute say 70
TAIL = 2000  # characters kept for the error message


class Refusal(msgspec.Struct, frozen=True):
    """Why the host side did not carry out an order."""

    code: str
    reason: str


class _Report(msgspec.Struct, frozen=True):
    refused: Refusal | None = None


def most_talk(seconds: float) -> int:
    """Bytes that a command of so many seconds may say on standard error."""
    return MAX_TALK + int(TALK_RATE * seconds)


class Talk:
    """Collects one command's output. Raises Garbled from `take` and `hear` when a bound is passed.

    `seconds`: that the command may take.
    """

    def __init__(self, max_output: int, progress: Progress | None, *, seconds: float = 0.0) -> None:
        self.output = bytearray()
        self._max, self._progress = max_output, progress
        self._most = most_talk(seconds)
        self._line = b""
        self._heard = 0
        self._tail = ""

    def take(self, chunk: bytes) -> None:
        if len(self.output) + len(chunk) > self._max:
            raise Garbled("the host's output is too large", why=f"more than {self._max} bytes")
        self.output += chunk

    def hear(self, chunk: bytes) -> None:
        """Lines that are JSON objects are progress, if somebody listens; the rest is kept for the error message."""
        self._heard += len(chunk)
        if self._heard > self._most:
            raise Garbled("the host talks without end", why=f"more than {self._most} bytes on standard error")
        *lines, self._line = (self._line + chunk).split(b"\n")
        for line in lines:
            self._one(line)
        if len(self._line) > MAX_LINE:
            self._one(self._line[:MAX_LINE])
            self._line = b""

    def _one(self, line: bytes) -> None:
        if line.startswith(b"{") and len(line) <= MAX_LINE:
            try:
                value = msgspec.json.decode(line, type=dict)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                value = None
            if value is not None:
                if self._progress is not None:
                    self._progress(value)
                return
        text = line.decode("utf-8", "replace").rstrip()
        self._tail = (self._tail + "\n" + text)[-TAIL:]

    @property
    def tail(self) -> str:
        """The end of what was no progress, printable."""
        said = f"{self._tail}\n{self._line.decode('utf-8', 'replace')}".strip()[-TAIL:]
        return "".join(c if c.isprintable() or c == "\n" else "?" for c in said)


def refusal_in(output: bytes) -> Refusal | None:
    """The refusal that a host-side report carries; None in any other output."""
    if b'"refused"' not in output[:4096]:
        return None
    try:
        refused = msgspec.json.decode(output, type=_Report).refused
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if refused is None:
        return None
    return Refusal(_plain(refused.code, 60), _plain(refused.reason, 500))


def _plain(text: str, longest: int) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:longest])
