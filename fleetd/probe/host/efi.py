"""EFI boot entries as bytes: read with suspicion, for a tenant may have written them, and written for our own disk.

Layouts are of the UEFI specification 2.10: EFI_LOAD_OPTION in section 3.1.3, device paths in chapter 10.
"""

from __future__ import annotations

import struct
import uuid
from typing import NamedTuple

MAX_OPTION = 64 * 1024  # bytes; firmware keeps far smaller ones
MAX_NODES = 64
ACTIVE = 1
_MESSAGING, _MEDIA, _END = 0x03, 0x04, 0x7F
_HARD_DRIVE, _FILE_PATH, _URI, _END_ALL = 0x01, 0x04, 24, 0xFF
_TARGETS = frozenset({19, 34})  # iSCSI and NVMe over fabrics: a disk of another machine, by its name
_GPT, _BY_GUID = 0x02, 0x02
LOADER = "\\EFI\\BOOT\\BOOTX64.EFI"
LABEL = "fleetd disk"


class Malformed(ValueError):
    """These bytes are no boot entry."""


class Node(NamedTuple):
    kind: int
    sub: int
    data: bytes


class HardDrive(NamedTuple):
    """A partition by its GUID. `start` and `length` in sectors. `guid` is None where it is named by an MBR signature."""

    number: int
    start: int
    length: int
    guid: uuid.UUID | None

    def pack(self) -> bytes:
        """The node, 42 bytes (section 10.3.5.1)."""
        signature = self.guid.bytes_le if self.guid else bytes(16)
        body = struct.pack("<IQQ16sBB", self.number, self.start, self.length, signature, _GPT, _BY_GUID)
        return _node(_MEDIA, _HARD_DRIVE, body)


class LoadOption(NamedTuple):
    """A Boot#### variable. `rest` are the device paths after the first and the optional data, kept as they are."""

    attributes: int
    label: str
    path: tuple[Node, ...]
    rest: bytes

    @property
    def disk(self) -> HardDrive | None:
        """The partition that it points to."""
        for node in self.path:
            if (node.kind, node.sub) == (_MEDIA, _HARD_DRIVE) and len(node.data) == 38:
                number, start, length, signature, form, by = struct.unpack("<IQQ16sBB", node.data)
                known = form == _GPT and by == _BY_GUID
                return HardDrive(number, start, length, uuid.UUID(bytes_le=signature) if known else None)
        return None

    @property
    def file(self) -> str:
        """The file that it starts, empty for a whole device."""
        parts = [_utf16(n.data) for n in self.path if (n.kind, n.sub) == (_MEDIA, _FILE_PATH)]
        return "\\".join(parts)

    @property
    def elsewhere(self) -> bool:
        """Whether it starts a disk of another machine. Firmware makes such entries only where somebody set one up."""
        return any(node.kind == _MESSAGING and node.sub in _TARGETS for node in self.path)

    @property
    def uri(self) -> str:
        """Where it boots from over HTTP when that is fixed in the entry; firmware's own entries leave it empty."""
        found = [n.data for n in self.path if (n.kind, n.sub) == (_MESSAGING, _URI) and n.data]
        return found[0].decode("ascii", "replace") if found else ""


def parse(data: bytes) -> LoadOption:
    """Raises Malformed. Unknown nodes are kept: firmware has many of its own."""
    if not 8 <= len(data) <= MAX_OPTION:
        raise Malformed(f"a boot entry of {len(data)} bytes")
    attributes, length = struct.unpack_from("<IH", data)
    end = next((i for i in range(6, len(data) - 1, 2) if data[i : i + 2] == b"\0\0"), None)
    if end is None or end + 2 + length > len(data):
        raise Malformed("a boot entry that ends in the middle")
    path = data[end + 2 : end + 2 + length]
    nodes, used = _nodes(path)
    return LoadOption(attributes, _utf16(data[6:end]), nodes, path[used:] + data[end + 2 + length :])


def _nodes(path: bytes) -> tuple[tuple[Node, ...], int]:
    """The first device path, and how many bytes it takes with its end."""
    found: list[Node] = []
    at = 0
    while at + 4 <= len(path):
        kind, sub, length = struct.unpack_from("<BBH", path, at)
        if length < 4 or at + length > len(path) or len(found) >= MAX_NODES:
            raise Malformed("a device path that ends in the middle")
        if kind == _END:
            if sub == _END_ALL:
                return tuple(found), at + length
        else:
            found.append(Node(kind, sub, path[at + 4 : at + length]))
        at += length
    raise Malformed("a device path without an end")


def _utf16(data: bytes) -> str:
    """Text up to its NUL; what is no text, or would move a terminal's cursor, becomes `?`."""
    text = data[: len(data) // 2 * 2].decode("utf-16-le", "replace").partition("\0")[0]
    return "".join(c if c.isprintable() else "?" for c in text)[:256]


def _node(kind: int, sub: int, data: bytes) -> bytes:
    return struct.pack("<BBH", kind, sub, 4 + len(data)) + data


def build(label: str, disk: HardDrive, file: str) -> bytes:
    """An active boot entry for a file on a partition: the short form, which holds whatever slot the disk is in."""
    path = disk.pack() + _node(_MEDIA, _FILE_PATH, file.encode("utf-16-le") + b"\0\0") + _node(_END, _END_ALL, b"")
    return struct.pack("<IH", ACTIVE, len(path)) + label.encode("utf-16-le") + b"\0\0" + path


def numbers(order: bytes) -> list[int]:
    """BootOrder: 16-bit numbers, each counted once, at most 1024."""
    found: dict[int, None] = {}
    for (number,) in struct.iter_unpack("<H", order[: len(order) // 2 * 2][:2048]):
        found.setdefault(number)
    return list(found)


def pack_numbers(order: list[int]) -> bytes:
    return struct.pack(f"<{len(order)}H", *order)
