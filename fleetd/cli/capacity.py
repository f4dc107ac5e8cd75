"""`fleetctl capacity`: how much is free, where, and why the rest is not."""

from __future__ import annotations

from typing import Any

import click

from fleetd.cli.context import Hand, output_option, pass_hand
from fleetd.cli.fanout import gather
from fleetd.cli.output import Column, left

COLUMNS: list[Column[Any]] = [
    Column("SKU", lambda c: c.sku),
    Column("SITE", lambda c: c.site),
    Column("RACK", lambda c: c.rack, wide=True),
    Column("TOTAL", lambda c: c.total),
    Column("LEASEABLE", lambda c: c.leaseable),
    Column("NEXT FREE", lambda c: left(c.free_at)),
    Column("STATES", lambda c: c.by_state, wide=True),
    Column("NOT LEASEABLE BECAUSE", lambda c: ", ".join(f"{why} ({count})" for why, count in c.reasons.items())),
]


@click.command()
@click.option("--sku", help="Only this SKU.")
@click.option("--site", help="Only this site.")
@click.option("--by-rack", is_flag=True, help="One row a rack.")
@output_option
@pass_hand
def capacity(hand: Hand, sku: str | None, site: str | None, by_rack: bool) -> None:
    """How much of each SKU there is, how much can be leased now, and why the rest cannot."""
    columns = [c._replace(wide=False) if c.title == "RACK" and by_rack else c for c in COLUMNS]
    gather(
        hand,
        lambda fleet: fleet.capacity(sku, site, by_rack),
        columns,
        lambda c: f"{c.sku}@{c.rack or c.site}",
        empty="no hosts",
    )
