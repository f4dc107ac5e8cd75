"""The engine: one sequential worker per host in a run, one dispatcher per run, one tick for what only time brings.

Level-triggered: a wake-up says only "look again"; what to do stands in the ledger. So a restart is nothing special: every
active run and host is woken once, and goes on from its journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from fleetd.kit.clock import Clock
from fleetd.kit.errors import Conflict, FleetError, StaleClaim, Temporary
from fleetd.kit.logs import get
from fleetd.kit.tasks import Workers
from fleetd.lifecycle import drive, strategy, transitions
from fleetd.lifecycle.brakes import BrakeDesk
from fleetd.lifecycle.outcome import here
from fleetd.lifecycle.runs import RunDesk
from fleetd.lifecycle.steps.base import Wires
from fleetd.model.boot import Claim
from fleetd.model.check import Finding
from fleetd.model.event import Event
from fleetd.model.host import Host, LastOutcome, State
from fleetd.model.run import Run, RunHost, RunHostState, RunState
from fleetd.store import claims, events
from fleetd.store import hosts as host_rows
from fleetd.store import runs as run_rows
from fleetd.store.database import Database

log = get("engine")
CLAIM_TTL = 60.0
TICK = 1.0
LOOK_AGAIN = 15.0


class Engine:
    """Owns the workers. `owner` names this daemon across restarts: it takes its own claims back at once, with a new token.

    Args:
        on_finished: called after a host left a run (run, place): the lease desk follows hand-overs and reclaims by it.
        on_tick: called about once a second with the wall time: expiries, reminders.
    """

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        wires: Wires,
        brakes: BrakeDesk,
        runs: RunDesk,
        owner: str,
        on_finished: Callable[[Run, RunHost], Awaitable[None]],
        on_tick: Callable[[float], Awaitable[None]],
    ) -> None:
        self.db, self.clock, self.wires, self.brakes = db, clock, wires, brakes
        self.parking = False
        self.beat = clock.steady()  # of the last tick that got through the ledger: feeds the watchdog
        self._owner, self._on_finished, self._on_tick = owner, on_finished, on_tick
        self._claims: dict[str, Claim] = {}
        self._bells: dict[str, asyncio.Event] = {}
        self._looked = 0.0
        self._stop = asyncio.Event()
        self._hosts: Workers[str] = Workers(self._work, self._host_error, width=4096)
        self._runs: Workers[str] = Workers(self._dispatch, self._run_error, width=64)
        runs.wake = self.wake_run

    @property
    def working(self) -> int:
        """Hosts that have a live worker."""
        return self._hosts.busy

    async def run(self, ready: Callable[[], None]) -> None:
        """Work until `park` was called. `ready` is called when every active run was woken."""
        async with self._hosts, self._runs:
            for run in await run_rows.active(self.db):
                self.wake_run(run.id)
            for place in await run_rows.active_hosts(self.db):
                if place.state is RunHostState.ACTIVE:
                    self._hosts.wake(place.host)
            ready()
            while not self._stop.is_set():
                await self._tick()
                try:
                    async with asyncio.timeout(TICK):
                        await self._stop.wait()
                except TimeoutError:
                    continue
            self.parking = True
            for bell in self._bells.values():
                bell.set()
            await self._runs.drain(5.0)
            await self._hosts.drain(20.0)

    def park(self) -> None:
        """Stop starting steps; let those at work reach a safe point."""
        self._stop.set()

    def wake_run(self, run: str) -> None:
        self._runs.wake(run)

    def wake_host(self, host: str) -> None:
        self._hosts.wake(host)
        if (bell := self._bells.get(host)) is not None:
            bell.set()

    async def pause(self, host: str, seconds: float) -> None:
        """Sleep that `wake_host` or parking ends early."""
        bell = self._bells.setdefault(host, asyncio.Event())
        if self.parking:
            return
        bell.clear()
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await bell.wait()
        except TimeoutError:
            return

    def extended(self, claim: Claim) -> None:
        self._claims[claim.host] = claim

    # --- a host --------------------------------------------------------------------------------------------------------

    async def _work(self, host_id: str) -> None:
        place = await run_rows.active_of(self.db, host_id)
        if place is None or place.state is not RunHostState.ACTIVE or self.parking:
            return
        claim = await claims.take(self.db, host_id, self._owner, now=self.clock.wall(), ttl=CLAIM_TTL)
        if claim is None:
            return  # another daemon has it; its expiry is looked at by the tick
        self._claims[host_id] = claim
        run = await run_rows.get(self.db, place.run)
        try:
            work = await drive.load(self.db, self, run, place, claim)
            await work.go()
            place = work.place
        except StaleClaim as error:
            log.warning("claim.lost", host=host_id, reason=str(error))
            return
        finally:
            del self._claims[host_id]
            self._bells.pop(host_id, None)
        await self.db.commit([claims.drop(claim)])
        if place.state is not RunHostState.ACTIVE:
            self.wake_run(run.id)  # first: whatever becomes of the follower, the run must not wait for this host
            try:
                await self._on_finished(run, place)
            except (Conflict, Temporary) as error:
                log.info("follow.later", host=host_id, run=run.id, reason=str(error))  # the next tick looks again

    def _host_error(self, host: str, error: Exception) -> None:
        log.error("host.worker", host=host, error=str(error), exc_info=error)

    def _run_error(self, run: str, error: Exception) -> None:
        log.error("run.dispatch", run=run, error=str(error), exc_info=error)

    # --- a run ---------------------------------------------------------------------------------------------------------

    async def _dispatch(self, run_id: str) -> None:
        """Bring the run as far as it can go now: stop it, start hosts, open the next wave, finish it."""
        run = await run_rows.get(self.db, run_id)
        places = await run_rows.hosts(self.db, run_id)
        if run.state is not RunState.RUNNING:
            await self._hold(run, places)
            for place in places:
                if place.state is RunHostState.ACTIVE:
                    self.wake_host(place.host)
            return
        if strategy.spent(run, places):
            failed = sum(p.state is RunHostState.FAILED for p in places)
            await self._stop_run(
                run, places, f"{failed} of {len(places)} hosts failed; the budget is {run.strategy.max_failures}"
            )
            return
        while strategy.wave_done(run, places):
            if run.wave + 1 >= run.waves:
                await self._finish(run, places)
                return
            run = await self._save(msgspec.structs.replace(run, wave=run.wave + 1), "run.wave", wave=run.wave + 1)
        await self._start_hosts(run, places)

    async def _start_hosts(self, run: Run, places: list[RunHost]) -> None:
        rack_of = await host_rows.racks_of(self.db, [p.host for p in places])
        now = self.clock.wall()
        for place in strategy.startable(run, places, rack_of):
            active = msgspec.structs.replace(place, state=RunHostState.ACTIVE, started=now)
            event = Event(
                kind="run.host", at=now, host=place.host, run=run.id, lease=run.lease, data={"state": "active"}
            )
            await self.db.commit([run_rows.save_host(active), events.append(event)])
            self._hosts.wake(place.host)

    async def _stop_run(self, run: Run, places: list[RunHost], reason: str) -> None:
        """No further host starts; those at work finish what they do."""
        await self._hold(run, places)
        if any(p.state is RunHostState.ACTIVE for p in places):
            if run.reason != reason:
                await self._save(msgspec.structs.replace(run, reason=reason), "run.budget", reason=reason)
            return
        stopped = msgspec.structs.replace(run, state=RunState.STOPPED, finished=self.clock.wall(), reason=reason)
        await self._save(stopped, "run.finished", state=stopped.state, reason=reason)

    async def _hold(self, run: Run, places: list[RunHost]) -> None:
        now = self.clock.wall()
        ops = [
            run_rows.save_host(msgspec.structs.replace(place, state=RunHostState.HELD, finished=now))
            for place in places
            if place.state is RunHostState.PENDING
        ]
        if ops:
            await self.db.commit(ops)

    async def _finish(self, run: Run, places: list[RunHost]) -> None:
        passed = all(p.state is RunHostState.PASSED for p in places)
        done = msgspec.structs.replace(
            run, state=RunState.PASSED if passed else RunState.FAILED, finished=self.clock.wall()
        )
        counts = {str(s): sum(p.state is s for p in places) for s in (RunHostState.PASSED, RunHostState.FAILED)}
        await self._save(done, "run.finished", state=done.state, **counts)

    async def _save(self, run: Run, kind: str, **data: object) -> Run:
        event = Event(kind=kind, at=self.clock.wall(), run=run.id, lease=run.lease, principal="", data=dict(data))
        await self.db.commit([run_rows.save(run), events.append(event)])
        return msgspec.structs.replace(run, version=run.version + 1)

    # --- what only time brings -----------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        now = self.clock.wall()
        try:
            if self._claims:
                due = [c for c in self._claims.values() if c.expires - now < CLAIM_TTL * 2 / 3]
                for claim in due:
                    await self._renew(claim, now)
            for host in await host_rows.overdue(self.db, now):
                if host.run is None:
                    await self._expel(host, now)
            if now - self._looked >= LOOK_AGAIN or now < self._looked:
                self._looked = now
                await self._look_again()
            await self._on_tick(now)
        except FleetError as error:
            log.warning("tick", error=str(error))
            return
        except Exception as error:
            log.error("tick.bug", error=str(error), exc_info=error)
            return
        self.beat = self.clock.steady()

    async def _look_again(self) -> None:
        """Wake whatever the ledger says is at work: a worker that failed, or found another's claim, is not lost."""
        for place in await run_rows.active_hosts(self.db):
            if place.state is RunHostState.ACTIVE:
                self._hosts.wake(place.host)
        for run in await run_rows.active(self.db):
            self.wake_run(run.id)

    async def _renew(self, claim: Claim, now: float) -> None:
        if self._claims.get(claim.host) is not claim:
            return
        try:
            await self.db.commit([claims.renew(claim, now=now, ttl=CLAIM_TTL)])
        except (StaleClaim, Conflict) as error:
            log.warning("claim.renew", host=claim.host, error=str(error))
            return
        if self._claims.get(claim.host) is claim:  # else it was given back, or made to last longer, meanwhile
            self._claims[claim.host] = msgspec.structs.replace(claim, expires=now + CLAIM_TTL)

    async def _expel(self, host: Host, now: float) -> None:
        """A host whose state outlived its deadline with no run to move it: every deadline has an exit."""
        target = transitions.TABLE[host.state].exit_on_deadline
        if target is None:
            return
        finding = Finding(
            code="FLT-1003",
            message=f"{host.state} did not end by its deadline, and no run has the host",
            remedy=f"fleetctl host release {host.name}: it goes on where it stopped",
            at=now,
        )
        status = msgspec.structs.replace(
            host.status,
            waiting_for=None,
            findings=(finding,),
            outcome=LastOutcome(kind="fail", step="", text=finding.message, at=now, source=here(0)),
        )
        moved = msgspec.structs.replace(
            host,
            status=status,
            state=target,
            state_since=now,
            deadline=transitions.deadline_of(target, now),
            resume_state=host.state if target is State.QUARANTINED else None,
        )
        event = Event(
            kind="host.state", at=now, site=host.spec.site, host=host.id, data={"name": host.name, "state": target}
        )
        try:
            await self.db.commit([host_rows.save(moved), events.append(event)])
        except Conflict:
            log.info("deadline.raced", host=host.name)  # somebody moved it just now: look again next tick
