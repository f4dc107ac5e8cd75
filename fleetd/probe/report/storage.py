"""NVMe drives: identity from sysfs, health from the drive's own SMART / Health page, no tool."""

from __future__ import annotations

import re
from typing import Any

from .files import Files, Reading, attempt, line, text

ROOT = "/sys/class/nvme"
MOST = 256
HEALTH = ("critical_warning", "percentage_used", "available_spare", "available_spare_threshold", "media_errors")


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
