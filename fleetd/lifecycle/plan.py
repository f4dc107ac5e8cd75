"""From inventory files to the ledger: a plan a person can read, then all of it in one commit, or nothing.

`apply` never deletes. A host that vanished from the files goes to maintenance, one that moved stays the same host,
and what a tenant's lease stands on (serial, boot MAC, BMC, SKU, NVLink domain) is not edited under the tenant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec

from fleetd.checks import misfit
from fleetd.kit.clock import Clock
from fleetd.kit.errors import Busy, Conflict
from fleetd.kit.ids import new_id
from fleetd.lifecycle import transitions
from fleetd.lifecycle.hosts import host_event, revoke_ops, to_maintenance
from fleetd.lifecycle.inventoryfiles import export_files
from fleetd.model import proof
from fleetd.model.access import Principal
from fleetd.model.bmc import BmcSpec
from fleetd.model.event import Event
from fleetd.model.host import Host, HostSpec, HostStatus, Maintenance, State
from fleetd.model.inventory import Inventory, RackSpec, SiteSpec, read_inventory
from fleetd.model.sku import Sku
from fleetd.store import events
from fleetd.store import hosts as host_rows
from fleetd.store import inventory as rows
from fleetd.store.database import Database, Op

TRIES = 5
VANISHED = "vanished from the inventory"
RETURNED = "is back in the inventory"
VANISHED_FOR = 30 * 86_400.0
FEW_VANISHED = 10  # so many hosts of a site may vanish at once, or half of the site if that is more
GUARDED = frozenset({"serial", "boot_mac", "bmc", "sku", "nvlink_domain"})
IDENTITY = frozenset({"serial", "boot_mac", "bmc"})  # after an edit of these the host must be enrolled again
PLACES = frozenset({"name", "site", "rack", "position"})
_TENANTS = frozenset({State.DELIVERING, State.LEASED, State.RECLAIMING})


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a plan. `move` is an edit of where a host stands or what it is called."""

    action: Literal["add", "edit", "move", "maintenance", "refused"]
    kind: Literal["site", "rack", "sku", "host", "playbook"]
    name: str
    field: str = ""
    before: str = ""
    after: str = ""
    why: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`digest` names exactly this plan against exactly this ledger."""

    digest: str
    changes: tuple[Change, ...]
    applied: bool = False


class _Ledger(NamedTuple):
    sites: dict[str, SiteSpec]
    racks: dict[str, RackSpec]
    skus: dict[str, Sku]
    hosts: list[Host]  # not retired


class _HostPlan(NamedTuple):
    """What becomes of one host: `before` None when it is new, `after` None when it vanished."""

    before: Host | None
    after: HostSpec | None
    changes: tuple[Change, ...]

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(change.field for change in self.changes)


class InventoryDesk:
    """Plans and applies inventory files. Source of facts: the ledger, read at every call."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock

    async def plan(self, files: dict[str, str]) -> Plan:
        """What applying these files would change. Raises Invalid with file:line."""
        wanted = read_inventory(files, misfit)
        ledger = await self._ledger()
        _, _, plan = _make(wanted, ledger)
        return plan

    async def apply(self, files: dict[str, str], *, who: Principal, expect: str | None = None) -> Plan:
        """Do it, in one commit. Applying the same files again changes nothing.

        Args:
            expect: the digest of the plan that was shown to a person.

        Raises:
            Invalid: with file:line.
            Conflict: a change is refused, or the plan is not the expected one any more; nothing was applied.
            Busy: the hosts change faster than the plan can be written.
        """
        wanted = read_inventory(files, misfit)
        for _ in range(TRIES):
            ledger = await self._ledger()
            things, hosts, plan = _make(wanted, ledger)
            if expect is not None and expect != plan.digest:
                raise Conflict(
                    "the plan is stale",
                    why=f"it is {plan.digest[:12]} now, {expect[:12]} was expected: files or ledger changed since",
                    remedy="read the new plan: `fleetctl inventory plan`",
                )
            refused = [change for change in plan.changes if change.action == "refused"]
            if refused:
                raise _refusal(refused)
            if not plan.changes:
                return msgspec.structs.replace(plan, applied=True)
            try:
                await self._db.commit(self._ops(things, hosts, plan, who))
            except Conflict as race:
                raced = race
                continue
            return msgspec.structs.replace(plan, applied=True)
        raise Busy(
            "the ledger changes faster than the plan can be written",
            why=str(raced),
            remedy="apply again",
            retry_after=2.0,
        )

    async def export(self) -> dict[str, str]:
        """The ledger's inventory as files; applied again they change nothing. Retired and vanished hosts are left out."""
        ledger = await self._ledger()
        present = [host.spec for host in ledger.hosts if not _known_vanished(host)]
        return export_files(ledger.sites, ledger.racks, ledger.skus, present)

    async def _ledger(self) -> _Ledger:
        hosts = [host for host in await host_rows.every(self._db) if host.state is not State.RETIRED]
        return _Ledger(await rows.sites(self._db), await rows.racks(self._db), await rows.skus(self._db), hosts)

    # --- the commit -----------------------------------------------------------------------------------------------

    def _ops(
        self, things: list[SiteSpec | RackSpec | Sku], hosts: list[_HostPlan], plan: Plan, who: Principal
    ) -> list[Op]:
        now = self._clock.wall()
        ops: list[Op] = []
        for thing in things:
            if isinstance(thing, SiteSpec):
                ops.append(rows.put_site(thing))
            elif isinstance(thing, RackSpec):
                ops.append(rows.put_rack(thing))
            else:
                ops.append(rows.put_sku(thing))
        aside = _in_the_way(hosts)
        if aside:
            ops.append(host_rows.vacate(aside))
        said: list[Op] = []
        for item in hosts:
            host_ops, beside = self._host_ops(item, who, now)
            ops += host_ops
            said += beside
        counts = Counter(f"{change.kind} {change.action}" for change in plan.changes)
        data = {"digest": plan.digest, "changes": dict(sorted(counts.items()))}
        done = Event(kind="inventory.applied", at=now, principal=who.name, data=data)
        return [*ops, *said, events.append(done)]

    def _host_ops(self, item: _HostPlan, who: Principal, now: float) -> tuple[list[Op], list[Op]]:
        """Ops that write one host, and the events that tell of it."""
        if item.before is None:
            assert item.after is not None
            host = Host(id=new_id("host", now), spec=item.after, state_since=now)
            said = events.append(host_event("host.registered", host, now, who.name, serial=item.after.serial))
            return [host_rows.insert(host), *host_rows.record_facts(host.id, _facts(item.after), now)], [said]
        host = item.before
        said_ops: list[Op] = []
        if item.after is None:
            asked = Maintenance(owner=who.name, reason=VANISHED, until=now + VANISHED_FOR, requested_at=now)
            out, beside = to_maintenance(host, asked, now)
            return [host_rows.save(out)], beside
        out = msgspec.structs.replace(host, spec=item.after, spec_version=host.spec_version + 1)
        if "maintenance" in item.fields:
            out = msgspec.structs.replace(out, status=_returned(out))
        guarded = sorted(item.fields & GUARDED)
        if guarded:
            reason = "inventory changed: " + ", ".join(guarded)
            if _needs_a_person(host, item.fields):
                asked = Maintenance(owner=who.name, reason=reason, until=now + VANISHED_FOR, requested_at=now)
                out, beside = to_maintenance(out, asked, now)
                said_ops += beside
            elif host.certificate is not None:
                said_ops += revoke_ops(host, reason, now)
                out = msgspec.structs.replace(out, certificate=None, certificate_expires=None)
        for kind, action in (("host.moved", "move"), ("host.edited", "edit")):
            fields = {c.field: [c.before, c.after] for c in item.changes if c.action == action}
            if fields:
                said_ops.append(events.append(host_event(kind, out, now, who.name, fields=fields)))
        return [host_rows.save(out), *host_rows.record_facts(host.id, _facts(item.after), now)], said_ops


