"""Bytes that firmware would give: the SMBIOS table with its memory devices, and a drive's SMART page."""

from __future__ import annotations


def _structure(kind: int, handle: int, body: bytes, *strings: str) -> bytes:
    text = b"".join(s.encode("latin-1") + b"\0" for s in strings) or b"\0"
    return bytes([kind, 4 + len(body)]) + handle.to_bytes(2, "little") + body + text + b"\0"


def smbios(dimms: int, mib: int, mt_s: int) -> bytes:
    """A table with `dimms` populated memory devices (type 17) of `mib` MiB at `mt_s` MT/s (SMBIOS 3.3)."""
    table = b""
    for i in range(dimms):
        size, extended = (0x7FFF, mib) if mib >= 0x7FFF else (mib, 0)
        body = bytearray(0x28 - 4)
        body[0x0C - 4 : 0x0E - 4] = size.to_bytes(2, "little")
        body[0x0E - 4] = 0x09  # DIMM
        body[0x10 - 4] = 1  # device locator: the first string
        body[0x15 - 4 : 0x17 - 4] = mt_s.to_bytes(2, "little")
        body[0x1C - 4 : 0x20 - 4] = extended.to_bytes(4, "little")
        body[0x20 - 4 : 0x22 - 4] = mt_s.to_bytes(2, "little")
        table += _structure(17, 0x1100 + i, bytes(body), f"{'AB'[i % 2]}{i // 2 + 1}")
    return table + _structure(127, 0xFEFF, b"")


def health_page(*, warning: int = 0, spare: int = 100, threshold: int = 10, used: int = 0, media: int = 0) -> bytes:
    """512 bytes of Get Log Page 02h."""
    page = bytearray(512)
    page[0], page[3], page[4], page[5] = warning, spare, threshold, used
    page[1:3] = (310).to_bytes(2, "little")  # kelvin
    page[160:176] = media.to_bytes(16, "little")
    return bytes(page)
