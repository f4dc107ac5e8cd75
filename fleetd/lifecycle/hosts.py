"""The desk for single hosts: find one, say why it is not leaseable and what it waits for, do what a person orders.

Whatever a person orders passes the same safety rules as a playbook: a host that a run has is left alone, a leased one
gets nothing but the power verbs its tenant may have, and every change of state is in the transition table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from fleetd.drivers.bmc.capabilities import Bmc
from fleetd.kit.clock import Clock, rfc3339
from fleetd.kit.errors import Ambiguous, Conflict, Invalid, NotFound, Refused
from fleetd.lifecycle import transitions
from fleetd.lifecycle.blockers import Blocker, blockers, label
from fleetd.lifecycle.brakes import BrakeDesk, bounded_reason
from fleetd.lifecycle.poweroff import ends_boot, stops
from fleetd.model.access import Principal
from fleetd.model.boot import Boot
from fleetd.model.check import Action, Finding
from fleetd.model.event import Event
from fleetd.model.host import Alert, Classification, Host, HostStatus, Maintenance, State
from fleetd.model.hostrange import compile_range
from fleetd.model.lease import LeaseState
from fleetd.model.power import BootDevice, PowerState, PowerVerb
from fleetd.model.run import Run
from fleetd.store import boots as boot_rows
from fleetd.store import certificates, events
from fleetd.store import hosts as rows
from fleetd.store import leases as lease_rows
from fleetd.store import runs as run_rows
from fleetd.store.database import Database, Op

OpenBmc = Callable[[Host], AbstractAsyncContextManager[Bmc]]
StartResume = Callable[[Host, Principal], Awaitable[Run]]

READ_TIMEOUT = 15.0
POWER_TIMEOUT = 180.0  # a cycle is off, confirmed, then on, confirmed
TRIES = 5
_ENDINGS = (LeaseState.ENDING, LeaseState.ENDED, LeaseState.FAILED)


class CapacityRow(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a SKU stands at one place. `free_at`: wall seconds at which the next live lease there ends."""

    sku: str
    site: str
    rack: str | None = None
    total: int
    leaseable: int
    by_state: dict[str, int]
    reasons: dict[str, int]
    free_at: float | None = None


def host_event(kind: str, host: Host, at: float, who: str, **data: Any) -> Event:
    """An event of one host, with what every reader wants of it."""
    return Event(
        kind=kind, at=at, site=host.spec.site, host=host.id, run=host.run, lease=host.lease, principal=who,
        data={"name": host.name, **data},
    )  # fmt: skip


def moved(host: Host, target: State, now: float, **changes: Any) -> Host:
    """The host in its new state, with that state's deadline. Raises Conflict when the table forbids it."""
    transitions.require(host.state, target, resume=host.resume_state, host=host.name)
    deadline = transitions.deadline_of(target, now)
    return msgspec.structs.replace(host, state=target, state_since=now, deadline=deadline, **changes)


def status_of(host: Host, **changes: Any) -> HostStatus:
    return msgspec.structs.replace(host.status, **changes)


def revoke_ops(host: Host, reason: str, now: float) -> list[Op]:
    """Ops that end a host's certificate; the caller clears it in the host's row within the same commit."""
    return [certificates.revoke(host.certificate, reason, now)] if host.certificate is not None else []


BOOT_GONE = "boot-gone"


def _boot_gone(host: Host, now: float) -> Alert:
    """A person stopped an available host: the boot its proof stands on is over, and no tenant's request shall pay for it."""
    return Alert(
        id=BOOT_GONE,
        target=host.name,
        since=now,
        message="it was powered off or restarted since it was proven",
        remedy=f"fleetctl host validate {host.name}",
        classifications=(Classification.PREVENTS_LEASE,),
    )


def _others(alerts: tuple[Alert, ...]) -> tuple[Alert, ...]:
    return tuple(alert for alert in alerts if alert.id != BOOT_GONE)