# --- the plan: pure -----------------------------------------------------------------------------------------------


def _make(wanted: Inventory, ledger: _Ledger) -> tuple[list[SiteSpec | RackSpec | Sku], list[_HostPlan], Plan]:
    things: list[SiteSpec | RackSpec | Sku] = []
    changes: list[Change] = []
    for name, site in sorted(wanted.sites.items()):
        _thing("site", name, ledger.sites.get(name), site, things, changes)
    for name, rack in sorted(wanted.racks.items()):
        _thing("rack", name, ledger.racks.get(name), rack, things, changes)
    for name, sku in sorted(wanted.skus.items()):
        _thing("sku", name, ledger.skus.get(name), sku, things, changes)
    hosts = _match(wanted, ledger)
    refused = [*_too_many_vanished(hosts, ledger), *_collisions(hosts, ledger)]
    for item in hosts:
        changes += item.changes
    changes += refused
    # What the plan stands on: what the files say, and of each host it touches the version of its facts and its state.
    read = {
        item.before.id: [
            item.before.spec_version,
            str(item.before.state),
            item.before.lease or "",
            item.before.run or "",
        ]
        for item in hosts
        if item.before is not None
    }
    digest = proof.digest([msgspec.to_builtins(changes), read, msgspec.to_builtins(wanted) if changes else None])
    return things, hosts, Plan(digest=digest, changes=tuple(changes))


