"""One real machine: QEMU without KVM, with firmware, an NVMe drive, a network card, and a power button that BMCs can press.

The machine is powered while its QEMU runs. The boot device chosen for the next start holds once, as on a real host: a reboot
from inside starts a new QEMU with the usual order (drive, network). BMCs speak to it over a unix socket, a JSON line each way.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec

from tests.e2e.lab import Lab, Process, tool
from tests.e2e.qmp import Monitor, connect

CODE, VARS = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
ORDER = ("disk", "network", "cd")
Device = Literal["none", "network", "disk", "cd"]
GIB = 1 << 30
VERSION = "1.0"  # of the firmware, as SMBIOS tells it


class Drive(msgspec.Struct, frozen=True, kw_only=True):
    """An NVMe drive: a sparse file."""

    serial: str
    path: Path
    size: int = 2 * GIB

    def make(self) -> None:
        with self.path.open("ab") as file:
            file.truncate(self.size)


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine is. `tpm`: an emulated TPM 2.0; `cpu`: the plainest is the fastest under TCG (see README.md here)."""

    name: str
    firmware: Literal["uefi", "bios"]
    mac: str
    serial: str
    uuid: str
    product: str = "Lab Machine"
    memory: int = 1024  # MiB
    cpus: int = 1
    tpm: bool = False
    cpu: str = "qemu64"


