"""`fleetctl events`: what happened, and what happens now."""

from __future__ import annotations

import json
from typing import Any

import click

from fleetd.cli.context import Hand, output_option, pass_hand, say
from fleetd.cli.exits import Done, Exit
from fleetd.cli.output import Column, emit, paint, text

COLUMNS: list[Column[Any]] = [
    Column("SEQ", lambda e: e.seq),
    Column("AT", lambda e: e.at),
    Column("KIND", lambda e: e.kind),
    Column("HOST", lambda e: e.data.get("name") or e.host),
    Column("BY", lambda e: e.principal, wide=True),
    Column("RUN", lambda e: e.run, wide=True),
    Column("LEASE", lambda e: e.lease, wide=True),
    Column("WHAT", lambda e: summary(e.data)),
]


def summary(data: dict[str, Any]) -> str:
    """The data of an event in one line."""
    return " ".join(f"{k}={v}" for k, v in data.items() if k != "name" and v not in ("", None, {}, []))


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens; survives a restart of the daemon.")
@click.option("--after", type=click.IntRange(min=0), metavar="SEQ", help="Only later than this.")
@click.option("--kinds", help="Only these kinds, separated by commas: host.state,run.finished.")
@click.option("--host", help="Only of this host.")
@click.option("--run", help="Only of this run.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="How many, without -f.")
@output_option
@pass_hand
def events(hand: Hand, /, follow: bool, after: int | None, limit: int, **wanted: Any) -> None:
    """List events, oldest first, or follow them. With -f and -o json each line is one event."""
    if not follow:
        if after is None:
            after = max(0, int(hand.fleet.health().value.database.get("last_event", 0)) - limit)
        found = hand.fleet.events(after, limit, **wanted)
        emit(hand, found.raw, found.items, COLUMNS, lambda e: str(e.seq), empty="nothing happened")
        return
    import msgspec

    from fleetd.client.watch import follow as stream

    try:
        for event in stream(hand.fleet, after=after, **wanted):
            if hand.format == "json":
                click.echo(json.dumps(msgspec.to_builtins(event), ensure_ascii=False))
            else:
                name = text(event.data.get("name") or event.host or event.lease or event.run)
                click.echo(f"{event.seq:>7}  {event.at}  {paint(event.kind)}  {name}  {text(summary(event.data))}")
    except KeyboardInterrupt:
        say("")
        raise Done(Exit.INTERRUPTED) from None
