"""The partition table of a written disk: made to fit the disk, and one more partition for the seed.

A GPT is written for a disk of the image's size; on a larger disk its backup lies in the middle and the space behind is
out of its bounds. This reads the primary table, proves it by its checksums, and writes both tables anew through
`Blocks`, so that simulated and real drives share one path. UEFI specification 2.10, chapter 5.
"""

from __future__ import annotations

import itertools
import math
import struct
import uuid
import zlib
from typing import NamedTuple, Protocol

BASIC_DATA = uuid.UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
EFI_SYSTEM = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
SEED_NAME = "cidata"
SEED_BYTES = 16 << 20
ALIGN = 1 << 20
ROOM = SEED_BYTES + 2 * ALIGN  # bytes a disk must have beyond its image: the seed, its alignment, the backup table
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_SIGNATURE, _REVISION = b"EFI PART", 0x00010000
_NO_KIND = bytes(16)  # of an entry that is free
_MAX_TABLE = 1 << 20  # bytes


class BadTable(Exception):
    """There is no usable GPT, or no room in it."""


class Sectors(Protocol):
    """What this needs of `machine.Blocks`."""

    size: int
    sector: int

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None: ...


class Partition(NamedTuple):
    """`start` and `length` in bytes; `number` counts from 1."""

    number: int
    name: str
    kind: uuid.UUID
    guid: uuid.UUID
    start: int
    length: int


class Table(NamedTuple):
    """A primary GPT that its checksums prove. Positions in sectors."""

    header: bytes
    guid: bytes
    first: int  # usable sector
    last: int  # usable sector
    entries_at: int
    slots: int
    width: int
    entries: bytes

    def partitions(self, sector: int) -> list[Partition]:
        """All used entries, in the order of their numbers."""
        found = []
        for i in range(self.slots):
            if self.entries.startswith(_NO_KIND, i * self.width):
                continue
            kind, guid, start, end, _, name = _ENTRY.unpack_from(self.entries, i * self.width)
            found.append(
                Partition(
                    number=i + 1,
                    name=name.decode("utf-16-le", "replace").partition("\0")[0],
                    kind=uuid.UUID(bytes_le=kind),
                    guid=uuid.UUID(bytes_le=guid),
                    start=start * sector,
                    length=(end - start + 1) * sector,
                )
            )
        return found


