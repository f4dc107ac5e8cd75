"""Takes one host through one run: journal the intent, act, read back, journal the result, move the state. Nobody else writes state.

After a crash an open intent is verified before anything is done again; a destructive step never acts twice on one intent.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from fleetd.drivers.bmc.capabilities import Bmc
from fleetd.kit.clock import Clock
from fleetd.kit.errors import Conflict, FleetError, StaleClaim, Temporary
from fleetd.kit.ids import new_id
from fleetd.kit.logs import get
from fleetd.kit.tasks import beside
from fleetd.lifecycle import progress, transitions
from fleetd.lifecycle.brakes import BrakeDesk
from fleetd.lifecycle.destruction import permit
from fleetd.lifecycle.hosts import proven_again
from fleetd.lifecycle.outcome import Advance, Fail, Outcome, Retry, Rewind, Wait, here, of_bug, of_error, too_late
from fleetd.lifecycle.playbook import decode_params, entry_state
from fleetd.lifecycle.steps import registry
from fleetd.lifecycle.steps.base import Step, StepContext, Wires
from fleetd.model.boot import Claim
from fleetd.model.check import Finding
from fleetd.model.event import Event
from fleetd.model.host import Host, LastOutcome, State, WaitingFor
from fleetd.model.lease import Lease
from fleetd.model.run import Run, RunHost, RunHostState, RunState, StepRecord
from fleetd.model.sku import Sku
from fleetd.store import certificates as certificate_rows
from fleetd.store import events
from fleetd.store import hosts as host_rows
from fleetd.store import inventory as inventory_rows
from fleetd.store import leases as lease_rows
from fleetd.store import runs as run_rows
from fleetd.store.database import Database, Op

log = get("drive")
MAX_REWINDS = 3
UNDO_SECONDS = 240.0  # a step that failed takes back what it can in this time; the finding does not wait longer


class Surroundings(Protocol):
    """What a drive needs of the engine."""

    db: Database
    clock: Clock
    wires: Wires
    brakes: BrakeDesk
    parking: bool

    async def pause(self, host: str, seconds: float) -> None:
        """Sleep that a wake-up or parking ends early."""

    def extended(self, claim: Claim) -> None:
        """The claim now lasts until `claim.expires`; it is not renewed before that comes near."""


class Drive:
    """One host in one run, until it passes, fails, or the daemon parks."""

    def __init__(self, engine: Surroundings, run: Run, place: RunHost, host: Host, claim: Claim, sku: Sku) -> None:
        self.engine, self.run, self.place, self.host, self.claim, self.sku = engine, run, place, host, claim, sku
        self._db, self._clock = engine.db, engine.clock
        self._bmc: Bmc | None = None
        self._writing = asyncio.Lock()  # a step and the line about its progress write the same row
        self._told = ""  # newest line of progress
        self._limit: asyncio.Timeout | None = None  # of the step at work

    async def go(self) -> None:
        """Raises StaleClaim when another owner took over; whatever this one wanted to write is void then."""
        open_record = await run_rows.open_step(self._db, self.run.id, self.host.id)
        try:
            while self.place.state is RunHostState.ACTIVE and not self.engine.parking:
                if open_record is None and await self._cancelled():
                    break
                await self._step(open_record)
                open_record = None
        finally:
            await self._drop_bmc()

    # --- one step ------------------------------------------------------------------------------------------------------

    async def _step(self, record: StepRecord | None) -> None:
        snapshot = self.run.steps[self.place.step]
        step = registry.get(snapshot.name, snapshot.version)
        params = decode_params(step, snapshot.params)
        lease = await lease_rows.get(self._db, self.run.lease) if self.run.lease else None
        resumed = record is not None
        if record is None:
            late = self.host.deadline is not None and self._clock.wall() >= self.host.deadline
            if step.destructive and not late and await self._braked():
                return  # looked at again from the top: the run may have been cancelled meanwhile
            record = await self._begin(step)
        ctx = self._context(step, params, record, lease)
        outcome = await self._attempt(step, ctx, resumed)
        while isinstance(outcome, Wait):
            if self._clock.wall() >= outcome.until or self.engine.parking:
                break
            await self._say_waiting(outcome.what, outcome.remedy, outcome.until, outcome.source)
            await self.engine.pause(self.host.id, outcome.every)
            outcome = await self._attempt(step, ctx, resumed=False)
        if isinstance(outcome, Wait):
            if self.engine.parking:
                return  # the intent stays open; the next daemon goes on
            finding = Finding(code="FLT-1003", message=f"waited too long for {outcome.what}", remedy=outcome.remedy)
            outcome = Fail(finding=finding, source=outcome.source)
        await self._settle(step, ctx, record, outcome, resumed)

    def _context(self, step: Step, params: Any, record: StepRecord, lease: Lease | None) -> StepContext:
        return StepContext(
            host=self.host,
            run=self.run,
            sku=self.sku,
            lease=lease,
            params=params,
            intent=record.intent,
            index=record.index,
            data=dict(self.place.data),
            db=self._db,
            clock=self._clock,
            wires=self.engine.wires,
            open_bmc=self._open_bmc,
            say_waiting=self._say_waiting,
            guard=self._guard,
            persist=self._persist,
            allow=functools.partial(self._allow, record.began),
            progress=self._progress,
        )

    async def _attempt(self, step: Step, ctx: StepContext, resumed: bool) -> Outcome:
        """`_try`, and beside it what it says of its progress, stored now and then."""
        self._told = ""
        async with beside(self._report(step), name=f"progress:{self.host.name}"):
            return await self._try(step, ctx, resumed)

    async def _report(self, step: Step) -> None:
        """The newest line of progress, for `host why` and who follows the run; a line that cannot be written is dropped."""
        said, since = "", self._clock.wall()
        await self._clock.sleep(progress.FIRST)
        while True:
            if self._told not in ("", said):
                said = self._told
                until = self.host.deadline or since + step.seconds
                remedy = f"fleetctl host why {self.host.name}, if it stands still"
                waiting = WaitingFor(what=said, since=since, until=until, remedy=remedy, source=here(0))
                event = self._event("run.progress", step=step.name, text=said)
                try:
                    await self._write(functools.partial(_waits, waiting=waiting), [event])
                except FleetError as error:
                    log.info("progress.dropped", host=self.host.name, reason=str(error))
            await self._clock.sleep(progress.EVERY)

    async def _try(self, step: Step, ctx: StepContext, resumed: bool) -> Outcome:
        """`verify` then `do`, in the time the step and the host's state leave; every exception becomes an outcome."""
        seconds, since = step.seconds, self._clock.wall()
        if self.host.deadline is not None:
            seconds = min(seconds, self.host.deadline - self._clock.wall())
        try:
            async with asyncio.timeout(max(0.0, seconds)) as self._limit:
                if resumed and (found := await step.verify(ctx)) is not None:
                    return found
                return await step.do(ctx)
        except TimeoutError:
            return too_late(step.name, self.host.name, max(0.0, self._clock.wall() - since), self._told)
        except StaleClaim:
            raise
        except FleetError as error:
            until = self.host.deadline or self._clock.wall() + 3600.0
            outcome = of_error(error, attempt=self.place.attempt, attempts=step.attempts, until=until)
            if isinstance(error, Temporary) and not isinstance(outcome, Wait):
                await self._drop_bmc()  # the next try opens a new session
            return outcome
        except Exception as error:
            log.exception("step.bug", host=self.host.name, step=step.name)
            return of_bug(error, step.name)

    async def _undo(self, step: Step, ctx: StepContext) -> None:
        """What the step can take back. When it cannot, the finding of the step stands all the same, and the log says it."""
        try:
            async with asyncio.timeout(UNDO_SECONDS):
                await step.undo(ctx)
        except StaleClaim:
            raise
        except (FleetError, TimeoutError) as error:
            log.warning("step.undo", host=self.host.name, step=step.name, error=str(error) or "out of time")

    # --- writing -------------------------------------------------------------------------------------------------------

    async def _write(self, change: Callable[[Host], Host], ops: list[Op]) -> None:
        """Read-modify-write of the host under our claim; another writer's change is kept and ours applied on top."""
        async with self._writing:
            await self._write_alone(change, ops)

    async def _write_alone(self, change: Callable[[Host], Host], ops: list[Op]) -> None:
        for _ in range(8):
            changed = change(self.host)
            try:
                await self._db.commit([host_rows.save(changed, claim=self.claim), *ops])
            except StaleClaim:
                raise
            except Conflict:
                fresh = await host_rows.get(self._db, self.host.id)
                if fresh.version == self.host.version:
                    raise  # not the host row: another guard of the unit refused
                self.host = fresh
                continue
            self.host = msgspec.structs.replace(changed, version=changed.version + 1)
            return
        raise Conflict(f"host {self.host.name} changes faster than it can be written")

    def _event(self, kind: str, **data: Any) -> Op:
        event = Event(
            kind=kind,
            at=self._clock.wall(),
            site=self.host.spec.site,
            host=self.host.id,
            run=self.run.id,
            lease=self.run.lease,
            data={"name": self.host.name, **data},
        )
        return events.append(event)

    def _moved(self, host: Host, target: State) -> Host:
        """`host` in `target`, with since and deadline; the caller proved that the table allows it."""
        now = self._clock.wall()
        return msgspec.structs.replace(
            host, state=target, state_since=now, deadline=transitions.deadline_of(target, now), resume_state=None
        )

    async def _begin(self, step: Step) -> StepRecord:
        """Journal the intent, and move the host into the state the step runs in, in one commit."""
        now = self._clock.wall()
        target = self._entry(step)
        moves = self.host.state is not target
        if moves:
            transitions.require(self.host.state, target, resume=self.host.resume_state, host=self.host.name)
        record = StepRecord(
            run=self.run.id,
            host=self.host.id,
            index=self.place.step,
            attempt=self.place.attempt + int(self.place.data.get("journalled", {}).get(str(self.place.step), 0)),
            name=step.name,
            intent=new_id("intent", now),
            destructive=step.destructive,
            began=now,
        )
        ops = [self._event("host.state", state=target)] if moves else []
        ops += [
            run_rows.begin_step(record, claim=self.claim),
            self._event("step.began", step=step.name, intent=record.intent),
        ]

        def change(host: Host) -> Host:
            status = msgspec.structs.replace(host.status, waiting_for=None, maintenance=None)
            if host.state is State.MAINTENANCE:
                # A person had it: board and BMC may be others now, so the key is pinned anew while enrolling.
                status = msgspec.structs.replace(status, observed=msgspec.structs.replace(status.observed, tls_pin=""))
            host = msgspec.structs.replace(host, status=status)
            return self._moved(host, target) if moves else host

        await self._write(change, ops)
        return record

    def _entry(self, step: Step) -> State:
        params = decode_params(step, self.run.steps[self.place.step].params)
        return entry_state(step, params, self.run.works_in, self.host.state)

    async def _settle(self, step: Step, ctx: StepContext, record: StepRecord, outcome: Outcome, resumed: bool) -> None:
        if isinstance(outcome, Advance):
            await self._advanced(step, ctx, record, outcome)
        elif isinstance(outcome, Retry):
            await self._retried(step, ctx, record, outcome)
        elif isinstance(outcome, Rewind):
            await self._rewound(step, ctx, record, outcome, resumed)
        else:
            assert isinstance(outcome, Fail)
            await self._undo(step, ctx)
            await self._failed(step, ctx, record, outcome)

    async def _advanced(self, step: Step, ctx: StepContext, record: StepRecord, outcome: Advance) -> None:
        now = self._clock.wall()
        last = self.place.step + 1 >= len(self.run.steps)
        data = dict(ctx.data)
        # After a rewind the steps between here and the one that asked for it are done and proven: on with that one.
        following = max(self.place.step + 1, int(data.pop("resume-at", 0)))
        place = msgspec.structs.replace(
            self.place,
            step=following,
            attempt=1,
            data=data,
            state=RunHostState.PASSED if last else RunHostState.ACTIVE,
            finished=now if last else None,
        )
        ended = self._ended(record, "advance", outcome.text, outcome.evidence, outcome.source)
        ops = [*ctx.ops, ended, run_rows.save_host(place, claim=self.claim)]
        ops.append(self._event("step.done", step=step.name, text=outcome.text, last=last))
        leaves = step.leaves
        if leaves is not None:
            transitions.require(self.host.state, leaves, host=self.host.name)
            ops.append(self._event("host.state", state=leaves))

        def change(host: Host) -> Host:
            host = self._with_results(host, ctx, step, outcome)
            if leaves is not None:
                host = self._moved(host, leaves)
            return host

        await self._write(change, ops)
        self.place = place

    def _with_results(self, host: Host, ctx: StepContext, step: Step, outcome: Advance) -> Host:
        status = msgspec.structs.replace(
            host.status,
            waiting_for=None,
            outcome=LastOutcome(
                kind="advance", step=step.name, text=outcome.text, at=self._clock.wall(), source=outcome.source
            ),
            observed=ctx.observed or host.status.observed,
            power=ctx.power or host.status.power,
            tenant_data_evidence=ctx.tenant_data[1] if ctx.tenant_data else host.status.tenant_data_evidence,
        )
        if ctx.clear_findings:
            status = proven_again(status)
        host = msgspec.structs.replace(host, status=status)
        if ctx.tenant_data is not None:
            host = msgspec.structs.replace(host, tenant_data=ctx.tenant_data[0])
        if ctx.certificate is not None:
            host = msgspec.structs.replace(host, certificate=ctx.certificate[0], certificate_expires=ctx.certificate[1])
        return host

    async def _retried(self, step: Step, ctx: StepContext, record: StepRecord, outcome: Retry) -> None:
        now = self._clock.wall()
        place = msgspec.structs.replace(self.place, attempt=self.place.attempt + 1, data=ctx.data)
        ops = [
            self._ended(record, "retry", outcome.error, {}, outcome.source),
            run_rows.save_host(place, claim=self.claim),
            self._event("step.retry", step=step.name, text=outcome.error, attempt=place.attempt),
        ]
        waiting = WaitingFor(
            what=f"another try of {step.name}: {outcome.error}"[:500],
            since=now,
            until=now + outcome.after,
            remedy=outcome.remedy,
            source=outcome.source,
        )
        last = LastOutcome(kind="retry", step=step.name, text=outcome.error, at=now, source=outcome.source)
        await self._write(
            lambda host: msgspec.structs.replace(
                host, status=msgspec.structs.replace(host.status, waiting_for=waiting, outcome=last)
            ),
            ops,
        )
        self.place = place
        end = self._clock.steady() + outcome.after
        while (left := end - self._clock.steady()) > 0 and not self.engine.parking:
            await self.engine.pause(self.host.id, left)

    async def _rewound(self, step: Step, ctx: StepContext, record: StepRecord, outcome: Rewind, resumed: bool) -> None:
        """Back to the nearest earlier step that gives what was lost; bounded, then it is a finding.

        From there the run comes straight back here, unless what gives it again spoils what a step between gave.
        """
        back, given = None, frozenset[str]()
        resume_at = max(self.place.step, int(ctx.data.get("resume-at", 0)))
        for i in range(self.place.step - 1, -1, -1):
            earlier = registry.get(self.run.steps[i].name, self.run.steps[i].version)
            _, gives, spoils = earlier.evidence_of(decode_params(earlier, self.run.steps[i].params))
            if outcome.to in gives:
                back = i
                if spoils & given:
                    resume_at = i + 1
                break
            given |= gives
        # A crash of ours is no fault of the host: it does not use up what the host may cost.
        rewinds = int(ctx.data.get("rewinds", 0)) + (not resumed)
        if back is None or rewinds > MAX_REWINDS:
            finding = Finding(
                code="FLT-2006", message=outcome.text, remedy=f"fleetctl host release {self.host.name}: it boots again"
            )
            await self._failed(step, ctx, record, Fail(finding=finding, source=outcome.source))
            return
        # Tries count anew, the journal's numbers go on: a step that comes round again must not meet its old rows.
        journalled: dict[str, int] = {}
        for done in await run_rows.steps(self._db, self.run.id, self.host.id):
            journalled[str(done.index)] = max(done.attempt, journalled.get(str(done.index), 0))
        data = {**ctx.data, "rewinds": rewinds, "resume-at": resume_at, "journalled": journalled}
        place = msgspec.structs.replace(self.place, step=back, attempt=1, data=data)
        ops = [
            self._ended(record, "abandoned", outcome.text, {}, outcome.source),
            run_rows.save_host(place, claim=self.claim),
            self._event("step.rewound", step=step.name, text=outcome.text, to=self.run.steps[back].name),
        ]
        await self._write(lambda host: host, ops)
        self.place = place

    async def _failed(self, step: Step, ctx: StepContext, record: StepRecord, outcome: Fail) -> None:
        """The host is out: quarantine with its finding, or back to reclaim when it was to be a tenant's."""
        now = self._clock.wall()
        finding = msgspec.structs.replace(outcome.finding, at=now, step=step.name)
        target = State.RECLAIMING if self.host.state is State.DELIVERING else State.QUARANTINED
        place = msgspec.structs.replace(
            self.place, state=RunHostState.FAILED, finding=finding, finished=now, data=ctx.data
        )
        ops = [
            self._ended(record, "fail", finding.message, outcome.evidence, outcome.source),
            run_rows.save_host(place, claim=self.claim),
            self._event("step.failed", step=step.name, code=finding.code, text=finding.message, remedy=finding.remedy),
            self._event("host.state", state=target),
        ]
        if self.host.certificate is not None:
            ops.append(certificate_rows.revoke(self.host.certificate, f"{finding.code}: {finding.message}"[:500], now))

        def change(host: Host) -> Host:
            status = msgspec.structs.replace(
                host.status,
                waiting_for=None,
                findings=(finding,),
                outcome=LastOutcome(kind="fail", step=step.name, text=finding.message, at=now, source=outcome.source),
                observed=ctx.observed or host.status.observed,
                power=ctx.power or host.status.power,
            )
            came_from = host.state
            host = self._moved(
                msgspec.structs.replace(host, status=status, certificate=None, certificate_expires=None), target
            )
            return msgspec.structs.replace(host, resume_state=came_from if target is State.QUARANTINED else None)

        transitions.require(self.host.state, target, host=self.host.name)
        await self._write(change, ops)
        self.place = place

    def _ended(self, record: StepRecord, kind: str, text: str, evidence: dict[str, Any], source: str) -> Op:
        done = msgspec.structs.replace(
            record, ended=self._clock.wall(), outcome=kind, text=text[:2000], evidence=evidence, source=source
        )
        return run_rows.end_step(done, claim=self.claim)

    async def _cancelled(self) -> bool:
        """At a safe point between steps: a cancelled run leaves the host in quarantine, to be resumed from there."""
        run = await run_rows.get(self._db, self.run.id)
        if run.state is not RunState.CANCELLED:
            return False
        now = self._clock.wall()
        finding = Finding(
            code="run.cancelled",
            message=f"run {run.id} was cancelled: {run.reason}",
            remedy=f"fleetctl host release {self.host.name}: it goes on where it stopped",
            at=now,
        )
        place = msgspec.structs.replace(self.place, state=RunHostState.FAILED, finding=finding, finished=now)
        ops = [run_rows.save_host(place, claim=self.claim)]
        state = self.host.state
        if transitions.TABLE[state].resting:
            await self._write(lambda host: host, ops)
        else:
            target = State.RECLAIMING if state is State.DELIVERING else State.QUARANTINED
            ops.append(self._event("host.state", state=target))

            def change(host: Host) -> Host:
                status = msgspec.structs.replace(host.status, findings=(finding,), waiting_for=None)
                host = self._moved(msgspec.structs.replace(host, status=status), target)
                return msgspec.structs.replace(host, resume_state=state if target is State.QUARANTINED else None)

            await self._write(change, ops)
        self.place = place
        return True

    # --- what the step is given ----------------------------------------------------------------------------------------

    async def _open_bmc(self) -> Bmc:
        """One session for the whole run of this host; dropped after a Temporary error."""
        if self._bmc is None:
            self._bmc = await self.engine.wires.credentials.open(self.host, timeout=self.engine.wires.bmc_patience)
        return self._bmc

    async def _drop_bmc(self) -> None:
        bmc, self._bmc = self._bmc, None
        if bmc is not None:
            await bmc.close()

    async def _say_waiting(self, what: str, remedy: str, until: float, source: str) -> None:
        now = self._clock.wall()
        before = self.host.status.waiting_for
        if before is not None and (before.what, before.until) == (what, until):
            return
        waiting = WaitingFor(what=what, since=now, until=until, remedy=remedy, source=source)
        await self._write(functools.partial(_waits, waiting=waiting), [])

    def _progress(self, fields: dict[str, Any]) -> None:
        log.debug("step.progress", host=self.host.name, run=self.run.id, fields=fields)
        step = self.run.steps[self.place.step].name
        self._told = progress.line(step, fields) or self._told

    async def _braked(self) -> bool:
        """True, after a pause, while a brake keeps a destructive step from beginning."""
        reason = await self.engine.brakes.blocked(self.host)
        if reason is None:
            return False
        before = self.host.status.waiting_for
        until = self.host.deadline or (before.until if before is not None else self._clock.wall() + 3600.0)
        await self._say_waiting(
            f"the freeze to be lifted: {reason}", "fleetctl thaw, when its reason is gone", until, here()
        )
        await self.engine.pause(self.host.id, 2.0)
        return True

    async def _persist(self, data: dict[str, Any]) -> None:
        """What a step must find again after a crash. Raises StaleClaim."""
        place = msgspec.structs.replace(self.place, data=dict(data))
        await self._db.commit([run_rows.save_host(place, claim=self.claim)])
        self.place = place

    async def _allow(self, began: float, seconds: float) -> None:
        """More time than usual for the step, counted from its intent, and after it the usual time of the host's state.

        A restart changes neither. Raises StaleClaim.
        """
        loop, until = asyncio.get_running_loop(), began + seconds
        when = self._limit.when() if self._limit is not None else None
        if self._limit is not None and when is not None:
            self._limit.reschedule(max(when, loop.time() + until - self._clock.wall()))
        deadline = until + (transitions.TABLE[self.host.state].deadline or 0.0)
        if self.host.deadline is not None and deadline > self.host.deadline:
            await self._write(lambda host: msgspec.structs.replace(host, deadline=deadline), [])

    async def _guard(self, seconds: float) -> None:
        """Right before a destructive call of so many seconds. Raises what `permit` raises."""
        self.engine.extended(
            await permit(
                *(self._db, self.engine.brakes, self.host, self.claim),
                run=self.run.id,
                now=self._clock.wall(),
                seconds=seconds,
            )
        )


def _waits(host: Host, waiting: WaitingFor) -> Host:
    return msgspec.structs.replace(host, status=msgspec.structs.replace(host.status, waiting_for=waiting))


async def load(db: Database, engine: Surroundings, run: Run, place: RunHost, claim: Claim) -> Drive:
    """A drive for a host's place in a run."""
    host = await host_rows.get(db, place.host)
    return Drive(engine, run, place, host, claim, await inventory_rows.sku(db, host.spec.sku))
