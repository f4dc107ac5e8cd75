"""The drives of a simulated host as its programs meet them: `host.drives` with payloads, and firmware that may misbehave.

What the programs do to drives is told here, by the drives: from here it goes into the record.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleetd.probe.host.machine import Drive
from fleetd.probe.host.simulated import SimulatedDrive
from fleetd.sim.hardware import real_serial
from fleetd.sim.host import Installed, SimDrive, SimHost

FIRMWARE = {"disk-no-erase": "refuses", "erase-lies": "lies"}


def _named(drive: SimDrive, index: int, wanted: object) -> bool:
    return str(wanted) in (str(index), drive.name, drive.serial)


class Shelf:
    """All drives of one host. Payloads survive reboots; `absorb` brings a drive's new state back to the machine."""

    def __init__(self, host: SimHost) -> None:
        self._host = host
        self._payloads: dict[str, str] = {}  # drive serial -> base64

    def state(self, index: int, *, seconds: bool) -> dict[str, Any]:
        """The JSON document of one drive. `seconds`: its acts take the time the site's timings say."""
        host, drive = self._host, self._host.drives[index]
        firmware = "ok"
        for kind, behaviour in FIRMWARE.items():
            fault = host.fault(kind, fire=False)
            if fault is not None and _named(drive, index, fault.params.get("drive", 0)):
                firmware = behaviour
        if not drive.content.startswith("image:"):
            self._payloads.pop(drive.serial, None)  # somebody else wrote over it
        return {
            "name": drive.name,
            "serial": drive.serial,
            "model": drive.model,
            "bytes": drive.bytes,
            "content": drive.content,
            "payload": self._payloads.get(drive.serial, ""),
            "erase": firmware,
            "seconds": {"erase": host.timings.wipe, "write": host.timings.image} if seconds else {},
        }

    def absorb(self, state: dict[str, Any]) -> None:
        """A drive's state as a program left it: its content, and what the machine would now boot."""
        for drive in self._host.drives:
            if drive.serial == state["serial"]:
                drive.content = state["content"]
        self._payloads[state["serial"]] = state["payload"]
        self._host.installed = None
        for payload in filter(None, self._payloads.values()):
            self._host.installed = _installed(payload)

    def note(self, what: str, **data: Any) -> None:
        """One act, into the record; firmware that misbehaved has shown its fault."""
        firmware = data.get("firmware")
        for kind, behaviour in FIRMWARE.items():
            if firmware == behaviour:
                self._host.fault(kind)
        self._host.log(what, **data)


def _installed(payload: str) -> Installed:
    written = json.loads(base64.b64decode(payload))
    seed = written["seed"]
    return Installed(
        image=written["image"]["name"],
        hostname=seed["hostname"],
        authorized_keys=tuple(seed["authorized_keys"]),
        host_key_private=seed["host_key_private"],
        host_key_public=seed["host_key_public"],
        phone_home_url=seed["phone_home_url"],
        phone_home_token=seed["phone_home_token"],
    )


class MemoryMachine:
    """`probe.host.machine.Machine` in process: the fast depth. The journal dies with the boot, as /run does."""

    def __init__(self, host: SimHost, shelf: Shelf, marker: str, journal: dict[str, dict[str, Any]]) -> None:
        self._host, self._shelf, self._marker, self._journal = host, shelf, marker, journal

    def serial(self) -> str:
        return real_serial(self._host)

    def marker(self) -> str:
        return self._marker

    def drives(self) -> Sequence[Drive]:
        return [
            SimulatedDrive(self._shelf.state(i, seconds=False), save=self._shelf.absorb, note=self._shelf.note)
            for i in range(len(self._host.drives))
        ]

    def began(self, intent: str, entry: dict[str, Any]) -> dict[str, Any] | None:
        stood = self._journal.get(intent)
        if stood is None:
            self._journal[intent] = entry
        return stood

    def ended(self, intent: str, entry: dict[str, Any]) -> None:
        self._journal[intent] = entry

    def entry(self, intent: str) -> dict[str, Any] | None:
        return self._journal.get(intent)

    def note(self, what: str, **data: Any) -> None:
        self._shelf.note(what, **data)


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
            part = drives / f"{drive.name}.new"
            part.write_text(json.dumps(self._shelf.state(i, seconds=True)), encoding="utf-8")
            part.replace(drives / f"{drive.name}.json")
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
            self._shelf.absorb(json.loads(path.read_bytes()))
