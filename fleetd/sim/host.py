"""The simulated machine behind the wires: power that takes time, a boot that must find its way, drives that hold data.

The BMC wires call the verbs here; `ssh.py` asks what runs; `boot.py` supplies the boot itself. A machine does what metal
does: losing power kills the running system, a boot override holds once, a drive keeps its bytes until erased.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid as uuidlib
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from fleetd.model.power import BootDevice, PowerState
from fleetd.model.sku import Sku
from fleetd.sim.faults import Fault
from fleetd.sim.record import Record

Behaviour = Literal["dell", "supermicro", "openbmc", "ipmi"]


BootSource = Literal["network", "cd", "disk"]
SOURCES: dict[BootDevice, BootSource] = {BootDevice.NETWORK: "network", BootDevice.CD: "cd"}


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. The demo shrinks them, a rehearsal uses real ones."""

    power: float = 0.05  # from the verb to the changed state
    post: float = 0.2  # power-on self test
    boot: float = 0.2  # from firmware to the phone-home
    wipe: float = 0.1  # a drive
    image: float = 0.2  # one image


class SimDrive(msgspec.Struct, kw_only=True):
    """`content` says what a read-back would find: "blank", "factory", "tenant:<lease>", "image:<name>"."""

    name: str
    serial: str
    model: str
    bytes: int
    content: str = "factory"


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """The system that runs now. `authorized_key` may log in; `token` is what this boot phoned home with."""

    environment: Literal["deploy", "disk"]
    boot_id: str
    authorized_key: str
    token: str
    host_key_private: str  # OpenSSH PEM
    host_key_public: str
    started: float


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """What write-image put on the system drive: enough to boot from."""

    image: str
    hostname: str
    authorized_keys: tuple[str, ...]
    host_key_private: str
    host_key_public: str
    phone_home_url: str
    phone_home_token: str


class SimHost:
    """One machine. Wires may be many, the loop is one: no locks are needed.

    Args:
        bmc_address, os_address: local loopback addresses by which the wires tell hosts apart.
        boot: called when the machine starts from `network`, `cd` or `disk`; returns what runs then, or None if nothing boots.
    """

    def __init__(
        self,
        *,
        name: str,
        site: str,
        serial: str,
        mac: str,
        sku: Sku,
        behaviour: Behaviour,
        bmc_address: str,
        os_address: str,
        username: str,
        password: str,
        record: Record,
        timings: Timings,
        faults: list[Fault],
        cluster_uuid: str = "0" * 32,
    ) -> None:
        self.name, self.site, self.serial, self.mac, self.sku = name, site, serial, mac, sku
        self.behaviour, self.bmc_address, self.os_address = behaviour, bmc_address, os_address
        self.uuid = str(uuidlib.UUID(bytes=hashlib.md5(f"{site}/{name}".encode(), usedforsecurity=False).digest()))
        self.accounts: dict[str, str] = {username: password}
        self.roles: dict[str, str] = {}  # RoleId of accounts that are no Administrator
        self.disabled: set[str] = set()  # accounts that may not log in
        self.record, self.timings, self.faults, self.cluster_uuid = record, timings, faults, cluster_uuid
        self.power_state = PowerState.OFF
        self.boot_once: BootDevice | None = None
        self.media: dict[str, str] = {}  # what is in the virtual drives: slot -> URL
        self.identify_led = False
        self.bios_version, self.bmc_version = "2.3.5", "7.10.30.05"
        self.running: Running | None = None
        self.installed: Installed | None = None
        self.drives = [
            SimDrive(
                name=f"nvme{i}",
                serial=f"S{hashlib.sha256(f'{site}/{name}/{i}'.encode()).hexdigest()[:11].upper()}",
                model="SIM PM9A3",
                bytes=(sku.storage.nvme_min_gb if i else max(1, sku.storage.nvme_min_gb // 2)) * 10**9 + 10**9,
            )
            for i in range(sku.storage.nvme_count)
        ]
        self.boot: Callable[[SimHost, BootSource], Awaitable[Running | None]] | None = None
        self.on_stop: list[Callable[[], None]] = []  # wires drop what hangs on the running system
        self._life: asyncio.Task[None] | None = None
        self._pending: asyncio.TimerHandle | None = None

    def log(self, what: str, **data: object) -> None:
        self.record.add(asyncio.get_running_loop().time(), self.name, what, **data)

    def fault(self, kind: str, *, fire: bool = True) -> Fault | None:
        """The live fault of this kind, counted as fired unless `fire` is false."""
        for fault in self.faults:
            if fault.kind == kind and fault.live:
                if fire:
                    fault.fired += 1
                    if fault.fired == 1 or fault.count is not None:
                        self.log("fault.fired", kind=kind, **fault.told)
                return fault
        return None

    # --- what the BMC wires call ---------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """The state follows after `timings.power`, as with real BMCs; a lying BMC never gets here."""
        self._switch(PowerState.ON)

    def power_off(self) -> None:
        self._switch(PowerState.OFF)

    def reset(self) -> None:
        """Warm: the system restarts, nothing happens to a host that is off."""
        self.log("power.reset")
        if self.power_state is PowerState.ON:
            self._stop("reset")
            self._start()

    def set_boot_once(self, device: BootDevice) -> None:
        self.log("boot.once", device=str(device))
        self.boot_once = device

    def set_media(self, slot: str, url: str | None) -> None:
        """Put an ISO into a virtual drive, or take it out."""
        self.log("media.insert" if url else "media.eject", slot=slot, **({"url": url} if url else {}))
        if url:
            self.media[slot] = url
        else:
            self.media.pop(slot, None)

    def set_identify(self, on: bool) -> None:
        self.log("identify", on=on)
        self.identify_led = on

    def set_password(self, username: str, password: str) -> None:
        self.log("account.password", username=username)
        self.accounts[username] = password

    def may_log_in(self, username: str) -> bool:
        return username in self.accounts and username not in self.disabled

    # --- the machine ---------------------------------------------------------------------------------------------------

    def _switch(self, target: PowerState) -> None:
        self.log(f"power.{target}")
        if self._pending is not None:
            self._pending.cancel()
        self._pending = asyncio.get_running_loop().call_later(self.timings.power, self._switched, target)

    def _switched(self, target: PowerState) -> None:
        self._pending = None
        if target is self.power_state:
            return
        self.power_state = target
        if target is PowerState.ON:
            self._start()
        else:
            self._stop("off")

    def _start(self) -> None:
        self._life = asyncio.get_running_loop().create_task(self._boot(), name=f"sim:{self.name}")

    def _stop(self, why: str) -> None:
        if self._life is not None:
            self._life.cancel()
            self._life = None
        if self.running is not None:
            self.log("system.down", why=why, environment=self.running.environment)
            self.running = None
        for drop in self.on_stop:
            drop()

    async def _boot(self) -> None:
        await asyncio.sleep(self.timings.post)
        device, self.boot_once = self.boot_once or BootDevice.DISK, None
        source = SOURCES.get(device, "disk")
        if self.boot is None:
            return
        self.running = await self.boot(self, source)
        self.log("boot.nothing" if self.running is None else f"boot.{self.running.environment}", source=source)

    def reboot(self) -> None:
        """The running system restarts itself (not through the BMC)."""
        self._stop("reboot")
        self._start()

    def close(self) -> None:
        """Stop every timer and task of this machine."""
        if self._pending is not None:
            self._pending.cancel()
        if self._life is not None:
            self._life.cancel()
        self.running = None