def proven_again(status: HostStatus) -> HostStatus:
    """The status of a host that was just proven: no finding stands, and its boot is a known one."""
    return msgspec.structs.replace(status, findings=(), alerts=_others(status.alerts))


async def find(db: Database, ref: str) -> Host:
    """A host by id, name or serial; a retired one only when no living one answers.

    Raises:
        NotFound: nothing of that id, name or serial.
        Ambiguous: several, with their ids.
    """
    for read in (rows.get, rows.by_name):
        try:
            host = await read(db, ref)
        except NotFound:
            continue
        if host.id == ref or host.state is not State.RETIRED:
            return host
    found = [h for h in await rows.every(db) if ref in (h.name, h.spec.serial)]
    living = [h for h in found if h.state is not State.RETIRED]
    chosen = living or found
    if not chosen:
        raise NotFound(f"there is no host `{ref[:80]}`", why="no id, name or serial is like that")
    if len(chosen) > 1:
        raise Ambiguous(
            f"`{ref}` names {len(chosen)} hosts",
            why=", ".join(f"{h.name} ({h.id}, {h.state})" for h in chosen[:10]),
            remedy="use the id",
        )
    return chosen[0]


class HostDesk:
    """What may be asked of, and ordered for, single hosts.

    Args:
        open_bmc: a logged-in session with a host's BMC, logged out at the end.
        start_resume: starts the run that takes a host on from quarantine or maintenance.
    """

    def __init__(
        self, db: Database, clock: Clock, open_bmc: OpenBmc, brakes: BrakeDesk, start_resume: StartResume
    ) -> None:
        self._db, self._clock, self._open_bmc, self._brakes = db, clock, open_bmc, brakes
        self._start_resume = start_resume

    # --- asking -----------------------------------------------------------------------------------------------------

    async def select(self, text: str) -> list[Host]:
        """The hosts that a host range names, retired ones only when asked for by state, id or serial.

        Raises:
            Invalid: the range cannot be read.
            NotFound: it names nothing.
        """
        test = compile_range(text)
        asks_retired = any(word in text for word in ("retired", "id=", "serial=", "host-"))
        await self._brakes.frozen()
        found = [
            host
            for host in await rows.every(self._db)
            if test(host.fields()) and (asks_retired or host.state is not State.RETIRED)
        ]
        if not found:
            raise NotFound(f"no host is named by `{text[:200]}`")
        return found

    async def get(self, ref: str) -> Host:
        """A host by id, name or serial. Raises NotFound, Ambiguous."""
        await self._brakes.frozen()
        return await find(self._db, ref)

    def blockers(self, host: Host, now: float) -> list[Blocker]:
        """All that keeps this host from being leased, weightiest first; empty exactly when it is leaseable."""
        return blockers(host, now, self._brakes.seen(host))

    def reasons(self, host: Host, now: float) -> list[str]:
        """Why this host is not leaseable; [] = leaseable. Freezes are those of the desk's last read."""
        return [blocker.text for blocker in self.blockers(host, now)]

    async def why(self, ref: str) -> dict[str, Any]:
        """All that explains where a host stands: JSON-able, times in RFC 3339."""
        host = await self.get(ref)
        now = self._clock.wall()
        status = host.status
        reasons = self.reasons(host, now)
        place = await run_rows.active_of(self._db, host.id)
        run = await run_rows.get(self._db, place.run) if place is not None else None
        lease = await lease_rows.of_host(self._db, host.id)
        return {
            "id": host.id,
            "name": host.name,
            "site": host.spec.site,
            "rack": host.spec.rack,
            "position": host.spec.position,
            "sku": host.spec.sku,
            "state": str(host.state),
            "means": transitions.TABLE[host.state].means,
            "state_since": rfc3339(host.state_since),
            "deadline": rfc3339(host.deadline),
            "past_deadline": host.deadline is not None and now > host.deadline,
            "waiting_for": _timed(status.waiting_for, "since", "until"),
            "outcome": _timed(status.outcome, "at"),
            "findings": [_timed(finding, "at") for finding in status.findings],
            "alerts": [_timed(alert, "since") for alert in status.alerts],
            "leaseable": not reasons,
            "reasons": reasons,
            "power": str(status.power),
            "tenant_data": host.tenant_data,
            "certificate": None
            if host.certificate is None
            else {"id": host.certificate, "expires": rfc3339(host.certificate_expires)},
            "maintenance": _timed(status.maintenance, "until", "requested_at"),
            "pending_maintenance": _timed(status.pending_maintenance, "until", "requested_at"),
            "run": None
            if place is None or run is None
            else {
                "id": run.id,
                "playbook": run.playbook,
                "state": str(place.state),
                "step": run.steps[place.step].name if place.step < len(run.steps) else "",
                "index": place.step,
                "steps": len(run.steps),
                "attempt": place.attempt,
                "since": rfc3339(place.started),
                "then": [step.name for step in run.steps[place.step + 1 :]],
            },
            "lease": None
            if lease is None
            else {
                "id": lease.id,
                "tenant": lease.request.tenant,
                "state": str(lease.state),
                "ends": rfc3339(lease.ends),
            },
            "next": _next(host, run.playbook if run is not None else None),
        }

    async def history(self, ref: str, limit: int = 100) -> list[Event]:
        """The host's events, newest first, at most 1000."""
        host = await find(self._db, ref)
        return await events.of_host(self._db, host.id, max(1, min(limit, 1000)))

    async def capacity(self, *, by_rack: bool = False) -> list[CapacityRow]:
        """How much of each SKU, where, in what state, why not leaseable, and when the next lease there ends."""
        now = self._clock.wall()
        await self._brakes.frozen()
        ends = {
            host_id: lease.ends
            for lease in await lease_rows.every(self._db, live=True)
            for host_id in lease.hosts
            if lease.state not in _ENDINGS
        }
        groups: dict[tuple[str, str, str | None], list[Host]] = {}
        for host in await rows.every(self._db):
            if host.state is not State.RETIRED:
                spec = host.spec
                groups.setdefault((spec.sku, spec.site, spec.rack if by_rack else None), []).append(host)
        found = []
        for (sku, site, rack), members in sorted(groups.items(), key=lambda item: tuple(p or "" for p in item[0])):
            blocked = [self.blockers(host, now) for host in members]
            first = Counter(label(b[0]) for b in blocked if b)
            bound = [ends[host.id] for host in members if host.lease is not None and host.id in ends]
            found.append(
                CapacityRow(
                    sku=sku,
                    site=site,
                    rack=rack,
                    total=len(members),
                    leaseable=sum(not b for b in blocked),
                    by_state=dict(sorted(Counter(str(host.state) for host in members).items())),
                    reasons=dict(sorted(first.items())),
                    free_at=min(bound, default=None),
                )
            )
        return found

    # --- ordering ---------------------------------------------------------------------------------------------------

    async def power(self, ref: str, verb: PowerVerb | None, *, who: Principal) -> PowerState:
        """Do it and read back, or with None only read. Returns what the read-back said.

        Raises:
            Refused: a run has the host, or it is retired, or its lease is over and the verb is not off.
            Temporary, Permanent: whatever the BMC did.
        """
        host = await find(self._db, ref)
        boot = await boot_rows.open_of(self._db, host.id)
        if verb is None:
            async with self._open_bmc(host) as bmc:
                state = await bmc.power_state(timeout=READ_TIMEOUT)
        else:
            await self._hands_off(host, f"power {verb}")
            await self._lease_allows(host, verb)
            async with self._open_bmc(host) as bmc:
                state = await bmc.power(verb, timeout=POWER_TIMEOUT)
        await self._note_power(host, state, verb, who.name, boot)
        return state

    async def _note_power(
        self, host: Host, state: PowerState, verb: PowerVerb | None, who: str, boot: Boot | None
    ) -> None:
        """Write down what a read-back said; an order is an event, a mere reading that found nothing new is none.

        `boot`: the one that was open before the BMC was asked; it ends with what ran.
        """
        stopped = stops(verb, state)
        if verb is None and host.status.power is state and not (stopped and boot is not None):
            return

        def change(now_host: Host, now: float) -> tuple[Host, list[Op]]:
            event = host_event("host.power", now_host, now, who, verb=str(verb or "read"), power=str(state))
            status = status_of(now_host, power=state)
            ends = ends_boot(verb, state, in_run=now_host.run is not None)
            closing = [boot_rows.close(boot.id, now)] if boot is not None and ends else []
            if now_host.state is State.AVAILABLE and stopped:
                status = msgspec.structs.replace(status, alerts=(*_others(status.alerts), _boot_gone(now_host, now)))
            return msgspec.structs.replace(now_host, status=status), [events.append(event), *closing]

        await self._change(host.id, change)

    async def boot(self, ref: str, device: BootDevice, *, who: Principal) -> None:
        """Where the next boot comes from, once. Raises Refused for a host that a run or a tenant has."""
        host = await find(self._db, ref)
        await self._hands_off(host, f"boot {device}")
        if host.state in (State.LEASED, State.DELIVERING, State.RECLAIMING) or host.lease is not None:
            raise Refused(
                f"host {host.name} is {host.state}: its boot device is not yours to set",
                why="on a leased host only power verbs are allowed",
                remedy="release the lease first: `fleetctl lease release`",
            )
        async with self._open_bmc(host) as bmc:
            await bmc.set_boot_once(device, timeout=READ_TIMEOUT * 2)
        now = self._clock.wall()
        await self._db.commit([events.append(host_event("host.boot", host, now, who.name, device=str(device)))])

    async def identify(self, ref: str, on: bool, *, who: Principal) -> None:
        """The identify LED. Harms nothing, so it is allowed in every state but retired."""
        host = await find(self._db, ref)
        if host.state is State.RETIRED:
            raise Refused(f"host {host.name} is retired", remedy="register it again in the inventory")
        async with self._open_bmc(host) as bmc:
            await bmc.identify(on, timeout=READ_TIMEOUT * 2)
        now = self._clock.wall()
        await self._db.commit([events.append(host_event("host.identify", host, now, who.name, on=on))])

    async def quarantine(self, ref: str, reason: str, *, who: Principal) -> Host:
        """Take a host out with a finding of a person's. It comes back only through the proof of its own state.

        Raises:
            Refused: a run has it.
            Conflict: from its state the table leads not to quarantine.
        """
        why = bounded_reason(reason, what="a quarantine")
        host = await find(self._db, ref)
        await self._hands_off(host, "quarantine")

        def change(now_host: Host, now: float) -> tuple[Host, list[Op]]:
            self._no_run(now_host, "quarantine")
            # Out of inventory it must be proven anew; a working state without a run goes on where it stood.
            resume = State.VALIDATING if now_host.state is State.AVAILABLE else now_host.state
            finding = Finding(
                code="operator",
                message=f"{who.name}: {why}",
                remedy=f"when it is mended: fleetctl host release {now_host.name}",
                action=Action.RETEST,
                at=now,
            )
            out = moved(
                now_host, State.QUARANTINED, now,
                resume_state=resume, certificate=None, certificate_expires=None,
                status=status_of(now_host, findings=(finding,), waiting_for=None),
            )  # fmt: skip
            return out, [
                *revoke_ops(now_host, f"quarantined: {why}", now),
                self._state_op(now_host, out, now, who, why),
            ]

        return await self._change(host.id, change)

    async def maintenance(self, ref: str, *, reason: str, until: float, who: Principal) -> Host:
        """Give a host to a person. A host that a tenant or a run has gets it pending: it takes effect when that ends.

        Raises:
            Invalid: no reason, or `until` (wall seconds) is not in the future.
            Conflict: the host is retired.
        """
        why = bounded_reason(reason, what="maintenance")
        if not self._clock.wall() < until < self._clock.wall() + 10 * 366 * 86_400:
            raise Invalid("maintenance needs an end in the future", where="until", remedy="write 2026-11-23T04:00:00Z")
        host = await find(self._db, ref)

        def change(now_host: Host, now: float) -> tuple[Host, list[Op]]:
            asked = Maintenance(owner=who.name, reason=why, until=until, requested_at=now)
            return to_maintenance(now_host, asked, now)

        return await self._change(host.id, change)

    async def settle_maintenance(self, ref: str) -> Host:
        """Let pending maintenance take effect if nothing holds the host any more. For the engine, after every run."""
        host = await find(self._db, ref)
        pending = host.status.pending_maintenance
        if pending is None or not _free_for(host, State.MAINTENANCE):
            return host

        def change(now_host: Host, now: float) -> tuple[Host, list[Op]]:
            asked = now_host.status.pending_maintenance
            if asked is None:
                return now_host, []
            return to_maintenance(now_host, asked, now)

        return await self._change(host.id, change)

    async def release(self, ref: str, *, who: Principal) -> Run:
        """Let a host go on from quarantine or maintenance: a run that ends in proof, never straight to available.

        Raises:
            Conflict: it is in neither.
        """
        host = await find(self._db, ref)
        if host.state not in (State.QUARANTINED, State.MAINTENANCE):
            raise Conflict(
                f"host {host.name} is {host.state}",
                why="only a quarantined host or one in maintenance is released",
                remedy=f"fleetctl host why {host.name}",
            )
        await self._hands_off(host, "release")
        return await self._start_resume(host, who)

    async def retire(self, ref: str, *, who: Principal) -> Host:
        """Gone; the record is kept. Its name, place and serial become free for another.

        Raises:
            Refused: a run has it, or a tenant's data may still be on disks that nobody holds in hand.
            Conflict: the table leads not from its state to retired.
        """
        host = await find(self._db, ref)
        await self._hands_off(host, "retire")
        if host.tenant_data == "possible" and host.state is not State.MAINTENANCE:
            raise Refused(
                f"the disks of {host.name} may still hold a tenant's data",
                remedy=f"let its wipe go on (`fleetctl host release {host.name}`), or take it to maintenance, destroy its"
                " drives, and retire it then",
            )

        def change(now_host: Host, now: float) -> tuple[Host, list[Op]]:
            self._no_run(now_host, "retire")
            out = moved(
                now_host, State.RETIRED, now,
                resume_state=None, certificate=None, certificate_expires=None,
                status=status_of(now_host, waiting_for=None, maintenance=None, pending_maintenance=None),
            )  # fmt: skip
            return out, [*revoke_ops(now_host, "retired", now), self._state_op(now_host, out, now, who, "retired")]

        return await self._change(host.id, change)

    # --- rules ------------------------------------------------------------------------------------------------------

    async def _hands_off(self, host: Host, verb: str) -> None:
        place = await run_rows.active_of(self._db, host.id)
        self._no_run(msgspec.structs.replace(host, run=place.run if place is not None else None), verb)
        if host.state is State.RETIRED:
            raise Refused(f"host {host.name} is retired", remedy="register it again in the inventory")

    @staticmethod
    def _no_run(host: Host, verb: str) -> None:
        if host.run is not None:
            raise Refused(
                f"{verb} refused: run {host.run} has host {host.name}",
                why="a hand in a running step breaks it in the middle",
                remedy=f"wait for it (`fleetctl run watch {host.run}`) or stop it (`fleetctl run cancel {host.run}`)",
            )

    async def _lease_allows(self, host: Host, verb: PowerVerb) -> None:
        lease = await lease_rows.of_host(self._db, host.id)
        if lease is not None and lease.state in _ENDINGS and verb is not PowerVerb.OFF:
            raise Refused(
                f"power {verb} refused: lease {lease.id} of host {host.name} is {lease.state}",
                why="after the end of a lease its hosts stay off until they are reclaimed",
                remedy=f"before the wipe: `fleetctl lease extend {lease.id}`",
            )

    @staticmethod
    def _state_op(before: Host, after: Host, now: float, who: Principal, why: str) -> Op:
        data = {"from": str(before.state), "to": str(after.state), "why": why}
        return events.append(host_event("host.state", before, now, who.name, **data))

    async def _change(self, host_id: str, change: Callable[[Host, float], tuple[Host, list[Op]]]) -> Host:
        """Read, change, write with the version read; again when somebody wrote between, a few times."""
        for attempt in range(TRIES):
            host = await rows.get(self._db, host_id)
            changed, ops = change(host, self._clock.wall())
            try:
                await self._db.commit([rows.save(changed), *ops])
            except Conflict:
                if attempt + 1 == TRIES:
                    raise
                continue
            return await rows.get(self._db, host_id)
        raise AssertionError("unreachable")


