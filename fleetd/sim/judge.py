"""Judges a finished demo by the simulator's own record, the plan, and what fleetd's API shows; believes none alone.

What fleetd says (host list) is held against what was seeded (plan) and what really reached the machines (record).
Every problem is a sentence; an empty list is the only good verdict.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from fleetd.sim.demo import DemoPlan
from fleetd.sim.record import Entry

SEEDED = "fault.seeded"  # written by site.py for each fault at its start
TENANT_BEGIN, TENANT_END = (
    "tenant.begin",
    "tenant.end",
)  # marked by whoever plays the tenant (SimSite.mark, control.py)
# Entries that only a command of fleetd's run can cause; a host without any of them was never started.
COMMANDS = ("power.", "boot.", "account.", "wipe.", "drive.", "image.")
_ROUND = ("wipe.done", "image.write", "boot.disk")
DESTRUCTIVE = ("wipe.begin", "drive.erase", "drive.write", "image.write")
RESTING = frozenset({"registered", "manageable", "quarantined", "maintenance"})


class _Coded(msgspec.Struct):
    code: str = ""
    id: str = ""
    message: str = ""


class Seen(msgspec.Struct, kw_only=True):
    """A host as the API lists it; fields that the judge does not need are ignored."""

    name: str
    state: str
    id: str = ""
    leaseable: bool | None = None
    lease: str | None = None
    reasons: list[Any] = []
    findings: list[_Coded] = []
    alerts: list[_Coded] = []

    @property
    def codes(self) -> set[str]:
        """Every code fleetd names for this host: findings first, alerts, and error codes written out in reasons."""
        found = {item.code for item in self.findings if item.code} | {item.id for item in self.alerts if item.id}
        for text in (*map(str, self.reasons), *(item.message for item in self.alerts)):
            found |= set(re.findall(r"\bFLT-\d{4}\b", text))
        return found


def judge(
    plan: DemoPlan,
    record: Sequence[Entry],
    hosts: Iterable[Mapping[str, Any]],
    *,
    leased: Collection[str] = (),
    bad_rack_run: bool = True,
) -> list[str]:
    """Everything that went wrong, as sentences; empty when the demo is good.

    Args:
        record: the simulator's log, in order (`read_record`).
        hosts: the API's host list, as decoded JSON.
        leased: names of hosts that are leased at the end.
        bad_rack_run: False when the bad rack was not brought up: then it must be untouched.
    """
    problems: list[str] = []
    rack_of = plan.racks_of
    seen: dict[str, Seen] = {}
    for raw in hosts:
        host = msgspec.convert(dict(raw), Seen)
        if host.name in seen:
            problems.append(f"{host.name} stands twice in the host list.")
        seen[host.name] = host
    problems += [f"{name} is in the plan and not in the host list." for name in plan.hosts if name not in seen]
    problems += [f"{name} is in the host list and not in the plan." for name in seen if name not in rack_of]
    by_host: dict[str, list[Entry]] = {name: [] for name in plan.hosts}
    for entry in record:
        by_host.setdefault(entry.host, []).append(entry)
    problems += _seeding(plan, record)
    problems += _good(plan, seen, by_host, frozenset(leased))
    problems += _faulty(plan, seen, by_host)
    for name, entries in by_host.items():
        problems += destruction(name, entries)
    problems += _bad_rack(plan, seen, by_host, ran=bad_rack_run)
    return problems


def _seeding(plan: DemoPlan, record: Sequence[Entry]) -> list[str]:
    """The record is of this very demo: it names exactly the planned faults."""
    told = Counter((entry.host, str(entry.data.get("kind"))) for entry in record if entry.what == SEEDED)
    wanted = {(spec.host, spec.kind) for spec in plan.faults.values()}
    return [
        *(
            f"The record does not show the planned fault {kind} on {host}."
            for host, kind in sorted(wanted - told.keys())
        ),
        *(f"The record shows {kind} on {host}, which was not planned." for host, kind in sorted(told.keys() - wanted)),
    ]


def _good(
    plan: DemoPlan, seen: Mapping[str, Seen], by_host: Mapping[str, Sequence[Entry]], leased: frozenset[str]
) -> list[str]:
    problems = []
    for name in plan.good:
        host = seen.get(name)
        if host is None:
            continue
        wanted = "leased" if name in leased else "available"
        if host.state != wanted:
            why = f" ({', '.join(sorted(host.codes))})" if host.codes else ""
            problems.append(f"{name} is sound and should be {wanted}, but is {host.state}{why}.")
            continue
        if host.findings:
            problems.append(f"{name} is sound, but fleetd found {', '.join(sorted(host.codes))}.")
        if wanted == "available" and host.leaseable is False:
            problems.append(
                f"{name} is available but not leaseable: {'; '.join(map(str, host.reasons)) or 'no reason given'}."
            )
        problems += _earned(name, by_host[name])
    for name in leased:
        if name not in plan.good:
            problems.append(f"{name} was leased, but is no sound host of the fleet.")
    return problems


def _earned(name: str, entries: Sequence[Entry]) -> list[str]:
    """A published host went the whole way: a deploy boot; in the last round wipe, image, its own disk, in order."""
    last = {entry.what: i for i, entry in enumerate(entries) if entry.data.get("ok") is not False}
    missing = [what for what in ("boot.deploy", *_ROUND) if what not in last]
    if missing:
        return [f"{name} was published, but the record shows no {', no '.join(missing)}."]
    places = [last[what] for what in _ROUND]
    if places != sorted(places):
        return [f"{name} was published, but its last {', '.join(_ROUND)} are out of order in the record."]
    return []


def _faulty(plan: DemoPlan, seen: Mapping[str, Seen], by_host: Mapping[str, Sequence[Entry]]) -> list[str]:
    problems = []
    for name in plan.faulty:
        host, kind = seen.get(name), plan.faults[name].kind
        if host is None:
            continue
        wanted = plan.expected[kind]
        if host.state not in RESTING:
            problems.append(f"{name} has {kind}, but is {host.state}.")
        elif not host.codes & set(wanted):
            found = ", ".join(sorted(host.codes)) or "nothing"
            problems.append(f"{name} has {kind}: fleetd should have found {' or '.join(wanted)}, it found {found}.")
        if kind == "wrong-serial":
            for entry in by_host[name]:
                if entry.what in DESTRUCTIVE:
                    problems.append(f"{name} has another serial than the inventory, and saw {entry.what} all the same.")
                    break
    return problems


def destruction(name: str, entries: Sequence[Entry]) -> list[str]:
    """No destructive act twice on one intent, none without an intent, none while a tenant has the host."""
    problems = []
    begun: Counter[tuple[str, str, str]] = Counter()
    tenant, unclean = "", False
    for entry in entries:
        if entry.what == TENANT_BEGIN:
            tenant = str(entry.data.get("lease") or "a tenant")
        elif entry.what == TENANT_END:
            tenant = ""
        elif entry.what in DESTRUCTIVE:
            intent = str(entry.data.get("intent") or "")
            if tenant:
                problems.append(f"{name} saw {entry.what} while leased ({tenant}), entry {entry.n}.")
            if unclean and entry.what == "image.write":
                problems.append(f"{name} got an image on a drive set that was not erased, entry {entry.n}.")
            if not intent:
                problems.append(f"{name} saw {entry.what} without an intent, entry {entry.n}.")
            else:
                begun[(entry.what, intent, str(entry.data.get("drive") or ""))] += 1
        elif entry.what == "wipe.done":
            unclean = entry.data.get("ok") is False
    for (what, intent, drive), times in begun.items():
        if times > 1:
            part = f" of {drive}" if drive else ""
            problems.append(f"{name} saw {what}{part} {times} times on one intent, {intent}.")
    return problems


def _bad_rack(
    plan: DemoPlan, seen: Mapping[str, Seen], by_host: Mapping[str, Sequence[Entry]], *, ran: bool
) -> list[str]:
    rack, names = plan.bad_rack, plan.bad_hosts
    started = [name for name in names if any(entry.what.startswith(COMMANDS) for entry in by_host[name])]
    if not ran:
        return [f"{name} of the bad rack was touched, though it was not brought up." for name in started]
    problems = []
    if not started:
        return [f"No host of the bad rack {rack} was started."]
    if len(started) == len(names):
        problems.append(
            f"All {len(names)} hosts of the bad rack {rack} were started: the failure budget stopped nothing."
        )
    for name in names:
        host = seen.get(name)
        if host is None:
            continue
        if name in plan.faults and host.state not in RESTING:
            problems.append(f"{name} of the bad rack has {plan.faults[name].kind}, but is {host.state}.")
        if name not in started and host.state != "registered":
            problems.append(f"{name} of the bad rack was never started, but is {host.state}.")
    return problems
