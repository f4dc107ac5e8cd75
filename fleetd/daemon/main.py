"""The `fleetd` command: the daemon, its simulator, and what an operator does to it without an API."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fleetd import __version__
from fleetd.kit.errors import FleetError, Invalid, NotFound

if TYPE_CHECKING:
    from fleetd.daemon.bootconfig import LoadedBoot

DEFAULT_CONFIG = "/etc/fleetd/fleetd.yaml"
_config = click.option(
    "--config",
    "-c",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The configuration file.",
)


class _Group(click.Group):
    """Says every FleetError the same way: what, why, and what to try; exits with its code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FleetError as error:
            place = f"{error.where}: " if error.where else ""
            click.echo(f"error: {place}{error.what} [{error.code}]", err=True)
            if error.why:
                click.echo(f"why: {error.why}", err=True)
            click.echo(f"try: {error.remedy}", err=True)
            sys.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fleetd")
def main() -> None:
    """Turns racked GPU servers into rentable compute, and keeps proving that they are."""


@main.command()
@_config
def serve(config: Path) -> None:
    """Run the daemon."""
    from fleetd.daemon.serve import run

    run(config)


@main.command()
@click.option(
    "--config",
    "-c",
    type=click.Path(dir_okay=False, path_type=Path),
    default="/etc/fleetd/boot.yaml",
    show_default=True,
    help="The configuration file.",
)
@click.option("--check", is_flag=True, help="Read the file, look for what it names, and start nothing.")
def boot(config: Path, check: bool) -> None:
    """Run the boot service: DHCP and TFTP (dnsmasq), boot scripts, kernel, initrd and images by HTTP."""
    from fleetd.daemon.boot import run
    from fleetd.daemon.bootconfig import absent, load

    if not check:
        return run(config)
    loaded = load(config)
    if missing := absent(loaded):
        raise NotFound(
            f"{config} names what is not there",
            why="; ".join(missing),
            remedy="make deploy-image builds the files; docs/how-to/boot-service.md says what goes where",
        )
    click.echo(f"{config}: good; {loaded.config.url}, {_dhcp(loaded)}")
    return None


def _dhcp(loaded: LoadedBoot) -> str:
    """Whose DHCP it is, in a few words."""
    settings = loaded.config.dnsmasq
    if settings is None:
        return "the site's own DHCP"
    relayed = f" and {len(settings.relayed)} networks behind relays" if settings.relayed else ""
    return f"dnsmasq ({settings.mode}) on {settings.interface}{relayed}"


@main.command("check-config")
@_config
def check_config(config: Path) -> None:
    """Read configuration, playbooks and firmware baselines as `serve` would, and start nothing."""
    from fleetd.daemon.config import load
    from fleetd.daemon.wiring import read_baselines, read_playbooks, read_trust

    loaded = load(config)
    read_trust(loaded)
    books = read_playbooks(loaded.path(loaded.config.playbooks))
    baselines = read_baselines(loaded.path(loaded.config.firmware))
    click.echo(
        f"{config}: good; {len(books)} playbooks, {len(baselines)} firmware baselines, {len(loaded.logins)} factory logins"
    )


@main.command()
@_config
def migrate(config: Path) -> None:
    """Bring the ledger to this version's schema (serve does it too)."""
    from fleetd.daemon.config import load
    from fleetd.daemon.wiring import lock_state
    from fleetd.store.database import open_database

    async def work() -> None:
        loaded = load(config)
        lock = lock_state(loaded.state)
        try:
            db = await open_database(loaded.database_url)
            try:
                await db.migrate()
            finally:
                await db.close()
        finally:
            os.close(lock)

    asyncio.run(work())
    click.echo("the ledger is at this version's schema")


@main.command()
@click.option(
    "-f",
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The site file.",
)
def simulate(path: Path) -> None:
    """Run a site that does not exist, on real wires on loopback."""
    import uvloop

    from fleetd.sim.site import simulate as run

    sys.exit(uvloop.run(run(path)))


@main.command()
@click.option(
    "--seed", type=int, default=lambda: int(os.environ.get("SEED", "0")), help="Which hosts are broken, and how."
)
@click.option("--size", type=click.Choice(["demo", "small"]), default="demo", show_default=True)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Where to work; a temporary folder by default.",
)
@click.option(
    "--keep", is_flag=True, default=lambda: bool(os.environ.get("KEEP")), help="Leave daemon and simulator running."
)
def demo(seed: int, size: str, folder: Path | None, keep: bool) -> None:
    """Two simulated sites from racked to leased and back, judged by the simulator's own records."""
    from fleetd.daemon.demo import run

    sys.exit(run(seed=seed, size=size, folder=folder, keep=keep))


@main.command("sample-image")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def sample_image(file: Path) -> None:
    """Write a disk image of some 30 KiB (raw.gz) to FILE: enough for simulated hosts, and bootable nowhere."""
    from fleetd.sim.image import tiny_image

    try:
        file.write_bytes(tiny_image(file.name.split(".")[0])[0])
    except OSError as error:
        raise Invalid(f"{file} cannot be written", why=error.strerror or str(error)) from error


@main.command()
def openapi() -> None:
    """Print the API's OpenAPI 3.1 document."""
    from fleetd.api.app import openapi_document

    click.echo(json.dumps(openapi_document(), indent=2, sort_keys=True))


@main.command()
@click.option(
    "--service", type=click.Choice(["daemon", "boot"]), default="daemon", show_default=True, help="Whose unit to print."
)
def unit(service: str) -> None:
    """Print a systemd unit for this installation."""
    from importlib.resources import files

    program = shutil.which("fleetd") or str(Path(sys.argv[0]).resolve())
    name = "fleetd.service.in" if service == "daemon" else "fleetd-boot.service.in"
    click.echo(
        files("fleetd.daemon").joinpath(name).read_text(encoding="utf-8").replace("@EXEC@", program),
        nl=False,
    )


@main.group()
def token() -> None:
    """API tokens for callers beyond the unix socket."""


@token.command("create")
@_config
@click.option("--role", type=click.Choice(["viewer", "technician", "operator", "admin", "tenant"]), required=True)
@click.option("--name", default="", help="Stands in the audit log.")
@click.option("--tenant", default=None, help="For role tenant: whose leases it may see and make.")
@click.option("--for", "term", default="365d", show_default=True, help="How long it is valid.")
def token_create(config: Path, role: str, name: str, tenant: str | None, term: str) -> None:
    """Make a token and print it once; only its hash is stored."""
    from fleetd.api.auth import new_token, token_hash
    from fleetd.daemon.config import load
    from fleetd.kit.clock import SystemClock
    from fleetd.kit.ids import new_id
    from fleetd.model.access import Role, Token
    from fleetd.model.units import seconds
    from fleetd.store import access
    from fleetd.store.database import open_database

    if (role == "tenant") != (tenant is not None):
        raise Invalid("--tenant belongs to --role tenant, and to no other")
    text = new_token()
    now = SystemClock().wall()
    made = Token(
        id=new_id("token", now),
        name=name or f"{role}-token",
        role=Role(role),
        hash=token_hash(text),
        created=now,
        expires=now + seconds(term),
        tenant=tenant,
    )

    async def work() -> None:
        loaded = load(config)
        loaded.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        db = await open_database(loaded.database_url)
        try:
            await db.migrate()
            await db.commit([access.insert_token(made)])
        finally:
            await db.close()

    asyncio.run(work())
    click.echo(text)


if __name__ == "__main__":
    main()
