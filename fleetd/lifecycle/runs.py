"""Runs: who is in, in which wave, from which step; starting, cancelling, trying again. The engine executes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec

from fleetd.kit.clock import Clock
from fleetd.kit.errors import Conflict, NotFound
from fleetd.kit.ids import new_id
from fleetd.lifecycle import strategy
from fleetd.lifecycle.playbook import decode_params, first_step, first_step_for
from fleetd.lifecycle.steps import registry
from fleetd.model.access import Principal
from fleetd.model.event import Event
from fleetd.model.host import Host, State
from fleetd.model.hostrange import compile_range
from fleetd.model.playbook import Playbook
from fleetd.model.run import Run, RunHost, RunHostState, RunState, StepRecord
from fleetd.store import events
from fleetd.store import hosts as host_rows
from fleetd.store import runs as rows
from fleetd.store.database import Database, Op


class PlannedHost(msgspec.Struct, frozen=True, kw_only=True):
    """One host of a dry run: what each step would do."""

    host: str
    name: str
    wave: int
    steps: tuple[str, ...]


class SkippedHost(msgspec.Struct, frozen=True, kw_only=True):
    host: str
    name: str
    why: str


class RunPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What `run start --dry-run` answers."""

    playbook: str
    hosts: tuple[PlannedHost, ...]
    skipped: tuple[SkippedHost, ...]


def new_run(
    playbook: Playbook,
    hosts: Sequence[Host],
    *,
    now: float,
    who: Principal,
    selector: str,
    lease: str | None = None,
    first: Mapping[str, int] | None = None,
) -> tuple[Run, list[Op]]:
    """A run and the ops that store it with its hosts. `first` maps a host id to the step it starts at (default 0)."""
    waves = strategy.waves(hosts, playbook.strategy)
    run = Run(
        id=new_id("run", now),
        playbook=playbook.name,
        steps=playbook.steps,
        strategy=playbook.strategy,
        works_in=playbook.state,
        selector=selector,
        principal=who.name,
        lease=lease,
        created=now,
        waves=len(waves),
    )
    ops = [rows.insert(run)]
    for number, wave in enumerate(waves):
        for host in wave:
            step = (first or {}).get(host.id, 0)
            ops.append(rows.insert_host(RunHost(run=run.id, host=host.id, wave=number, step=step)))
    data = {"playbook": playbook.name, "hosts": len(hosts), "waves": len(waves)}
    ops.append(events.append(Event(kind="run.started", at=now, run=run.id, lease=lease, principal=who.name, data=data)))
    return run, ops