class Machine:
    """The machine and its supervisor. `socket` is where BMCs ask; `console` what its serial port said, over all starts."""

    def __init__(self, lab: Lab, spec: Spec, *drives: Drive) -> None:
        self.lab, self.spec = lab, spec
        self.folder = lab.folder / spec.name
        self.folder.mkdir()
        self.drives = list(drives) or [Drive(serial=f"NV{spec.serial}", path=self.folder / "disk.raw")]
        self.socket, self.console = self.folder / "power.sock", self.folder / "console.log"
        self.tap = lab.tap(f"tap-{spec.name}"[:15])
        # All threads of one QEMU on one core. Once its NVMe drive stood still, and Linux gave up on command after command, 30 s
        # each. Suspected, not proven: a shadow doorbell in memory was lost between two cores, for want of a barrier in QEMU 7.2.
        cores = sorted(os.sched_getaffinity(0))
        self._core = cores[sum(spec.name.encode()) % len(cores)]
        self.boot: Device = "none"
        self.media: Path | None = None
        self.http = False  # UEFI: the firmware boots by HTTP, and not by PXE
        self.starts: list[Device] = []  # the boot device of every start, `none` for the usual order
        self._qemu: Process | None = None
        self._cable: Process | None = None
        self._events: asyncio.Task[None] | None = None
        self._restarts = False
        self._monitor: Monitor | None = None
        self._lock = asyncio.Lock()
        self._server: asyncio.Server | None = None

    # --- life -------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Make drives and firmware variables, listen for BMCs. It is powered off."""
        for drive in self.drives:
            drive.make()
        if self.spec.firmware == "uefi":
            shutil.copyfile(VARS, self.folder / "vars.fd")
        self.console.touch()
        self._server = await asyncio.start_unix_server(self._serve, self.socket)

    async def close(self) -> None:
        await self.off()
        if self._server is not None:
            self._server.close()

    @property
    def power(self) -> bool:
        """A restart from inside counts as on."""
        return self._qemu is not None and (self._qemu.code is None or self._restarts)

    async def on(self) -> None:
        async with self._lock:
            if not self.power:
                await self._start()

    async def off(self) -> None:
        """Held power button, or a cut of the power: nothing of the guest runs on, unwritten caches of the guest are lost."""
        async with self._lock:
            await self._stop()

    cut = off

    async def reset(self) -> None:
        async with self._lock:
            if self.power:
                await self._stop()
                await self._start()

    async def soft(self) -> None:
        """Press the power button: the guest's system decides."""
        if self._monitor is not None:
            await self._monitor.command("system_powerdown")

    async def reboot(self) -> None:
        """As the guest would: no BMC hears of it, and a boot device chosen for one start is used up."""
        if self._monitor is not None:
            await self._monitor.command("system_reset")

    def insert(self, image: Path | None) -> None:
        """The disc of the virtual CD drive, from the next start on."""
        self.media = image

    # --- QEMU -------------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        device, self.boot = self.boot, "none"
        self.starts.append(device)
        self._restarts = False
        network = await self._plug()
        socket = self.folder / "qmp.sock"
        socket.unlink(missing_ok=True)
        tpm = await self._tpm() if self.spec.tpm else []
        self._qemu = await self.lab.spawn(
            f"{self.spec.name}-qemu",
            *(tool("taskset"), "--cpu-list", str(self._core), tool("qemu-system-x86_64")),
            *(*self.arguments(device), *network, *tpm),
        )
        self._monitor = await connect(socket, self._qemu)
        self._events = asyncio.create_task(self._follow(self._monitor, self._qemu))

    def arguments(self, device: Device) -> list[str]:
        """QEMU's arguments but for the network's other end."""
        spec = self.spec
        first = [device] if device != "none" else []
        order = {name: n for n, name in enumerate(dict.fromkeys((*first, *ORDER)), 1)}
        text = [
            *(
                "-machine",
                "q35,hpet=off,vmport=off,graphics=off",
                "-accel",
                "tcg,thread=multi,tb-size=256",
                "-cpu",
                spec.cpu,
            ),
            *("-smp", str(spec.cpus), "-m", str(spec.memory), "-nodefaults", "-display", "none", "-no-user-config"),
            *("-action", "reboot=shutdown", "-rtc", "base=utc", "-device", "virtio-rng-pci"),
            *("-chardev", f"file,id=console,append=on,path={self.console}", "-serial", "chardev:console"),
            *("-qmp", f"unix:{self.folder / 'qmp.sock'},server=on,wait=off"),
            *("-smbios", f"type=0,vendor=Fleetd Lab,version={VERSION}"),
            *(
                "-smbios",
                f"type=1,manufacturer=Fleetd Lab,product={spec.product},serial={spec.serial},uuid={spec.uuid}",
            ),
            *("-smbios", f"type=2,manufacturer=Fleetd Lab,product=Lab Board,serial=B{spec.serial}"),
            *("-smbios", f"type=3,manufacturer=Fleetd Lab,serial={spec.serial}"),
            # The card's ROM: none under UEFI (the firmware's own PXE stack works), iPXE's as plain PXE under BIOS.
            *("-device", self._card(order["network"])),
        ]
        if spec.firmware == "uefi":
            text += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={CODE}"]
            text += ["-drive", f"if=pflash,unit=1,format=raw,file={self.folder / 'vars.fd'}"]
            # PXE over IPv6 is switched off, as it is where nobody serves it: OVMF waits 68 s for an answer before it goes on.
            for version in ("4", "6") if self.http else ("6",):
                text += ["-fw_cfg", f"name=opt/org.tianocore/IPv{version}PXESupport,string=n"]
        for n, drive in enumerate(self.drives):
            options = "if=none,format=raw,cache=unsafe,discard=unmap,detect-zeroes=unmap"
            index = f",bootindex={order['disk']}" if n == 0 else ""
            text += ["-drive", f"id=drive{n},file={drive.path},{options}"]
            text += ["-device", f"nvme,drive=drive{n},serial={drive.serial}{index}"]
        if self.media is not None:
            text += ["-drive", f"id=cd,if=none,media=cdrom,readonly=on,format=raw,file={self.media}"]
            text += ["-device", f"ide-cd,bus=ide.1,drive=cd,bootindex={order['cd']}"]
        return text

    def _card(self, index: int) -> str:
        rom = ",romfile=" if self.spec.firmware == "uefi" else ""
        return f"virtio-net-pci,netdev=lan,mac={self.spec.mac},bootindex={index}{rom}"

    async def _plug(self) -> list[str]:
        """The other end of the network: the tap itself, or our cable where the ROM must look plain."""
        if self.spec.firmware == "uefi":
            return ["-netdev", f"tap,id=lan,ifname={self.tap},script=no,downscript=no"]
        own, peer = self.folder / "cable.sock", self.folder / "card.sock"
        peer.unlink(missing_ok=True)
        name = f"{self.spec.name}-cable"
        script = str(Path(__file__).with_name("wire.py"))
        self._cable = await self.lab.spawn(name, sys.executable, "-I", script, self.tap, str(own), str(peer))
        return [
            "-netdev",
            f"dgram,id=lan,local.type=unix,local.path={peer},remote.type=unix,remote.path={own}",
        ]

    async def _tpm(self) -> list[str]:
        state, socket = self.folder / "tpm", self.folder / "tpm.sock"
        state.mkdir(exist_ok=True)
        socket.unlink(missing_ok=True)
        await self.lab.spawn(
            f"{self.spec.name}-tpm",
            *(tool("swtpm"), "socket", "--tpm2", "--tpmstate", f"dir={state}", "--terminate"),
            *("--ctrl", f"type=unixio,path={socket}", "--flags", "startup-clear"),
        )
        async with asyncio.timeout(20):
            while not socket.exists():
                await asyncio.sleep(0.02)
        return [
            *("-chardev", f"socket,id=tpm,path={socket}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"),
            *("-device", "tpm-crb,tpmdev=tpm0"),
        ]

    async def _stop(self) -> None:
        self._restarts = False
        if self._events is not None:
            self._events.cancel()
            await asyncio.wait([self._events])
            self._events = None
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        for process in (self._qemu, self._cable):
            if process is not None and process.code is None:
                await process.kill()
        self._qemu = self._cable = None

    # --- a reboot from inside ---------------------------------------------------------------------------------------

    async def _follow(self, monitor: Monitor, qemu: Process) -> None:
        """Until QEMU ends; when the guest rebooted itself, start again with the usual boot order."""
        self._restarts = await monitor.rebooted()
        await qemu.ended()
        if self._restarts:
            asyncio.get_running_loop().call_soon(self._again)

    def _again(self) -> None:
        self._restarting = asyncio.create_task(self._restart())

    async def _restart(self) -> None:
        async with self._lock:
            if self._restarts:  # else someone held the power button meanwhile
                await self._stop()
                await self._start()

    # --- BMCs -------------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                try:
                    answer = await self._answer(json.loads(line))
                except (KeyError, ValueError, OSError, AssertionError) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def _answer(self, order: dict[str, Any]) -> dict[str, Any]:
        verbs = {"on": self.on, "off": self.off, "soft": self.soft, "reset": self.reset}
        op = order["op"]
        if op == "boot":
            if order["device"] not in ("none", *ORDER):
                raise ValueError(f"no device {order['device']!r}")
            self.boot = order["device"]
        elif op == "media":
            self.insert(Path(order["path"]) if order.get("path") else None)
        elif op in verbs:
            await verbs[op]()
        elif op != "state":
            raise ValueError(f"no order {op!r}")
        return {"power": self.power, "boot": self.boot, "media": str(self.media or "")}
