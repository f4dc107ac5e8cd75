"""NVMe erase: Sanitize and Format NVM by admin commands, as the controller's own capabilities allow.

Layouts and numbers are of the NVM Express Base Specification 2.0 (NVMe) and the NVM Command Set Specification 1.0
(NVM). A status of success is only believed as far as the read-back in `real.py` agrees.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from .patience import background, polled

ADMIN_CMD = 0xC0484E41  # _IOWR('N', 0x41, struct nvme_passthru_cmd), linux/nvme_ioctl.h
GET_LOG_PAGE, IDENTIFY, FORMAT, SANITIZE = 0x02, 0x06, 0x80, 0x84
ALL = 0xFFFFFFFF
COMMAND_TIME, FORMAT_TIME = 60.0, 7200.0  # s; the specification gives Format NVM no limit of its own
_SANACT = {"nvme-sanitize-block": 0b010, "nvme-sanitize-crypto": 0b100, "nvme-sanitize-overwrite": 0b011}
_SES = {"nvme-format-user-data": 1, "nvme-format-crypto": 2}
_EXIT_FAILURE, _AUSE, _ONE_PASS = 0b001, 1 << 3, 1 << 4
# NVMe figures 94 to 96
_STATUS = {
    0x001: "Invalid Command Opcode",
    0x002: "Invalid Field in Command",
    0x006: "Internal Error",
    0x00B: "Invalid Namespace or Format",
    0x015: "Operation Denied",
    0x01C: "Sanitize Failed",
    0x01D: "Sanitize In Progress",
    0x020: "Namespace is Write Protected",
    0x10A: "Invalid Format",
    0x286: "Access Denied",
}


class Command(NamedTuple):
    """An admin command; `length` bytes are read from the drive. `time` in seconds."""

    opcode: int
    nsid: int = 0
    cdw10: int = 0
    cdw11: int = 0
    length: int = 0
    time: float = COMMAND_TIME

    def pack(self, address: int = 0) -> bytes:
        """struct nvme_passthru_cmd of linux/nvme_ioctl.h, 72 bytes."""
        return struct.pack(
            "=BBHIIIQQII6III",
            *(self.opcode, 0, 0, self.nsid, 0, 0, 0, address, 0, self.length),
            *(self.cdw10, self.cdw11, 0, 0, 0, 0),
            *(int(self.time * 1000), 0),
        )


class Admin(Protocol):
    """One way to a controller's admin queue."""

    def __call__(self, command: Command) -> bytes:
        """The data read. Raises OSError; for an NVMe status with its number and name in the text."""


def status_error(what: str, status: int) -> OSError:
    """NVMe section 4.2.3: status code type and code, 11 bits; above them Do Not Retry and More."""
    code = status & 0x7FF
    return OSError(errno.EIO, f"{what}: {_STATUS.get(code, 'refused')} (status 0x{code:03x})")


