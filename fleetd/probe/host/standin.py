"""Hosts that are not of metal: what every simulated machine is, and the directory (`--root`) that stands for one."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .machine import INTENTS, MARKER, Drive, Journal, first_line
from .order import Refusal
from .simulated import SimulatedDrive
from .source import HttpSource, Source

DISK_ENTRY = "fleetd disk"


class AlteredSource:
    """A source whose stream was changed on its way: one bit, in its middle."""

    def __init__(self, source: Source, length: int, struck: Callable[[], None]) -> None:
        self._source, self._at, self._struck = source, length // 2, struck
        self.close, self.used = source.close, source.used
        self.url, self.resumed = "", 0

    def chunks(self) -> Iterator[bytes]:
        seen = 0
        for chunk in self._source.chunks():
            at = self._at - seen
            seen += len(chunk)
            if 0 <= at < len(chunk):
                self._struck()
                chunk = chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]
            self.url, self.resumed = self._source.url, self._source.resumed
            yield chunk


def pack(files: dict[str, bytes]) -> bytes:
    """The seed's files as a simulated volume holds them."""
    return json.dumps({name: data.decode() for name, data in files.items()}).encode()


def unpack(volume: bytes) -> dict[str, bytes]:
    """Raises ValueError when this is no simulated volume."""
    value = json.loads(volume.partition(b"\0")[0])
    if not isinstance(value, dict):
        raise ValueError("not a volume")
    return {str(name): str(text).encode() for name, text in value.items()}


class SimulatedMachine:
    """What both simulated hosts share: firmware that is a document, and acts that are told.

    `traits`: {"address": to fetch from, "alter": whether streams arrive changed, "tpm": {...}, "efi": {...},
    "efi_full": whether its variable store has no room for an entry of a written drive,
    "snapshot": {...}}; `tell` hears of every act.
    """

    lanes = 1

    def __init__(self, traits: dict[str, Any], tell: Callable[..., None]) -> None:
        self._traits, self._tell = traits, tell
        self._drives: list[SimulatedDrive] | None = None  # once somebody has looked
        self._sources: list[Source] = []

    def note(self, what: str, **data: Any) -> None:
        """Each act, told; the drive hears where an image begins and ends on it."""
        named = next((d for d in self._drives or () if d.serial == data.get("drive")), None)
        if named is not None and what == "drive.write":
            named.begin_image(str(data["image"]), int(data["bytes"]))
        elif named is not None and what in ("image.write", "image.failed"):
            named.end_image(f"{'image' if what == 'image.write' else 'partial'}:{data['image']}")
        self._tell(what, **data)

    def source(self, urls: Sequence[str], length: int) -> Source:
        source = HttpSource(urls, length, address=str(self._traits.get("address", "")))
        self._sources.append(source)
        return self.altered(source, length)

    def altered(self, source: Source, length: int) -> Source:
        """The same, or its stream changed on the way where the traits say so."""
        if self._traits.get("alter"):
            return AlteredSource(source, length, lambda: self._tell("stream.altered"))
        return source

    def cut(self) -> None:
        """Power is gone: what waits for a wire ends."""
        for source in self._sources:
            source.close()

    def drives(self) -> Sequence[Drive]:
        return self._drives or ()

    def seed_volume(self, files: dict[str, bytes], length: int, sector: int) -> bytes:
        return pack(files)

    def inspect(self) -> dict[str, Any]:
        drives = [
            {"name": d.name, "serial": d.serial, "model": d.model, "firmware": d.firmware, "bytes": d.size}
            for d in self.drives()
        ]
        empty: dict[str, Any] = {"bios": {}, "board": {}, "nics": [], "pci": []}
        return {**empty, **self._traits.get("snapshot", {}), "drives": drives, "efi": self._efi(), "tpm": self._tpm()}

    def _efi(self) -> dict[str, Any]:
        nothing: dict[str, Any] = {
            "present": False,
            "secure_boot": None,
            "setup_mode": None,
            "keys": {},
            "boot_order": [],
            "entries": {},
        }
        return {**nothing, **self._traits.get("efi", {})}

    def _tpm(self) -> dict[str, Any]:
        return {"present": False, "version": "", "vendor": "", **self._traits.get("tpm", {})}

    def clear_tpm(self) -> dict[str, Any]:
        present = bool(self._tpm()["present"])
        method = "TPM2_Clear(platform)" if present else "none"
        return {"present": present, "cleared": present, "method": method, "pending_reboot": False, "reason": ""}

    def boot_order(self, drive: Drive | None) -> dict[str, Any]:
        efi = self._efi()
        removed: list[str] = []
        first = ""
        if efi["present"]:
            entries = dict(efi["entries"])
            removed = [number for number, label in entries.items() if label == DISK_ENTRY]
            entries = {number: label for number, label in entries.items() if number not in removed}
            order = [number for number in efi["boot_order"] if number in entries]
            if drive is not None:
                self._make_room(drive)
                first = next(f"{n:04X}" for n in range(1 << 16) if f"{n:04X}" not in entries)
                entries[first], order = DISK_ENTRY, [first, *order]
            efi.update(entries=entries, boot_order=order)
            self._traits["efi"] = efi
            self.save_traits()
        return {"efi": efi, "removed": removed, "first": first, "reason": ""}

    def _make_room(self, drive: Drive) -> None:
        """Raises OSError where the firmware has none left for the entry of a drive that was written."""
        own = next((one for one in self._drives or () if one.serial == drive.serial), None)
        if self._traits.get("efi_full") and own is not None and own.content.startswith("image:"):
            self._tell("efi.full")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save_traits(self) -> None:
        """The firmware has changed."""


class RootMachine(SimulatedMachine):
    """A directory that stands for a host: drives are JSON files in ROOT/drives, whose log.jsonl tells each act.

    ROOT/host.json, where it is, holds the traits.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.abspath(root)
        if self._root == "/":
            raise Refusal("bad-order", "--root must not be /")
        traits: dict[str, Any] = {}
        path = os.path.join(self._root, "host.json")
        if os.path.isfile(path):
            with open(path, "rb") as file:
                traits = json.load(file)
        super().__init__(traits, self._log)
        self._journal = Journal(self._root + INTENTS)
        self.began, self.ended, self.entry = self._journal.began, self._journal.ended, self._journal.entry

    def serial(self) -> str:
        return first_line(self._root + "/sys/class/dmi/id/product_serial")

    def marker(self) -> str:
        return first_line(self._root + MARKER)

    def drives(self) -> Sequence[Drive]:
        if self._drives is None:
            self._drives = self._load()
        return self._drives

    def _load(self) -> list[SimulatedDrive]:
        directory = os.path.join(self._root, "drives")
        found = []
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
            path = os.path.join(directory, name)
            if re.fullmatch(r"[a-z0-9]+\.json", name) and os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    state = json.load(file)
                found.append(SimulatedDrive(state, save=_saver(path), note=self.note))
        return found

    def save_traits(self) -> None:
        _replace(os.path.join(self._root, "host.json"), self._traits)

    def _log(self, what: str, **data: Any) -> None:
        with open(os.path.join(self._root, "drives", "log.jsonl"), "ab", buffering=0) as file:
            file.write(json.dumps({"what": what, "data": data}).encode() + b"\n")


def _saver(path: str) -> Callable[[SimulatedDrive], None]:
    return lambda drive: _replace(path, drive.dump())


def _replace(path: str, value: object) -> None:
    part = path + ".part"
    with open(part, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
