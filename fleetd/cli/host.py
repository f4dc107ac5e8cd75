"""`fleetctl host`: look at hosts, ask why, and give the orders a person may give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fleetd.cli.confirm import Consent, consent_options
from fleetd.cli.context import Hand, output_option, pass_hand, say
from fleetd.cli.events import COLUMNS as EVENT_COLUMNS
from fleetd.cli.fanout import gather
from fleetd.cli.output import Column, age, emit, emit_one, left, text
from fleetd.cli.ranges import asked_stdin, each, expression, hosts_argument, optional_hosts, report_failures
from fleetd.cli.times import moment_option

if TYPE_CHECKING:
    from fleetd.model.resource import HostView

COLUMNS: list[Column[Any]] = [
    Column("NAME", lambda h: h.name),
    Column("RACK", lambda h: h.rack),
    Column("U", lambda h: h.position),
    Column("SKU", lambda h: h.sku),
    Column("STATE", lambda h: h.state),
    Column("FOR", lambda h: age(h.state_since)),
    Column("DEADLINE", lambda h: left(h.deadline)),
    Column("HEALTH", lambda h: h.health),
    Column("POWER", lambda h: h.power),
    Column("SERIAL", lambda h: h.spec.serial, wide=True),
    Column("BMC", lambda h: h.spec.bmc.address, wide=True),
    Column("SITE", lambda h: h.site, wide=True),
    Column("LEASE", lambda h: h.lease, wide=True),
    Column("RUN", lambda h: h.run, wide=True),
    Column("CERTIFICATE", lambda h: h.certificate and left(h.certificate.expires), wide=True),
    Column("LEASEABLE", lambda h: "yes" if h.leaseable else f"no: {h.reasons[0]}"),
]


@click.group()
def host() -> None:
    """Hosts: list, show, why, and orders."""


@host.command("list")
@optional_hosts
@output_option
@pass_hand
def list_hosts(hand: Hand, hosts: tuple[str, ...]) -> None:
    """List all hosts, or those of a host range.

    \b
    fleetctl host list lou-a01-[01-18]
    fleetctl host list state=quarantined,rack=lou-a01 -o wide
    """
    wanted = expression(hosts) if hosts else None
    gather(
        hand,
        lambda fleet: fleet.hosts(wanted),
        COLUMNS,
        lambda h: h.name,
        empty="no hosts; add some: fleetctl inventory apply DIR",
    )


@host.command()
@click.argument("ref", metavar="HOST")
@output_option
@pass_hand
def show(hand: Hand, ref: str) -> None:
    """Show one host, by name, id or serial."""
    found = hand.fleet.host(ref)
    h = found.value
    emit_one(hand, found.raw, _pairs(h), h.name)


def _pairs(h: HostView) -> list[tuple[str, object]]:
    waiting, keep = h.waiting_for, h.maintenance
    return [
        ("name", h.name),
        ("id", h.id),
        ("place", f"{h.site} / {h.rack} / U{h.position}"),
        ("sku", h.sku),
        ("serial", h.spec.serial),
        ("bmc", f"{h.spec.bmc.protocol} {h.spec.bmc.address}"),
        ("boot mac", h.spec.boot_mac),
        ("outlets", h.spec.outlets),
        ("nvlink domain", h.spec.nvlink_domain),
        ("labels", h.labels),
        ("state", h.state),
        ("for", age(h.state_since)),
        ("deadline", left(h.deadline)),
        ("waits for", waiting and f"{waiting.what} ({left(waiting.until)})\n{waiting.remedy}"),
        ("health", h.health),
        ("alerts", "\n".join(f"{a.id}: {a.message} — {a.remedy}" for a in h.alerts)),
        ("findings", "\n".join(f"{f.code}: {f.message} — {f.remedy}" for f in h.findings)),
        ("power", h.power),
        ("leaseable", "yes" if h.leaseable else "no: " + "\n".join(h.reasons)),
        ("certificate", h.certificate and f"{h.certificate.id} (expires {left(h.certificate.expires)})"),
        ("lease", h.lease),
        ("run", h.run),
        ("tenant data", h.tenant_data),
        (
            "maintenance",
            keep and f"{keep.owner}: {keep.reason}, until {keep.until}" + (" (pending)" if keep.pending else ""),
        ),
        ("version", h.version),
    ]


@host.command()
@click.argument("ref", metavar="HOST")
@output_option
@pass_hand
def why(hand: Hand, ref: str) -> None:
    """Why is this host where it is? What it waits for, since when, until when, and what to do."""
    found = hand.fleet.why(ref)
    said = found.value
    waiting, outcome, run = said.get("waiting_for"), said.get("outcome"), said.get("run")
    pairs: list[tuple[str, object]] = [
        ("host", said.get("name")),
        ("state", said.get("state")),
        ("means", said.get("means")),
        ("for", age(said.get("state_since"))),
        ("deadline", left(said.get("deadline"))),
        ("waits for", waiting and f"{waiting['what']} (since {age(waiting['since'])}, {left(waiting['until'])})"),
        ("do", waiting and waiting["remedy"]),
        ("said by", waiting and waiting["source"]),
        ("last", outcome and f"{outcome['kind']} in {outcome['step'] or 'its state'}: {outcome['text']}"),
        ("at", outcome and f"{outcome['source']}, {age(outcome['at'])} ago"),
        (
            "run",
            run
            and f"{run['id']} ({run['playbook']}), step {run['index'] + 1} of {run['steps']}: {run['step']}, try {run['attempt']}",
        ),
        (
            "findings",
            "\n".join(f"{f['code']}: {f['message']}\n  do: {f['remedy']}" for f in said.get("findings") or []),
        ),
        ("alerts", "\n".join(f"{a['id']}: {a['message']}\n  do: {a['remedy']}" for a in said.get("alerts") or [])),
        ("leaseable", "yes" if said.get("leaseable") else "no: " + "\n".join(said.get("reasons") or [])),
        ("next", said.get("next")),
    ]
    emit_one(hand, found.raw, pairs, str(said.get("name")))


@host.command()
@click.argument("ref", metavar="HOST")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many events.")
@click.option("--steps", is_flag=True, help="The journal of steps instead of events.")
@output_option
@pass_hand
def history(hand: Hand, ref: str, limit: int, steps: bool) -> None:
    """What happened to a host, newest first."""
    if steps:
        from fleetd.cli.run import STEP_COLUMNS

        journal = hand.fleet.host_steps(ref, limit)
        emit(hand, journal.raw, journal.items, STEP_COLUMNS, lambda s: s.intent, empty="nothing was done to it yet")
        return
    found = hand.fleet.history(ref, limit)
    emit(hand, found.raw, found.items, EVENT_COLUMNS, lambda e: str(e.seq), empty="nothing happened to it yet")


_VERBS = ("status", "on", "off", "soft", "cycle", "reset")


@host.command()
@click.argument("verb", type=click.Choice(_VERBS))
@hosts_argument
@consent_options
@output_option
@pass_hand
def power(hand: Hand, verb: str, hosts: tuple[str, ...], consent: Consent) -> None:
    """Read the power, or switch it. What is printed is what the BMC's read-back says.

    off is hard, soft asks the operating system, cycle is off, confirmed, then on; reset is warm.
    """
    chosen = hand.fleet.hosts(expression(hosts)).items
    if verb not in ("status", "on"):
        losses = [f"{h.name}: {_loss(h)}" for h in chosen]
        consent.ask(f"power {verb} {_count(chosen)}", losses, stdin_used=asked_stdin(hosts))
    elif consent.dry_run:
        consent.ask(f"power {verb} {_count(chosen)}", [h.name for h in chosen])
    results = each(hand, chosen, lambda fleet, h: fleet.power(h.id, "read" if verb == "status" else verb))
    done: list[Any] = [r for _, r in results if not isinstance(r, Exception)]
    columns: list[Column[Any]] = [Column("HOST", lambda d: d.value.host), Column("POWER", lambda d: d.value.power)]
    if done:
        emit(hand, {"items": [d.raw for d in done], "next": None}, done, columns, lambda d: d.value.host)
    report_failures(results)


def _loss(h: HostView) -> str:
    if h.lease is not None:
        return f"leased ({h.lease}): what the tenant runs on it is lost"
    if h.run is not None:
        return f"run {h.run} has it: its step may fail"
    return f"{h.state}, powered {h.power}"


def _count(hosts: list[HostView]) -> str:
    return hosts[0].name if len(hosts) == 1 else f"{len(hosts)} hosts"


@host.command()
@click.argument("device", type=click.Choice(["network", "disk", "cd", "bios-setup"]))
@hosts_argument
@output_option
@pass_hand
def boot(hand: Hand, device: str, hosts: tuple[str, ...]) -> None:
    """Set where the next boot comes from, once."""
    _ordered(hand, hosts, lambda fleet, h: fleet.boot(h.id, device))


@host.command()
@hosts_argument
@click.option("--off", is_flag=True, help="Switch the LED off.")
@output_option
@pass_hand
def identify(hand: Hand, hosts: tuple[str, ...], off: bool) -> None:
    """Switch the identify LED on, so that you find the host in the aisle."""
    _ordered(hand, hosts, lambda fleet, h: fleet.identify(h.id, not off))


def _ordered(hand: Hand, hosts: tuple[str, ...], order: Any) -> None:
    results = each(hand, hand.fleet.hosts(expression(hosts)).items, order)
    done: list[Any] = [r for _, r in results if not isinstance(r, Exception)]
    columns: list[Column[Any]] = [Column("HOST", lambda d: d.value.host), Column("DONE", lambda d: d.value.done)]
    if done:
        emit(hand, {"items": [d.raw for d in done], "next": None}, done, columns, lambda d: d.value.host)
    report_failures(results)


def _changed(hand: Hand, results: list[tuple[HostView, Any]]) -> None:
    done: list[Any] = [r for _, r in results if not isinstance(r, Exception)]
    if done:
        emit(hand, {"items": [d.raw for d in done], "next": None}, [d.value for d in done], COLUMNS, lambda h: h.name)
    report_failures(results)


@host.command()
@hosts_argument
@click.option("--reason", required=True, help="Why; it stands as the finding.")
@consent_options
@output_option
@pass_hand
def quarantine(hand: Hand, hosts: tuple[str, ...], reason: str, consent: Consent) -> None:
    """Take hosts out of inventory: their certificates are revoked."""
    chosen = hand.fleet.hosts(expression(hosts)).items
    consent.ask(
        f"quarantine {_count(chosen)}",
        [f"{h.name}: {h.state}, certificate revoked" for h in chosen],
        stdin_used=asked_stdin(hosts),
    )
    _changed(hand, each(hand, chosen, lambda fleet, h: fleet.quarantine(h.id, reason, h.version)))


@host.command()
@hosts_argument
@click.option("--reason", required=True, help="What you do to it.")
@moment_option("--until", required=True, help="Until when: `4h`, `2d` from now, or 2026-11-23T04:00:00Z.")
@consent_options
@output_option
@pass_hand
def maintenance(hand: Hand, hosts: tuple[str, ...], reason: str, until: str, consent: Consent) -> None:
    """Take hosts for yourself. A leased host is taken when its lease ends; afterwards a host is enrolled and proven anew."""
    chosen = hand.fleet.hosts(expression(hosts)).items
    losses = [f"{h.name}: " + ("when its lease ends" if h.lease else f"{h.state}, certificate revoked") for h in chosen]
    consent.ask(f"take {_count(chosen)} for maintenance until {until}", losses, stdin_used=asked_stdin(hosts))
    _changed(hand, each(hand, chosen, lambda fleet, h: fleet.maintenance(h.id, reason, until, h.version)))


@host.command()
@hosts_argument
@consent_options
@output_option
@pass_hand
def retire(hand: Hand, hosts: tuple[str, ...], consent: Consent) -> None:
    """Retire hosts for good. Their records are kept."""
    chosen = hand.fleet.hosts(expression(hosts)).items
    losses = [f"{h.name} ({h.spec.serial}): {h.state}, tenant data {h.tenant_data}" for h in chosen]
    consent.ask(f"retire {_count(chosen)}; there is no way back", losses, stdin_used=asked_stdin(hosts))
    _changed(hand, each(hand, chosen, lambda fleet, h: fleet.retire(h.id, h.version)))


@host.command()
@hosts_argument
@output_option
@pass_hand
def release(hand: Hand, hosts: tuple[str, ...]) -> None:
    """Let hosts go on from quarantine or maintenance: each is proven again by a run."""
    from fleetd.cli.run import COLUMNS as RUN_COLUMNS

    results = each(hand, hand.fleet.hosts(expression(hosts)).items, lambda fleet, h: fleet.release_host(h.id))
    done: list[Any] = [r for _, r in results if not isinstance(r, Exception)]
    if done:
        emit(hand, {"items": [d.raw for d in done], "next": None}, [d.value for d in done], RUN_COLUMNS, lambda r: r.id)
    report_failures(results)


@host.command()
@hosts_argument
@click.option("--detach", is_flag=True, help="Start it and leave.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@output_option
@pass_hand
def validate(hand: Hand, hosts: tuple[str, ...], detach: bool, dry_run: bool) -> None:
    """Run the acceptance suite on hosts (the playbook `validate`). Exits 9 when a host does not pass."""
    from fleetd.cli.run import launch

    launch(hand, "validate", expression(hosts), detach=detach, dry_run=dry_run)


@host.command()
@optional_hosts
@pass_hand
def expand(hand: Hand, hosts: tuple[str, ...]) -> None:
    """Print the names a host range means, one a line: look before you order."""
    for found in hand.fleet.hosts(expression(hosts or ("all",))).items:
        click.echo(text(found.name))
    if not hosts:
        say("no range was given: this is every host")
