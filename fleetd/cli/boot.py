"""`fleetctl boot`: why a host does not come up."""

from __future__ import annotations

from typing import Any

import click

from fleetd.cli.context import Hand, output_option, pass_hand, say
from fleetd.cli.exits import Done, Exit
from fleetd.cli.output import Column, age, emit_one, left, table, text

COLUMNS: list[Column[Any]] = [
    Column("WHEN", lambda e: e.at),
    Column("STAGE", lambda e: e.stage),
    Column("MAC", lambda e: e.mac),
    Column("FROM", lambda e: e.source),
    Column("ANSWER", lambda e: e.answer),
    Column("DETAIL", lambda e: e.detail),
]


@click.group()
def boot() -> None:
    """Boots: doctor."""


@boot.command()
@click.argument("host")
@output_option
@pass_hand
def doctor(hand: Hand, host: str) -> None:
    """Explain a host that does not come up: what was seen of it since its boot was armed, and one diagnosis.

    Exits 0 when it came up, is on its way, or nothing is expected of it; 1 when something is wrong.
    """
    document = hand.fleet.boot_doctor(host)
    found, armed = document.value, document.value.boot
    if hand.format in ("table", "wide"):
        if found.trail:
            rows = [[text(column.show(entry)) for column in COLUMNS] for entry in found.trail]
            click.echo(table([column.title for column in COLUMNS], rows))
        else:
            say(f"nothing was seen of {text(found.name)} since {found.remembered_since}")
    pairs: list[tuple[str, object]] = [
        ("host", f"{found.name}, boot MAC {found.mac}"),
        (
            "boot",
            armed
            and f"{armed.environment}, armed {age(armed.armed)} ago"
            # Once it was met, the end of the waiting means nothing any more.
            + ("" if armed.met else f", until {armed.expires} ({left(armed.expires)})"),
        ),
        ("met", armed and armed.met),
        ("stage", found.stage),
        ("diagnosis", found.what),
    ]
    emit_one(hand, document.raw, pairs, found.name)
    if not found.good:
        say(f"error: {text(found.what)}")
        say(f"try: {text(found.remedy)}")
        raise Done(Exit.FAILED)
