"""PCI devices as sysfs shows them: what is plugged in, and how its link trained."""

from __future__ import annotations

import re
from typing import Any

from .files import Files, Reading, attempt, text

ROOT = "/sys/bus/pci/devices"
MOST = 2048
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_SPEED = re.compile(r"(\d{1,4}(?:\.\d{1,3})?) GT/s")


def speed(raw: str) -> float:
    """ "32.0 GT/s PCIe" -> 32.0; "Unknown" -> 0."""
    match = _SPEED.match(raw)
    return float(match[1]) if match else 0.0


def _hexadecimal(files: Files, path: str, digits: int) -> str:
    value = int(text(files.read(path)), 16)
    if not 0 <= value < 16**digits:
        raise ValueError(f"{path} is out of range")
    return f"{value:0{digits}x}"


def _optional(files: Files, path: str) -> str:
    try:
        return text(files.read(path))
    except (OSError, ValueError):
        return ""  # a bridge or a function without a link has no such file: zero says so in the report


def _integer(raw: str, default: int) -> int:
    return int(raw) if re.fullmatch(r"-?\d{1,5}", raw) else default


def device(files: Files, address: str) -> dict[str, Any]:
    """One device. Raises OSError or ValueError when its ids cannot be read."""
    at = f"{ROOT}/{address}"
    width = _integer(_optional(files, f"{at}/current_link_width"), 0)
    widest = _integer(_optional(files, f"{at}/max_link_width"), 0)
    return {
        "address": address,
        "vendor": _hexadecimal(files, f"{at}/vendor", 4),
        "device": _hexadecimal(files, f"{at}/device", 4),
        "class_id": _hexadecimal(files, f"{at}/class", 6),
        "numa": _integer(_optional(files, f"{at}/numa_node"), -1),
        "speed": speed(_optional(files, f"{at}/current_link_speed")),
        "max_speed": speed(_optional(files, f"{at}/max_link_speed")),
        # 63 and 255 are what sysfs prints for a link that is down
        "width": width if width <= 32 else 0,
        "max_width": widest if widest <= 32 else 0,
    }


def devices(files: Files) -> Reading:
    def read() -> list[dict[str, Any]]:
        found = []
        for address in files.names(ROOT)[:MOST]:
            if _ADDRESS.fullmatch(address):
                try:
                    found.append(device(files, address))
                except (OSError, ValueError):
                    continue  # it vanished between listing and reading: then it is not plugged in
        return found

    return attempt(read)
