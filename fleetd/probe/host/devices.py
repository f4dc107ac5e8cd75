"""Which disks this host is made of, read from sysfs: what to erase, and what is nobody's disk at all.

Fail closed: a disk of a kind not known here is still a disk (it can be overwritten), and only what is certainly not
part of this host (a USB stick of the BMC, a LUN of a SAN, a loop device) is left out.
"""

from __future__ import annotations

import os
import re
from typing import Literal, NamedTuple

from .order import PLACEHOLDERS

Kind = Literal["nvme", "ata", "scsi", "virtio", "other"]
_NOT_A_DISK = re.compile(r"(loop|ram|zram|sr|fd|dm-|md|nbd|rbd|drbd|zd|mtdblock)\d.*|mmcblk\d+(boot\d+|rpmb)|nvme\d.*")
_ELSEWHERE = (
    (re.compile(r"/usb\d+/"), "on USB, as a BMC's virtual media is"),
    (re.compile(r"/session\d+/"), "an iSCSI disk of another machine"),
    (re.compile(r"/rport-\d+"), "a fibre channel disk of another machine"),
    (re.compile(r"/devices/virtual/"), "made by the kernel, not a drive"),
)
_NAMESPACE = re.compile(r"nvme(\d+)(?:c\d+)?n(\d+)")
_SECTOR = 512  # sysfs counts `size` in these whatever the drive's own sector is


class Found(NamedTuple):
    """A disk. `blocks` are its block devices (NVMe: one a namespace, lowest first); `size` in bytes is the first's."""

    kind: Kind
    name: str
    blocks: tuple[str, ...]
    serial: str
    model: str
    firmware: str
    size: int


def text(path: str, longest: int = 128) -> str:
    """First line of a small file as printable ASCII; empty when it cannot be read. Devices wrote it: bounded."""
    try:
        with open(path, "rb") as file:
            data = file.read(4096)
    except OSError:
        return ""
    line = data.split(b"\n", 1)[0].replace(b"\0", b" ")
    return "".join(chr(c) if 32 <= c < 127 else "?" for c in line.strip()[:longest])


def number(path: str) -> int:
    """A decimal number; 0 when there is none."""
    found = text(path, 20)
    return int(found) if found.isdecimal() else 0


def _listed(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path), key=lambda n: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", n)])
    except OSError:
        return []


def _unit_serial(path: str) -> str:
    """SPC-5 section 7.7.21, page 80h: four bytes of head, then the product serial number."""
    try:
        with open(path, "rb") as file:
            page = file.read(260)
    except OSError:
        return ""
    if len(page) < 4 or page[1] != 0x80:
        return ""
    body = page[4 : 4 + int.from_bytes(page[2:4], "big")]
    return "".join(chr(c) for c in body if 32 <= c < 127).strip()[:128]


def serial_of(block: str, sys: str = "/sys") -> str:
    """Serial of the drive behind a block device (`nvme0n1`, `sda`, `vda`), empty when it has none that names it."""
    at = f"{sys}/block/{block}"
    return _real(_unit_serial(f"{at}/device/vpd_pg80") or text(f"{at}/serial") or text(f"{at}/device/serial"))


def _real(serial: str) -> str:
    """The serial, or nothing where the maker left a placeholder."""
    return "" if serial.lower() in PLACEHOLDERS or not serial.strip("0 ") else serial


def block_of(major: int, minor: int, sys: str = "/sys") -> str:
    """Name of the block device with that number; empty when the kernel knows none."""
    link = f"{sys}/dev/block/{major}:{minor}"
    return os.path.basename(os.path.realpath(link)) if os.path.exists(link) else ""


def outside(block: str, sys: str = "/sys") -> str:
    """Why this block device is no drive of this host; empty when it is one."""
    if _NAMESPACE.fullmatch(block):
        transport = text(f"{sys}/block/{block}/device/transport")
        return "" if transport in ("", "pcie") else f"a namespace reached over {transport}"
    if _NOT_A_DISK.fullmatch(block):
        return "not a disk"
    if text(f"{sys}/block/{block}/removable") == "1":
        return "removable media"
    real = os.path.realpath(f"{sys}/block/{block}")
    return next((why for pattern, why in _ELSEWHERE if pattern.search(real)), "")


def in_use(block: str, sys: str = "/sys", proc: str = "/proc") -> str:
    """What holds the disk or a partition of it (a mount, md, dm); empty when nothing does."""
    at = f"{sys}/block/{block}"
    parts = [name for name in _listed(at) if name.startswith(block)]
    for path in (at, *(f"{at}/{part}" for part in parts)):
        if held := _listed(f"{path}/holders"):
            return f"held by {held[0]}"
    numbers = {text(f"{path}/dev") for path in (at, *(f"{at}/{part}" for part in parts))} - {""}
    try:
        with open(f"{proc}/self/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                fields = line.split(" ", 5)
                if len(fields) > 4 and fields[2] in numbers:
                    return f"mounted on {fields[4][:80]}"
    except OSError:
        return "its mounts cannot be read"
    return ""


def _nvme(name: str, sys: str) -> Found:
    at = f"{sys}/class/nvme/{name}"
    blocks: dict[int, str] = {}
    for entry in _listed(at):
        if (match := _NAMESPACE.fullmatch(entry)) is not None:
            # with multipath the controller holds a hidden path (nvme0c1n2), and the disk is the subsystem's nvme0n2
            block = f"nvme{match[1]}n{match[2]}"
            blocks[number(f"{at}/{entry}/nsid") or int(match[2])] = block
    ordered = tuple(blocks[nsid] for nsid in sorted(blocks))
    return Found(
        "nvme",
        name,
        ordered,
        _real(text(f"{at}/serial")),
        text(f"{at}/model"),
        text(f"{at}/firmware_rev"),
        number(f"{sys}/block/{ordered[0]}/size") * _SECTOR if ordered else 0,
    )


def _disk(block: str, sys: str) -> Found:
    at = f"{sys}/block/{block}"
    kind: Kind = "other"
    if block.startswith("sd"):
        kind = "ata" if text(f"{at}/device/vendor") == "ATA" else "scsi"
    elif block.startswith("vd"):
        kind = "virtio"
    model = " ".join(filter(None, (text(f"{at}/device/vendor") if kind == "scsi" else "", text(f"{at}/device/model"))))
    return Found(
        kind,
        block,
        (block,),
        serial_of(block, sys),
        model or text(f"{at}/device/name") or kind,
        text(f"{at}/device/rev") or text(f"{at}/device/fwrev"),
        number(f"{at}/size") * _SECTOR,
    )


def find(sys: str = "/sys") -> list[Found]:
    """Every disk of this host, NVMe controllers first, each kind in the order of its numbers."""
    controllers = [name for name in _listed(f"{sys}/class/nvme") if re.fullmatch(r"nvme\d+", name)]
    local = [name for name in controllers if text(f"{sys}/class/nvme/{name}/transport") in ("", "pcie")]
    disks = [b for b in _listed(f"{sys}/block") if not _NAMESPACE.fullmatch(b) and not outside(b, sys)]
    return [*(_nvme(name, sys) for name in local), *(_disk(block, sys) for block in disks)]
