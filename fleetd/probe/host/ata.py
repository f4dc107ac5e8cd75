"""SATA erase: SANITIZE DEVICE, else SECURITY ERASE UNIT, by ATA PASS-THROUGH(16).

Numbers are of ACS-4 (ATA commands, IDENTIFY DEVICE words) and SAT-4 (the pass-through and its answer).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .patience import background, polled
from .scsi import Request, Transport, must

IDENTIFY, SANITIZE = 0xEC, 0xB4
# READ NATIVE MAX ADDRESS EXT of the HPA feature set (ACS-2, obsolete since ACS-3), and what took its place in ACS-3:
# ACCESSIBLE MAX ADDRESS CONFIGURATION with FEATURE 0, GET NATIVE MAX ADDRESS EXT
READ_NATIVE_MAX, NATIVE_MAX = 0x27, 0x78
SET_PASSWORD, ERASE_PREPARE, ERASE_UNIT, DISABLE_PASSWORD = 0xF1, 0xF3, 0xF4, 0xF6
NO_DATA, PIO_IN, PIO_OUT = 3, 4, 5
# SANITIZE DEVICE, ACS-4 section 7.36: (FEATURE, the key that its LBA must carry)
_SANITIZE = {"ata-sanitize-block": (0x0012, 0x426B4572), "ata-sanitize-crypto": (0x0011, 0x43727970)}
_STATUS_EXT, _CLEAR_FAILED = 0x0000, 1 << 0
_FAILURE_MODE_OK = 1 << 4  # COUNT of a sanitize: FAILURE MODE, so that STATUS EXT may leave a failure
# Known to everybody on purpose: it lives for one erase, and a cut in the middle must not lock the drive for good.
PASSWORD = b"fleetd".ljust(32, b"\0")
LONGEST = 96 * 3600.0  # s; a disk of 20 TB says 30 h, and some say nothing
FROZEN = (
    "its security is frozen by the firmware; remedy: suspend and resume the host, replug the drive, "
    "or turn the freeze lock off in the BIOS"
)


class Identity(NamedTuple):
    """IDENTIFY DEVICE, ACS-4 table 55. The erase times are in seconds, 0 where not told.

    `wide`: addresses of 48 bits. `sectors`: those that can be addressed now. `native`: the command that tells how many there are (word 82 bit 10: HPA;
    word 119 bit 8: ACS-3's successor of it), 0 for a drive that knows no way to hide any.
    """

    serial: str
    model: str
    firmware: str
    security: bool
    enabled: bool
    locked: bool
    frozen: bool
    expired: bool
    enhanced: bool
    erase_time: float
    enhanced_time: float
    sanitize: frozenset[str]
    wide: bool
    sectors: int
    native: int

    @classmethod
    def parse(cls, data: bytes) -> Identity:
        """Raises OSError for fewer than 512 bytes: an adapter that cuts answers is a fault of its drive, not a bug."""
        if len(data) < 512:
            raise OSError(errno.EIO, f"IDENTIFY DEVICE: {len(data)} bytes came, not 512")
        words = struct.unpack("<256H", data[:512])
        security, features = words[128], words[59]
        wide = _valid(words[83]) and bool(words[83] >> 10 & 1)  # addresses of 48 bits
        bits = {"ata-sanitize-block": 15, "ata-sanitize-crypto": 13}
        able = frozenset(name for name, bit in bits.items() if features >> 12 & 1 and features >> bit & 1)
        return cls(
            _words(data, 10, 20),
            _words(data, 27, 47),
            _words(data, 23, 27),
            bool(security & 1),
            bool(security >> 1 & 1),
            bool(security >> 2 & 1),
            bool(security >> 3 & 1),
            bool(security >> 4 & 1),
            bool(security >> 5 & 1),
            _minutes(words[89]),
            _minutes(words[90]),
            able,
            wide,
            sum(word << 16 * i for i, word in enumerate(words[100:104] if wide else words[60:62])),
            (NATIVE_MAX if _valid(words[119]) and words[119] >> 8 & 1 else 0)
            or (READ_NATIVE_MAX if _valid(words[83]) and words[82] >> 10 & 1 else 0),
        )


def _valid(word: int) -> bool:
    """Words 83 and 119 say with bits 15 and 14 that they (83: also 82) mean something."""
    return word >> 14 == 0b01


def _words(data: bytes, first: int, end: int) -> str:
    """An ATA string: two characters a word, the high byte first, padded with spaces."""
    raw = b"".join(data[i + 1 : i + 2] + data[i : i + 1] for i in range(first * 2, end * 2, 2))
    return "".join(chr(c) if 32 <= c < 127 else "?" for c in raw.strip(b" \0"))


def _minutes(word: int) -> float:
    """Words 89 and 90: twice the value in minutes; bit 15 says that 15 bits count, else 8. The top value is 'more'."""
    value, top = (word & 0x7FFF, 0x7FFF) if word >> 15 else (word & 0xFF, 0xFF)
    return 0.0 if value in (0, top) else value * 120.0


def passthrough(
    command: int,
    protocol: int = NO_DATA,
    *,
    feature: int = 0,
    count: int = 0,
    lba: int = 0,
    data: bytes = b"",
    extended: bool = False,
    tell: bool = False,
    time: float = 60.0,
) -> Request:
    """ATA PASS-THROUGH(16), SAT-4 section 12.2.2. `tell` asks for the registers back even of a command that succeeded."""
    moves = protocol in (PIO_IN, PIO_OUT)
    flags = tell << 5 | (protocol == PIO_IN) << 3 | (1 << 2 | 0b10 if moves else 0)  # blocks, counted in COUNT
    if moves and not count:
        count = 1
    low, high = lba & 0xFFFFFF, lba >> 24
    cdb = bytes(
        (
            *(0x85, protocol << 1 | extended, flags, feature >> 8, feature & 0xFF, count >> 8, count & 0xFF),
            *(high & 0xFF, low & 0xFF, high >> 8 & 0xFF, low >> 8 & 0xFF, high >> 16 & 0xFF, low >> 16 & 0xFF),
            *(0x40 if extended else 0, command, 0),
        )
    )
    if protocol == PIO_IN:
        return Request(cdb, "in", length=512, time=time)
    if protocol == PIO_OUT:
        return Request(cdb, "out", data=data, time=time)
    return Request(cdb, time=time)


class Registers(NamedTuple):
    """The ATA Status Return descriptor (09h), SAT-4 section 12.2.7."""

    error: int
    counted: int
    lba: int
    status: int

    @classmethod
    def parse(cls, sense: bytes) -> Registers | None:
        """None when the sense holds no such descriptor."""
        if len(sense) < 8 or sense[0] & 0x7F not in (0x72, 0x73):
            return None
        rest = sense[8:]
        while len(rest) >= 2:
            if rest[0] == 0x09 and len(rest) >= 14:
                lba = int.from_bytes(bytes(rest[i] for i in (10, 8, 6, 11, 9, 7)), "big")
                return cls(rest[3], rest[4] << 8 | rest[5], lba, rest[13])
            rest = rest[2 + rest[1] :]
        return None


def identify(send: Transport) -> Identity:
    return Identity.parse(must(send(passthrough(IDENTIFY, PIO_IN)), "IDENTIFY DEVICE").data)


def hidden(send: Transport) -> int:
    """Sectors behind the highest address that the drive lets be used: an HPA, in which nobody reads, writes or wipes.

    SECURITY ERASE UNIT and SANITIZE reach them: ACS-2 and ACS-4 define both over all user data up to the native maximum,
    and makers say the same (WD Ultrastar HC310, section 11.40). An overwrite does not.

    Raises OSError also when a drive that can hide some does not tell: that is no "none".
    """
    drive = identify(send)
    if not drive.native:
        return 0
    answer = send(passthrough(drive.native, extended=True, tell=True))
    registers = Registers.parse(answer.sense)
    good = registers is not None and registers.status & 0b10100001 == 0  # busy, device fault, error
    if registers is None or not good or drive.sectors < 1 or (drive.native == READ_NATIVE_MAX and not drive.wide):
        raise OSError(errno.EIO, "the drive can hide sectors (HPA) and does not tell whether it does")
    return max(0, registers.lba + 1 - drive.sectors)


def methods(drive: Identity) -> list[str]:
    """What the drive says it can, best first. A frozen drive is still named: its refusal tells the remedy."""
    found = [name for name in _SANITIZE if name in drive.sanitize]
    if drive.security:
        found += ["ata-security-erase-enhanced"] if drive.enhanced else []
        found.append("ata-security-erase")
    return found


def erase(send: Transport, method: str, *, poll: Callable[..., Iterator[float]] = polled) -> Iterator[float]:
    """Carry out one of `methods`; yields fractions. Raises OSError, ValueError for a method not of ATA."""
    if method in _SANITIZE:
        yield from _sanitize(send, method, poll)
    elif method in ("ata-security-erase", "ata-security-erase-enhanced"):
        yield from _security(send, enhanced=method.endswith("enhanced"))
    else:
        raise ValueError(f"{method!r} is no erase of ATA")


def _sanitize(send: Transport, method: str, poll: Callable[..., Iterator[float]]) -> Iterator[float]:
    """ACS-4 section 7.36. STATUS EXT tells in COUNT: bit 15 completed, 14 in progress, 13 frozen; LBA the fraction."""
    ended: list[Registers] = []

    def status(clear: int = 0) -> Registers:
        answer = send(passthrough(SANITIZE, feature=_STATUS_EXT, count=clear, extended=True, tell=True))
        registers = Registers.parse(answer.sense)
        if registers is None:
            raise OSError(errno.EIO, "SANITIZE STATUS EXT: the drive's registers did not come back")
        return registers

    def ask() -> float | None:
        registers = status()
        if registers.counted >> 14 & 1:
            return (registers.lba & 0xFFFF) / 65536
        ended.append(registers)
        return None

    yield from poll(ask, "SANITIZE DEVICE of before")
    if ended[-1].counted >> 13 & 1:
        raise OSError(errno.EPERM, f"SANITIZE DEVICE: {FROZEN}")
    feature, key = _SANITIZE[method]
    request = passthrough(SANITIZE, feature=feature, count=_FAILURE_MODE_OK, lba=key, extended=True)
    must(send(request), "SANITIZE DEVICE")
    yield from poll(ask, "SANITIZE DEVICE")
    if ended[-1].status & 1 or not ended[-1].counted >> 15 & 1:
        status(_CLEAR_FAILED)
        raise OSError(errno.EIO, "SANITIZE DEVICE: the drive reports that it failed")


def _security(send: Transport, *, enhanced: bool) -> Iterator[float]:
    """ACS-4 sections 7.37 to 7.41: a password, then prepare and erase, which takes the password away again."""
    drive = identify(send)
    if drive.frozen:
        raise OSError(errno.EPERM, f"SECURITY ERASE UNIT: {FROZEN}")
    if drive.expired:
        raise OSError(errno.EPERM, "SECURITY ERASE UNIT: too many passwords tried; remedy: power-cycle the drive")
    # A password that stands is ours of an erase that was cut off, or a tenant's: then the drive refuses ours.
    if not drive.enabled:
        _secured(send, SET_PASSWORD, _block(0), "SECURITY SET PASSWORD")
    told = drive.enhanced_time if enhanced else drive.erase_time
    limit = min(LONGEST, told * 2 + 600.0 if told else LONGEST)

    def act() -> None:
        must(send(passthrough(ERASE_PREPARE)), "SECURITY ERASE PREPARE")
        _secured(send, ERASE_UNIT, _block(0b10 if enhanced else 0), "SECURITY ERASE UNIT", limit)

    try:
        yield from background(act)
    except OSError as error:
        _take_back(send, error)
        raise
    if identify(send).enabled:
        raise OSError(errno.EIO, "SECURITY ERASE UNIT: accepted, and the password still stands")


def _take_back(send: Transport, error: OSError) -> None:
    """Leave no password on a drive that did not erase; what fails here goes into the reason."""
    try:
        _secured(send, DISABLE_PASSWORD, _block(0), "SECURITY DISABLE PASSWORD")
    except OSError as second:
        error.strerror = f"{error.strerror}; {second.strerror}; remedy: pull the drive"


def _secured(send: Transport, command: int, block: bytes, what: str, time: float = 60.0) -> None:
    must(send(passthrough(command, PIO_OUT, data=block, time=time)), what)


def _block(word: int) -> bytes:
    """Word 0 (bit 0: the user's password; bit 1: enhanced erase), then the password, ACS-4 tables 128 and 130."""
    return struct.pack("<H32s478x", word, PASSWORD)
