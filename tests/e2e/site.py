"""A whole small site: two real machines with their BMCs, `fleetd boot` and `fleetd serve` as processes, and the hand.

Nothing here is simulated by us: firmware, network boot, drives and BMC services are other people's programs. Everything the
tests do to the site goes through `fleetctl`, or through the power cord.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from fleetd.store import secrets as sealed
from fleetd.store.database import open_database
from tests.e2e import bmc
from tests.e2e.builds import ROOT, deploy_files, system_image
from tests.e2e.lab import BRIDGE, GATEWAY, Lab, Process, tool
from tests.e2e.machine import Drive, Machine, Spec
from tests.e2e.progress import STAGES, Progress

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
URL = f"http://{GATEWAY}:8680"
IMAGE = "e2e-os"
KEY = "images.pem"
LOGINS = {"lab-ipmi": ("root", "calvin"), "lab-redfish": ("admin", "factory-password")}

A = Spec(
    name="lab-a-01",
    firmware="uefi",
    mac="52:54:00:e2:00:0a",
    serial="LABA0001",
    uuid="5f3a1c70-8d42-4b6e-9a17-c0ffee00a001",
    tpm=True,
)
B = Spec(
    name="lab-b-01",
    firmware="bios",
    mac="52:54:00:e2:00:0b",
    serial="LABB0001",
    uuid="5f3a1c70-8d42-4b6e-9a17-c0ffee00b001",
)


class Site:
    """The running site. `a` is UEFI behind IPMI, `b` BIOS behind Redfish."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.folder = lab, lab.folder
        self.a, self.b = Machine(lab, A), Machine(lab, B)
        self.daemon: Process | None = None
        self.events: Process | None = None
        self.progress = Progress(self._watched, self._logs)
        self.done: set[str] = set()  # stages that ended well

    # --- start ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        with STAGES.stage("build the deploy environment"):
            deploy = await asyncio.to_thread(deploy_files)
        with STAGES.stage("build the system image"):
            image = await asyncio.to_thread(system_image)
        with STAGES.stage("start the site"):
            await self.lab.spawn("router", sys.executable, "-I", str(HERE / "router.py"), BRIDGE)
            mirror = str(HERE / "mirror.py")
            folders = (str(self.folder / "images"), str(self.folder / "lie"))
            await self.lab.spawn("mirror", sys.executable, "-I", mirror, GATEWAY, "8690", *folders)
            for machine in (self.a, self.b):
                await machine.open()
            await bmc.ipmi(self.lab, self.a, "10.77.0.11", *LOGINS["lab-ipmi"])
            await bmc.redfish(self.lab, self.b, "10.77.0.12", *LOGINS["lab-redfish"])
            await self.ctl("image", "key", KEY)
            self._write_config(deploy)
            await self.serve()
            boot = await self.lab.spawn(
                "fleetd-boot", str(BIN / "fleetd"), "boot", "--config", str(self.folder / "boot.yaml")
            )
            await self._says(boot, "ready")
            os.link(image, self.folder / "e2e-os.raw.zst") if _same_disk(image, self.folder) else shutil.copyfile(
                image, self.folder / "e2e-os.raw.zst"
            )
            await self.add_image("e2e-os.raw.zst", IMAGE)
            shutil.copytree(HERE / "inventory", self.folder / "inventory")
            await self.ctl("inventory", "apply", "inventory", "--yes")
            self.events = await self.lab.spawn(
                "events", str(BIN / "fleetctl"), "events", "--follow", "-o", "json", environment=self.environment
            )

    def _write_config(self, deploy: Path) -> None:
        here = self.folder
        config = here / "fleetd.yaml"
        config.touch(mode=0o600)
        logins = [f"  {name}: {{username: {user}, password: '{word}'}}" for name, (user, word) in LOGINS.items()]
        lines = [
            "state: state",
            "name: lab",
            "site: lab",
            f"listen: {{socket: {here / 'fleetd.sock'}, http: ''}}",
            f"boot: {{listen: '', url: '{URL}', desk: {here / 'desk.sock'}}}",
            f"images: {{dir: {here / 'images'}, trust: [{KEY}.pub], mirrors: {{lab-b: ['http://{GATEWAY}:8690/images']}}}}",
            f"playbooks: {ROOT / 'playbooks'}",
            f"firmware: {HERE / 'firmware'}",
            "bmc_patience: 60",
            "credentials:",
            *logins,
        ]
        config.write_text("\n".join(lines) + "\n")
        (here / "boot.yaml").write_text(
            f"listen: {GATEWAY}:8680\nurl: {URL}\ndesk: {here / 'desk.sock'}\nfiles: {deploy}\nimages: {here / 'images'}\n"
            f"state: {here / 'boot'}\nlog_level: debug\n"
            f"dnsmasq: {{program: {tool('dnsmasq')}, interface: {BRIDGE}, address: {GATEWAY},"
            " range: '10.77.0.50,10.77.0.99,255.255.255.0'}\n"
        )

    async def serve(self) -> None:
        """Start the daemon; ready when it says so."""
        self.daemon = await self.lab.spawn(
            "fleetd-serve", str(BIN / "fleetd"), "serve", "--config", str(self.folder / "fleetd.yaml")
        )
        await self._says(self.daemon, "ready")

    async def _says(self, process: Process, word: str) -> None:
        def ready() -> bool:
            assert process.code is None, f"{process.name} ended with {process.code}: {process.log.read_text()[-3000:]}"
            with process.log.open("rb") as file:
                file.seek(process.began)
                return word.encode() in file.read()

        await self.progress.until(ready, f"{process.name} says {word}", stall=60)

    async def add_image(self, file: str, name: str) -> None:
        await self.ctl("image", "sign", file, "--name", name, "--key", KEY, timeout=300)
        await self.ctl("image", "add", file, timeout=300)

    # --- the hand ---------------------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        return {"FLEETD_SOCKET": str(self.folder / "fleetd.sock"), "NO_COLOR": "1"}

    async def ctl(self, *words: str, expect: tuple[int, ...] = (0,), timeout: float = 60) -> str:
        """`fleetctl` as a user would; its exit code must be one of `expect`."""
        process = await asyncio.create_subprocess_exec(
            str(BIN / "fleetctl"), *words,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            cwd=self.folder, env={**os.environ, **self.environment},
        )  # fmt: skip
        try:
            output, _ = await asyncio.wait_for(process.communicate(), timeout)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        text = output.decode(errors="replace")
        with (self.folder / "fleetctl.log").open("a") as log:
            log.write(f"$ fleetctl {' '.join(words)}\n{text}[{process.returncode}]\n")
        assert process.returncode in expect, f"fleetctl {' '.join(words)} exits {process.returncode}:\n{text[-4000:]}"
        return text

    async def ask(self, *words: str) -> Any:
        """The JSON of a question."""
        return json.loads(await self.ctl(*words, "-o", "json"))

    async def long(self, *words: str, expect: tuple[int, ...] = (0,)) -> str:
        """A command that follows work; it may take as long as something moves."""
        return await self.progress.watch(self.ctl(*words, expect=expect, timeout=3600), f"fleetctl {' '.join(words)}")

    async def state(self, machine: Machine) -> str:
        return str((await self.ask("host", "show", machine.spec.name))["state"])

    # --- what is known from outside ---------------------------------------------------------------------------------

    def address(self, machine: Machine) -> str:
        """By the leases of fleetd's dnsmasq: what the network's operator would look at."""
        for path in (self.folder / "boot").rglob("*leases*"):
            found = re.findall(rf"{machine.spec.mac} (\S+)", path.read_text())
            if found:
                return str(found[-1])
        raise AssertionError(f"{machine.spec.name} has no lease")

    async def ssh(
        self, machine: Machine, key: Path, command: str, *, user: str = "root", stdin: bytes = b"", timeout: float = 180
    ) -> tuple[int, str]:
        """OpenSSH's client, with this key and no other."""
        return await self.lab.run(
            *(tool("ssh"), "-i", str(key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"),
            *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=30"),
            *(f"{user}@{self.address(machine)}", command),
            timeout=timeout,
            stdin=stdin,
        )

    async def fleetd_key(self, machine: Machine) -> Path:
        """The key by which fleetd enters the host's own system, out of the ledger: to show that it opens no tenant's."""
        host = await self.ask("host", "show", machine.spec.name)
        sealer = sealed.Sealer((self.folder / "state/seal.key").read_bytes())
        db = await open_database(f"sqlite:///{self.folder / 'state/ledger.db'}")
        try:
            stored = await sealed.get(db, host["id"], "disk-seed")
        finally:
            await db.close()
        seed: dict[str, str] = json.loads(sealer.open(stored["current"], context=f"host:{host['id']}"))
        path = self.folder / f"{machine.spec.name}.fleetd-key"
        path.touch(mode=0o600)
        path.write_text(seed["private_key"])
        return path

    def image_file(self, name: str) -> Path:
        """The file of an image as the server keeps it."""
        manifest = (self.folder / f"{name}.raw.zst.manifest.json").read_bytes()
        digest: str = re.findall(rb'"sha256":\s*"([0-9a-f]{64})"', manifest)[0].decode()
        return self.folder / "images" / digest

    def _machines(self) -> list[Machine]:
        return [self.a, self.b]

    def _watched(self) -> list[Path]:
        drives = [drive.path for machine in self._machines() for drive in machine.drives]
        names = ("events", "fleetd-boot", "lab-b-01-redfish")
        return [*drives, *(m.console for m in self._machines()), *(self.folder / f"{name}.log" for name in names)]

    def _logs(self) -> list[Path]:
        names = (
            "fleetd-serve",
            "fleetd-boot",
            "events",
            "fleetctl",
            "lab-a-01-ipmi",
            "lab-b-01-redfish",
            "lab-b-01-cable",
        )
        return [*(self.folder / f"{name}.log" for name in names), *(m.console for m in self._machines())]

    async def stop(self) -> None:
        for machine in self._machines():
            await machine.close()


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def allocated(drive: Drive) -> int:
    """Bytes of the drive's file that hold data."""
    return drive.path.stat().st_blocks * 512


def holds(drive: Drive, marker: bytes) -> bool:
    """Whether the marker stands anywhere on the drive, read from outside."""
    with drive.path.open("rb") as file:
        tail = b""
        while block := file.read(4 << 20):
            if marker in tail + block:
                return True
            tail = block[-len(marker) :]
    return False


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
