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
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fleetd.api.server import bind_unix
from fleetd.daemon.config import Loaded, split_address
from fleetd.drivers.bmc.registry import Drivers
from fleetd.drivers.boot.desk_wire import DeskServer
from fleetd.drivers.boot.files import ISO, Files, prepare_iso
from fleetd.drivers.boot.listener import BootListener
from fleetd.drivers.image.files import ImageFiles
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
from fleetd.lifecycle.images import ImageDesk
from fleetd.lifecycle.leases import LeaseDesk
from fleetd.lifecycle.plan import InventoryDesk
from fleetd.lifecycle.runs import RunDesk, new_run
from fleetd.lifecycle.services import Services
from fleetd.lifecycle.steps.base import Wires
from fleetd.model import image, proof
from fleetd.model.firmware import Baseline, read_baseline
from fleetd.model.playbook import Playbook
from fleetd.probe import build
from fleetd.store.database import Database, open_database
from fleetd.store.secrets import Sealer


class House(msgspec.Struct, frozen=True, kw_only=True):
    """The running rooms."""

    services: Services
    engine: Engine
    boot: BootListener | None  # None: `fleetd boot` listens, and asks through `desk`
    desk: DeskServer | None
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


def read_trust(loaded: Loaded) -> dict[str, Ed25519PublicKey]:
    """The keys whose image manifests are believed, by id. Raises Invalid naming the file."""
    found: dict[str, Ed25519PublicKey] = {}
    for name in loaded.config.images.trust:
        path = loaded.path(name)
        try:
            pem = path.read_bytes()
        except OSError as error:
            raise Invalid(
                "a file of trusted image keys cannot be read",
                why=error.strerror or str(error),
                where=str(path),
                remedy="correct images.trust in fleetd.yaml",
            ) from error
        found |= {image.key_id(key): key for key in proof.load_public_keys(pem, str(path))}
    return found


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
    boots = Boots(db, clock, sealer, config.boot.url, config.images.mirrors)
    brakes = BrakeDesk(db, clock)
    clock_brake = ClockBrake(db, clock)
    site_key = load_or_create_key(loaded.state / "site.key")
    proofs = ProofDesk(db, clock, site_key, config.site)
    images = ImageDesk(
        db,
        clock,
        ImageFiles(loaded.image_folder),
        trusted=read_trust(loaded),
        signer=site_key,
        allow_unsigned=config.images.allow_unsigned,
    )
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
        images=images.names,
    )
    wires = Wires(
        bmcs=drivers,
        shells=shells,
        report=zipapp("report"),
        host=zipapp("host"),
        boots=boots,
        credentials=credentials,
        images=images,
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
    services = Services(
        db=db,
        clock=clock,
        inventory=InventoryDesk(db, clock),
        hosts=hosts,
        runs=runs,
        leases=leases,
        proofs=proofs,
        brakes=brakes,
        images=images,
        boots=boots,
    )
    return House(
        services=services,
        engine=engine,
        boot=_boot_listener(loaded, boots),
        desk=_desk_server(loaded, boots),
        clock_brake=clock_brake,
        boot_url=config.boot.url,
    )


def _boot_listener(loaded: Loaded, boots: Boots) -> BootListener | None:
    """The daemon's own, for small sites and the demo."""
    config = loaded.config.boot
    if not config.listen:
        return None
    address, port = split_address(config.listen)
    files = Files(None)
    if config.files:
        folder = loaded.path(config.files)
        files = Files(folder, prepare_iso(folder / ISO, loaded.state, config.url.rstrip("/")))
    return BootListener(boots, address, port, config.url, files=files, images=loaded.image_folder)


def _desk_server(loaded: Loaded, boots: Boots) -> DeskServer | None:
    """What `fleetd boot` asks. Raises Conflict, NotFound, Invalid when the socket cannot be had."""
    config = loaded.config.boot
    if not config.desk:
        return None
    path = loaded.path(config.desk)
    path.parent.mkdir(parents=True, exist_ok=True)
    return DeskServer(boots, bind_unix(path, group=config.desk_group or None), config.desk_group)
