"""`fleetctl rack`: racks, and bringing one up."""

from __future__ import annotations

from typing import Any

import click

from fleetd.cli.context import Hand, output_option, pass_hand
from fleetd.cli.output import Column, emit, emit_one

COLUMNS: list[Column[Any]] = [
    Column("NAME", lambda r: r.name),
    Column("SITE", lambda r: r.site),
    Column("HALL", lambda r: r.hall, wide=True),
    Column("HOSTS", lambda r: r.hosts),
    Column("LEASEABLE", lambda r: r.leaseable),
    Column("POWER", lambda r: r.power_budget),
    Column("DOMAIN", lambda r: r.nvlink_domain, wide=True),
    Column("STATES", lambda r: r.by_state),
]


@click.group()
def rack() -> None:
    """Racks: list, show, bring up."""


@rack.command("list")
@click.option("--site", help="Only of this site.")
@output_option
@pass_hand
def list_racks(hand: Hand, site: str | None) -> None:
    """List racks and where their hosts are in their life."""
    from fleetd.model.resource import RackView

    found = hand.fleet.all("/v1/racks", RackView, site=site)
    emit(
        hand,
        found.raw,
        found.items,
        COLUMNS,
        lambda r: r.name,
        empty="no racks; add some: fleetctl inventory apply DIR",
    )


@rack.command()
@click.argument("name", metavar="RACK")
@output_option
@pass_hand
def show(hand: Hand, name: str) -> None:
    """Show a rack and its hosts, from the top down."""
    from fleetd.cli.host import COLUMNS as HOST_COLUMNS
    from fleetd.client.http import segment
    from fleetd.model.resource import RackView

    found = hand.fleet.get(f"/v1/racks/{segment(name)}", RackView)
    r = found.value
    pairs: list[tuple[str, object]] = [
        ("name", r.name),
        ("site", r.site),
        ("hall", r.hall),
        ("power budget", r.power_budget),
        ("nvlink domain", r.nvlink_domain),
        ("hosts", str(r.hosts)),
        ("leaseable", str(r.leaseable)),
        ("states", r.by_state),
    ]
    emit_one(hand, found.raw, pairs, r.name)
    if hand.format in ("table", "wide") and r.hosts:
        members = hand.fleet.hosts(f"rack={name}")
        click.echo()
        top_down = sorted(members.items, key=lambda h: -h.position)
        emit(hand, members.raw, top_down, HOST_COLUMNS, lambda h: h.name)


@rack.command()
@click.argument("name", metavar="RACK")
@click.option("--detach", is_flag=True, help="Start it and leave.")
@click.option("--dry-run", is_flag=True, help="Say what each step would do to each host, and do nothing.")
@output_option
@pass_hand
def bringup(hand: Hand, name: str, detach: bool, dry_run: bool) -> None:
    """Bring up a rack: enroll, wipe, image, prove and publish its hosts (the playbook rack-bringup).

    Only hosts that are not in inventory yet take part. Exits 9 when a host does not pass.
    """
    from fleetd.cli.run import launch
    from fleetd.client.http import segment
    from fleetd.model.resource import RackView

    hand.fleet.get(f"/v1/racks/{segment(name)}", RackView)  # an unknown rack is "no such rack", not "no such hosts"
    launch(hand, "rack-bringup", f"rack={name}", detach=detach, dry_run=dry_run)
