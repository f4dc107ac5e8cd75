"""The firmware's boot variables of this host, and the boot order after a tenant: our disk first, nothing of theirs.

Variables are written into efivarfs directly and not by efibootmgr: the bytes of the entry are then exactly ours, no
text of a tool is parsed, nothing depends on its version or on how it finds the disk, and all of it runs on a plain
directory in the tests. Each write is one write(2) of attributes and data, which the kernel makes one SetVariable.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import struct
import uuid
from collections.abc import Collection
from typing import Any

from . import efi

DIRECTORY = "/sys/firmware/efi/efivars"
GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
SECURITY = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
KEPT = 0x7  # non-volatile, boot service access, runtime access
MAX_VARIABLE = 1 << 20  # bytes, a dbx is the largest
MAX_ENTRIES = 4096  # more than any firmware has room for
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE_FL = 0x80086601, 0x40086602, 0x10
_ENTRY = re.compile(r"(Boot|Driver|SysPrep)([0-9A-F]{4})-" + GLOBAL)
_KEYS = {"PK": GLOBAL, "KEK": GLOBAL, "db": SECURITY, "dbx": SECURITY}


class Variables:
    """A directory of variables as efivarfs shows them: four bytes of attributes, then the data."""

    def __init__(self, directory: str = DIRECTORY) -> None:
        self._directory = directory

    @property
    def present(self) -> bool:
        """Whether this host was started by UEFI and shows its variables."""
        try:
            return any(name.endswith(GLOBAL) for name in os.listdir(self._directory))
        except OSError:
            return False

    def _path(self, name: str, guid: str) -> str:
        return os.path.join(self._directory, f"{name}-{guid}")

    def read(self, name: str, guid: str = GLOBAL) -> bytes | None:
        """The data; None when there is no such variable. Raises OSError."""
        try:
            with open(self._path(name, guid), "rb") as file:
                data = file.read(MAX_VARIABLE + 4)
        except FileNotFoundError:
            return None
        return data[4:]

    def write(self, name: str, data: bytes) -> None:
        """A global variable, kept over power cycles, and read again. Raises OSError."""
        path = self._path(name, GLOBAL)
        self._loosen(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            if os.write(fd, struct.pack("<I", KEPT) + data) != 4 + len(data):
                raise OSError(errno.EIO, f"the firmware took a part of {name}")
        finally:
            os.close(fd)
        back = self.read(name)
        if back is not None and len(back) > len(data):  # a plain directory: in efivarfs a write is the whole variable
            os.truncate(path, 4 + len(data))
            back = self.read(name)
        if back != data:
            raise OSError(errno.EIO, f"the firmware took {name} and reads back something else")

    def remove(self, name: str) -> None:
        """A global variable, and prove that it is gone. Raises OSError."""
        path = self._path(name, GLOBAL)
        self._loosen(path)
        os.unlink(path)
        if os.path.exists(path):
            raise OSError(errno.EIO, f"the firmware took away {name}, and it is still there")

    def _loosen(self, path: str) -> None:
        """efivarfs marks what it does not know as immutable, against `rm -rf`; a plain directory knows no such flag."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            flags: int = struct.unpack("=I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)))[0]
            if flags & FS_IMMUTABLE_FL:
                fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I", flags & ~FS_IMMUTABLE_FL))
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):
                raise
        finally:
            os.close(fd)

    def entries(self, kind: str = "") -> list[str]:
        """Names such as `Boot0001`, of one kind (`Boot`) or of all, at most `MAX_ENTRIES`."""
        try:
            names = sorted(os.listdir(self._directory))
        except OSError:
            return []
        found = [match[1] + match[2] for name in names if (match := _ENTRY.fullmatch(name)) is not None]
        return [name for name in found if name.startswith(kind)][:MAX_ENTRIES]


def _flag(variables: Variables, name: str) -> bool | None:
    data = variables.read(name)
    return None if not data else data[0] == 1


