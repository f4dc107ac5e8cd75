"""Simulated hosts behind the real boot listener and the real SSH client, for the tests of several rooms."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleetd.drivers.boot.admission import Admission
from fleetd.drivers.boot.capabilities import BootHost, BootScript, Hello, ImageGrant, Sighting
from fleetd.drivers.boot.listener import BootListener
from fleetd.drivers.ssh.capabilities import Shell, ShellTarget, Zipapp
from fleetd.drivers.ssh.client import SshShells
from fleetd.drivers.ssh.keys import new_key_pair
from fleetd.kit.errors import Denied
from fleetd.kit.yamlfile import parse
from fleetd.model.power import BootDevice, PowerState
from fleetd.model.sku import Sku, read_sku
from fleetd.probe.build import build
from fleetd.sim.boot import Booter
from fleetd.sim.faults import Fault
from fleetd.sim.host import SimHost, Timings
from fleetd.sim.image import tiny_image
from fleetd.sim.record import Record
from fleetd.sim.ssh import SshServer

ROOT = Path(__file__).resolve().parents[1]
H100, B200, GB200 = "dell.xe9680-h100-8", "supermicro.as8125-b200-8", "nvidia.gb200-nvl72-tray"
SKUS = (H100, B200, GB200)
SAMPLES = Path(os.environ.get("FLEETD_SAMPLES", ROOT.parent / "shared" / "samples")) / "gpu"
QUICK = Timings(power=0.0, post=0.0, boot=0.0, wipe=0.0, image=0.0)
CLUSTER = "6f8e4a52c7d94b0e9d4c2f7a1b3c5d7e"


def sample(name: str) -> str:
    """A recorded output. Skips without the samples, but never in CI."""
    path = SAMPLES / name
    if not path.is_file():
        if os.environ.get("CI") == "1":
            pytest.fail(f"no sample {path}; set FLEETD_SAMPLES")
        pytest.skip(f"no sample {path}; set FLEETD_SAMPLES")
    return path.read_text()


class Watched(Record):
    """A record that wakes whoever waits for an entry."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Event()

    def add(self, at: float, host: str, what: str, **data: Any) -> None:
        super().add(at, host, what, **data)
        self._more.set()

    async def until(self, *whats: str) -> None:
        """Until an entry of one of these kinds stands there; 10 s at most."""
        async with asyncio.timeout(10):
            while not any(entry.what in whats for entry in self.entries):
                self._more.clear()
                await self._more.wait()


@cache
def sku(name: str) -> Sku:
    path = ROOT / "inventory" / "skus" / f"{name}.yaml"
    return read_sku(parse(path.read_text(), path.name))


def fault(kind: str, *, count: int | None = None, **params: int | str | float) -> Fault:
    return Fault(kind=kind, params=params, count=count)


def sim_host(
    *faults: Fault,
    name: str = "lou-a01-01",
    profile: str | Sku = H100,
    address: str = "127.0.0.1",
    timings: Timings = QUICK,
    record: Record | None = None,
) -> SimHost:
    known = sku(profile) if isinstance(profile, str) else profile
    return SimHost(
        name=name,
        site="louisiana",
        serial=f"SN{name[-5:].upper()}",
        mac="04:3f:72:aa:00:01",
        sku=known,
        behaviour="dell",
        bmc_address="127.0.0.1",
        os_address=address,
        username="root",
        password="calvin",
        record=record or Watched(),
        timings=timings,
        faults=list(faults),
        cluster_uuid=CLUSTER if known.domain else "0" * 32,
    )


def zipapp(name: Any) -> Zipapp:
    built = build(name)
    return Zipapp(name=built.name, data=built.data, digest=built.digest)


class Desk:
    """A boot desk that boots whoever was armed, once."""

    def __init__(self) -> None:
        self.armed: dict[str, tuple[str, str]] = {}  # mac -> (token, public key)
        self.tokens: dict[str, str] = {}  # valid token -> public key
        self.hellos: asyncio.Queue[tuple[str, Hello, str]] = asyncio.Queue()
        self.asked: list[tuple[str, str, str, str]] = []
        self.tickets: dict[str, tuple[str, ImageGrant]] = {}  # ticket -> (digest, who may)
        self.inventory: list[BootHost] = []
        self.sightings: list[Sighting] = []

    def arm(self, mac: str, public: str) -> str:
        token = secrets.token_urlsafe(32)
        self.armed[mac] = (token, public)
        self.tokens[token] = public
        return token

    async def script(self, mac: str, *, uuid: str, serial: str, source: str) -> BootScript:
        self.asked.append((mac, uuid, serial, source))
        token, _ = self.armed.pop(mac, ("", ""))
        return BootScript(host="host-1", token=token) if token else BootScript()

    async def authorized_keys(self, token: str, *, source: str) -> str:
        if token not in self.tokens:
            raise Denied("unknown token", why=f"secret reason about {source}")
        return self.tokens[token]

    async def hello(self, token: str, hello: Hello, *, source: str) -> None:
        if token not in self.tokens:
            raise Denied("unknown token")
        self.hellos.put_nowait((token, hello, source))

    async def grant(self, digest: str, ticket: str, *, source: str) -> ImageGrant:
        found = self.tickets.get(ticket)
        if found is None or found[0] != digest:
            raise Denied("unknown ticket", why=f"secret reason about {source}")
        return found[1]

    async def hosts(self) -> list[BootHost]:
        return self.inventory

    async def seen(self, sightings: list[Sighting]) -> None:
        self.sightings += sightings


