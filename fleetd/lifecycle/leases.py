"""Leases from claim to end: all or none, in one transaction; whatever a call leaves unfinished, the next look finishes.

Level-triggered like the engine: what to do with a lease stands in its row and its hosts' rows, so a crash between two
commits loses nothing. A claim serialises within this daemon and is guarded by the ledger against every other one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from fleetd.kit.clock import Clock, human_duration, rfc3339
from fleetd.kit.errors import Busy, Conflict, Denied, FleetError, NotFound
from fleetd.kit.ids import new_id
from fleetd.kit.logs import get
from fleetd.kit.retry import backoff
from fleetd.lifecycle.blockers import Blocker
from fleetd.lifecycle.brakes import BrakeDesk, ClockBrake, MassBrake
from fleetd.lifecycle.hosts import HostDesk, host_event, moved
from fleetd.lifecycle.leaserequest import check_request, checked_end
from fleetd.lifecycle.placement import choose, refusal
from fleetd.model.access import Principal, Role
from fleetd.model.event import Event
from fleetd.model.host import Host, State
from fleetd.model.lease import Lease, LeaseRequest, LeaseState
from fleetd.model.playbook import Playbook
from fleetd.model.run import Run, RunHost, RunHostState
from fleetd.model.sku import Sku
from fleetd.store import access, events, inventory
from fleetd.store import hosts as host_rows
from fleetd.store import leases as rows
from fleetd.store import runs as run_rows
from fleetd.store.database import Database, Op

log = get("leases")

HANDOVER = "handover"
RECLAIM = "reclaim"
SYSTEM = Principal(name="fleetd", role=Role.ADMIN)
RACES = 5
LOOK_EVERY = 5.0  # seconds between full looks, however often the engine ticks
REMINDERS = (86_400.0, 3600.0)  # seconds before the end
LOOKED = "lease.looked"
EXPIRED = "expired"
_WITH_TENANT = frozenset({State.DELIVERING, State.LEASED, State.RECLAIMING})


class Runs(Protocol):
    """What this desk needs of the run desk."""

    def playbook(self, name: str) -> Playbook: ...
    async def cancel(self, run_id: str, *, who: Principal) -> Run: ...


class NewRun(Protocol):
    """Builds a run and the ops that store it with its hosts."""

    def __call__(
        self,
        playbook: Playbook,
        hosts: Sequence[Host],
        *,
        now: float,
        who: Principal,
        selector: str,
        lease: str | None = None,
    ) -> tuple[Run, list[Op]]: ...


class LeasePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Which hosts a lease would get now; `ends` in wall seconds."""

    request: LeaseRequest
    ends: float
    hosts: tuple[Host, ...]


