"""The brakes: what keeps a bad clock, a bad check or a frightened operator's bad minute from emptying a site.

Three of them, all stored in the ledger so that a restart forgets none: freezes (a person stops destructive steps),
holds (fleetd stops itself when too much happens at once), and the clock brake (expiries are suspended while the wall
clock is not to be believed). A brake only ever stops; none of them makes a host leaseable or ends a lease.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from fleetd.kit.clock import Clock, human_duration, rfc3339
from fleetd.kit.errors import Invalid, NotFound
from fleetd.kit.logs import get
from fleetd.model.access import Principal
from fleetd.model.event import Event
from fleetd.model.host import Host, State
from fleetd.store import access, events
from fleetd.store import hosts as host_rows
from fleetd.store.database import Database

log = get("brakes")

FREEZE = "freeze:"
HOLD = "hold:"
PERMIT = "permit:"
RECENT = "recent:"
CLOCK_LAST = "clock.last"
CLOCK_SUSPENDED = "clock.suspended"
EXPIRY = "lease-expiry"
MAX_REASON = 500
STORE_EVERY = 30.0  # seconds between writes of the time that was believed last

_SCOPE = re.compile(r"^(all|(site|rack):[a-z0-9][a-z0-9.-]{0,62})\Z")


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    """What a setting of ours holds: why, by whom, since when (wall seconds)."""

    reason: str
    by: str
    at: float

    def text(self) -> str:
        return f"{self.reason} (by {self.by}, {rfc3339(self.at)})"


def bounded_reason(reason: str, *, what: str) -> str:
    """A person's reason: one line, not empty, at most 500 characters. Raises Invalid."""
    line = " ".join(reason.split())
    if not line or len(line) > MAX_REASON:
        raise Invalid(f"{what} needs a reason of 1 to {MAX_REASON} characters", where="reason")
    return line


def _read_note(text: str) -> _Note:
    try:
        return msgspec.json.decode(text, type=_Note)
    except msgspec.DecodeError:
        # A brake that cannot be read stays on: it was set by somebody.
        return _Note(reason=text[:MAX_REASON], by="unknown", at=0.0)


def _note(reason: str, by: str, at: float) -> str:
    return msgspec.json.encode(_Note(reason=reason, by=by, at=at)).decode()


def scopes_of(host: Host) -> tuple[str, str, str]:
    """The freeze scopes that cover a host, widest first."""
    return ("all", f"site:{host.spec.site}", f"rack:{host.spec.rack}")


