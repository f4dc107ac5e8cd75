"""Just enough of ELF to know which libraries a program needs and which firmware a kernel module asks for."""

from __future__ import annotations

import lzma
import struct
import subprocess
from pathlib import Path

_NEEDED = 1


def _sections(data: bytes) -> dict[str, tuple[int, int, int, int, int]]:
    """Name -> (type, offset, size, link, index) of a 64-bit little-endian ELF file; empty for anything else."""
    if data[:6] != b"\x7fELF\x02\x01" or len(data) < 64:
        return {}
    (table,) = struct.unpack_from("<Q", data, 0x28)
    entry, count, names = struct.unpack_from("<HHH", data, 0x3A)
    heads = [struct.unpack_from("<IIQQQQIIQQ", data, table + entry * number) for number in range(count)]
    found = {}
    for index, head in enumerate(heads):
        start = heads[names][4] + head[0]
        name = data[start : data.index(b"\0", start)].decode()
        found[name] = (head[1], head[4], head[5], head[6], index)
    return found


def needed(path: Path) -> list[str]:
    """File names of the shared libraries that `path` is linked against, and of its loader; empty if it is no ELF file."""
    with path.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return []
        file.seek(0)
        data = file.read()
    sections = _sections(data)
    found = []
    if ".interp" in sections:
        _, offset, size, _, _ = sections[".interp"]
        found.append(Path(data[offset : offset + size].rstrip(b"\0").decode()).name)
    if ".dynamic" in sections and ".dynstr" in sections:
        _, offset, size, _, _ = sections[".dynamic"]
        strings = sections[".dynstr"][1]
        for at in range(offset, offset + size, 16):
            tag, value = struct.unpack_from("<qQ", data, at)
            if tag == _NEEDED:
                start = strings + value
                found.append(data[start : data.index(b"\0", start)].decode())
    return found


def module_firmware(path: Path) -> list[str]:
    """Firmware files (patterns) that the kernel module names; newer systems compress their modules."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        data = lzma.decompress(data)
    elif path.suffix == ".zst":
        data = subprocess.run(["zstd", "-dcq", str(path)], check=True, capture_output=True).stdout
    sections = _sections(data)
    if ".modinfo" not in sections:
        return []
    _, offset, size, _, _ = sections[".modinfo"]
    fields = data[offset : offset + size].split(b"\0")
    return [field[9:].decode() for field in fields if field.startswith(b"firmware=")]
