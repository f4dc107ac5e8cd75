"""Following work: hosts folded by step on a terminal, one plain line a change elsewhere. Leaving never stops what runs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from fleetd.cli.context import Hand, say
from fleetd.cli.exits import Done, Exit
from fleetd.kit import pause

if TYPE_CHECKING:
    from fleetd.client.resources import Document
    from fleetd.model.resource import RunHostView, RunView

MAX_NAMES = 6


def attend_run(hand: Hand, run_id: str, timeout: float | None) -> Document[RunView]:
    """Show the run until it ends; returns it as it ended.

    Raises:
        Done: interrupted (130), or still running after `timeout` seconds (8).
    """
    from fleetd.client.watch import ticks

    fleet = hand.fleet
    began = pause.steady()
    try:
        with _display() as show:
            for _ in ticks(fleet, every=0.3, at_least=1.0, run=run_id):
                found = fleet.run(run_id)
                show(found.value, fleet.run_hosts(run_id).items)
                if found.value.state != "running":
                    break
                if timeout is not None and pause.steady() - began > timeout:
                    say(f"{run_id} still runs; follow it: fleetctl run watch {run_id}")
                    raise Done(Exit.RUNNING)
    except KeyboardInterrupt:
        say(f"\ndetached; the run goes on. Follow it again: fleetctl run watch {run_id}")
        raise Done(Exit.INTERRUPTED) from None
    counts = ", ".join(f"{v} {k}" for k, v in found.value.counts.items() if v)
    say(f"{run_id} {found.value.state}: {counts}" + (f" ({found.value.reason})" if found.value.reason else ""))
    return found


@contextmanager
def _display() -> Iterator[Any]:
    """A function (run, hosts) that shows. stderr, because stdout is data."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=4, transient=True) as live:
        yield lambda run, hosts: live.update(_picture(run, hosts))


class _Lines:
    """One line whenever a host comes to another step or state; what did not change is not said again."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    def __call__(self, run: RunView, hosts: list[RunHostView]) -> None:
        fresh: dict[str, list[str]] = {}
        for host in hosts:
            line = describe(host) + (how_far(host) if len(hosts) <= MAX_NAMES else "")
            if host.state != "pending" and self._told.get(host.host) != line:
                fresh.setdefault(line, []).append(host.name)
            self._told[host.host] = line
        for line, names in fresh.items():
            say(f"{fold(names)}: {line}")


def describe(host: RunHostView) -> str:
    """What to say of a host in a run."""
    if host.state == "active":
        return host.step + (f" (try {host.attempt})" if host.attempt > 1 else "")
    if host.finding is not None:
        return f"{host.state} in {host.step}: {host.finding.code}: {host.finding.message}"
    return host.state


def how_far(host: RunHostView) -> str:
    """`: 43 % (0.9 GiB of 2.1 GiB) written to drive S1`, where its step tells; a mere wait is no progress."""
    begins = f"{host.step}: "
    if host.state != "active" or not host.waiting_for.startswith(begins):
        return ""
    return f": {host.waiting_for.removeprefix(begins)}"


def fold(names: list[str]) -> str:
    """A few names, or the first and how many more."""
    shown = sorted(names)
    return (
        " ".join(shown)
        if len(shown) <= MAX_NAMES
        else f"{' '.join(shown[:MAX_NAMES])} and {len(shown) - MAX_NAMES} more"
    )


def _picture(run: RunView, hosts: list[RunHostView]) -> Any:
    from rich.table import Table
    from rich.text import Text

    at_work = Counter(host.step for host in hosts if host.state == "active")
    named: dict[str, list[str]] = {}
    far: dict[str, str] = {}  # of one host in the step, where it tells
    for host in hosts:
        if host.state == "active":
            named.setdefault(host.step, []).append(host.name)
            if told := how_far(host):
                far.setdefault(host.step, f"{host.name}{told}")
    table = Table.grid(padding=(0, 2))
    passed, total = run.counts.get("passed", 0), sum(run.counts.values())
    table.add_row(
        Text(run.playbook, style="bold"), f"{passed}/{total} passed", f"wave {run.wave + 1} of {run.waves}", run.id
    )
    for step in run.steps:
        if at_work[step.name]:
            shown = far.get(step.name) or fold(named[step.name])
            table.add_row(f"  {step.name}", str(at_work[step.name]), Text(shown), "")
    for state in ("pending", "failed", "held"):
        if run.counts.get(state):
            names = [host.name for host in hosts if host.state == state]
            table.add_row(
                Text(f"  {state}", style="red" if state == "failed" else ""), str(len(names)), Text(fold(names)), ""
            )
    return table


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that is told how many bytes are done. A bar on a terminal, nothing elsewhere; on stderr."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(
        *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as shown:
        task = shown.add_task(title, total=total)
        yield lambda done: shown.update(task, completed=done)


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """The time that passes while the daemon works and tells nothing. On a terminal, on stderr; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        shown.add_task(title, total=None)
        yield


def countdown(seconds: float | None) -> str:
    """For waits: `, 12 m left`."""
    from fleetd.kit.clock import human_duration

    return "" if seconds is None else f", {human_duration(seconds)} left"


def tell(line: str) -> None:
    """One line of progress; only for people."""
    if sys.stderr.isatty():
        click.echo(line, err=True)