class RunDesk:
    """What API and lease desk ask of runs. `wake` tells the engine that a run changed."""

    def __init__(self, db: Database, clock: Clock, playbooks: Mapping[str, Playbook]) -> None:
        self._db, self._clock = db, clock
        self._playbooks = dict(playbooks)
        self.wake: Callable[[str], None] = lambda run: None

    async def playbooks(self) -> list[Playbook]:
        return [self._playbooks[name] for name in sorted(self._playbooks)]

    def playbook(self, name: str) -> Playbook:
        """Raises NotFound."""
        if name not in self._playbooks:
            raise NotFound(
                f"there is no playbook `{name}`",
                why=f"known: {', '.join(sorted(self._playbooks))}",
                remedy="fleetctl playbook list",
            )
        return self._playbooks[name]

    async def start(self, playbook: str, selector: str, *, who: Principal, dry_run: bool = False) -> Run | RunPlan:
        """Start it over the hosts of a range; hosts in a state it cannot start from are left out and named.

        Raises:
            NotFound: the range names no host, or there is no such playbook.
            Conflict: none of the named hosts can start.
        """
        book = self.playbook(playbook)
        test = compile_range(selector)
        named = [host for host in await host_rows.every(self._db) if test(host.fields())]
        if not named:
            raise NotFound(f"host range {selector!r} names no host", remedy="fleetctl host list")
        first: dict[str, int] = {}
        taken, skipped = [], []
        for host in named:
            step = self._entry(book, host)
            if isinstance(step, str):
                skipped.append(SkippedHost(host=host.id, name=host.name, why=step))
            else:
                first[host.id] = step
                taken.append(host)
        if dry_run:
            return self._plan(book, taken, tuple(skipped), first)
        if not taken:
            reasons = Counter(s.why for s in skipped)
            raise Conflict(
                f"no host of {selector!r} can start {playbook}",
                why="; ".join(f"{count}: {why}" for why, count in reasons.most_common()),
                remedy=f"fleetctl host list '{selector}'",
            )
        run, ops = new_run(book, taken, now=self._clock.wall(), who=who, selector=selector, first=first)
        await self._db.commit(ops)
        self.wake(run.id)
        return run

    @staticmethod
    def _entry(book: Playbook, host: Host) -> int | str:
        """The step this host starts at, or why it cannot."""
        if host.run is not None:
            return f"run {host.run} has it"
        if any("prevents-state-change" in a.classifications for a in host.status.alerts):
            return "an alert prevents state changes"
        if host.state is State.QUARANTINED and host.resume_state is not None:
            step = first_step_for(book, host.resume_state)
            return f"quarantined in {host.resume_state}, where this playbook has no step" if step is None else step
        if host.state in book.starts:
            return first_step(book, host.state)
        return f"it is {host.state}; the playbook starts from {', '.join(book.starts)}"

    @staticmethod
    def _plan(
        book: Playbook, hosts: Sequence[Host], skipped: tuple[SkippedHost, ...], first: Mapping[str, int]
    ) -> RunPlan:
        planned = []
        for number, wave in enumerate(strategy.waves(hosts, book.strategy)):
            for host in wave:
                texts = []
                for snapshot in book.steps[first[host.id] :]:
                    step = registry.get(snapshot.name, snapshot.version)
                    texts.append(f"{snapshot.name}: {step.plan(host, decode_params(step, snapshot.params))}")
                planned.append(PlannedHost(host=host.id, name=host.name, wave=number, steps=tuple(texts)))
        return RunPlan(playbook=book.name, hosts=tuple(planned), skipped=skipped)

    async def get(self, run_id: str) -> Run:
        return await rows.get(self._db, run_id)

    async def every(self, limit: int = 100, state: RunState | None = None) -> list[Run]:
        return await rows.every(self._db, state=state, limit=limit)

    async def hosts(self, run_id: str) -> list[RunHost]:
        await rows.get(self._db, run_id)
        return await rows.hosts(self._db, run_id)

    async def steps(self, run_id: str, host_id: str) -> list[StepRecord]:
        return await rows.steps(self._db, run_id, host_id)

    async def cancel(self, run_id: str, *, who: Principal) -> Run:
        """Hosts not started are held; a host at work stops at its next safe point. Cancelling twice is fine."""
        run = await rows.get(self._db, run_id)
        if run.state is not RunState.RUNNING:
            return run
        now = self._clock.wall()
        cancelled = msgspec.structs.replace(
            run, state=RunState.CANCELLED, finished=now, reason=f"cancelled by {who.name}"
        )
        event = Event(kind="run.cancelled", at=now, run=run.id, lease=run.lease, principal=who.name)
        await self._db.commit([rows.save(cancelled), events.append(event)])
        self.wake(run.id)
        return cancelled

    async def retry(self, run_id: str, *, who: Principal) -> Run:
        """A new run of the same playbook over the hosts that failed or were held.

        Raises:
            Conflict: the run still works, or nothing is left to try.
        """
        run = await rows.get(self._db, run_id)
        if run.state is RunState.RUNNING:
            raise Conflict(f"run {run_id} still works", remedy=f"fleetctl run watch {run_id}")
        left = [
            p.host for p in await rows.hosts(self._db, run_id) if p.state in (RunHostState.FAILED, RunHostState.HELD)
        ]
        if not left:
            raise Conflict(f"run {run_id} has no host left to try again")
        started = await self.start(run.playbook, " ".join(left), who=who)
        assert isinstance(started, Run)
        return started

    async def resume(self, host: Host, *, who: Principal) -> Run:
        """Go on with one host from quarantine or maintenance, by the playbook that knows the state it stopped in."""
        for name in ("rack-bringup", "reclaim", "validate"):
            book = self._playbooks.get(name)
            if book is not None and not isinstance(self._entry(book, host), str):
                run = await self.start(name, host.id, who=who)
                assert isinstance(run, Run)
                return run
        raise Conflict(f"host {host.name} cannot go on from {host.state}", remedy=f"fleetctl host why {host.name}")
