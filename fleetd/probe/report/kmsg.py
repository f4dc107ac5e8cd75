"""The kernel log: Xids of this boot."""

from __future__ import annotations

import re

from .files import Files, Reading, attempt

MOST = 1000  # Xids reported: the first and the last half of a flood
_RECORD = re.compile(rb"\d{1,6},\d{1,20},(\d{1,20}),[^;]{0,200};(.*)")
_XID = re.compile(rb"NVRM: Xid \(PCI:([0-9a-fA-F:.]{4,20})\): (\d{1,5}),")


def pci_address(raw: str) -> str:
    """As sysfs writes it: NVML pads the domain to eight digits, the kernel log leaves the function out."""
    address = raw.strip().lower()
    if re.fullmatch(r"0000[0-9a-f]{4}:.*", address):
        address = address[4:]
    return address + ".0" if re.fullmatch(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}", address) else address


def parse(log: bytes) -> list[dict[str, object]]:
    """Xids in the order they were logged; lines that are no record are passed over."""
    found = []
    for raw in log.split(b"\n"):
        record = _RECORD.match(raw)
        xid = _XID.match(record[2]) if record else None
        if record and xid:
            found.append(
                {"code": int(xid[2]), "pci": pci_address(xid[1].decode("ascii")), "seconds": int(record[1]) / 1e6}
            )
    return found if len(found) <= MOST else found[: MOST // 2] + found[-MOST // 2 :]


def xids(files: Files) -> Reading:
    return attempt(files.kernel_log, parse)
