"""A ledger with a fleet in it, and the real desks in front, for the tests of lifecycle."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from fleetd.drivers.bmc.capabilities import Bmc
from fleetd.kit.clock import rfc3339
from fleetd.kit.errors import Unreachable
from fleetd.lifecycle.brakes import BrakeDesk, ClockBrake, Limits, MassBrake
from fleetd.lifecycle.hosts import HostDesk
from fleetd.lifecycle.leases import LeaseDesk
from fleetd.lifecycle.plan import InventoryDesk
from fleetd.lifecycle.playbook import load
from fleetd.lifecycle.runs import RunDesk, new_run
from fleetd.model.access import Principal, Role
from fleetd.model.event import Event
from fleetd.model.host import Host, State
from fleetd.model.lease import Lease, LeaseRequest, Placement
from fleetd.model.run import Run, RunHostState
from fleetd.store import events
from fleetd.store import hosts as host_rows
from fleetd.store import runs as run_rows
from fleetd.store.database import Database, open_database

ROOT = Path(__file__).parents[2]
START = 1_800_000_000.0
WHO = Principal(name="ada", role=Role.OPERATOR)
H100, GB200 = "dell.xe9680-h100-8", "nvidia.gb200-nvl72-tray"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEGiVZgcR4SJLvhhQnFfvHbpNK5YyRc9L9hFVNqK0Dxd ada@desk"
PLAYBOOKS = {
    book.name: book for path in (ROOT / "playbooks").glob("*.yaml") for book in [load(path.read_text(), path.name)]
}
SKUS = {f"skus/{path.name}": path.read_text() for path in (ROOT / "inventory" / "skus").glob("*.yaml")}


LIMITS = Limits()


class HandClock:
    """Time that a test moves: wall and steady apart, because clocks jump."""

    def __init__(self) -> None:
        self._wall, self._steady = START, 1000.0

    def wall(self) -> float:
        return self._wall

    def steady(self) -> float:
        return self._steady

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)

    def go(self, seconds: float) -> float:
        self._wall += seconds
        self._steady += seconds
        return self._wall

    def jump(self, seconds: float) -> None:
        self._wall += seconds


def rack_file(site: str, rack: str, hosts: Iterable[dict[str, str]], *, domain: str | None = None) -> tuple[str, str]:
    lines = [f"rack: {rack}", f"site: {site}", f"nvlink_domain: {domain or 'null'}", "hosts:"]
    for host in hosts:
        first, *rest = [f"{key}: {value}" for key, value in host.items()]
        lines += [f"  - {first}", *(f"    {line}" for line in rest)]
    return f"racks/{site}/{rack}.yaml", "\n".join(lines) + "\n"


def host_entry(number: int, name: str, position: int, sku: str = H100, **changes: str) -> dict[str, str]:
    """One host of a rack file; `number` makes serial, MAC and address."""
    low = f"{number >> 8 & 255:02x}:{number & 255:02x}"
    return {
        "name": name,
        "position": str(position),
        "sku": sku,
        "serial": f"SN{number:05d}",
        "bmc": f"{{protocol: redfish, address: 10.1.{number >> 8}.{number & 255}, credentials: factory}}",
        "boot_mac": f'"04:3f:72:aa:{low}"',
        **changes,
    }


def inventory(
    racks: dict[str, int], *, site: str = "louisiana", sku: str = H100, domain: bool = False
) -> dict[str, str]:
    """Files of a site: rack name -> number of hosts, called <rack>-01 …"""
    height = 6 if sku == H100 else 1
    files = dict(SKUS) | {f"sites/{site}.yaml": f"site: {site}\nhalls: [h1]\n"}
    number = 256 * sum(site.encode()) % 40_000
    for rack, count in racks.items():
        entries = []
        for i in range(count):
            number += 1
            entries.append(host_entry(number, f"{rack}-{i + 1:02d}", 1 + i * height, sku))
        name, text = rack_file(site, rack, entries, domain=f"{rack}-nvl" if domain else None)
        files[name] = text
    return files


class Fleet:
    """The desks of one daemon, wired as the composition root wires them, without an engine: tests move the hosts."""

    def __init__(
        self,
        db: Database,
        clock: Any = None,
        *,
        grace: float = 86_400.0,
        limits: Limits = LIMITS,
        open_bmc: Any = None,
    ) -> None:
        self.db = db
        self.clock = clock if clock is not None else HandClock()
        self.woken: list[str] = []
        self.resumed: list[str] = []
        self.brakes = BrakeDesk(db, self.clock)
        self.clock_brake = ClockBrake(db, self.clock)
        self.mass = MassBrake(db, self.clock, self.brakes, limits)
        self.runs = RunDesk(db, self.clock, PLAYBOOKS)
        self.hosts = HostDesk(db, self.clock, open_bmc or nobody_answers, self.brakes, self._resume)
        self.inventory = InventoryDesk(db, self.clock)
        self.leases = LeaseDesk(
            db,
            self.clock,
            runs=self.runs,
            new_run=new_run,
            hosts=self.hosts,
            brakes=self.brakes,
            mass=self.mass,
            clock_brake=self.clock_brake,
            wake=self.woken.append,
            grace_seconds=grace,
        )

    async def _resume(self, host: Host, who: Principal) -> Run:
        self.resumed.append(host.name)
        return await self.runs.resume(host, who=who)

    async def fill(self, files: dict[str, str], *, available: bool = True) -> list[Host]:
        """Apply the inventory; every new host becomes available under a certificate of 30 days."""
        await self.clock_brake.tick()
        await self.inventory.apply(files, who=WHO)
        if available:
            for host in await host_rows.every(self.db):
                if host.state is State.REGISTERED:
                    await self.put(
                        host, state=State.AVAILABLE, certificate=f"certificate-{host.name}", expires=30 * 86_400
                    )
        return await host_rows.every(self.db)

    async def put(self, host: Host, *, expires: float | None = None, **changes: Any) -> Host:
        """Write a host as a test needs it, past the transition table."""
        host = await host_rows.get(self.db, host.id)
        if expires is not None:
            changes["certificate_expires"] = self.clock.wall() + expires
        status = {key: changes.pop(key) for key in list(changes) if key in host.status.__struct_fields__}
        host = msgspec.structs.replace(host, status=msgspec.structs.replace(host.status, **status), **changes)
        await self.db.commit([host_rows.save(host)])
        return await host_rows.get(self.db, host.id)

    def asks(self, count: int, *, days: float = 1.0, **changes: Any) -> LeaseRequest:
        ends = rfc3339(self.clock.wall() + days * 86_400)
        assert ends is not None
        values: dict[str, Any] = {"tenant": "acme", "sku": H100, "count": count, "ends_at": ends, "ssh_keys": (KEY,)}
        return LeaseRequest(**values | changes)

    async def claim(self, count: int, **changes: Any) -> Lease:
        return await self.leases.create(self.asks(count, **changes), who=WHO)

    async def named(self, name: str) -> Host:
        return await host_rows.by_name(self.db, name)

    async def run_ends(
        self, run_id: str, state: RunHostState, change: Callable[[Host], dict[str, Any]], *, only: str = ""
    ) -> None:
        """What the engine does at the end of a run: places end, hosts stand where the playbook leads, the desk is told."""
        run = await run_rows.get(self.db, run_id)
        for place in await run_rows.hosts(self.db, run_id):
            if place.state not in (RunHostState.PENDING, RunHostState.ACTIVE) or (only and place.host != only):
                continue
            ended = msgspec.structs.replace(place, state=state)
            await self.db.commit([run_rows.save_host(ended)])
            host = await host_rows.get(self.db, place.host)
            await self.put(host, **change(host))
            await self.leases.follow(run, ended)

    async def hand_over(self, lease: Lease) -> Lease:
        """Every host of the lease is handed over."""
        assert lease.run is not None
        await self.run_ends(lease.run, RunHostState.PASSED, lambda host: {"state": State.LEASED, "deadline": None})
        return await self.leases.get(lease.id)

    async def reclaim(self, lease: Lease) -> Lease:
        """Every host of the lease is wiped, proven and published."""
        lease = await self.leases.get(lease.id)
        assert lease.run is not None
        clean = {"state": State.AVAILABLE, "tenant_data": "erased", "deadline": None}
        await self.run_ends(lease.run, RunHostState.PASSED, lambda host: clean)
        return await self.leases.get(lease.id)

    async def said(self, kind: str) -> list[Event]:
        return await events.after(self.db, 0, limit=100_000, kinds=[kind])

    async def states(self) -> dict[str, str]:
        return {host.name: str(host.state) for host in await host_rows.every(self.db)}


@contextlib.asynccontextmanager
async def nobody_answers(host: Host) -> AsyncIterator[Bmc]:
    raise Unreachable(f"BMC of {host.name} does not answer")
    yield  # an async context manager is a generator


@contextlib.asynccontextmanager
async def ledger() -> AsyncIterator[Database]:
    """An empty ledger in memory."""
    db = await open_database("sqlite:///:memory:", inline=True)
    try:
        await db.migrate()
        yield db
    finally:
        await db.close()


SAME_RACK, SAME_DOMAIN = Placement.SAME_RACK, Placement.SAME_NVLINK_DOMAIN
