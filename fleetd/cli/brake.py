"""`fleetctl freeze`, `thaw`, `brakes`, `lift`: stop everything destructive, and let it go on."""

from __future__ import annotations

from typing import Any

import click

from fleetd.cli.confirm import Consent, consent_options
from fleetd.cli.context import Hand, output_option, pass_hand, say
from fleetd.cli.output import Column, emit

COLUMNS: list[Column[Any]] = [
    Column("BRAKE", lambda b: b[0]),
    Column("SCOPE", lambda b: b[1]),
    Column("REASON", lambda b: b[2]),
]


@click.command()
@click.argument("scope", metavar="[all|site:NAME|rack:NAME]")
@click.option("--reason", required=True, help="Why.")
@output_option
@pass_hand
def freeze(hand: Hand, scope: str, reason: str) -> None:
    """Stop every destructive step in a rack, a site or everywhere. Never asks: a brake must work at once."""
    done = hand.fleet.freeze(scope, reason)
    emit(hand, done.raw, [("freeze", done.value.scope, done.value.reason)], COLUMNS, lambda b: b[1])


@click.command()
@click.argument("scope", metavar="[all|site:NAME|rack:NAME]")
@consent_options
@pass_hand
def thaw(hand: Hand, scope: str, consent: Consent) -> None:
    """Take a freeze off: destructive steps go on at once."""
    standing = {f.scope: f.reason for f in hand.fleet.freezes().items}
    consent.ask(f"thaw {scope}", [standing.get(scope, "it is not frozen")])
    hand.fleet.thaw(scope)
    say(f"{scope} goes on")


@click.command()
@output_option
@pass_hand
def brakes(hand: Hand) -> None:
    """The brakes that are on: freezes by persons, holds by fleetd itself."""
    freezes, holds = hand.fleet.freezes(), hand.fleet.holds()
    rows = [("freeze", f.scope, f.reason) for f in freezes.items] + [("hold", h.name, h.reason) for h in holds.items]
    raw = {"freezes": freezes.raw["items"], "holds": holds.raw["items"]}
    emit(hand, raw, rows, COLUMNS, lambda b: b[1], empty="no brake is on")


@click.command()
@click.argument("hold")
@consent_options
@pass_hand
def lift(hand: Hand, hold: str, consent: Consent) -> None:
    """Lift a hold that fleetd put on itself, after you looked why; it is not put on again for an hour."""
    standing = {h.name: h.reason for h in hand.fleet.holds().items}
    consent.ask(f"lift the hold {hold}", [standing.get(hold, "there is no such hold")])
    hand.fleet.lift(hold)
    say(f"the hold {hold} is lifted")
