"""The drives of a simulated host as its programs meet them: `host.drives` with their bytes, and firmware that misbehaves.

What the programs do to drives is told here, by the drives: from here it goes into the record. What the machine would
boot is read from the drives too, as firmware and cloud-init would: a table, a seed's volume, what stands in it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fleetd.probe.host import partition
from fleetd.probe.host.order import Refusal
from fleetd.probe.host.simulated import Pages, SimulatedBlocks, SimulatedDrive
from fleetd.probe.host.source import Source
from fleetd.probe.host.standin import SimulatedMachine, unpack
from fleetd.sim.hardware import real_serial
from fleetd.sim.host import Installed, SimDrive, SimHost

FIRMWARE = {"disk-no-erase": "refuses", "erase-lies": "lies"}
AT = {"write-error": ("write_error_at", 70), "read-back-flip": ("flip_at", 50)}  # fault -> field, percent by default
SMALL = 1_000_000  # bytes of a drive that is too small for any image


def _named(drive: SimDrive, index: int, wanted: object) -> bool:
    return str(wanted) in (str(index), drive.name, drive.serial)


class Shelf:
    """All drives of one host. Their bytes survive reboots; `absorb` brings a drive's new state back to the machine."""

    def __init__(self, host: SimHost) -> None:
        self._host = host
        self._pages: dict[str, Pages] = {}  # drive serial -> its bytes
        self._known: dict[str, str] = {}  # drive serial -> the content those bytes stand for
        self._efi: dict[str, Any] = {}

    def pages(self, index: int) -> Pages:
        """The bytes of one drive; those of its content where somebody else wrote over it."""
        drive = self._host.drives[index]
        pages = self._pages.setdefault(drive.serial, Pages(drive.content))
        if self._known.setdefault(drive.serial, drive.content) != drive.content:
            pages.fill(drive.content)
            self._known[drive.serial] = drive.content
        return pages

    def state(self, index: int, *, seconds: bool) -> dict[str, Any]:
        """The JSON document of one drive, without its bytes. `seconds`: its acts take the time the site's timings say."""
        host, drive = self._host, self._host.drives[index]
        state: dict[str, Any] = {
            "name": drive.name,
            "serial": drive.serial,
            "model": drive.model,
            "firmware": "SIM1.0",
            "bytes": drive.bytes,
            "content": drive.content,
            "erase": "ok",
            "seconds": {"erase": host.timings.wipe, "write": host.timings.image} if seconds else {},
        }
        for kind, behaviour in FIRMWARE.items():
            if self._afflicted(kind, index):
                state["erase"] = behaviour
        for kind, (field, percent) in AT.items():
            if fault := self._afflicted(kind, index):
                state[field] = float(fault.get("at", percent))
        if fault := self._afflicted("disk-too-small", index):
            state["bytes"] = int(fault.get("bytes", SMALL))
        return state

    def _afflicted(self, kind: str, index: int) -> dict[str, Any]:
        """The parameters of this fault where it lies on this drive; empty where it does not."""
        fault = self._host.fault(kind, fire=False)
        if fault is None or not _named(self._host.drives[index], index, fault.params.get("drive", 0)):
            return {}
        return {"drive": index, **fault.params}

    def traits(self) -> dict[str, Any]:
        """See `SimulatedMachine`."""
        host = self._host
        serial = real_serial(host)
        bios = {"vendor": "SIM", "version": host.bios_version, "date": "2026-01-01"}
        keys = {
            name: hashlib.sha256(f"{name} of the vendor".encode()).hexdigest() for name in ("PK", "KEK", "db", "dbx")
        }
        efi = {"present": True, "secure_boot": False, "setup_mode": False, "keys": keys}
        return {
            "address": host.os_address,
            "alter": host.fault("checksum-mismatch", fire=False) is not None,
            "efi": {**efi, "boot_order": ["0000"], "entries": {"0000": "UEFI PXEv4"}, **self._efi},
            "efi_full": host.fault("efi-full", fire=False) is not None,
            "tpm": {"present": True, "version": "2.0", "vendor": "SIM"},
            "snapshot": {
                "bios": bios,
                "board": {"vendor": "SIM", "product": host.sku.model, "serial": serial},
                "nics": [{"name": "eth0", "mac": host.mac, "driver": "sim", "pci": "0000:01:00.0"}],
                "pci": [{"address": "0000:01:00.0", "id": "15b3:1021", "subsystem": "15b3:0041"}],
            },
        }

    def absorb(self, drive: SimulatedDrive) -> None:
        """A drive as a program left it: its content, and what the machine would now boot."""
        for own in self._host.drives:
            if own.serial == drive.serial:
                changed = own.content != drive.content
                own.content = self._known[drive.serial] = drive.content
                self._pages[drive.serial] = drive.pages
                if changed or drive.content.startswith("image:"):
                    self._host.installed = self._bootable()

    def absorb_traits(self, traits: dict[str, Any]) -> None:
        """Firmware as a program left it."""
        self._efi = {key: traits["efi"][key] for key in ("boot_order", "entries")}

    def _bootable(self) -> Installed | None:
        """What the firmware would start: the first drive with a table and a seed."""
        for index, drive in enumerate(self._host.drives):
            if drive.content.startswith(("image:", "partial:")):
                found = _installed(drive, self.pages(index))
                if found is not None:
                    return found
        return None

    def note(self, what: str, **data: Any) -> None:
        """One act, into the record; what misbehaved has shown its fault."""
        for kind, behaviour in FIRMWARE.items():
            if data.get("firmware") == behaviour:
                self._host.fault(kind)
        for kind, (field, _) in AT.items():
            if data.get("how") == field:
                self._host.fault(kind)
        if what == "efi.full":
            self._host.fault("efi-full")
        if what == "stream.altered":
            self._host.fault("checksum-mismatch")
        if data.get("code") == "drive-too-small":
            self._host.fault("disk-too-small")
        self._host.log(what, **data)