def to_maintenance(host: Host, asked: Maintenance, now: float) -> tuple[Host, list[Op]]:
    """The host given to a person, at once where it may, else pending until its lease or run ends; and the ops beside.

    Raises:
        Conflict: the host is retired.
    """
    if host.state is State.MAINTENANCE:
        out = msgspec.structs.replace(host, status=status_of(host, maintenance=asked))
        return out, [
            events.append(host_event("host.maintenance", host, now, asked.owner, reason=asked.reason, pending=False))
        ]
    if not _free_for(host, State.MAINTENANCE):
        if host.state is State.RETIRED:
            transitions.require(host.state, State.MAINTENANCE, host=host.name)
        out = msgspec.structs.replace(host, status=status_of(host, pending_maintenance=asked))
        return out, [
            events.append(host_event("host.maintenance", host, now, asked.owner, reason=asked.reason, pending=True))
        ]
    out = moved(
        host, State.MAINTENANCE, now,
        resume_state=None, certificate=None, certificate_expires=None,
        status=status_of(host, maintenance=asked, pending_maintenance=None, waiting_for=None),
    )  # fmt: skip
    data = {"from": str(host.state), "to": str(State.MAINTENANCE), "why": asked.reason}
    return out, [
        *revoke_ops(host, f"maintenance: {asked.reason}", now),
        events.append(host_event("host.state", host, now, asked.owner, **data)),
    ]


