"""What the host-side commands answer when all went well, and how a test spoils it."""

from __future__ import annotations

import copy
from typing import Any

from tests.lifecycle.stepbench import DRIVES, MANIFEST


def erased(serial: str, **changes: Any) -> dict[str, Any]:
    good = {"erased": True, "method": "format", "samples": 68, "pattern_written": 68, "seconds": 1.5, "tried": []}
    return {"name": "nvme0", "serial": serial, "model": "M", "bytes": 10**12, **good, **changes}


def wiped(*spoilt: dict[str, Any]) -> dict[str, Any]:
    drives = [erased(drive["serial"]) for drive in DRIVES]
    for i, change in enumerate(spoilt):
        drives[i] |= change
    return {"ok": all(d["erased"] for d in drives), "drives": drives}


SNAPSHOT: dict[str, Any] = {
    "bios": {"vendor": "Dell", "version": "2.3.5", "date": "01/02/2025"},
    "board": {"vendor": "Dell", "product": "0XYZ", "serial": "B1"},
    "drives": [{"name": "nvme0n1", "serial": "S0", "model": "M", "firmware": "1", "bytes": 10**12, "sector": 512}],
    "nics": [{"name": "eth0", "mac": "04:3f:72:aa:00:01", "driver": "mlx5_core", "pci": "0000:18:00.0"}],
    "pci": [{"address": "0000:17:00.0", "id": "10de:2330", "subsystem": "10de:16c1"}],
    "efi": {
        "present": True,
        "secure_boot": True,
        "setup_mode": False,
        "keys": {"PK": "1" * 64, "KEK": "2" * 64, "db": "3" * 64, "dbx": "4" * 64},
        "boot_order": ["0001"],
        "entries": {"0001": "disk"},
    },
    "tpm": {"present": True, "version": "2.0", "vendor": "IFX"},
}


def written(**changes: Any) -> dict[str, Any]:
    drive = {
        "name": "nvme0n1",
        "serial": "S0",
        "model": "M",
        "written": not changes.get("code"),
        "reason": changes.pop("reason", ""),
        "wrote_bytes": 5,
        "zero_bytes": 6,
        "read_bytes": 11,
        "seconds": 12.0,
        "url": "http://boot:8680/images/aaa?ticket=secret",
        "resumed": 1,
    }
    efi = {"efi": SNAPSHOT["efi"], "removed": [], "first": "0001", "reason": ""}
    good = {
        "ok": not changes.get("code"),
        "efi": efi,
        "image": "ubuntu",
        "digest": f"sha256:{MANIFEST.raw_sha256}",
        "code": "",
    }
    return {**good, "drives": [drive], **changes}


def tpm(ok: bool = True, **fields: Any) -> dict[str, Any]:
    return {"ok": ok, "tpm": {"present": True, "cleared": ok, "method": "TPM2_Clear(lockout)", **fields}}


def inspected(change: Any = None) -> dict[str, Any]:
    snapshot = copy.deepcopy(SNAPSHOT)
    if change is not None:
        change(snapshot)
    return {"ok": True, "snapshot": snapshot}
