"""NVMe drives: identity from sysfs, health from the drive itself by one admin command (Get Log Page 02h), no tool."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import struct
from typing import Any

from .files import Files, Reading, attempt, line, text

ROOT = "/sys/class/nvme"
MOST = 256
HEALTH = ("critical_warning", "percentage_used", "available_spare", "available_spare_threshold", "media_errors")
NVME_IOCTL_ADMIN_CMD = 0xC0484E41  # _IOWR('N', 0x41, struct nvme_admin_cmd), 72 bytes
_COMMAND = struct.Struct("<BBHIIIQQIIIIIIIIII")
_TIMEOUT_MS = 5000


def get_health_page(path: str) -> bytes:
    """Ask the controller at `path` for its SMART / Health page. Reads only. Raises OSError; needs CAP_SYS_ADMIN."""
    page = ctypes.create_string_buffer(512)
    last_dword = 512 // 4 - 1
    command = bytearray(
        _COMMAND.pack(
            0x02, 0, 0, 0xFFFFFFFF, 0, 0, 0, ctypes.addressof(page), 0, 512,
            last_dword << 16 | 0x02, 0, 0, 0, 0, 0, _TIMEOUT_MS, 0,
        )
    )  # fmt: skip
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = fcntl.ioctl(fd, NVME_IOCTL_ADMIN_CMD, command)
    finally:
        os.close(fd)
    if status:
        raise OSError(5, f"NVMe status {status:#x}", path)
    return page.raw


def health(page: bytes) -> dict[str, int]:
    """Fields of the SMART / Health page (NVMe base specification). Raises ValueError when it is short."""
    if len(page) < 512:
        raise ValueError(f"health page of {len(page)} bytes")
    return {
        "critical_warning": page[0],
        "available_spare": page[3],
        "available_spare_threshold": page[4],
        "percentage_used": page[5],
        "media_errors": min(int.from_bytes(page[160:176], "little"), 2**63 - 1),
    }


def _bytes(files: Files, name: str) -> int:
    """Sum of the namespaces. With multipath the controller's entry is nvme0c0n1 and the size stands at nvme0n1."""
    total, seen = 0, False
    for entry in files.names(f"{ROOT}/{name}"):
        match = re.fullmatch(r"(nvme\d+)(c\d+)?(n\d+)", entry)
        if match:
            at = f"/sys/block/{match[1]}{match[3]}" if match[2] else f"{ROOT}/{name}/{entry}"
            total += int(text(files.read(f"{at}/size"))) * 512
            seen = True
    if not seen:
        raise ValueError("no namespace")
    return total


def _drive(files: Files, name: str) -> dict[str, Any]:
    at = f"{ROOT}/{name}"
    drive: dict[str, Any] = {
        "name": name,
        "serial": line(files, f"{at}/serial"),
        "model": line(files, f"{at}/model"),
        "firmware": line(files, f"{at}/firmware_rev"),
        "bytes": attempt(lambda: _bytes(files, name)),
        "state": line(files, f"{at}/state"),
    }
    page = attempt(lambda: files.smart(name), health)
    for field in HEALTH:
        drive[field] = {"v": page["v"][field]} if "v" in page else page
    return drive


def drives(files: Files) -> Reading:
    def read() -> list[dict[str, Any]]:
        names = [n for n in files.names(ROOT) if re.fullmatch(r"nvme\d{1,4}", n)][:MOST]
        return [_drive(files, name) for name in sorted(names, key=lambda n: int(n[4:]))]

    return attempt(read)