def _installed(drive: SimDrive, pages: Pages) -> Installed | None:
    """What boots from these bytes; None without a table, a seed's volume, or a seed of ours in it."""
    state = {"name": drive.name, "serial": drive.serial, "model": drive.model, "bytes": drive.bytes, "content": "x"}
    blocks = SimulatedBlocks(SimulatedDrive(state, save=lambda _: None, note=lambda *_, **__: None, pages=pages))
    part = partition.find(blocks, partition.SEED_NAME)
    if part is None:
        return None
    try:
        length = 32 << 10
        while b"\0" not in (volume := blocks.read(part.start, length)) and length < part.length:
            length *= 2
        files = unpack(volume)
        return _seeded(files, drive.content.partition(":")[2])
    except (ValueError, KeyError, LookupError, TypeError):
        return None  # an image that brought a volume of its own: it does not phone home


def _seeded(files: dict[str, bytes], image: str) -> Installed:
    """What cloud-init would make of the seed. Raises ValueError, KeyError where it is not ours."""
    meta = json.loads(files["meta-data"])
    head, _, rest = files["vendor-data"].decode().partition("\n")
    said = json.loads(rest)
    if head == "#cloud-config":
        config, script = said, said["write_files"][0]["content"]
    else:
        config, script = json.loads(said[0]["content"].partition("\n")[2]), said[1]["content"]
    line = next(line for line in script.splitlines() if line.startswith("SAID = json.loads("))
    home = json.loads(ast.literal_eval(line.removeprefix("SAID = json.loads(").removesuffix(")")))
    return Installed(
        image=image,
        hostname=meta["local-hostname"],
        authorized_keys=tuple(config["ssh_authorized_keys"]),
        host_key_private=config["ssh_keys"]["ed25519_private"],
        host_key_public=config["ssh_keys"]["ed25519_public"],
        phone_home_url=home["url"],
        phone_home_token=home["token"],
    )