class BrakeDesk:
    """Freezes and holds. Source of facts: the ledger's settings, read again at every question but `seen`."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock
        self._seen: Mapping[str, str] = {}

    # --- freezes ----------------------------------------------------------------------------------------------------

    async def frozen(self) -> dict[str, str]:
        """Scope ("all", "site:louisiana", "rack:lou-a01") -> reason, by whom, since when."""
        stored = await access.settings(self._db, FREEZE)
        found = {name.removeprefix(FREEZE): _read_note(value).text() for name, value in stored.items()}
        self._seen = found
        return found

    async def freeze(self, scope: str, reason: str, *, who: Principal) -> None:
        """Stop every destructive step in this scope until thawed. Freezing twice replaces the reason.

        Raises:
            Invalid: no such form of scope, or no reason.
        """
        self._check(scope)
        why = bounded_reason(reason, what="a freeze")
        now = self._clock.wall()
        await self._db.commit(
            [
                access.set_setting(FREEZE + scope, _note(why, who.name, now)),
                events.append(self._event("brake.freeze", now, scope, who.name, {"scope": scope, "reason": why})),
            ]
        )
        await self.frozen()

    async def thaw(self, scope: str, *, who: Principal) -> None:
        """Take the freeze off. Raises NotFound when this scope is not frozen."""
        self._check(scope)
        frozen = await self.frozen()
        if scope not in frozen:
            raise NotFound(
                f"{scope} is not frozen",
                why="frozen now: " + (", ".join(sorted(frozen)) or "nothing"),
                remedy="thaw exactly the scope that was frozen",
            )
        now = self._clock.wall()
        await self._db.commit(
            [
                access.drop_setting(FREEZE + scope),
                events.append(self._event("brake.thaw", now, scope, who.name, {"scope": scope, "was": frozen[scope]})),
            ]
        )
        await self.frozen()

    async def blocked(self, host: Host) -> str | None:
        """Why no destructive call may be made on this host now; read again from the ledger each time."""
        await self.frozen()
        return self.seen(host)

    def seen(self, host: Host) -> str | None:
        """The same from the last read: for lists and reasons, never for a destructive call."""
        for scope in scopes_of(host):
            if scope in self._seen:
                return f"frozen: {scope}: {self._seen[scope]}"
        return None

    @staticmethod
    def _check(scope: str) -> None:
        if not _SCOPE.match(scope):
            raise Invalid(f"`{scope[:80]}` is no scope", remedy="write all, site:NAME or rack:NAME", where="scope")

    # --- holds ------------------------------------------------------------------------------------------------------

    async def holds(self) -> dict[str, str]:
        """What fleetd itself has stopped: name ("lease-expiry", "check:gpu.count") -> reason, since when."""
        stored = await access.settings(self._db, HOLD)
        return {name.removeprefix(HOLD): _read_note(value).text() for name, value in stored.items()}

    async def held(self, name: str) -> str | None:
        """The reason when this hold stands, else None."""
        stored = await access.setting(self._db, HOLD + name)
        return None if stored is None else _read_note(stored).text()

    async def hold(self, name: str, reason: str) -> str:
        """Stop `name` until a person lifts it; the first reason stays. Returns the reason that stands."""
        standing = await self.held(name)
        if standing is not None:
            return standing
        now = self._clock.wall()
        remedy = f"look at what happened, then `fleetctl lift {name}`"
        await self._db.commit(
            [
                access.set_setting(HOLD + name, _note(reason, "fleetd", now)),
                events.append(
                    self._event("brake.hold", now, "", "fleetd", {"hold": name, "reason": reason, "remedy": remedy})
                ),
            ]
        )
        log.warning("hold", hold=name, reason=reason)
        return _read_note(_note(reason, "fleetd", now)).text()

    async def lift(self, name: str, *, who: Principal, permit: float = 3600.0) -> None:
        """A person looked: go on, and do not hold the same again for `permit` seconds. Raises NotFound."""
        standing = await self.held(name)
        if standing is None:
            raise NotFound(f"there is no hold `{name[:80]}`", remedy="those that stand: `fleetctl brakes`")
        now = self._clock.wall()
        await self._db.commit(
            [
                access.drop_setting(HOLD + name),
                access.drop_setting(RECENT + name),
                access.set_setting(PERMIT + name, repr(now + permit)),
                events.append(self._event("brake.lift", now, "", who.name, {"hold": name, "was": standing})),
            ]
        )

    async def permitted(self, name: str, now: float) -> bool:
        """True while a person's lift of this hold still counts."""
        stored = await access.setting(self._db, PERMIT + name)
        try:
            return stored is not None and now < float(stored)
        except ValueError:
            return False

    @staticmethod
    def _event(kind: str, now: float, scope: str, principal: str, data: dict[str, Any]) -> Event:
        site = scope.removeprefix("site:") if scope.startswith("site:") else ""
        return Event(kind=kind, at=now, site=site, principal=principal, data=data)


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When too much is too much. `window` in seconds."""

    max_ending: int = 50  # leases that may expire within the window
    max_failing: float = 0.2  # share of the idle hosts that may fail one check within the window
    least_failing: int = 3  # fewer hosts than this never hold: one bad rack of two is no mass event
    window: float = 3600.0


LIMITS = Limits()


class MassBrake:
    """Counts what ends and what fails, and holds before a mistake becomes an outage."""

    def __init__(self, db: Database, clock: Clock, brakes: BrakeDesk, limits: Limits = LIMITS) -> None:
        self._db, self._clock, self._brakes = db, clock, brakes
        self.limits = limits
        self._lock = asyncio.Lock()

    async def may_end(self, leases: Sequence[str], now: float) -> str | None:
        """May these leases (ids) expire now, beside those that did within the window? None: yes; else why not."""
        async with self._lock:
            standing = await self._brakes.held(EXPIRY)
            if standing is not None:
                return standing
            recent = await self._recent(EXPIRY, now) | dict.fromkeys(leases, now)
            if len(recent) > self.limits.max_ending and not await self._brakes.permitted(EXPIRY, now):
                return await self._brakes.hold(
                    EXPIRY,
                    f"{len(recent)} leases would end within {human_duration(self.limits.window)},"
                    f" more than {self.limits.max_ending}: no lease expires",
                )
            await self._keep(EXPIRY, recent)
            return None

    async def failing(self, check: str, host: Host, now: float) -> str | None:
        """An idle host failed this check. None: act on it; else the hold's reason: then change nothing.

        Counted are distinct hosts within the window against the hosts that are or were idle in it. The count is kept
        in the ledger, so a daemon that restarts in the middle of a mass failure does not start counting from nothing.
        """
        name = f"check:{check}"
        async with self._lock:
            standing = await self._brakes.held(name)
            if standing is not None:
                return standing
            recent = await self._recent(name, now) | {host.id: now}
            await self._keep(name, recent)
            idle = {h.id for h in await host_rows.every(self._db, state=State.AVAILABLE)}
            total = len(idle | recent.keys())
            if len(recent) < self.limits.least_failing or len(recent) <= self.limits.max_failing * total:
                return None
            if await self._brakes.permitted(name, now):
                return None
            return await self._brakes.hold(
                name,
                f"{len(recent)} of {total} idle hosts failed {check} within {human_duration(self.limits.window)}:"
                " suspect the check or the SKU before the hosts",
            )

    async def _recent(self, name: str, now: float) -> dict[str, float]:
        known = _read_times(await access.setting(self._db, RECENT + name))
        return {key: at for key, at in known.items() if now - self.limits.window < at <= now}

    async def _keep(self, name: str, recent: dict[str, float]) -> None:
        await self._db.commit([access.set_setting(RECENT + name, msgspec.json.encode(recent).decode())])


def _read_times(stored: str | None) -> dict[str, float]:
    try:
        return msgspec.json.decode(stored, type=dict[str, float]) if stored else {}
    except msgspec.DecodeError:
        return {}


class ClockBrake:
    """Suspends expiries while the wall clock contradicts the steady one, the last stored time, or the kernel's word.

    `tick` is called regularly (every second or so; it writes every 30 s). Within a process the wall must move as the steady clock does: at
    most `back` seconds behind, at most `forward` ahead. Across a restart only a step back is certain (the daemon may
    have been down for days). While suspended `clock.last` is not written: a wrong time must not become the truth to compare with.

    Args:
        synchronised: tells whether the kernel believes its clock; None when it cannot know.
        settle: seconds for which the clock must agree again before expiries go on by themselves.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        *,
        synchronised: Callable[[], bool | None] | None = None,
        back: float = 300.0,
        forward: float = 3600.0,
        settle: float = 600.0,
    ) -> None:
        self._db, self._clock = db, clock
        self._synchronised = synchronised
        self._back, self._forward, self._settle = back, forward, settle
        self._anchor: tuple[float, float] | None = None  # (wall, steady) of an instant that was believed
        self._floor_only = False  # the anchor is a stored time: only "earlier than that" means anything
        self._inherited = False  # suspended by an earlier process, and nothing tells how long ago that was
        self._agrees_since: float | None = None  # steady
        self._stored: float | None = None  # steady
        self._why: str | None = "the clock was not looked at yet"

    @property
    def suspended(self) -> str | None:
        """Why nothing expires now; None when the clock is believed. Before the first tick nothing expires."""
        return self._why

    def latest(self) -> float:
        """Wall seconds to judge validity by: never earlier than the steady clock says it must be (fail closed).

        A clock that fell back would otherwise make an expired certificate look valid again.
        """
        wall = self._clock.wall()
        if self._anchor is None:
            return wall
        then, since = self._anchor
        return max(wall, then + self._clock.steady() - since)

    def status(self) -> dict[str, Any]:
        """For health pages: wall, and whether expiries are suspended."""
        return {
            "wall": rfc3339(self._clock.wall()),
            "expiries": "suspended" if self._why else "on",
            "why": self._why or "",
        }

    async def tick(self) -> str | None:
        """Look at the clocks, store or suspend. Returns `suspended`."""
        wall, steady = self._clock.wall(), self._clock.steady()
        if self._anchor is None:
            await self._begin(wall, steady)
        finding = self._judge(wall, steady)
        if finding is not None:
            self._agrees_since = None
            if self._why is None:
                await self._suspend(finding, wall)
            self._why = finding
        elif self._why is None:
            if self._stored is None or not 0 <= steady - self._stored < STORE_EVERY:
                await self._db.commit([access.set_setting(CLOCK_LAST, repr(wall))])
                self._stored = steady
        else:
            await self._agree(wall, steady)
        return self._why

    async def clear(self, *, who: Principal) -> None:
        """An operator says that the wall clock is right as it is now."""
        wall = self._clock.wall()
        self._anchor, self._floor_only, self._inherited = (wall, self._clock.steady()), False, False
        await self._resume(wall, who.name)

    async def _begin(self, wall: float, steady: float) -> None:
        """The first look of this process: compare with the stored time, and keep a suspension that was stored."""
        self._anchor, self._why = (wall, steady), None
        stored = await access.setting(self._db, CLOCK_LAST)
        try:
            last = float(stored) if stored is not None else None
        except ValueError:
            last = None
        if last is not None and wall < last - self._back:
            self._anchor, self._floor_only = (last, steady), True
        standing = await access.setting(self._db, CLOCK_SUSPENDED)
        if standing is not None:
            self._why = _read_note(standing).reason
            near = last is not None and last - self._back <= wall <= last + self._forward
            self._inherited = not near

    def _judge(self, wall: float, steady: float) -> str | None:
        assert self._anchor is not None
        then, since = self._anchor
        ahead = wall - (then + steady - since)
        if ahead < -self._back:
            return f"the wall clock is {human_duration(ahead)} behind what it should be"
        if self._floor_only:
            # It is at or past the stored time again: from here on it can be measured against the steady clock.
            self._anchor, self._floor_only = (wall, steady), False
        elif ahead > self._forward:
            return f"the wall clock is {human_duration(ahead)} ahead of what it should be"
        synchronised = self._synchronised() if self._synchronised is not None else None
        if synchronised is False:
            return "the wall clock is not synchronised"
        if self._inherited and not synchronised:
            # The wrong time may have come through the restart with us: agreeing with itself would prove nothing.
            return "expiries were suspended before this start, and nothing shows that the wall clock is right now"
        self._inherited = False
        return None

    async def _agree(self, wall: float, steady: float) -> None:
        if self._agrees_since is None:
            self._agrees_since = steady
        if steady - self._agrees_since >= self._settle:
            await self._resume(wall, "fleetd")

    async def _suspend(self, why: str, wall: float) -> None:
        data = {
            "why": why,
            "effect": "no certificate and no lease expires",
            "remedy": "correct the clock (chronyc tracking)",
        }
        await self._db.commit(
            [
                access.set_setting(CLOCK_SUSPENDED, _note(why, "fleetd", wall)),
                events.append(Event(kind="brake.clock.suspended", at=wall, principal="fleetd", data=data)),
            ]
        )
        log.warning("expiries suspended", why=why)

    async def _resume(self, wall: float, by: str) -> None:
        await self._db.commit(
            [
                access.drop_setting(CLOCK_SUSPENDED),
                access.set_setting(CLOCK_LAST, repr(wall)),
                events.append(Event(kind="brake.clock.resumed", at=wall, principal=by, data={"was": self._why or ""})),
            ]
        )
        self._why, self._agrees_since = None, None
