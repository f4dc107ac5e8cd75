"""Disk images small enough to be made on the spot: a real GPT disk of some hundred KiB, for demo and tests.

Layout: UEFI specification 2.10, chapter 5 (protective MBR, header, entries, and both again at the end).
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import uuid
import zlib
from typing import Final

SECTOR: Final = 512
SECTORS: Final = 384  # 192 KiB
ENTRIES, ENTRY_BYTES = 128, 128
FIRST_USABLE: Final = 2 + ENTRIES * ENTRY_BYTES // SECTOR
LINUX_DATA: Final = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
PARTITION_FIRST: Final = 40
_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")


def tiny_image(name: str) -> tuple[bytes, bytes]:
    """(the image as served, raw.gz; the disk in it): one partition, whose content differs by name."""
    disk = gpt_disk(name)
    return gzip.compress(disk, mtime=0), disk


def gpt_disk(name: str, sectors: int = SECTORS) -> bytes:
    """A disk with one Linux partition. The same name makes the same bytes."""
    usable = sectors - FIRST_USABLE  # the last usable sector
    disk = bytearray(sectors * SECTOR)
    disk[:SECTOR] = _protective_mbr(sectors)
    entry = struct.pack(
        "<16s16sQQQ72s",
        LINUX_DATA.bytes_le,
        _guid(name, "partition").bytes_le,
        PARTITION_FIRST,
        usable,
        0,
        "root".encode("utf-16-le").ljust(72, b"\0"),
    )
    table = entry.ljust(ENTRIES * ENTRY_BYTES, b"\0")
    last = sectors - 1
    for here, other, at in ((1, last, 2), (last, 1, last - len(table) // SECTOR)):
        disk[here * SECTOR : (here + 1) * SECTOR] = _header(name, here, other, at, usable, table)
        disk[at * SECTOR : at * SECTOR + len(table)] = table
    content = b"".join(hashlib.sha256(f"{name} {n}".encode()).digest() for n in range(1024))
    disk[PARTITION_FIRST * SECTOR : PARTITION_FIRST * SECTOR + len(content)] = content  # the rest stays zero
    return bytes(disk)


def _guid(name: str, what: str) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_DNS, f"{what}.{name}.example")


def _protective_mbr(sectors: int) -> bytes:
    part = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF))
    return b"\0" * 446 + part.ljust(64, b"\0") + b"\x55\xaa"


def _header(name: str, here: int, other: int, at: int, usable: int, table: bytes) -> bytes:
    def packed(crc: int) -> bytes:
        return _HEADER.pack(
            b"EFI PART", 0x10000, _HEADER.size, crc, 0, here, other, FIRST_USABLE, usable,
            _guid(name, "disk").bytes_le, at, ENTRIES, ENTRY_BYTES, zlib.crc32(table),
        )  # fmt: skip

    return packed(zlib.crc32(packed(0))).ljust(SECTOR, b"\0")
