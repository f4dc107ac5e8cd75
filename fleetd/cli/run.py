"""`fleetctl run`: start, follow, cancel and retry runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fleetd.cli.confirm import Consent, consent_options
from fleetd.cli.context import Hand, output_option, pass_hand, say
from fleetd.cli.exits import Done, Exit
from fleetd.cli.output import Column, age, emit, emit_one
from fleetd.cli.ranges import expression, hosts_argument

if TYPE_CHECKING:
    from fleetd.model.resource import RunPlanHost

COLUMNS: list[Column[Any]] = [
    Column("ID", lambda r: r.id),
    Column("PLAYBOOK", lambda r: r.playbook),
    Column("STATE", lambda r: r.state),
    Column("PASSED", lambda r: f"{r.counts.get('passed', 0)}/{sum(r.counts.values())}"),
    Column("FAILED", lambda r: r.counts.get("failed", 0) or None),
    Column("HELD", lambda r: r.counts.get("held", 0) or None),
    Column("WAVE", lambda r: f"{r.wave + 1}/{r.waves}", wide=True),
    Column("BEGAN", lambda r: f"{age(r.created)} ago"),
    Column("BY", lambda r: r.principal, wide=True),
    Column("HOSTS", lambda r: r.selector),
]
HOST_COLUMNS: list[Column[Any]] = [
    Column("HOST", lambda h: h.name),
    Column("WAVE", lambda h: h.wave + 1),
    Column("STATE", lambda h: h.state),
    Column("STEP", lambda h: h.step if h.state in ("active", "failed") else None),
    Column("TRY", lambda h: h.attempt if h.attempt > 1 else None),
    Column("FINDING", lambda h: h.finding and f"{h.finding.code}: {h.finding.message} — {h.finding.remedy}"),
]
STEP_COLUMNS: list[Column[Any]] = [
    Column("RUN", lambda s: s.run, wide=True),
    Column("STEP", lambda s: s.name),
    Column("TRY", lambda s: s.attempt),
    Column("BEGAN", lambda s: s.began),
    Column("TOOK", lambda s: _took(s.began, s.ended)),
    Column("OUTCOME", lambda s: s.outcome or "at work"),
    Column("INTENT", lambda s: s.intent, wide=True),
    Column("SOURCE", lambda s: s.source, wide=True),
    Column("SAID", lambda s: s.text),
]


def _took(began: str, ended: str | None) -> str | None:
    from fleetd.kit.clock import human_duration, parse_rfc3339

    return None if ended is None else human_duration(parse_rfc3339(ended) - parse_rfc3339(began))


@click.group()
def run() -> None:
    """Runs: a playbook over hosts."""


@run.command()
@click.argument("playbook")
@hosts_argument
@click.option("--detach", is_flag=True, help="Start it and leave.")
@click.option("--dry-run", is_flag=True, help="Say what each step would do to each host, and do nothing.")
@output_option
@pass_hand
def start(hand: Hand, playbook: str, hosts: tuple[str, ...], detach: bool, dry_run: bool) -> None:
    """Start a playbook over hosts and follow it. Ctrl-C leaves; the run goes on.

    Exits 0 when every host passed, 9 when one did not.
    """
    launch(hand, playbook, expression(hosts), detach=detach, dry_run=dry_run)


def launch(hand: Hand, playbook: str, hosts: str, *, detach: bool, dry_run: bool) -> None:
    """Start and follow, start and leave, or only say what would be done; shared by all commands that begin a run."""
    if dry_run:
        show_plan(hand, playbook, hosts)
        return
    begun = hand.fleet.start(playbook, hosts)
    if detach:
        emit(hand, begun.raw, [begun.value], COLUMNS, lambda r: r.id)
        say(f"follow it: fleetctl run watch {begun.value.id}")
        return
    attend(hand, begun.value.id)


def show_plan(hand: Hand, playbook: str, hosts: str) -> None:
    """A dry run, hosts with the same steps folded into one block; with -o wide only those with the very same words."""
    plan = hand.fleet.dry_run(playbook, hosts)
    if hand.format in ("json", "yaml", "name"):
        emit(hand, plan.raw, plan.value.hosts, [], lambda h: h.name)
        return
    blocks: dict[tuple[str, ...], list[RunPlanHost]] = {}
    for planned in plan.value.hosts:
        alike = planned.steps if hand.format == "wide" else [step.partition(":")[0] for step in planned.steps]
        blocks.setdefault(tuple(alike), []).append(planned)
    for members in blocks.values():
        names = [member.name for member in members]
        click.echo(f"{len(names)} hosts: {' '.join(names)}" if len(names) > 1 else names[0])
        for texts in zip(*(member.steps for member in members), strict=True):
            others = sum(text != texts[0] for text in texts)
            click.echo(f"  {texts[0]}" + (f" ({names[0]}; {others} others alike)" if others else ""))
    for skipped in plan.value.skipped:
        click.echo(f"{skipped.name}: left out: {skipped.why}")
    say("dry run: nothing was changed")


def attend(hand: Hand, run_id: str, timeout: float | None = None) -> None:
    """Follow to the end, print the outcome, and leave with its code."""
    from fleetd.cli.progress import attend_run

    found = attend_run(hand, run_id, timeout)
    hosts = hand.fleet.run_hosts(run_id)
    if hand.format in ("json", "yaml"):
        emit(hand, found.raw, [], [], str)
    else:
        bad = [h for h in hosts.items if h.state != "passed"]
        if bad:
            emit(hand, hosts.raw, bad, HOST_COLUMNS, lambda h: h.name)
    if found.value.state != "passed":
        say(f"try: fleetctl run retry {run_id}   (after the remedies above)")
        raise Done(Exit.VERDICT)


@run.command("list")
@click.option("--state", type=click.Choice(["running", "passed", "failed", "stopped", "cancelled"]), help="Only these.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many, newest first.")
@output_option
@pass_hand
def list_runs(hand: Hand, state: str | None, limit: int) -> None:
    """List runs, newest first."""
    found = hand.fleet.runs(state, limit)
    emit(hand, found.raw, found.items, COLUMNS, lambda r: r.id, empty="no runs")


@run.command()
@click.argument("run_id", metavar="RUN")
@click.option("--host", help="The journal of this host in the run.")
@output_option
@pass_hand
def show(hand: Hand, run_id: str, host: str | None) -> None:
    """Show a run and its hosts, or with --host each step of one."""
    if host is not None:
        steps = hand.fleet.run_steps(run_id, host)
        emit(hand, steps.raw, steps.items, STEP_COLUMNS, lambda s: s.intent, empty="it has not begun")
        return
    found = hand.fleet.run(run_id)
    r = found.value
    pairs: list[tuple[str, object]] = [
        ("id", r.id),
        ("playbook", r.playbook),
        ("hosts", r.selector),
        ("state", r.state),
        ("reason", r.reason),
        ("wave", f"{r.wave + 1} of {r.waves}"),
        ("counts", {k: v for k, v in r.counts.items() if v}),
        ("by", r.principal),
        ("lease", r.lease),
        ("began", r.created),
        ("finished", r.finished),
        ("steps", " > ".join(s.name for s in r.steps)),
    ]
    emit_one(hand, found.raw, pairs, r.id)
    if hand.format in ("table", "wide"):
        hosts = hand.fleet.run_hosts(run_id)
        click.echo()
        emit(hand, hosts.raw, hosts.items, HOST_COLUMNS, lambda h: h.name)


@run.command()
@click.argument("run_id", metavar="RUN")
@click.option("--timeout", type=float, metavar="SECONDS", help="Leave after this time (exit 8); the run goes on.")
@output_option
@pass_hand
def watch(hand: Hand, run_id: str, timeout: float | None) -> None:
    """Follow a run to its end. Ctrl-C leaves; the run goes on."""
    attend(hand, run_id, timeout)


@run.command()
@click.argument("run_id", metavar="RUN")
@consent_options
@output_option
@pass_hand
def cancel(hand: Hand, run_id: str, consent: Consent) -> None:
    """Start no further host of a run; those at work stop at the next safe place."""
    r = hand.fleet.run(run_id).value
    counts = ", ".join(f"{v} {k}" for k, v in r.counts.items() if v)
    consent.ask(f"cancel {r.playbook} over {r.selector}", [f"{counts}; hosts in the middle end quarantined"])
    done = hand.fleet.cancel(run_id)
    emit(hand, done.raw, [done.value], COLUMNS, lambda r: r.id)


@run.command()
@click.argument("run_id", metavar="RUN")
@click.option("--detach", is_flag=True, help="Start it and leave.")
@output_option
@pass_hand
def retry(hand: Hand, run_id: str, detach: bool) -> None:
    """A new run over the hosts that failed or were held."""
    begun = hand.fleet.retry(run_id)
    if detach:
        emit(hand, begun.raw, [begun.value], COLUMNS, lambda r: r.id)
        return
    attend(hand, begun.value.id)
