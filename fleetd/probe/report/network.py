"""Compute NICs: /sys/class/infiniband, where both InfiniBand and RoCE ports stand."""

from __future__ import annotations

import re
from typing import Any

from .files import Files, Reading, attempt, line, text

ROOT = "/sys/class/infiniband"
MOST_NICS, MOST_PORTS = 128, 16
_RATE = re.compile(r"(\d{1,5}(?:\.\d{1,2})?) Gb/sec")


def rate(raw: str) -> float:
    """ "400 Gb/sec (4X NDR)" -> 400.0. Raises ValueError for anything else."""
    match = _RATE.match(raw)
    if match is None:
        raise ValueError(f"not a rate: {raw[:40]}")
    return float(match[1])


def _port(files: Files, at: str, port: str) -> dict[str, Any]:
    return {
        "port": int(port),
        "state": line(files, f"{at}/state"),
        "phys_state": line(files, f"{at}/phys_state"),
        "rate_gbps": attempt(lambda: text(files.read(f"{at}/rate")), rate),
        "link_layer": line(files, f"{at}/link_layer"),
    }


def _nic(files: Files, name: str) -> dict[str, Any]:
    at = f"{ROOT}/{name}"
    try:
        ports = [p for p in files.names(f"{at}/ports") if re.fullmatch(r"\d{1,3}", p)][:MOST_PORTS]
    except OSError:
        ports = []  # no ports directory: the empty list says it
    return {
        "name": name[:64],
        "pci": attempt(lambda: files.target(f"{at}/device"), str.lower),
        "guid": line(files, f"{at}/node_guid"),
        "board_id": line(files, f"{at}/board_id"),
        "firmware": line(files, f"{at}/fw_ver"),
        "ports": [_port(files, f"{at}/ports/{p}", p) for p in ports],
    }


def nics(files: Files) -> Reading:
    return attempt(lambda: [_nic(files, name) for name in files.names(ROOT)[:MOST_NICS]])
