"""What this host is, read and never changed: compared with the same picture of before the lease.

All of it was written by firmware and devices, which a tenant may have rewritten: bounded in number and length, only
printable text, and what cannot be read is empty.
"""

from __future__ import annotations

import os
from typing import Any

from . import devices, efivars, tpm

MAX_DEVICES = 1024
_BOARD_ID = {"vendor": "board_vendor", "product": "board_name", "serial": "board_serial"}
_BIOS = {"vendor": "bios_vendor", "version": "bios_version", "date": "bios_date"}


def _names(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))[:MAX_DEVICES]
    except OSError:
        return []


def _target(path: str) -> str:
    """The last word of where a link points to, empty when it is none."""
    try:
        return os.path.basename(os.readlink(path))[:128]
    except OSError:
        return ""


def nics(sys: str = "/sys") -> list[dict[str, str]]:
    """Network ports that are devices; not bridges, bonds or tunnels."""
    found = []
    for name in _names(f"{sys}/class/net"):
        at = f"{sys}/class/net/{name}"
        if os.path.exists(f"{at}/device"):
            found.append(
                {
                    "name": name[:32],
                    "mac": devices.text(f"{at}/address", 64),
                    "driver": _target(f"{at}/device/driver"),
                    "pci": _target(f"{at}/device"),
                }
            )
    return found


def pci(sys: str = "/sys") -> list[dict[str, str]]:
    """All functions: `id` and `subsystem` are vendor:device in hex."""

    def pair(at: str, vendor: str, device: str) -> str:
        return ":".join(devices.text(f"{at}/{name}", 16).removeprefix("0x") for name in (vendor, device))

    return [
        {
            "address": address[:32],
            "id": pair(f"{sys}/bus/pci/devices/{address}", "vendor", "device"),
            "subsystem": pair(f"{sys}/bus/pci/devices/{address}", "subsystem_vendor", "subsystem_device"),
        }
        for address in _names(f"{sys}/bus/pci/devices")
    ]


def drives(sys: str = "/sys") -> list[dict[str, Any]]:
    """`sector` in bytes: a tenant who formats a drive to another sector size makes the next image unbootable."""
    return [
        {
            "name": ",".join(disk.blocks) or disk.name,
            "serial": disk.serial,
            "model": disk.model,
            "firmware": disk.firmware,
            "bytes": disk.size,
            "sector": devices.number(f"{sys}/block/{disk.blocks[0]}/queue/logical_block_size") if disk.blocks else 0,
        }
        for disk in devices.find(sys)[:MAX_DEVICES]
    ]


def take(sys: str = "/sys") -> dict[str, Any]:
    """See `inspect` in the order's contract; keys and shapes are fixed, so two pictures can be compared word by word."""
    dmi = f"{sys}/class/dmi/id"
    return {
        "bios": {key: devices.text(f"{dmi}/{name}") for key, name in _BIOS.items()},
        "board": {key: devices.text(f"{dmi}/{name}") for key, name in _BOARD_ID.items()},
        "drives": drives(sys),
        "nics": nics(sys),
        "pci": pci(sys),
        "efi": efivars.snapshot(efivars.Variables(f"{sys}/firmware/efi/efivars")),
        "tpm": tpm.snapshot(),
    }
