"""Puts the rooms together: every object of the daemon is made here, once, and closed in reverse order."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from fleetd.daemon.config import Loaded, split_address
from fleetd.drivers.bmc.registry import Drivers
from fleetd.drivers.boot.listener import BootListener
from fleetd.drivers.ssh.capabilities import Zipapp
from fleetd.drivers.ssh.client import SshShells
from fleetd.kit.clock import Clock, SystemClock
from fleetd.kit.errors import Conflict, Invalid
from fleetd.kit.yamlfile import parse
from fleetd.lifecycle import playbook
from fleetd.lifecycle.boots import Boots
from fleetd.lifecycle.brakes import BrakeDesk, ClockBrake, MassBrake
from fleetd.lifecycle.certificates import ProofDesk, load_or_create_key
from fleetd.lifecycle.credentials import Credentials
from fleetd.lifecycle.engine import Engine
from fleetd.lifecycle.hosts import HostDesk
from fleetd.lifecycle.leases import LeaseDesk
from fleetd.lifecycle.plan import InventoryDesk
from fleetd.lifecycle.runs import RunDesk, new_run
from fleetd.lifecycle.services import Services
from fleetd.lifecycle.steps.base import Wires
from fleetd.model.firmware import Baseline, read_baseline
from fleetd.model.playbook import Playbook
from fleetd.probe import build
from fleetd.store.database import Database, open_database
from fleetd.store.secrets import Sealer


class House(msgspec.Struct, frozen=True, kw_only=True):
    """The running rooms."""

    services: Services
    engine: Engine
    boot: BootListener
    clock_brake: ClockBrake
    boot_url: str


def lock_state(folder: Path) -> int:
    """One daemon a state directory. The lock lives as long as the process. Raises Conflict."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise Conflict(f"another fleetd works on {folder}", remedy="systemctl status fleetd") from error
    return handle


def sealing_key(folder: Path) -> bytes:
    """32 bytes: from the systemd credential `fleetd.key`, else a 0600 file under the state directory, made on first use."""
    credential = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(credential) / "fleetd.key" if credential else folder / "seal.key"
    if not path.exists() and not credential:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
    try:
        key = path.read_bytes()
    except OSError as error:
        raise Invalid(
            f"the sealing key {path} cannot be read",
            why=error.strerror or "",
            remedy="give the unit LoadCredential=fleetd.key:FILE (32 bytes), or no credentials directory at all",
        ) from error
    if len(key) != 32:
        raise Invalid(
            f"the sealing key {path} is not 32 bytes",
            remedy="restore it from your backup: without it no BMC password opens",
        )
    return key


def read_playbooks(folder: Path) -> dict[str, Playbook]:
    """All playbooks of a folder, each proven legal. Raises Invalid with file:line."""
    books: dict[str, Playbook] = {}
    for path in sorted(folder.glob("*.yaml")):
        book = playbook.load(path.read_text(encoding="utf-8"), path.name)
        if book.name in books:
            raise Invalid(f"playbook `{book.name}` stands twice", where=f"{path}:1")
        books[book.name] = book
    if missing := {"rack-bringup", "handover", "reclaim", "validate"} - set(books):
        raise Invalid(
            f"playbooks are missing in {folder}: {', '.join(sorted(missing))}", remedy="set `playbooks:` in fleetd.yaml"
        )
    return books


def read_baselines(folder: Path) -> dict[str, Baseline]:
    """firmware/baselines/*.yaml by SKU. Raises Invalid with file:line."""
    found = (
        read_baseline(parse(p.read_text(encoding="utf-8"), p.name)) for p in sorted(folder.glob("baselines/*.yaml"))
    )
    return {baseline.sku: baseline for baseline in found}


def zipapp(name: str) -> Zipapp:
    """A host-side program as the SSH driver pushes it."""
    built = build.build(name)
    return Zipapp(name=name, data=built.data, digest=built.digest)


@asynccontextmanager
async def build_house(loaded: Loaded, clock: Clock | None = None) -> AsyncIterator[House]:
    """Everything but the API server, opened and migrated; closed in reverse order."""
    clock = clock or SystemClock()
    async with AsyncExitStack() as stack:
        lock = lock_state(loaded.state)
        stack.callback(os.close, lock)
        db = await open_database(loaded.database_url)
        stack.push_async_callback(db.close)
        await db.migrate()
        yield await _rooms(loaded, clock, db, stack)


async def _rooms(loaded: Loaded, clock: Clock, db: Database, stack: AsyncExitStack) -> House:
    config = loaded.config
    sealer = Sealer(sealing_key(loaded.state))
    drivers = Drivers()
    stack.push_async_callback(drivers.close)
    shells = SshShells()
    stack.push_async_callback(shells.close)
    credentials = Credentials(db, clock, sealer, drivers, loaded.logins)
    boots = Boots(db, clock, sealer, config.boot.url)
    brakes = BrakeDesk(db, clock)
    clock_brake = ClockBrake(db, clock)
    proofs = ProofDesk(db, clock, load_or_create_key(loaded.state / "site.key"), config.site)
    runs = RunDesk(db, clock, read_playbooks(loaded.path(config.playbooks)))
    hosts = HostDesk(db, clock, credentials.session, brakes, lambda host, who: runs.resume(host, who=who))
    leases = LeaseDesk(
        db,
        clock,
        runs=runs,
        new_run=new_run,
        hosts=hosts,
        brakes=brakes,
        mass=MassBrake(db, clock, brakes),
        clock_brake=clock_brake,
        wake=lambda run: runs.wake(run),
        grace_seconds=config.leases.grace,
    )
    wires = Wires(
        bmcs=drivers,
        shells=shells,
        report=zipapp("report"),
        host=zipapp("host"),
        boots=boots,
        credentials=credentials,
        proofs=proofs,
        baselines=read_baselines(loaded.path(config.firmware)),
        domain_patience=config.domain_patience,
        bmc_patience=config.bmc_patience,
    )

    async def tick(now: float) -> None:
        await clock_brake.tick()
        await leases.tick(now)

    engine = Engine(
        db=db,
        clock=clock,
        wires=wires,
        brakes=brakes,
        runs=runs,
        # On SQLite there is one daemon, by the lock on its state: whatever its name, the claims are its own.
        owner="ledger" if db.dialect == "sqlite" else config.name or socket.gethostname(),
        on_finished=leases.follow,
        on_tick=tick,
    )
    address, port = split_address(config.boot.listen)
    boot = BootListener(boots, address, port, config.boot.url)
    services = Services(
        db=db,
        clock=clock,
        inventory=InventoryDesk(db, clock),
        hosts=hosts,
        runs=runs,
        leases=leases,
        proofs=proofs,
        brakes=brakes,
    )
    return House(services=services, engine=engine, boot=boot, clock_brake=clock_brake, boot_url=config.boot.url)
