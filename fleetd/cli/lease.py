"""`fleetctl lease`: a tenant's hold on hosts for a term."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fleetd.cli.confirm import Consent, consent_options
from fleetd.cli.context import Hand, output_option, pass_hand, say
from fleetd.cli.exits import Done, Exit
from fleetd.cli.output import Column, age, emit, emit_one, left
from fleetd.cli.times import duration_option, moment_option
from fleetd.kit.errors import Invalid

COLUMNS: list[Column[Any]] = [
    Column("ID", lambda r: r.id),
    Column("TENANT", lambda r: r.tenant),
    Column("SKU", lambda r: r.sku),
    Column("HOSTS", lambda r: r.count),
    Column("STATE", lambda r: r.state),
    Column("BEGAN", lambda r: f"{age(r.starts)} ago", wide=True),
    Column("ENDS", lambda r: left(r.ends)),
    Column("SITE", lambda r: r.site, wide=True),
    Column("BY", lambda r: r.principal, wide=True),
    Column("NAMES", lambda r: " ".join(h.name for h in r.hosts), wide=True),
]
MAX_FILE = 256 * 1024


@click.group()
def lease() -> None:
    """Leases: a tenant's hold on hosts."""


def _read(path: str) -> str:
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(MAX_FILE + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid("the file cannot be read", why=str(error), where=path) from error
    if len(text) > MAX_FILE:
        raise Invalid(f"the file is larger than {MAX_FILE} bytes", where=path)
    return text


def _public(path: str) -> str:
    """A file of public keys; a private one stays where it is, even if the daemon would refuse it."""
    text = _read(path)
    if "PRIVATE KEY" in text:
        raise Invalid("this is a private key, and was not sent", where=path, remedy=f"give the public one: {path}.pub")
    return text


@lease.command()
@click.option("--tenant", required=True)
@click.option("--sku", required=True)
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="How many hosts.")
@click.option("--site", help="Only at this site.")
@click.option(
    "--placement", type=click.Choice(["any", "same-rack", "same-nvlink-domain"]), default="any", show_default=True
)
@moment_option("--ends", required=True, help="The end: `30d` from now, or 2026-12-24T00:00:00Z.")
@click.option("--image", help="Another image than the SKU's.")
@click.option("--ssh-key", "keys", multiple=True, metavar="FILE", help="A public key file; may be given again.")
@click.option("--user-data", metavar="FILE", help="cloud-init user data.")
@click.option("--dry-run", is_flag=True, help="Say which hosts it would be now, and lease none.")
@click.option("--wait", is_flag=True, help="Return when the hosts are handed over.")
@duration_option("--timeout", default="90m", show_default=True, help="With --wait: how long.")
@output_option
@pass_hand
def create(
    hand: Hand,
    /,
    keys: tuple[str, ...],
    user_data: str | None,
    ends: str,
    dry_run: bool,
    wait: bool,
    timeout: float,
    **asked: Any,
) -> None:
    """Lease hosts, all or none."""
    request = {k: v for k, v in asked.items() if v is not None} | {"ends_at": ends}
    if keys:
        request["ssh_keys"] = [
            line for path in keys for line in _public(path).splitlines() if line.strip() and line[0] != "#"
        ]
    if user_data is not None:
        request["user_data"] = _read(user_data)
    if dry_run:
        planned = hand.fleet.plan_lease(request)
        emit(hand, planned.raw, planned.value.hosts, [Column("NAME", lambda r: r.name)], lambda r: r.name)
        say(f"until {planned.value.ends}, with {planned.value.image}; dry run: nothing was leased")
        return
    made = hand.fleet.create_lease(request)
    if wait:
        made = _handed_over(hand, made.value.id, timeout)
    emit(hand, made.raw, [made.value], COLUMNS, lambda r: r.id)
    if made.value.state == "failed":
        say(f"error: the hand-over failed: {made.value.reason}")
        raise Done(Exit.VERDICT)
    if made.value.state == "delivering":
        say(f"handing over; look: fleetctl lease show {made.value.id}")


def _handed_over(hand: Hand, lease_id: str, timeout: float) -> Any:
    from fleetd.kit import pause

    end = pause.steady() + timeout
    try:
        while True:
            found = hand.fleet.lease(lease_id)
            if found.value.state != "delivering":
                return found
            if pause.steady() > end:
                say(f"error: {lease_id} is still handing over")
                raise Done(Exit.TIMEOUT)
            pause.sleep(1.0)
    except KeyboardInterrupt:
        say(f"\ndetached; the hand-over goes on. Look: fleetctl lease show {lease_id}")
        raise Done(Exit.INTERRUPTED) from None


@lease.command("list")
@click.option("--tenant", help="Only this tenant's.")
@click.option("--all", "ended", is_flag=True, help="Also those that ended.")
@output_option
@pass_hand
def list_leases(hand: Hand, tenant: str | None, ended: bool) -> None:
    """List live leases, newest first."""
    found = hand.fleet.leases(tenant, live=not ended)
    emit(hand, found.raw, found.items, COLUMNS, lambda r: r.id, empty="no leases")


@lease.command()
@click.argument("lease_id", metavar="LEASE")
@output_option
@pass_hand
def show(hand: Hand, lease_id: str) -> None:
    """Show a lease and its hosts."""
    found = hand.fleet.lease(lease_id)
    r = found.value
    pairs: list[tuple[str, object]] = [
        ("id", r.id),
        ("tenant", r.tenant),
        ("sku", r.sku),
        ("count", r.count),
        ("placement", r.placement),
        ("site", r.site),
        ("image", r.image),
        ("state", r.state),
        ("reason", r.reason),
        ("hosts", " ".join(h.name for h in r.hosts)),
        ("starts", r.starts),
        ("ends", f"{r.ends} ({left(r.ends)})"),
        ("activated", r.activated),
        ("released", r.released),
        ("ended", r.ended),
        ("run", r.run),
        ("by", r.principal),
    ]
    emit_one(hand, found.raw, pairs, r.id)


@lease.command()
@click.argument("lease_id", metavar="LEASE")
@moment_option("--ends", required=True, help="The new end: `30d` from now, or 2026-12-24T00:00:00Z.")
@output_option
@pass_hand
def extend(hand: Hand, lease_id: str, ends: str) -> None:
    """Move the end of a lease."""
    done = hand.fleet.extend(lease_id, ends)
    emit(hand, done.raw, [done.value], COLUMNS, lambda r: r.id)


@lease.command()
@click.argument("lease_id", metavar="LEASE")
@click.option("--keep-disks", is_flag=True, help="Power off now, wipe only after the grace period.")
@consent_options
@output_option
@pass_hand
def release(hand: Hand, lease_id: str, keep_disks: bool, consent: Consent) -> None:
    """End a lease: its hosts are powered off at once, wiped and proven again."""
    r = hand.fleet.lease(lease_id).value
    fate = (
        "powered off, wiped after the grace period" if keep_disks else "powered off and wiped: all data on it is lost"
    )
    consent.ask(f"release {r.id} of {r.tenant}", [f"{h.name}: {fate}" for h in r.hosts])
    done = hand.fleet.release_lease(lease_id, wipe_now=not keep_disks)
    emit(hand, done.raw, [done.value], COLUMNS, lambda r: r.id)