def _free_for(host: Host, target: State) -> bool:
    return host.lease is None and host.run is None and transitions.legal(host.state, target)


def _timed(value: Any, *times: str) -> dict[str, Any] | None:
    if value is None:
        return None
    plain: dict[str, Any] = msgspec.to_builtins(value)
    for key in times:
        plain[key] = rfc3339(plain[key])
    return plain


def _next(host: Host, playbook: str | None) -> str:
    """What comes next, in one sentence."""
    if playbook is not None:
        return f"the run of {playbook} goes on"
    if host.state is State.QUARANTINED:
        back = f"back to {host.resume_state}" if host.resume_state is not None else "on"
        return f"do what the finding's remedy says, then `fleetctl host release {host.name}` takes it {back}"
    if host.state is State.MAINTENANCE:
        return f"when the person is done: `fleetctl host release {host.name}` enrolls and proves it again"
    if host.state in (State.REGISTERED, State.MANAGEABLE):
        return f"bring it up: `fleetctl rack bringup {host.spec.rack}`"
    if host.state is State.AVAILABLE:
        return "a lease, or the proof again before its certificate expires"
    if host.state is State.LEASED:
        return "the end of its lease"
    if host.state is State.RETIRED:
        return "nothing: it is gone"
    return "no run has it: fleetd moves it on at its deadline"
