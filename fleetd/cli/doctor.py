"""`fleetctl doctor`: is the daemon well, and can this hand reach it?"""

from __future__ import annotations

from typing import Any

import click

from fleetd.cli.context import Hand, output_option, pass_hand
from fleetd.cli.exits import Done, Exit
from fleetd.cli.output import emit_one, sized, text

MAX_SKEW = 5.0


@click.command()
@output_option
@pass_hand
def doctor(hand: Hand) -> None:
    """How the daemon is: database, engine, clock, brakes. Exits 1 when something is wrong."""
    from fleetd import __version__
    from fleetd.kit import pause
    from fleetd.kit.clock import parse_rfc3339

    asked = pause.wall()
    found = hand.fleet.health()
    h = found.value
    skew = parse_rfc3339(h.time) - (asked + pause.wall()) / 2
    problems = list(h.problems)
    if abs(skew) > MAX_SKEW:
        problems.append(f"the daemon's clock and this one differ by {abs(skew):.0f} s")
    if h.version != __version__:
        problems.append(f"fleetctl is {__version__}, fleetd is {h.version}")
    age = h.engine.get("heartbeat_age")
    pairs: list[tuple[str, object]] = [
        ("fleetd", f"{h.version} at {hand.endpoints()[0]}"),
        ("you", f"{h.who} ({h.role})"),
        (
            "database",
            f"{h.database.get('dialect')}, {'answers' if h.database.get('ok') else 'does not answer'}, event {h.database.get('last_event', '-')}",
        ),
        ("engine", "not started" if age is None else f"last sign of life {age:.0f} s ago"),
        ("clock", f"{h.time}, expiries {h.clock.get('expiries', 'on')}"),
        ("hosts", ", ".join(f"{count} {state}" for state, count in h.hosts.items()) or "none"),
        ("images", _images(h.images)),
        ("past deadline", str(h.past_deadline)),
        ("runs at work", str(h.runs_active)),
        ("watchers", str(h.watchers)),
        ("freezes", "\n".join(f"{k}: {v}" for k, v in h.freezes.items())),
        ("verdict", "all is well" if not problems else "\n".join(text(p) for p in problems)),
    ]
    emit_one(hand, found.raw, pairs, h.status)
    if problems:
        raise Done(Exit.FAILED)


def _images(said: dict[str, Any]) -> str:
    """`3`, and below it the files that no image names: who makes room must know of them."""
    if not said.get("unnamed"):
        return str(said.get("kept", ""))
    names = [text(str(name)) for name in said.get("unnamed_names", [])]
    more = said["unnamed"] - len(names)
    shown = ", ".join(names) + (f" and {more} more" if more > 0 else "")
    return f"{said['kept']}\nin their directory, named by no image: {said['unnamed']}, {sized(said['unnamed_bytes'])}: {shown}"