class LeaseDesk:
    """Tenants' holds on hosts.

    Args:
        wake: tells the engine to look at a run.
        grace_seconds: between the expiry of a lease (power off) and the wipe of its hosts.
        images: names of the images that can be delivered; by default those that SKUs name.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        *,
        runs: Runs,
        new_run: NewRun,
        hosts: HostDesk,
        brakes: BrakeDesk,
        mass: MassBrake,
        clock_brake: ClockBrake,
        wake: Callable[[str], None],
        grace_seconds: float = 86_400.0,
        images: Callable[[], Awaitable[Collection[str]]] | None = None,
    ) -> None:
        self._db, self._clock = db, clock
        self._runs, self._new_run, self._hosts = runs, new_run, hosts
        self._brakes, self._mass, self._clock_brake = brakes, mass, clock_brake
        self._wake, self._grace, self._images = wake, grace_seconds, images
        self._claiming = asyncio.Lock()
        # Hosts that finish, the tick and a caller may come to one lease at once: one after the other, none is refused.
        self._turn = asyncio.Lock()
        self._left: dict[str, set[str]] = {}  # lease -> hosts not handed over yet; only saves reads
        self._looked = 0.0
        self._settled = False

    # --- what tenants and operators call --------------------------------------------------------------------------

    async def create(self, request: LeaseRequest, *, who: Principal) -> Lease:
        """Claim hosts, all or none, and start their hand-over.

        Raises:
            Invalid: a field of the request.
            NotFound: no such SKU or site.
            Conflict: it cannot be met; `why` counts what is free and why the rest is not.
            Busy: other daemons took the chosen hosts five times in a row.
            Denied: a tenant asked in another's name.
        """
        request, ends = await self._judged(request, who)
        async with self._claiming:
            for attempt in range(1, RACES + 1):
                chosen = await self._choose(request)
                try:
                    lease, run = await self._claim(request, chosen, ends, who)
                except Conflict as race:
                    log.info("claim.raced", attempt=attempt, why=str(race))
                    await self._clock.sleep(backoff(attempt, first=0.02, cap=0.5, spread=0.9))
                    continue
                self._wake(run.id)
                return lease
        raise Busy(
            "the chosen hosts were taken by others, five times in a row",
            remedy="ask again; the request itself is fine",
            retry_after=1.0,
        )

    async def plan(self, request: LeaseRequest, *, who: Principal) -> LeasePlan:
        """What `create` would do now; nothing is claimed. Raises what `create` raises, but never Busy."""
        request, ends = await self._judged(request, who)
        return LeasePlan(request=request, ends=ends, hosts=tuple(await self._choose(request)))

    async def get(self, lease_id: str) -> Lease:
        """Raises NotFound."""
        return await rows.get(self._db, lease_id)

    async def every(self, tenant: str | None = None, live: bool = False) -> list[Lease]:
        """Leases, all or a tenant's; `live`: delivering, active or ending."""
        return await rows.every(self._db, tenant=tenant, live=live)

    async def extend(self, lease_id: str, ends_at: float, *, who: Principal) -> Lease:
        """A later end (wall seconds). A lease that expired comes back to life while its disks are not wiped yet.

        Raises:
            Invalid: the end is past, or no later than the present one.
            Conflict: the lease is over, or was released.
        """
        async with self._turn:
            lease = await self._owned(lease_id, who)
            now = self._clock.wall()
            checked_end(ends_at, now)
            back = lease.state is LeaseState.ENDING and lease.reason == EXPIRED and await self._untouched(lease)
            if lease.state not in (LeaseState.DELIVERING, LeaseState.ACTIVE) and not back:
                raise Conflict(
                    f"lease {lease.id} is {lease.state}", why=lease.reason or "it is over", remedy="ask for a new lease"
                )
            if ends_at <= lease.ends and not back:
                raise Conflict(
                    f"lease {lease.id} already lasts until {rfc3339(lease.ends)}",
                    why="an extension only lengthens",
                    remedy=f"to end it sooner: fleetctl lease release {lease.id}",
                )
            changes: dict[str, Any] = {"ends": ends_at}
            if back:
                changes |= {"state": LeaseState.ACTIVE, "released": None, "reclaim_at": None, "reason": ""}
            return await self._save(lease, "lease.extended", who.name, now, was=rfc3339(lease.ends), **changes)

    async def release(self, lease_id: str, *, who: Principal, wipe_now: bool = True) -> Lease:
        """End it: power off and wipe at once, or after the grace with `wipe_now` false. Releasing twice is fine.

        Raises:
            Conflict: it has ended or failed already.
        """
        async with self._turn:
            lease = await self._owned(lease_id, who)
            now = self._clock.wall()
            if lease.state in (LeaseState.ENDED, LeaseState.FAILED):
                raise Conflict(f"lease {lease.id} is {lease.state} already", remedy=f"fleetctl lease show {lease.id}")
            wipe_at = now if wipe_now or lease.activated is None else now + self._grace
            if lease.state is LeaseState.ENDING:
                if lease.reclaim_at is None or lease.reclaim_at <= wipe_at:
                    return lease
                lease = await self._save(lease, "lease.wipe", who.name, now, reclaim_at=wipe_at)
            else:
                lease = await self._end(lease, f"released by {who.name}", wipe_at, who.name, now)
            await self._advance(lease, now)
            return await rows.get(self._db, lease.id)

    # --- the claim ------------------------------------------------------------------------------------------------

    async def _judged(self, request: LeaseRequest, who: Principal) -> tuple[LeaseRequest, float]:
        """The request with the image that it means, and its end in wall seconds."""
        self._own(request.tenant, who)
        sku = await inventory.sku(self._db, request.sku)
        known = await (self._images or self._of_skus)()
        ends = check_request(request, self._clock.wall(), lambda name: name in known)
        if request.site is not None and request.site not in (sites := await inventory.sites(self._db)):
            raise NotFound(
                f"there is no site `{request.site[:80]}`", why=f"sites: {', '.join(sorted(sites)) or 'none'}"
            )
        if request.image is None:
            request = msgspec.structs.replace(request, image=sku.image)
        return request, ends

    async def _choose(self, request: LeaseRequest) -> list[Host]:
        await self._brakes.frozen()
        now = self._clock_brake.latest()
        free: list[Host] = []
        blocked: list[tuple[Host, Blocker]] = []
        for host in await host_rows.every(self._db, site=request.site, sku=request.sku):
            if host.state is State.RETIRED:
                continue
            found = self._hosts.blockers(host, now)
            if found:
                blocked.append((host, found[0]))
            else:
                free.append(host)
        chosen = choose(free, request.count, request.placement)
        if chosen is None:
            live = await rows.every(self._db, live=True)
            raise refusal(request, free, blocked, {host: lease.ends for lease in live for host in lease.hosts}, now)
        return chosen

    async def _claim(
        self, request: LeaseRequest, chosen: Sequence[Host], ends: float, who: Principal
    ) -> tuple[Lease, Run]:
        """One transaction: lease, bindings, hosts to delivering, hand-over run, events. Raises Conflict on a race."""
        now = self._clock.wall()
        lease_id = new_id("lease", now)
        run, run_ops = self._new_run(
            self._runs.playbook(HANDOVER), chosen, now=now, who=who, lease=lease_id, selector=f"lease {lease_id}"
        )
        lease = Lease(
            id=lease_id,
            request=request,
            state=LeaseState.DELIVERING,
            hosts=tuple(host.id for host in chosen),
            created=now,
            starts=now,
            ends=ends,
            run=run.id,
            principal=who.name,
        )
        ops = rows.claim(lease, chosen, self._clock_brake.latest())
        said = [self._event("lease.claimed", lease, who.name, now, hosts=len(chosen))]
        for host in chosen:
            # From this commit on a tenant's keys may reach the disk: only a proven wipe takes the mark away.
            ops.append(host_rows.save(moved(host, State.DELIVERING, now, tenant_data="possible")))
            said.append(_state_event(host, State.DELIVERING, lease, run.id, who.name, now))
        await self._db.commit([*ops, *run_ops, *(events.append(event) for event in said)])
        return lease, run

    # --- what the engine calls ------------------------------------------------------------------------------------

    async def follow(self, run: Run, place: RunHost) -> None:
        """A host left a run: bring the run's lease as far as it can go; pending maintenance of the host takes effect."""
        async with self._turn:
            if run.lease is not None and run.playbook == HANDOVER:
                await self.handed_over(run.lease, place.host)
            elif run.lease is not None:
                await self._advance(await rows.get(self._db, run.lease), self._clock.wall())
            await self._hosts.settle_maintenance(place.host)

    async def handed_over(self, lease_id: str, host_id: str) -> None:
        """The hand-over of one host ended, well or not."""
        host = await host_rows.get(self._db, host_id)
        if host.state is State.LEASED:
            left = self._left.get(lease_id)
            if left is not None:
                left.discard(host_id)
                if left:
                    return  # a thousand hosts arrive one by one: read them all only when the last one did
        await self._advance(await rows.get(self._db, lease_id), self._clock.wall())

    async def tick(self, now: float) -> None:
        """Called about once a second; looks every few seconds."""
        if not 0 <= now - self._looked < LOOK_EVERY:
            self._looked = now
            await self.look(now)

    async def look(self, now: float) -> None:
        """Remind, expire what is due, bring every lease between two states further. Never raises for one lease."""
        async with self._turn:
            if not self._settled:
                await self._settle_all()
            live = await rows.every(self._db, live=True)
            if self._clock_brake.suspended is None:
                await self._remind(live, now)
                await self._expire(live, now)
            moving = [lease for lease in await rows.every(self._db, live=True) if lease.state is not LeaseState.ACTIVE]
            bound: dict[str, list[Host]] = {lease.id: [] for lease in moving}
            for sku in sorted({lease.request.sku for lease in moving}):
                for host in await host_rows.every(self._db, sku=sku):
                    if host.lease in bound:
                        bound[host.lease].append(host)
            for lease in moving:
                try:
                    await self._advance(lease, now, bound[lease.id])
                except FleetError as error:
                    log.info("lease.later", lease=lease.id, why=str(error))  # the next look tries again

    async def _settle_all(self) -> None:
        """Once after a start: maintenance whose moment passed while nobody looked takes effect now."""
        for host in await host_rows.every(self._db):
            if host.status.pending_maintenance is not None:
                await self._hosts.settle_maintenance(host.id)
        self._settled = True

    # --- what time brings -----------------------------------------------------------------------------------------

    async def _expire(self, live: Iterable[Lease], now: float) -> None:
        running = (LeaseState.ACTIVE, LeaseState.DELIVERING)
        due = [lease for lease in live if lease.ends <= now and lease.state in running]
        if not due:
            return
        if await self._mass.may_end([lease.id for lease in due], now) is not None:
            return
        for lease in due:
            wipe_at = now + self._grace if lease.activated is not None else now
            try:
                await self._end(lease, EXPIRED, wipe_at, SYSTEM.name, now)
            except FleetError as error:
                log.info("lease.later", lease=lease.id, why=str(error))

    async def _remind(self, live: Iterable[Lease], now: float) -> None:
        """An event when a lease comes within a day, and an hour, of its end; each once, also across restarts."""
        stored = await access.setting(self._db, LOOKED)
        try:
            last = float(stored) if stored is not None else now
        except ValueError:
            last = now
        due = [
            self._event(
                "lease.reminder",
                lease,
                SYSTEM.name,
                now,
                ends=rfc3339(lease.ends),
                left=human_duration(lease.ends - now),
            )
            for lease in live
            if lease.state is LeaseState.ACTIVE
            and any(last < lease.ends - ahead <= now < lease.ends for ahead in REMINDERS)
        ]
        if due or now - last > 60 or now < last or stored is None:
            await self._db.commit([access.set_setting(LOOKED, repr(now)), *(events.append(event) for event in due)])

    # --- from state to state --------------------------------------------------------------------------------------

    async def _advance(self, lease: Lease, now: float, bound: Sequence[Host] | None = None) -> None:
        """Bring one lease as far as its hosts allow now. `bound`: what it holds, when the caller has just read it."""
        bound = await self._bound(lease) if bound is None else bound
        if lease.state is LeaseState.DELIVERING:
            lease = await self._judge_handover(lease, bound, now)
        if lease.state is LeaseState.ENDING or (lease.state is LeaseState.FAILED and lease.ended is None):
            await self._reclaim(lease, bound, now)
            await self._finish(lease.id, bound, now)

    async def _bound(self, lease: Lease) -> list[Host]:
        """Hosts this lease still holds, as they are now. (The SKU of a bound host cannot be edited.)"""
        return [h for h in await host_rows.every(self._db, sku=lease.request.sku) if h.lease == lease.id]

    async def _untouched(self, lease: Lease) -> bool:
        """No host's reclaim has begun."""
        bound = await self._bound(lease)
        return len(bound) == len(lease.hosts) and all(h.state is State.LEASED and h.run is None for h in bound)

    async def _judge_handover(self, lease: Lease, bound: Sequence[Host], now: float) -> Lease:
        why = await self._handover_failed(lease, bound)
        if why is not None:
            self._left.pop(lease.id, None)
            failed = await self._save(
                lease, "lease.failed", SYSTEM.name, now,
                state=LeaseState.FAILED, reason=why, released=now, reclaim_at=now,
            )  # fmt: skip
            await self._stop_run(lease.run)
            return failed
        left = {host.id for host in bound if host.state is not State.LEASED}
        if left or len(bound) != len(lease.hosts):
            self._left[lease.id] = left
            return lease
        self._left.pop(lease.id, None)
        return await self._save(lease, "lease.active", SYSTEM.name, now, state=LeaseState.ACTIVE, activated=now)

    async def _handover_failed(self, lease: Lease, bound: Sequence[Host]) -> str | None:
        """All or none: one host that cannot be handed over is enough."""
        names = {host.id: host.name for host in bound}
        strays = [host for host in bound if host.state not in (State.DELIVERING, State.LEASED)]
        places = await run_rows.hosts(self._db, lease.run) if lease.run is not None else []
        failed = [p for p in places if p.state in (RunHostState.FAILED, RunHostState.HELD)]
        for place in failed:
            if place.finding is not None:
                name = names.get(place.host, place.host)
                return f"the hand-over of {name} failed: {place.finding.code}: {place.finding.message}"[:500]
        if failed:
            return f"the hand-over of {names.get(failed[0].host, failed[0].host)} did not start: its run ended before"
        if strays:
            return f"host {strays[0].name} is {strays[0].state} instead of delivering"
        return None

    async def _end(self, lease: Lease, reason: str, wipe_at: float, who: str, now: float) -> Lease:
        delivering = lease.state is LeaseState.DELIVERING
        ended = await self._save(
            lease, "lease.ending", who, now,
            state=LeaseState.ENDING, reason=reason, released=now, reclaim_at=wipe_at,
        )  # fmt: skip
        self._left.pop(lease.id, None)
        if delivering:
            await self._stop_run(lease.run)
        return ended

    async def _stop_run(self, run_id: str | None) -> None:
        """The hosts that are still being handed over stop at their next safe point; the next look reclaims them."""
        if run_id is None:
            return
        try:
            await self._runs.cancel(run_id, who=SYSTEM)
        except FleetError as error:
            log.warning("lease.cancel", run=run_id, why=str(error))
        self._wake(run_id)

    async def _reclaim(self, lease: Lease, bound: Sequence[Host], now: float) -> None:
        """Start the reclaim of every host that no run has and whose time has come. All in one transaction."""
        graced = lease.reclaim_at is not None and lease.released is not None and lease.reclaim_at > lease.released
        if graced and (self._clock_brake.suspended is not None or now < (lease.reclaim_at or 0.0)):
            return
        todo = [host for host in bound if host.run is None and host.state in _WITH_TENANT]
        if any(host.state is State.RECLAIMING for host in todo):
            tried = await self._tried(lease)
            todo = [host for host in todo if host.state is not State.RECLAIMING or host.id not in tried]
        if not todo or not await self._handover_over(lease):
            return
        run, run_ops = self._new_run(
            self._runs.playbook(RECLAIM), todo, now=now, who=SYSTEM, lease=lease.id, selector=f"lease {lease.id}"
        )
        said: list[Event] = []
        ops: list[Op] = [rows.save(msgspec.structs.replace(lease, run=run.id))]
        sku = await inventory.sku(self._db, lease.request.sku)
        for host in todo:
            if host.state is State.LEASED and lease.activated is not None:
                said.append(_usage(lease, host, sku, now))
            if host.state is not State.RECLAIMING:
                ops.append(host_rows.save(moved(host, State.RECLAIMING, now)))
                said.append(_state_event(host, State.RECLAIMING, lease, run.id, SYSTEM.name, now))
        await self._db.commit([*ops, *run_ops, *(events.append(event) for event in said)])
        self._wake(run.id)

    async def _tried(self, lease: Lease) -> set[str]:
        """Hosts that the lease's reclaim run had and let go: the next try is a person's decision or their deadline's."""
        if lease.run is None:
            return set()
        run = await run_rows.get(self._db, lease.run)
        return {place.host for place in await run_rows.hosts(self._db, run.id)} if run.playbook == RECLAIM else set()

    async def _handover_over(self, lease: Lease) -> bool:
        """No host is being handed over any more, so that one reclaim run takes all. What still is, is told to stop."""
        if lease.run is None:
            return True
        run = await run_rows.get(self._db, lease.run)
        if run.playbook != HANDOVER:
            return True
        unfinished = (RunHostState.PENDING, RunHostState.ACTIVE)
        if not any(place.state in unfinished for place in await run_rows.hosts(self._db, run.id)):
            return True
        await self._stop_run(run.id)
        return False

    async def _finish(self, lease_id: str, bound: Sequence[Host], now: float) -> None:
        """Let go of hosts that are proven clean; when the last one is, the lease has ended."""
        lease = await rows.get(self._db, lease_id)
        clean = [
            h for h in bound
            if h.state not in _WITH_TENANT and (h.tenant_data != "possible" or h.state is State.RETIRED)
        ]  # fmt: skip
        ops = [rows.release_binding(lease.id, host.id, now) for host in clean]
        if len(clean) == len(bound) and lease.ended is None:
            state = LeaseState.FAILED if lease.state is LeaseState.FAILED else LeaseState.ENDED
            await self._save(lease, "lease.ended", SYSTEM.name, now, beside=ops, state=state, ended=now)
        elif ops:
            await self._db.commit(ops)
        for host in clean:
            if host.status.pending_maintenance is not None:
                await self._hosts.settle_maintenance(host.id)

    # --- small things ---------------------------------------------------------------------------------------------

    async def _save(
        self,
        lease: Lease,
        kind: str,
        who: str,
        now: float,
        *,
        was: str | None = None,
        beside: Sequence[Op] = (),
        **changes: Any,
    ) -> Lease:
        changed = msgspec.structs.replace(lease, **changes)
        data = {"state": str(changed.state), "ends": rfc3339(changed.ends), "reason": changed.reason}
        event = self._event(kind, changed, who, now, **data, **({"was": was} if was else {}))
        await self._db.commit([*beside, rows.save(changed), events.append(event)])
        return await rows.get(self._db, lease.id)

    @staticmethod
    def _event(kind: str, lease: Lease, who: str, now: float, **data: Any) -> Event:
        asked = lease.request
        data = {"tenant": asked.tenant, "sku": asked.sku, "count": asked.count, **data}
        return Event(kind=kind, at=now, site=asked.site or "", run=lease.run, lease=lease.id, principal=who, data=data)

    async def _owned(self, lease_id: str, who: Principal) -> Lease:
        lease = await rows.get(self._db, lease_id)
        self._own(lease.request.tenant, who)
        return lease

    @staticmethod
    def _own(tenant: str, who: Principal) -> None:
        if who.role is Role.TENANT and who.tenant != tenant:
            raise Denied("a tenant leases only in its own name", why=f"the token is of tenant `{who.tenant}`")

    async def _of_skus(self) -> Collection[str]:
        return {sku.image for sku in (await inventory.skus(self._db)).values()}


def _state_event(host: Host, to: State, lease: Lease, run: str, who: str, now: float) -> Event:
    data = {"from": str(host.state), "to": str(to), "state": str(to), "why": f"lease {lease.id}"}
    event = host_event("host.state", host, now, who, **data)
    return msgspec.structs.replace(event, lease=lease.id, run=run)


def _usage(lease: Lease, host: Host, sku: Sku, now: float) -> Event:
    """The append-only record that bills are made of: from hand-over to the end that was agreed or asked for."""
    assert lease.activated is not None
    until = min(lease.released if lease.released is not None else now, lease.ends)
    used = max(0.0, until - lease.activated)
    data = {
        "tenant": lease.request.tenant,
        "sku": sku.sku,
        "gpus": sku.gpu_count,
        "from": rfc3339(lease.activated),
        "to": rfc3339(until),
        "gpu_seconds": round(sku.gpu_count * used, 3),
    }
    event = host_event("usage", host, now, SYSTEM.name, **data)
    return msgspec.structs.replace(event, lease=lease.id)