def _sectors(length: int, sector: int) -> int:
    return -(-length // sector)


def read(blocks: Sectors) -> Table:
    """The primary table. Raises BadTable, OSError."""
    sector = blocks.sector
    last = blocks.size // sector - 1
    if last < 6:
        raise BadTable("the disk is too small for a partition table")
    head = blocks.read(0, 2 * sector)
    mbr, data = head[:512], head[sector:]
    if mbr[510:512] != b"\x55\xaa" or not any(mbr[450 + 16 * i] == 0xEE for i in range(4)):
        raise BadTable("the image has no protective MBR: it must hold a GPT")
    signature, revision, size, crc, _, here, _, first, usable, guid, at, count, width, entries_crc = (
        _HEADER.unpack_from(data)
    )
    if signature != _SIGNATURE:
        other = 4096 if sector == 512 else 512
        if blocks.read(0, max(2 * sector, other + sector))[other : other + 8] == _SIGNATURE:
            raise BadTable(f"the image is made for sectors of {other} bytes, the disk has sectors of {sector}")
        raise BadTable("the image has no GPT")
    if revision < _REVISION or not 92 <= size <= sector:
        raise BadTable("the GPT header is malformed")
    if zlib.crc32(data[:16] + bytes(4) + data[20:size]) != crc:
        raise BadTable("the checksum of the GPT header is wrong")
    if here != 1 or width < 128 or width % 8 or not 0 < count <= 4096 or count * width > _MAX_TABLE:
        raise BadTable("the GPT header is malformed")
    span = _sectors(count * width, sector)
    if at < 2 or at + span > first or first > usable or first + _sectors(ALIGN, sector) > last:
        raise BadTable("the GPT header is malformed")
    entries = blocks.read(at * sector, span * sector)[: count * width]
    if zlib.crc32(entries) != entries_crc:
        raise BadTable("the checksum of the GPT entries is wrong")
    table = Table(data[:size], guid, first, usable, at, count, width, entries)
    taken: list[tuple[int, int]] = []
    for part in table.partitions(sector):
        start, end = part.start // sector, (part.start + part.length) // sector - 1
        if not first <= start <= end <= usable:
            raise BadTable(f"partition {part.number} of the image lies outside the table's bounds")
        taken.append((start, end))
    taken.sort()
    if any(end >= start for (_, end), (start, _) in itertools.pairwise(taken)):
        raise BadTable("partitions of the image overlap")
    return table


def fit(
    blocks: Sectors, *, name: str = SEED_NAME, length: int = SEED_BYTES, beyond: int = 0, guid: uuid.UUID | None = None
) -> Partition:
    """Make the table fit the disk and add a partition of `length` bytes at the disk's end. Returns the new partition.

    The backup table is written first, the primary last. `beyond`: the first byte that the partition may take.

    Raises:
        BadTable: no GPT, no free entry, no room, or a partition of that name is there already.
        OSError: the drive failed.
    """
    sector = blocks.sector
    table = read(blocks)
    if any(part.name.casefold() == name.casefold() for part in table.partitions(sector)):
        raise BadTable(f"the image has a partition named {name} already")
    end_of_disk = blocks.size // sector
    span = _sectors(len(table.entries), sector)
    backup_at = end_of_disk - 1 - span
    last = backup_at - 1
    step = max(1, ALIGN // sector)
    need = _sectors(length, sector)
    start = (last + 1 - need) // step * step
    floor = max([table.first, _sectors(beyond, sector)])
    floor = max([floor, *(_sectors(p.start + p.length, sector) for p in table.partitions(sector))])
    if start < floor:
        raise BadTable(f"there is no room for {length} bytes behind the image's partitions")
    free = next((i for i in range(table.slots) if table.entries.startswith(_NO_KIND, i * table.width)), None)
    if free is None:
        raise BadTable("the GPT of the image has no free entry")
    guid = guid or uuid.uuid4()
    entry = _ENTRY.pack(
        BASIC_DATA.bytes_le, guid.bytes_le, start, start + need - 1, 0, name.encode("utf-16-le").ljust(72, b"\0")
    )
    entries = bytearray(table.entries)
    entries[free * table.width : (free + 1) * table.width] = entry.ljust(table.width, b"\0")
    padded = bytes(entries).ljust(span * sector, b"\0")
    crc = zlib.crc32(bytes(entries))
    backup = _header(table, here=end_of_disk - 1, other=1, last=last, at=backup_at, crc=crc)
    primary = _header(table, here=1, other=end_of_disk - 1, last=last, at=table.entries_at, crc=crc)
    blocks.write(backup_at * sector, padded + backup.ljust(sector, b"\0"))
    blocks.write(table.entries_at * sector, padded)
    blocks.write(0, _protective(blocks.read(0, sector), end_of_disk) + primary.ljust(sector, b"\0"))
    return Partition(free + 1, name, BASIC_DATA, guid, start * sector, need * sector)


def _header(table: Table, *, here: int, other: int, last: int, at: int, crc: int) -> bytes:
    size = len(table.header)
    fixed = _HEADER.pack(
        _SIGNATURE,
        struct.unpack_from("<I", table.header, 8)[0],
        size,
        0,
        0,
        here,
        other,
        table.first,
        last,
        table.guid,
        at,
        table.slots,
        table.width,
        crc,
    )
    whole = fixed + table.header[_HEADER.size :]
    return whole[:16] + struct.pack("<I", zlib.crc32(whole)) + whole[20:]


def _protective(first: bytes, sectors: int) -> bytes:
    """The first sector with its protective partition as large as the disk; boot code and other entries stay."""
    changed = bytearray(first)
    for i in range(4):
        at = 446 + 16 * i
        if changed[at + 4] == 0xEE:
            begin = struct.unpack_from("<I", changed, at + 8)[0]
            struct.pack_into("<I", changed, at + 12, min(0xFFFFFFFF, max(1, sectors - begin)))
            break
    return bytes(changed)


def system_partition(blocks: Sectors) -> Partition | None:
    """The first EFI system partition; None without one, or without a usable table. Raises OSError."""
    try:
        table = read(blocks)
    except BadTable:
        return None
    return next((part for part in table.partitions(blocks.sector) if part.kind == EFI_SYSTEM), None)


def find(blocks: Sectors, name: str) -> Partition | None:
    """The partition of that name; None without one, or without a usable table. Raises OSError."""
    try:
        table = read(blocks)
    except BadTable:
        return None
    return next((part for part in table.partitions(blocks.sector) if part.name == name), None)


def backup_area(size: int) -> int:
    """Where the last 34 sectors of 4096 bytes begin: a backup table of either sector size lies behind it. Bytes."""
    return max(0, math.floor(size / 4096) - 34) * 4096