class Device:
    """The character device of a controller, `/dev/nvme0`; closed by its owner."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def __call__(self, command: Command) -> bytes:
        data = array.array("B", bytes(command.length))
        packed = bytearray(command.pack(data.buffer_info()[0] if command.length else 0))
        status = fcntl.ioctl(self._fd, ADMIN_CMD, packed, True)
        if status:
            names = {FORMAT: "Format NVM", SANITIZE: "Sanitize", IDENTIFY: "Identify", GET_LOG_PAGE: "Get Log Page"}
            raise status_error(names.get(command.opcode, f"admin command 0x{command.opcode:02x}"), status)
        return data.tobytes()

    def close(self) -> None:
        os.close(self._fd)


class Controller(NamedTuple):
    """Identify Controller, NVMe figure 275. `capacity` and `unallocated` in bytes, 0 where not told."""

    serial: str
    model: str
    firmware: str
    capacity: int
    unallocated: int
    oacs: int
    fna: int
    sanicap: int
    namespaces: int

    @classmethod
    def parse(cls, data: bytes) -> Controller:
        """Raises ValueError for fewer than 4096 bytes."""
        if len(data) < 4096:
            raise ValueError("Identify Controller is 4096 bytes")
        return cls(
            _ascii(data[4:24]),
            _ascii(data[24:64]),
            _ascii(data[64:72]),
            int.from_bytes(data[280:296], "little"),
            int.from_bytes(data[296:312], "little"),
            int.from_bytes(data[256:258], "little"),
            data[524],
            int.from_bytes(data[328:332], "little"),
            int.from_bytes(data[516:520], "little"),
        )


class Namespace(NamedTuple):
    """Identify Namespace, NVM figure 97: the format in use and (metadata bytes, log2 of data bytes) of each known."""

    blocks: int
    format: int
    formats: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, data: bytes) -> Namespace:
        """Raises ValueError for fewer than 4096 bytes."""
        if len(data) < 4096:
            raise ValueError("Identify Namespace is 4096 bytes")
        count = min(data[25] + 1, 64)
        formats = tuple(
            (int.from_bytes(data[at : at + 2], "little"), data[at + 2]) for at in range(128, 128 + 4 * count, 4)
        )
        used = (data[26] & 0xF) | (data[26] >> 5 & 0b11) << 4
        return cls(int.from_bytes(data[:8], "little"), used, formats)

    def plain_format(self) -> int:
        """The format to keep: that in use, but one without metadata (an image has none) when a tenant chose such."""
        if self.format >= len(self.formats) or not self.formats[self.format][0]:
            return self.format
        bits = self.formats[self.format][1]
        plain = [i for i, (metadata, size) in enumerate(self.formats) if not metadata and size >= 9]
        return min(plain, key=lambda i: (self.formats[i][1] != bits, self.formats[i][1]), default=self.format)


class SanitizeStatus(NamedTuple):
    """Log page 81h, NVMe figure 290. `state`: 0 never, 1 done, 2 in progress, 3 failed, 4 done without deallocation."""

    fraction: float
    state: int
    cdw10: int

    @classmethod
    def parse(cls, data: bytes) -> SanitizeStatus:
        """Raises ValueError for fewer than 8 bytes."""
        if len(data) < 8:
            raise ValueError("the sanitize status log page is too short")
        progress, status, cdw10 = struct.unpack_from("<HHI", data)
        return cls(progress / 65536, status & 0b111, cdw10)


def _ascii(data: bytes) -> str:
    return "".join(chr(c) if 32 <= c < 127 else "?" for c in data.rstrip(b" \0").lstrip(b" "))


def identify(admin: Admin) -> Controller:
    return Controller.parse(admin(Command(IDENTIFY, cdw10=0x01, length=4096)))


def _ids(admin: Admin, cns: int) -> list[int]:
    """A namespace list, NVMe section 5.17.2.2: up to 1024 ids in rising order, ended by 0."""
    found: list[int] = []
    for (nsid,) in struct.iter_unpack("<I", admin(Command(IDENTIFY, cdw10=cns, length=4096))):
        if nsid == 0:
            break
        found.append(nsid)
    return found


def active(admin: Admin) -> list[int]:
    """Namespaces attached to this controller (CNS 02h)."""
    return _ids(admin, 0x02)


def hidden(admin: Admin, controller: Controller) -> list[int]:
    """Namespaces that exist and are not attached (CNS 10h, OACS bit 3): data of a tenant that no block device shows."""
    if not controller.oacs >> 3 & 1:
        return []
    return sorted(set(_ids(admin, 0x10)) - set(active(admin)))


def methods(controller: Controller) -> list[str]:
    """What the controller says it can, best first. Sanitize reaches every block, also those no namespace maps.

    SANICAP (NVMe figure 275): bit 0 crypto, 1 block, 2 overwrite. OACS bit 1: Format NVM. FNA bit 2: format by crypto.
    """
    found = []
    if controller.sanicap & 0b010:
        found.append("nvme-sanitize-block")
    if controller.sanicap & 0b001:
        found.append("nvme-sanitize-crypto")
    if controller.oacs & 0b10:
        found += ["nvme-format-crypto"] if controller.fna & 0b100 else []
        found.append("nvme-format-user-data")
    if controller.sanicap & 0b100:
        found.append("nvme-sanitize-overwrite")
    return found


def erase(admin: Admin, method: str, *, poll: Callable[..., Iterator[float]] = polled) -> Iterator[float]:
    """Carry out one of `methods`; yields fractions. Raises OSError, ValueError for a method not of NVMe."""
    if method in _SANACT:
        yield from _sanitize(admin, method, poll)
    elif method in _SES:
        yield from _format(admin, method)
    else:
        raise ValueError(f"{method!r} is no erase of NVMe")


def _log(admin: Admin) -> SanitizeStatus:
    dwords = 512 // 4 - 1  # zero based, NVMe section 5.16
    return SanitizeStatus.parse(admin(Command(GET_LOG_PAGE, nsid=ALL, cdw10=dwords << 16 | 0x81, length=512)))


def _sanitize(admin: Admin, method: str, poll: Callable[..., Iterator[float]]) -> Iterator[float]:
    """NVMe section 5.24. Unrestricted exit (AUSE): a drive that fails may be tried by the next method, not locked up.

    One overwrite pass (OWPASS 0 would be sixteen), pattern 0, deallocated after (No-Deallocate stays clear).
    """

    def ask() -> float | None:
        status = _log(admin)
        return status.fraction if status.state == 2 else None

    yield from poll(ask, "Sanitize of before")  # of an order that was cut off
    cdw10 = _SANACT[method] | _AUSE | (_ONE_PASS if _SANACT[method] == 0b011 else 0)
    admin(Command(SANITIZE, cdw10=cdw10))
    yield from poll(ask, "Sanitize")
    status = _log(admin)
    if status.state == 3:
        admin(Command(SANITIZE, cdw10=_EXIT_FAILURE))
        raise OSError(errno.EIO, "Sanitize: the drive reports that it failed")
    if status.state not in (1, 4) or status.cdw10 & 0b111 != _SANACT[method]:
        raise OSError(errno.EIO, f"Sanitize: accepted and not carried out (state {status.state})")


def _format(admin: Admin, method: str) -> Iterator[float]:
    """NVMe section 5.14, for each namespace, or once where FNA bits 0 and 1 say that one command reaches them all.

    FNA bit 3: the id of all namespaces is not taken.
    """
    controller = identify(admin)
    ids = active(admin)
    if not ids:
        raise OSError(errno.ENXIO, "Format NVM: the drive has no namespace; remedy: create one, or pull the drive")
    shape = {nsid: Namespace.parse(admin(Command(IDENTIFY, nsid=nsid, cdw10=0x00, length=4096))) for nsid in ids}
    if controller.fna & 0b11:
        targets = [ids[0] if controller.fna & 0b1000 else ALL]
    else:
        targets = ids
    for done, nsid in enumerate(targets):
        lbaf = shape[ids[0] if nsid == ALL else nsid].plain_format()
        cdw10 = (lbaf & 0xF) | _SES[method] << 9 | (lbaf >> 4 & 0b11) << 12
        command = Command(FORMAT, nsid=nsid, cdw10=cdw10, time=FORMAT_TIME)

        def act(command: Command = command) -> None:
            admin(command)

        for _ in background(act):
            yield done / len(targets)
