"""SCSI commands by SG_IO, and the erase of SAS drives: SANITIZE, when the drive says that it knows it.

Numbers are of SPC-5 (REQUEST SENSE, REPORT SUPPORTED OPERATION CODES) and SBC-4 (SANITIZE); `scsi/sg.h` for SG_IO.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, Protocol

from . import devices
from .patience import polled

SG_IO = 0x2285
_HEADER = "@iiBBHIQQQIIiQBBBBHHiII4x"  # struct sg_io_hdr, 88 bytes; pointers as numbers
_DIRECTION = {"none": -1, "out": -2, "in": -3}
COMMAND_TIME = 60.0
REQUEST_SENSE, SANITIZE, MAINTENANCE_IN = 0x03, 0x48, 0xA3
_ACTIONS = {"scsi-sanitize-block": 0x02, "scsi-sanitize-crypto": 0x03}
_EXIT_FAILURE, _IMMEDIATE, _AUSE = 0x1F, 0x80, 0x20


class Request(NamedTuple):
    """A command; `data` goes out, `length` bytes come in. `time` in seconds."""

    cdb: bytes
    direction: Literal["none", "out", "in"] = "none"
    data: bytes = b""
    length: int = 0
    time: float = COMMAND_TIME

    def pack(self, data: int, cdb: int, sense: int) -> bytes:
        """struct sg_io_hdr with these addresses; 64 bytes for sense."""
        size = len(self.data) if self.direction == "out" else self.length
        return struct.pack(
            _HEADER,
            *(ord("S"), _DIRECTION[self.direction], len(self.cdb), 64, 0, size, data, cdb, sense),
            *(int(self.time * 1000), 0, 0, 0),
            *(0,) * 9,
        )


class Answer(NamedTuple):
    """`status` is SCSI's (0 good, 2 check condition); `host` and `driver` are the kernel's, 0 when it got through."""

    status: int
    host: int
    driver: int
    data: bytes
    sense: bytes

    @classmethod
    def parse(cls, header: bytes, data: bytes, sense: bytes) -> Answer:
        fields = struct.unpack(_HEADER, header)
        status, _, _, written, host, driver, residue = fields[13:20]
        got = max(0, min(len(data), len(data) - max(0, residue)))
        return cls(status, host, driver & 0x0F, data[:got], sense[:written])


class Sense(NamedTuple):
    """Sense data of either format, SPC-5 section 4.4. `progress` is a fraction, None where it tells none."""

    key: int
    code: int
    qualifier: int
    progress: float | None

    @classmethod
    def parse(cls, data: bytes) -> Sense:
        """Anything shorter or of another format counts as no sense at all."""
        kind = data[0] & 0x7F if data else 0
        if kind in (0x70, 0x71) and len(data) >= 14:
            told = len(data) >= 18 and data[15] & 0x80
            return cls(data[2] & 0xF, data[12], data[13], int.from_bytes(data[16:18], "big") / 65536 if told else None)
        if kind in (0x72, 0x73) and len(data) >= 4:
            return cls(data[1] & 0xF, data[2], data[3], _described(data[8:]))
        return cls(0, 0, 0, None)


def _described(data: bytes) -> float | None:
    """The sense-key specific descriptor (type 02h) among the descriptors."""
    while len(data) >= 2:
        length = 2 + data[1]
        if data[0] == 0x02 and length == 8 and len(data) >= 8 and data[4] & 0x80:
            return int.from_bytes(data[5:7], "big") / 65536
        data = data[length:]
    return None


class Transport(Protocol):
    """One way to a drive's command queue."""

    def __call__(self, request: Request) -> Answer:
        """Raises OSError when the command did not reach the drive."""


class Generic:
    """SG_IO on a block device that is a SCSI disk or looks like one (`/dev/sda`); closed by its owner."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def __call__(self, request: Request) -> Answer:
        out = request.direction == "out"
        data = array.array("B", request.data if out else bytes(request.length))
        cdb, sense = array.array("B", request.cdb), array.array("B", bytes(64))
        where = data.buffer_info()[0] if len(data) else 0
        header = bytearray(request.pack(where, cdb.buffer_info()[0], sense.buffer_info()[0]))
        fcntl.ioctl(self._fd, SG_IO, header, True)
        answer = Answer.parse(bytes(header), b"" if out else data.tobytes(), sense.tobytes())
        if answer.host:
            raise OSError(errno.EIO, f"command 0x{request.cdb[0]:02x} did not reach the drive (host {answer.host})")
        return answer

    def block(self, sys: str = "/sys") -> str:
        """Name of the block device that was really opened."""
        at = os.fstat(self._fd).st_rdev
        return devices.block_of(os.major(at), os.minor(at), sys)

    def close(self) -> None:
        os.close(self._fd)


def must(answer: Answer, what: str) -> Answer:
    """The answer, if it is good. Raises OSError with the drive's sense in the text."""
    if answer.status == 0:
        return answer
    sense = Sense.parse(answer.sense)
    text = f"{what}: refused (sense {sense.key:x}/{sense.code:02x}/{sense.qualifier:02x}, status {answer.status})"
    raise OSError(errno.EIO, text)


def _supported(send: Transport, opcode: int, action: int) -> bool:
    """REPORT SUPPORTED OPERATION CODES, SPC-5 section 6.35, for one opcode and service action: 011b is a yes.

    Volumes of RAID controllers often pass no such question on: that is a no, and what is then done is proven anyway.
    """
    cdb = struct.pack(">BBBBHIxx", MAINTENANCE_IN, 0x0C, 0x03, opcode, action, 64)
    try:
        answer = send(Request(cdb, "in", length=64))
    except OSError:
        return False
    return answer.status == 0 and len(answer.data) >= 2 and answer.data[1] & 0b111 == 0b011


def methods(send: Transport) -> list[str]:
    """What the drive says it can, best first."""
    return [name for name, action in _ACTIONS.items() if _supported(send, SANITIZE, action)]


def sanitize_cdb(action: int, *, flags: int = _IMMEDIATE | _AUSE) -> bytes:
    """SBC-4 section 5.34: returns at once, may leave a failure by another way than one more sanitize, no parameters."""
    return struct.pack(">BB8x", SANITIZE, flags | action)


def erase(send: Transport, method: str, *, poll: Callable[..., Iterator[float]] = polled) -> Iterator[float]:
    """Carry out one of `methods`; yields fractions. Raises OSError, ValueError for a method not of SCSI."""
    if method not in _ACTIONS:
        raise ValueError(f"{method!r} is no erase of SCSI")
    ended: list[Sense] = []

    def ask() -> float | None:
        """While it runs: NOT READY, 04h/1Bh SANITIZE IN PROGRESS with the progress (SBC-4 section 4.11.5)."""
        request = Request(bytes((REQUEST_SENSE, 0, 0, 0, 252, 0)), "in", length=252)
        sense = Sense.parse(must(send(request), "REQUEST SENSE").data)
        if (sense.key, sense.code, sense.qualifier) == (0x2, 0x04, 0x1B):
            return sense.progress or 0.0
        ended.append(sense)
        return None

    yield from poll(ask, "SANITIZE of before")
    must(send(Request(sanitize_cdb(_ACTIONS[method]))), "SANITIZE")
    yield from poll(ask, "SANITIZE")
    if (ended[-1].key, ended[-1].code) == (0x3, 0x31):  # MEDIUM ERROR, SANITIZE COMMAND FAILED
        must(send(Request(sanitize_cdb(_EXIT_FAILURE, flags=0))), "SANITIZE EXIT FAILURE MODE")
        raise OSError(errno.EIO, "SANITIZE: the drive reports that it failed")