class Rig:
    """One boot listener, one SSH wire, one client for any number of simulated hosts on 127.0.0.x."""

    def __init__(self, desk: Desk, listener: BootListener, shells: SshShells, ssh_port: int, images: Path) -> None:
        self.desk, self.listener, self.shells, self.ssh_port, self.images = desk, listener, shells, ssh_port, images
        self.hosts: dict[str, SimHost] = {}
        self.tokens: dict[str, str] = {}

    def add(self, host: SimHost) -> SimHost:
        self.hosts[host.os_address] = host
        host.boot = Booter(self.listener.base_url, self.ssh_port)
        return host

    async def deploy(self, host: SimHost) -> ShellTarget:
        """Power the host on into the deploy environment; how to reach it then."""
        private, public = new_key_pair("test")
        self.tokens[host.name] = self.desk.arm(host.mac, public)
        host.set_boot_once(BootDevice.NETWORK)
        host.power_state = PowerState.ON
        host.reboot()
        return await self.met(host, private)

    async def from_disk(self, host: SimHost, private: str, token: str) -> ShellTarget:
        self.desk.tokens[token] = ""
        host.reboot()
        return await self.met(host, private)

    async def met(self, host: SimHost, private: str) -> ShellTarget:
        async with asyncio.timeout(10):
            _, hello, source = await self.desk.hellos.get()
        assert source == host.os_address
        return ShellTarget(
            host="host-1",
            address=source,
            port=hello.ssh_port,
            host_key=hello.host_key,
            private_key=private,
            environment=hello.environment,
        )

    async def shell(self, target: ShellTarget) -> Shell:
        return await self.shells.connect(target, timeout=10)

    def order(self, host: SimHost, intent: str = "intent-1", **more: Any) -> dict[str, Any]:
        return {
            "intent": intent,
            "nonce": self.tokens[host.name],
            "host_serial": host.serial,
            "drives": [{"serial": d.serial} for d in host.drives],
            **more,
        }

    def image(self, host: SimHost, name: str = "ubuntu-24.04-gpu", **change: Any) -> dict[str, Any]:
        """The image of an order to this host, which the listener serves to it."""
        served, disk = tiny_image(name)
        digest, ticket = hashlib.sha256(served).hexdigest(), f"ticket-of-{host.name}"
        path = self.images / digest
        if not path.exists():
            path.write_bytes(served)
        self.desk.tickets[ticket] = (digest, ImageGrant(host=host.name, rack=host.name[:-3]))
        return {
            "name": name,
            "format": "raw.gz",
            "bytes": len(served),
            "sha256": digest,
            "raw_bytes": len(disk),
            "raw_sha256": hashlib.sha256(disk).hexdigest(),
            "urls": [f"{self.listener.base_url}/images/{digest}?ticket={ticket}"],
            **change,
        }

    def image_order(self, host: SimHost, intent: str = "image-1", **more: Any) -> tuple[dict[str, Any], str]:
        """(an order to write an image, the private key that its system lets in)."""
        private, public = new_key_pair("fleetd")
        host_private, host_public = new_key_pair("host")
        seed = {
            "hostname": host.name,
            "instance_id": f"i-{intent}",
            "authorized_keys": [public],
            "host_key_private": host_private,
            "host_key_public": host_public,
            "phone_home_url": self.listener.base_url,
            "phone_home_token": "t" * 40,
        }
        return self.order(host, intent, **{"image": self.image(host), "seed": seed, **more}), private

    async def host_command(
        self,
        shell: Shell,
        command: str,
        order: dict[str, Any],
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        answer = await shell.run(
            zipapp("host"),
            (command,),
            stdin=msgspec.json.encode(order),
            timeout=30,
            max_output=1024 * 1024,
            progress=progress,
        )
        report: dict[str, Any] = msgspec.json.decode(answer)
        return report


@contextlib.asynccontextmanager
async def rig(
    depth: Any = "fast", folder: Path | None = None, admission: Admission | None = None
) -> AsyncIterator[Rig]:
    desk, shells = Desk(), SshShells()
    images = tempfile.TemporaryDirectory()
    listener = BootListener(desk, "127.0.0.1", 0, images=Path(images.name), admission=admission)
    await listener.start()
    hosts: dict[str, SimHost] = {}
    wire = SshServer(hosts.get, depth=depth, folder=folder)
    port = await wire.start(["127.0.0.1"])
    made = Rig(desk, listener, shells, port, Path(images.name))
    made.hosts = hosts
    try:
        yield made
    finally:
        for host in hosts.values():
            host.close()
        await shells.close()
        await wire.close()
        await listener.stop()
        images.cleanup()