def _thing(
    kind: Literal["site", "rack", "sku"],
    name: str,
    before: SiteSpec | RackSpec | Sku | None,
    after: SiteSpec | RackSpec | Sku,
    things: list[SiteSpec | RackSpec | Sku],
    changes: list[Change],
) -> None:
    if before == after:
        return
    things.append(after)
    if before is None:
        changes.append(Change(action="add", kind=kind, name=name))
        return
    for field, old, new in _differences(before, after):
        why = "hosts keep their certificate until their next proof" if kind == "sku" and field == "digest" else ""
        changes.append(Change(action="edit", kind=kind, name=name, field=field, before=old, after=new, why=why))


def _differences(before: Any, after: Any) -> list[tuple[str, str, str]]:
    return [
        (field, _text(getattr(before, field)), _text(getattr(after, field)))
        for field in after.__struct_fields__
        if getattr(before, field) != getattr(after, field)
    ]


def _text(value: Any) -> str:
    """A value as a plan shows it: one line, bounded."""
    if value is None:
        return ""
    if isinstance(value, BmcSpec):
        return f"{value.protocol} {value.address} {value.credentials}"
    plain = value if isinstance(value, str | int | float) else msgspec.json.encode(value, order="sorted").decode()
    line = str(plain)
    return line if len(line) <= 300 else line[:297] + "…"


def _match(wanted: Inventory, ledger: _Ledger) -> list[_HostPlan]:
    """Each wanted host with the host it is: by name; but a serial that another host carries means that one moved."""
    by_name = {host.name: host for host in ledger.hosts}
    by_serial = {host.spec.serial: host for host in ledger.hosts}
    serials = {spec.serial for spec in wanted.hosts.values()}
    found: list[_HostPlan] = []
    taken: set[str] = set()
    for name, spec in sorted(wanted.hosts.items()):
        before = by_serial.get(spec.serial)
        if before is None and name in by_name:
            # When the machine of that name is elsewhere in the files, this one is new at its old name.
            before = None if by_name[name].spec.serial in serials else by_name[name]
        if before is None:
            found.append(_HostPlan(None, spec, (Change(action="add", kind="host", name=name, after=_place(spec)),)))
            continue
        taken.add(before.id)
        changes = _host_changes(before, spec)
        if _known_vanished(before):
            back = Change(action="edit", kind="host", name=name, field="maintenance", before=VANISHED, after=RETURNED)
            changes = (*changes, back)
        if changes:
            found.append(_HostPlan(before, spec, changes))
    for host in sorted(ledger.hosts, key=lambda h: h.name):
        if host.id not in taken and host.spec.site in wanted.sites and not _is_away(host):
            pending = host.lease is not None or host.run is not None or not _may_leave(host)
            why = VANISHED + (f"; it is {host.state}, so this waits for the end of that" if pending else "")
            change = Change(action="maintenance", kind="host", name=host.name, before=str(host.state), why=why)
            found.append(_HostPlan(host, None, (change,)))
    return found


def _host_changes(host: Host, spec: HostSpec) -> tuple[Change, ...]:
    changes = []
    for field, old, new in _differences(host.spec, spec):
        action: Literal["move", "edit", "refused"] = "move" if field in PLACES else "edit"
        why = ""
        if field in GUARDED:
            why = _untouchable(host)
            if why:
                action = "refused"
        changes.append(Change(action=action, kind="host", name=host.name, field=field, before=old, after=new, why=why))
    fields = frozenset(change.field for change in changes)
    if fields & GUARDED and not any(c.action == "refused" for c in changes) and _needs_a_person(host, fields):
        why = "inventory changed: " + ", ".join(sorted(fields & GUARDED))
        changes.append(Change(action="maintenance", kind="host", name=host.name, before=str(host.state), why=why))
    return tuple(changes)


def _untouchable(host: Host) -> str:
    """Why identity, BMC and SKU of this host cannot be edited now; empty when they can."""
    if host.lease is not None:
        return f"lease {host.lease} holds it: release the lease first"
    if host.state in _TENANTS:
        return f"it is {host.state}: wait until it is reclaimed"
    if host.run is not None:
        return f"run {host.run} has it: wait for the run, or cancel it"
    return ""