def snapshot(variables: Variables) -> dict[str, Any]:
    """The `efi` part of the snapshot. A variable that cannot be read counts as not there."""
    if not variables.present:
        return _view(variables, present=False)
    return _view(variables, present=True)


def _view(variables: Variables, *, present: bool) -> dict[str, Any]:
    keys, sizes, labels = {}, {}, {}
    for name, guid in _KEYS.items():
        if (data := _quiet(variables, name, guid)) is not None:
            keys[name], sizes[name] = hashlib.sha256(data).hexdigest(), len(data)
    for name in variables.entries("Boot"):
        try:
            labels[name[4:]] = efi.parse(_quiet(variables, name) or b"").label
        except efi.Malformed:
            labels[name[4:]] = ""
    return {
        "present": present,
        "secure_boot": _flag(variables, "SecureBoot") if present else None,
        "setup_mode": _flag(variables, "SetupMode") if present else None,
        "keys": keys,
        "sizes": sizes,
        "boot_order": [f"{n:04X}" for n in efi.numbers(_quiet(variables, "BootOrder") or b"")],
        "entries": labels,
    }


def _quiet(variables: Variables, name: str, guid: str = GLOBAL) -> bytes | None:
    try:
        return variables.read(name, guid)
    except OSError:
        return None


def foreign(option: efi.LoadOption | None, present: Collection[uuid.UUID]) -> bool:
    """Whether a tenant left this entry: ours of before, a file on a partition that is gone, a fixed URL, a disk of
    another machine, or garbage."""
    if option is None or option.label == efi.LABEL or option.uri or option.elsewhere:
        return True
    disk = option.disk
    return disk is not None and disk.guid not in present


def boot_order(variables: Variables, disk: efi.HardDrive | None, present: Collection[uuid.UUID]) -> dict[str, Any]:
    """Remove what a tenant left, put `disk` first. `present`: every partition of every drive of this host.

    Entries that the firmware made (whole devices, its shell, its network stack) stay in their order. Variables that
    are right already are not written again: the flash behind them wears. Raises OSError.
    """
    report: dict[str, Any] = {"efi": {}, "removed": [], "first": "", "reason": ""}
    if variables.present:
        wanted = efi.build(efi.LABEL, disk, efi.LOADER) if disk else None
        first = ""
        for name in variables.entries():
            data = variables.read(name) or b""
            if name.startswith("Boot") and data == wanted and not first:
                first = name[4:]
                continue
            if foreign(_parsed(data), present):
                variables.remove(name)
                report["removed"].append(name[4:] if name.startswith("Boot") else name)
        if variables.read("BootNext") is not None:
            variables.remove("BootNext")
        if wanted and not first:
            first = _free(variables)
            variables.write(f"Boot{first}", wanted)
        _put_first(variables, first)
        report["first"] = first
        if disk is None:
            report["reason"] = "no drive has an EFI system partition: the firmware's own order stays"
    report["efi"] = snapshot(variables)
    return report


def _parsed(data: bytes) -> efi.LoadOption | None:
    try:
        return efi.parse(data)
    except efi.Malformed:
        return None


def _free(variables: Variables) -> str:
    taken = set(variables.entries("Boot"))
    return next(f"{n:04X}" for n in range(0x10000) if f"Boot{n:04X}" not in taken)


def _put_first(variables: Variables, first: str) -> None:
    """BootOrder, and the order of drivers and preparations where there is one, without what no longer exists."""
    for kind in ("Boot", "Driver", "SysPrep"):
        data = variables.read(f"{kind}Order")
        there = {int(name[-4:], 16) for name in variables.entries(kind)}
        order = [n for n in efi.numbers(data or b"") if n in there]
        if kind == "Boot" and first:
            order = [int(first, 16), *(n for n in order if n != int(first, 16))]
        if efi.pack_numbers(order) == (data or b""):
            continue
        if order:
            variables.write(f"{kind}Order", efi.pack_numbers(order))
        elif data is not None:
            variables.remove(f"{kind}Order")
