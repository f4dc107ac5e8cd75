"""A small world for tests: a simulated rack on real wires, and the daemon's house or process beside it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fleetd.daemon.config import load
from fleetd.daemon.wiring import House, build_house
from fleetd.kit.yamlfile import parse
from fleetd.model.access import Principal, Role
from fleetd.model.host import Host
from fleetd.model.run import Run, RunState
from fleetd.model.sku import read_sku
from fleetd.sim.site import SimSite
from fleetd.sim.sitefile import load_site
from tests.images import add_images, image_key

ROOT = Path(__file__).resolve().parents[1]
H100 = "dell.xe9680-h100-8"
B200 = "supermicro.as8125-b200-8"
GB200 = "nvidia.gb200-nvl72-tray"
ADMIN = Principal(name="tester", role=Role.ADMIN)
FACTORY = {
    H100: ("redfish", "factory-dell", "root", "calvin", 6),
    B200: ("redfish", "factory-supermicro", "ADMIN", "ADMIN", 8),
    GB200: ("redfish", "factory-nvidia", "root", "0penBmc", 1),
}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZsZWV0ZCBkZW1vIHRlbmFudCwgbm8gcHJpdmF0ZSBr tenant@example"


def free_port() -> int:
    """A TCP port on loopback that nobody has now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One rack: SKU, number of hosts, faults by 1-based host number, wire."""

    sku: str = H100
    count: int = 1
    faults: Mapping[int, Sequence[tuple[str, Mapping[str, Any]]]] = {}
    ipmi: bool = False
    domain: str | None = None
    depth: str = "fast"
    rack: str = "lou-t01"


def name_of(rack: str, number: int) -> str:
    return f"{rack}-{number:02}"


def playbooks_of(folder: Path, patience: float | None) -> Path:
    """The shipped playbooks; with `patience`, copies whose boots wait that many seconds for the phone-home."""
    if patience is None:
        return ROOT / "playbooks"
    (folder / "playbooks").mkdir()
    for path in (ROOT / "playbooks").glob("*.yaml"):
        text = re.sub(r"boot: \{to: (\w+)", rf"boot: {{to: \1, patience: {patience}", path.read_text())
        (folder / "playbooks" / path.name).write_text(text)
    return folder / "playbooks"


def write_world(folder: Path, plans: Sequence[Plan], *, control: bool = False, patience: float | None = None) -> Path:
    """Inventory, site file and fleetd.yaml under `folder`; returns the path of fleetd.yaml."""
    boot, redfish, ipmi, ssh = free_port(), free_port(), free_port(), free_port()
    inventory = folder / "inventory"
    for sub in ("sites", "racks/louisiana", "skus"):
        (inventory / sub).mkdir(parents=True)
    (inventory / "sites/louisiana.yaml").write_text("site: louisiana\nhalls: [h1]\n")
    for sku in {plan.sku for plan in plans}:
        text = (ROOT / f"inventory/skus/{sku}.yaml").read_text()
        (inventory / f"skus/{sku}.yaml").write_text(text)
    second = random.SystemRandom().randrange(10, 50)
    faults: list[str] = []
    for third, plan in enumerate(plans, 1):
        wire, credentials, _, _, height = FACTORY[plan.sku]
        if plan.ipmi:
            wire, credentials = "ipmi", "factory-ipmi"
        lines = [f"rack: {plan.rack}", "site: louisiana", "hall: h1", "power: {budget: 140 kW}"]
        lines += [f"nvlink_domain: {plan.domain or 'null'}", "hosts:"]
        for n in range(1, plan.count + 1):
            port = ipmi if plan.ipmi else redfish
            name = name_of(plan.rack, n)
            lines += [
                f"  - name: {name}",
                f"    position: {(n - 1) * height + 1}",
                f"    sku: {plan.sku}",
                f"    serial: T{third}X{n:04}",
                f"    bmc: {{protocol: {wire}, address: '127.{second}.{third}.{n}:{port}', credentials: {credentials}}}",
                f"    boot_mac: '04:3f:72:00:{third:02x}:{n:02x}'",
            ]
            for kind, params in plan.faults.get(n, ()):
                shown = ", ".join(f"{k}: {v}" for k, v in params.items() if k != "count_of")
                count = f", count: {params['count_of']}" if "count_of" in params else ""
                faults.append(f"  - {{host: {name}, kind: {kind}, params: {{{shown}}}{count}}}")
        (inventory / f"racks/louisiana/{plan.rack}.yaml").write_text("\n".join(lines) + "\n")
    site = [
        "inventory: inventory",
        f"depth: {plans[0].depth}",
        f"boot_url: http://127.0.0.1:{boot}",
        f"ports: {{redfish: {redfish}, ipmi: {ipmi}, ssh: {ssh}}}",
        "timings: {power: 0.01, post: 0.01, boot: 0.01, wipe: 0.01, image: 0.01}",
        "record: record.jsonl",
        *(["control: sim.sock"] if control else []),
        "credentials:",
        *(f"  {c}: {{username: {u}, password: '{p}'}}" for _, c, u, p, _ in FACTORY.values()),
        "  factory-ipmi: {username: ADMIN, password: 'admin'}",
        *(["faults:", *faults] if faults else []),
    ]
    (folder / "site.yaml").write_text("\n".join(site) + "\n")
    deaf = any(kind == "deaf-bmc" for plan in plans for found in plan.faults.values() for kind, _ in found)
    image_key(folder)
    config = folder / "fleetd.yaml"
    config.touch(mode=0o600)
    config.write_text(
        "\n".join(
            [
                "state: state",
                "name: test",
                f"listen: {{socket: {folder / 'fleetd.sock'}, http: ''}}",
                f"boot: {{listen: '127.0.0.1:{boot}', url: 'http://127.0.0.1:{boot}'}}",
                f"playbooks: {playbooks_of(folder, patience)}",
                f"firmware: {ROOT / 'firmware'}",
                "images: {trust: [image-key.pem.pub]}",
                "domain_patience: 60",
                # A deaf BMC costs three of these; the others must have room on a busy machine.
                f"bmc_patience: {2 if deaf else 10}",
                "credentials:",
                *(f"  {c}: {{username: {u}, password: '{p}'}}" for _, c, u, p, _ in FACTORY.values()),
                "  factory-ipmi: {username: ADMIN, password: 'admin'}",
            ]
        )
        + "\n"
    )
    return config


def inventory_files(folder: Path) -> dict[str, str]:
    """What the hand would send."""
    root = folder / "inventory"
    return {str(p.relative_to(root)): p.read_text() for p in sorted(root.rglob("*.yaml"))}


def image_names(folder: Path) -> set[str]:
    """The images that the SKUs of a world name."""
    texts = [(p.name, p.read_text()) for p in (folder / "inventory" / "skus").glob("*.yaml")]
    return {read_sku(parse(text, name)).image for name, text in texts}


class World:
    """The simulator and the daemon's house in this process, over real loopback wires."""

    def __init__(self, folder: Path, sim: SimSite, house: House) -> None:
        self.folder, self.sim, self.house = folder, sim, house
        self.services = house.services

    async def apply(self) -> None:
        """The inventory, and the images its SKUs name."""
        await self.services.inventory.apply(inventory_files(self.folder), who=ADMIN)
        await add_images(self.services.images, image_key(self.folder), image_names(self.folder))

    async def run(self, playbook: str, hosts: str = "all") -> Run:
        """Start and wait for the end."""
        run = await self.services.runs.start(playbook, hosts, who=ADMIN)
        assert isinstance(run, Run)
        return await self.ended(run.id)

    async def ended(self, run_id: str, seconds: float = 60.0) -> Run:
        """The run once it is over; follows the event stream, so nothing is polled."""
        db, seq = self.services.db, 0
        async with asyncio.timeout(seconds):
            while (run := await self.services.runs.get(run_id)).state is RunState.RUNNING:
                await db.wait_events(seq, 5.0)
                from fleetd.store import events

                seq = await events.last(db)
        return run

    async def host(self, number: int = 1, rack: str = "lou-t01") -> Host:
        return await self.services.hosts.get(name_of(rack, number))

    def leaseable(self, host: Host) -> list[str]:
        return self.services.hosts.reasons(host, self.services.clock.wall())


@contextlib.asynccontextmanager
async def world(folder: Path, *plans: Plan, patience: float | None = None) -> AsyncIterator[World]:
    """Both, started; parked and closed at the end. `patience`: seconds that a boot has, in place of the playbooks'."""
    config = write_world(folder, plans or [Plan()], patience=patience)
    async with SimSite(load_site(folder / "site.yaml")) as sim, build_house(load(config)) as house:
        await house.boot.start()
        ready = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(house.engine.run(ready.set))
                await ready.wait()
                yield World(folder, sim, house)
                house.engine.park()
        finally:
            await house.boot.stop()


def environment(folder: Path) -> dict[str, str]:
    """For fleetctl as a process."""
    return {**os.environ, "FLEETD_SOCKET": str(folder / "fleetd.sock"), "NO_COLOR": "1"}