def _needs_a_person(host: Host, fields: Iterable[str]) -> bool:
    """After this edit the host must go through maintenance, and so be enrolled and proven again."""
    if not GUARDED.intersection(fields):
        return False
    if host.state is State.AVAILABLE:
        return True
    if not IDENTITY.intersection(fields):
        return False
    return host.state is State.MANAGEABLE or (
        host.state is State.QUARANTINED and host.resume_state is not State.ENROLLING
    )


def _is_away(host: Host) -> bool:
    """A person has it already, for whatever reason, or will have it as soon as its lease or run ends."""
    return host.state is State.MAINTENANCE or host.status.pending_maintenance is not None


def _known_vanished(host: Host) -> bool:
    """An earlier apply missed it."""
    status = host.status
    return any(m is not None and m.reason == VANISHED for m in (status.maintenance, status.pending_maintenance))


def _may_leave(host: Host) -> bool:
    return transitions.legal(host.state, State.MAINTENANCE)


def _too_many_vanished(hosts: list[_HostPlan], ledger: _Ledger) -> list[Change]:
    """A forgotten folder must not empty a site."""
    gone = Counter(item.before.spec.site for item in hosts if item.before is not None and item.after is None)
    total = Counter(host.spec.site for host in ledger.hosts)
    return [
        Change(
            action="refused",
            kind="site",
            name=site,
            why=f"{count} of its {total[site]} hosts vanished: were all rack files given? If they are really gone:"
            " `fleetctl host maintenance` them first",
        )
        for site, count in sorted(gone.items())
        if count > FEW_VANISHED and 2 * count > total[site]
    ]


def _keys(spec: HostSpec) -> dict[str, str]:
    """What no two living hosts may share, as the ledger's unique indexes have it."""
    return {
        "name": spec.name,
        "serial": spec.serial,
        "place": f"{spec.site}/{spec.rack} U{spec.position}",
        "BMC address": f"{spec.bmc.host}:{spec.bmc.port}",
        "boot MAC": spec.boot_mac,
    }


def _collisions(hosts: list[_HostPlan], ledger: _Ledger) -> list[Change]:
    """Wanted values that a host outside the files still holds."""
    touched = {item.before.id for item in hosts if item.before is not None and item.after is not None}
    held = {key: host for host in ledger.hosts if host.id not in touched for key in _keys(host.spec).items()}
    found = []
    for item in hosts:
        if item.after is None:
            continue
        for key in _keys(item.after).items():
            other = held.get(key)
            if other is not None:
                why = f"{other.name} (serial {other.spec.serial}, {other.state}) has it: fleetctl host retire {other.name}"
                change = Change(
                    action="refused", kind="host", name=item.after.name, field=key[0], after=key[1], why=why
                )
                found.append(change)
    return found


def _in_the_way(hosts: list[_HostPlan]) -> list[str]:
    """Ids of hosts that must first let go of a value another host gets in the same commit (two that change places).

    Unique indexes are judged statement by statement.
    """
    holders = {
        key: item.before.id
        for item in hosts
        if item.before is not None and item.after is not None
        for key in _keys(item.before.spec).items()
    }
    found = {
        holders[key]
        for item in hosts
        if item.after is not None
        for key in _keys(item.after).items()
        if key in holders and (item.before is None or holders[key] != item.before.id)
    }
    return sorted(found)


def _returned(host: Host) -> HostStatus:
    """A host that vanished and is back: what was pending is dropped; one that a person has stays until released."""
    standing = host.status.maintenance
    if standing is not None:
        standing = msgspec.structs.replace(standing, reason=RETURNED)
    return msgspec.structs.replace(host.status, maintenance=standing, pending_maintenance=None)


def _facts(spec: HostSpec) -> dict[str, str]:
    """The versioned facts of a host's identity and place."""
    return {
        "name": spec.name,
        "site": spec.site,
        "rack": spec.rack,
        "position": str(spec.position),
        "sku": spec.sku,
        "serial": spec.serial,
        "boot_mac": spec.boot_mac,
        "bmc": f"{spec.bmc.protocol} {spec.bmc.address}",
        "nvlink_domain": spec.nvlink_domain or "",
    }


def _place(spec: HostSpec) -> str:
    return f"{spec.sku} {spec.serial} at {spec.site}/{spec.rack} U{spec.position}"


def _refusal(refused: list[Change]) -> Conflict:
    told = [f"{c.kind} {c.name}" + (f" {c.field}" if c.field else "") + f": {c.why}" for c in refused]
    more = f" and {len(told) - 10} more" if len(told) > 10 else ""
    return Conflict(
        f"{len(refused)} changes are refused; nothing was applied",
        why="; ".join(told[:10]) + more,
        remedy="correct the files or do what each one says, then `fleetctl inventory plan`",
    )