class MemoryMachine(SimulatedMachine):
    """`probe.host.machine.Machine` in process: the fast depth. The journal dies with the boot, as /run does.

    Args:
        post: takes a call that belongs on the loop; what the program does may happen in another thread.
    """

    def __init__(
        self,
        host: SimHost,
        shelf: Shelf,
        marker: str,
        journal: dict[str, dict[str, Any]],
        post: Callable[[Callable[[], None]], object],
    ) -> None:
        super().__init__(shelf.traits(), self._said)
        self.arrived: Source | None = None  # what the loop has fetched for the next `source`
        self._shelf, self._marker, self._journal, self._post = shelf, marker, journal, post
        self._number = real_serial(host)
        self._off = threading.Event()
        self._drives = [
            SimulatedDrive(
                shelf.state(i, seconds=False),
                save=self._save,
                note=self.note,
                pages=shelf.pages(i),
                alive=lambda: not self._off.is_set(),
            )
            for i in range(len(host.drives))
        ]

    def _save(self, drive: SimulatedDrive) -> None:
        self._post(lambda: self._shelf.absorb(drive))

    def _said(self, what: str, **data: Any) -> None:
        if not self._off.is_set():
            self._post(lambda: self._shelf.note(what, **data))

    def source(self, urls: Sequence[str], length: int) -> Source:
        if self.arrived is None:
            return super().source(urls, length)
        arrived, self.arrived = self.arrived, None
        return self.altered(arrived, length)

    def pause(self, seconds: float) -> None:
        """Let time pass in this thread; a power cut ends it."""
        self._off.wait(seconds)

    def cut(self) -> None:
        self._off.set()
        super().cut()

    def save_traits(self) -> None:
        self._shelf.absorb_traits(self._traits)

    def serial(self) -> str:
        return self._number

    def marker(self) -> str:
        return self._marker

    def began(self, intent: str, entry: dict[str, Any]) -> dict[str, Any] | None:
        stood = self._journal.get(intent)
        if stood is not None:
            return stood
        for other, begun in list(self._journal.items()):
            if begun.get("state") == "running":
                raise Refusal("busy", f"the order of intent {other} is being carried out here")
        self._journal[intent] = entry
        return None

    def ended(self, intent: str, entry: dict[str, Any]) -> None:
        self._journal[intent] = entry

    def entry(self, intent: str) -> dict[str, Any] | None:
        return self._journal.get(intent)


class Folder:
    """The directory that stands for a host where its programs run as real processes: the full depth."""

    def __init__(self, host: SimHost, shelf: Shelf, root: Path) -> None:
        self._host, self._shelf, self.root = host, shelf, root
        self._told = 0  # bytes of the drives' log that stand in the record already

    def lay_out(self, marker: str) -> None:
        """Make drives, serial and the deploy marker of this boot stand there. Raises OSError."""
        drives = self.root / "drives"
        drives.mkdir(parents=True, exist_ok=True)
        for i, drive in enumerate(self._host.drives):
            state = {**self._shelf.state(i, seconds=True), **self._shelf.pages(i).dump()}
            _put(drives / f"{drive.name}.json", json.dumps(state))
        _put(self.root / "host.json", json.dumps(self._shelf.traits()))
        dmi = self.root / "sys/class/dmi/id"
        dmi.mkdir(parents=True, exist_ok=True)
        (dmi / "product_serial").write_text(real_serial(self._host) + "\n", encoding="ascii")
        run = self.root / "run/fleetd"
        run.mkdir(parents=True, exist_ok=True)
        if marker:
            (run / "deploy").write_text(marker + "\n", encoding="ascii")
        else:
            (run / "deploy").unlink(missing_ok=True)

    def listen(self) -> None:
        """What the drives have logged since the last time, into the record. A line without its end waits."""
        path = self.root / "drives" / "log.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._told)
            for line in file:
                if line.endswith(b"\n"):
                    self._told += len(line)
                    entry = json.loads(line)
                    self._shelf.note(entry["what"], **entry["data"])

    def take_back(self) -> None:
        """The drives as the programs left them."""
        self.listen()
        for path in sorted((self.root / "drives").glob("*.json")):
            self._shelf.absorb(
                SimulatedDrive(json.loads(path.read_bytes()), save=lambda _: None, note=self._shelf.note)
            )
        self._shelf.absorb_traits(json.loads((self.root / "host.json").read_bytes()))


def _put(path: Path, text: str) -> None:
    part = path.with_suffix(".new")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
