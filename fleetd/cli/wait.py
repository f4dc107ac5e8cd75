"""`fleetctl wait`: scripts wait here instead of sleeping and looking."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fleetd.cli.context import Hand, output_option, pass_hand, say
from fleetd.cli.exits import Done, Exit
from fleetd.cli.output import emit
from fleetd.cli.progress import countdown, fold, tell
from fleetd.cli.ranges import expression, hosts_argument
from fleetd.cli.times import duration_option
from fleetd.kit.errors import Invalid

if TYPE_CHECKING:
    from fleetd.model.resource import HostView


def _stuck(host: HostView, wanted: str) -> bool:
    """It will not get there by itself: a person has to act first.

    One that a run has was released: it stays quarantined until the run has begun the step that failed.
    """
    return host.run is None and host.state in ("quarantined", "maintenance", "retired") and host.state != wanted


def condition(text: str) -> str:
    """`state=available`, or `leaseable`. Returns the state, or "leaseable". Raises Invalid."""
    from fleetd.model.host import State

    if text == "leaseable":
        return text
    key, _, value = text.partition("=")
    if key != "state" or value not in list(State):
        raise Invalid(
            f"`{text}` is nothing to wait for",
            where="--for",
            remedy=f"write leaseable, or state= one of {', '.join(State)}",
        )
    return value


@click.command()
@hosts_argument
@click.option("--for", "wanted", required=True, metavar="CONDITION", help="state=STATE, or leaseable.")
@duration_option("--timeout", default="2h", show_default=True, help="How long at most.")
@click.option(
    "--fail-fast", is_flag=True, help="Give up (exit 9) as soon as one is out of the way: quarantined, for instance."
)
@output_option
@pass_hand
def wait(hand: Hand, hosts: tuple[str, ...], wanted: str, timeout: float, fail_fast: bool) -> None:
    """Wait until every host of a range is so. Exits 0, 7 when the time is up, 9 with --fail-fast.

    The hosts are chosen once, at the start: `state=preparing` means those that are preparing now.
    """
    from fleetd.cli.host import COLUMNS
    from fleetd.client.watch import ticks
    from fleetd.kit import pause

    goal = condition(wanted)
    fleet = hand.fleet
    chosen = " ".join(h.id for h in fleet.hosts(expression(hosts)).items)
    end = pause.steady() + timeout
    try:
        for _ in ticks(fleet, every=0.5, at_least=min(5.0, max(0.2, timeout / 4))):
            found = fleet.hosts(chosen)
            missing = [h for h in found.items if not (h.leaseable if goal == "leaseable" else h.state == goal)]
            if not missing:
                emit(hand, found.raw, found.items, COLUMNS, lambda h: h.name)
                return
            stuck = [h for h in missing if _stuck(h, goal)]
            if stuck and fail_fast:
                _name(stuck)
                raise Done(Exit.VERDICT)
            if pause.steady() >= end:
                say(f"error: {len(missing)} of {len(found.items)} hosts are not {wanted}")
                _name(missing)
                raise Done(Exit.TIMEOUT)
            tell(f"waiting for {fold([h.name for h in missing])}{countdown(end - pause.steady())}")
    except KeyboardInterrupt:
        say("\nno longer waiting; the hosts go on")
        raise Done(Exit.INTERRUPTED) from None


def _name(hosts: list[HostView]) -> None:
    for host in hosts[:20]:
        why = f"waits for {host.waiting_for.what}" if host.waiting_for else "; ".join(host.reasons)
        say(f"  {host.name}: {host.state}: {why}")
    if hosts:
        say(f"try: fleetctl host why {hosts[0].name}")
