"""Hosts as rows: the guarded write that every transition is, and the ways to find a host.

`spec` and `status` are the truth; the columns beside them are copies that the ledger searches and constrains.
`Host.lease` and `Host.run` are derived by joins and never written here. Facts, parts and reports of a host are kept
by store/evidence.py and offered here too.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Final, get_args

from sqlalchemy import and_, bindparam, false, literal_column, select, text, update

from fleetd.kit.errors import Conflict, NotFound
from fleetd.model.boot import Claim
from fleetd.model.host import Classification, Host, HostSpec, HostStatus, State, TenantData
from fleetd.store.claims import PROOF, held, stale
from fleetd.store.database import Database, Op, Params, Row, Statement
from fleetd.store.dialects import insert_into, listed
from fleetd.store.evidence import (
    Fact,
    StoredReport,
    drives_of,
    facts,
    latest_report,
    parts_elsewhere,
    record_facts,
    replace_drives,
    replace_parts,
    reports_of_run,
    save_report,
)
from fleetd.store.rows import pack, unpack, unreadable
from fleetd.store.tables import BOUND, IN_RUN, bindings, hosts, run_hosts

__all__ = [
    "Fact",
    "StoredReport",
    "by_mac",
    "by_name",
    "drives_of",
    "every",
    "facts",
    "get",
    "insert",
    "latest_report",
    "overdue",
    "parts_elsewhere",
    "racks_of",
    "record_facts",
    "replace_drives",
    "replace_parts",
    "reports_of_run",
    "save",
    "save_report",
    "vacate",
]

_STATES: Final = {state.value: state for state in State}
_TENANT_DATA: Final[frozenset[str]] = frozenset(get_args(TenantData))

_INSERT: Final = Statement(insert_into(hosts))
_VALUES: Final[dict[str, Any]] = {
    column.name: bindparam(column.name) for column in hosts.columns if column.name not in ("id", "version")
} | {"version": hosts.c.version + literal_column("1")}
_READ: Final = (hosts.c.id == bindparam("host_id"), hosts.c.version == bindparam("read"))
_SAVE: Final = Statement(update(hosts).where(*_READ).values(_VALUES))
_SAVE_CLAIMED: Final = Statement(update(hosts).where(*_READ, held()).values(_VALUES))
# What a transition writes. Where the spec is as it was, its columns and their indexes are left alone: 6 us, not 17.
_MOVING: Final = {
    name: value
    for name, value in _VALUES.items()
    if name
    in (
        "state",
        "state_since",
        "deadline",
        "resume_state",
        "tenant_data",
        "status",
        "certificate",
        "certificate_expires",
        "lease_blocked",
        "version",
    )
}
_SAME: Final = (
    *_READ,
    hosts.c.spec == bindparam("spec"),
    hosts.c.spec_version == bindparam("spec_version"),
    hosts.c.retired.is_(false()),
)
_MOVE: Final = Statement(update(hosts).where(*_SAME).values(_MOVING))
_MOVE_CLAIMED: Final = Statement(update(hosts).where(*_SAME, held()).values(_MOVING))
# Out of the way of the unique indexes, still distinct: the id makes the texts so, the sign the positions.
_VACATE: Final = Statement(
    update(hosts)
    .where(hosts.c.id.in_(listed("ids")))
    .values(
        spec=literal_column("''"),  # no spec equals it, so that `save` writes every column
        name=literal_column("'~'") + hosts.c.id,
        serial=literal_column("'~'") + hosts.c.id,
        bmc_address=literal_column("'~'") + hosts.c.id,
        boot_mac=literal_column("'~'") + hosts.c.id,
        position=-hosts.c.position,
    )
)


def _moving(host: Host) -> Params:
    status = host.status
    return {
        "host_id": host.id,
        "read": host.version,
        "spec": pack(host.spec),
        "spec_version": host.spec_version,
        "state": host.state._value_,  # `.value` is a descriptor in Python: three times the cost
        "state_since": host.state_since,
        "deadline": host.deadline,
        "resume_state": None if host.resume_state is None else host.resume_state._value_,
        "tenant_data": host.tenant_data,
        "status": pack(status),
        "certificate": host.certificate,
        "certificate_expires": host.certificate_expires,
        "lease_blocked": bool(status.alerts)
        and any(Classification.PREVENTS_LEASE in alert.classifications for alert in status.alerts),
    }


def _full(host: Host, moving: Params) -> Params:
    spec = host.spec
    return moving | {
        "name": spec.name,
        "site": spec.site,
        "rack": spec.rack,
        "position": spec.position,
        "sku": spec.sku,
        "domain": spec.nvlink_domain,
        "serial": spec.serial,
        "bmc_address": f"{spec.bmc.host}:{spec.bmc.port}",
        "boot_mac": spec.boot_mac,
        "retired": host.state is State.RETIRED,
    }


def insert(host: Host) -> Op:
    """A new host.

    Raises Conflict at commit when its name, serial, place, BMC address or boot MAC is that of a host not retired;
    `why` says which.
    """
    return Op(
        _INSERT,
        _full(host, _moving(host)) | {"id": host.id, "version": host.version},
        conflict=lambda: Conflict(
            f"host {host.spec.name} collides with another host", remedy="`fleetctl inventory plan` shows both"
        ),
    )


def save(host: Host, *, claim: Claim | None = None) -> Op:
    """Write the whole row; guard: nobody wrote since `host.version` was read. The row's version is then one higher.

    Raises at commit: StaleClaim when `claim` is not the newest of the host; Conflict when the host changed since, or
    took what belongs to another host (`why` says what).
    """
    params = _moving(host)

    def changed() -> Conflict:
        return Conflict(
            f"host {host.spec.name} was not written",
            why="it changed since it was read",
            remedy="read it again and repeat",
        )

    if claim is None:
        hot, whole, proof, lost = _MOVE, _SAVE, None, None
    else:
        hot, whole, proof, lost = _MOVE_CLAIMED, _SAVE_CLAIMED, PROOF, lambda: stale(claim)
        params["claim_host"] = host.id  # not the claim's own: a claim on another host must not open this row
        params["claim_token"] = claim.token
        params["claim_owner"] = claim.owner
    if host.state is State.RETIRED:
        return Op(whole, _full(host, params), 1, changed, proof, lost)
    return Op(hot, params, 1, changed, proof, lost, lambda: Op(whole, _full(host, params), 1))


def vacate(host_ids: Iterable[str]) -> Op:
    """Free what must be unique of these hosts, so that they can swap places, names or addresses in one unit.

    The same unit must then `save` every one of them, which writes all of it anew; versions stay as read.
    """
    return Op(_VACATE, {"ids": pack(list(host_ids))})


# Reading ----------------------------------------------------------------------------------------------------------

_SELECT: Final = select(
    hosts.c.id,
    hosts.c.spec,
    hosts.c.spec_version,
    hosts.c.state,
    hosts.c.state_since,
    hosts.c.deadline,
    hosts.c.resume_state,
    hosts.c.tenant_data,
    hosts.c.status,
    hosts.c.certificate,
    hosts.c.certificate_expires,
    hosts.c.version,
    bindings.c.lease,
    run_hosts.c.run,
).select_from(
    hosts.outerjoin(bindings, and_(bindings.c.host == hosts.c.id, text(f"bindings.{BOUND}"))).outerjoin(
        run_hosts, and_(run_hosts.c.host == hosts.c.id, text(f"run_hosts.{IN_RUN}"))
    )
)
_GET: Final = Statement(_SELECT.where(hosts.c.id == bindparam("id")))
_BY_NAME: Final = Statement(_SELECT.where(hosts.c.name == bindparam("name"), text("NOT hosts.retired")))
_BY_OLD_NAME: Final = Statement(
    _SELECT.where(hosts.c.name == bindparam("name")).order_by(hosts.c.state_since.desc()), wide=True
)
_BY_MAC: Final = Statement(_SELECT.where(hosts.c.boot_mac == bindparam("mac"), text("NOT hosts.retired")))


def _host(row: Row) -> Host:
    (
        key,
        spec,
        spec_version,
        state,
        since,
        deadline,
        resume,
        tenant_data,
        status,
        certificate,
        expires,
        version,
        lease,
        run,
    ) = row
    try:
        known = _STATES[state]
        resumes = None if resume is None else _STATES[resume]
    except KeyError as error:
        raise unreadable("hosts", key, f"{error} is no state") from error
    if tenant_data not in _TENANT_DATA:
        raise unreadable("hosts", key, f"tenant_data is {tenant_data!r}")
    return Host(
        id=key,
        spec=unpack(HostSpec, spec, "hosts", key),
        spec_version=spec_version,
        state=known,
        state_since=since,
        deadline=deadline,
        resume_state=resumes,
        tenant_data=tenant_data,
        status=unpack(HostStatus, status, "hosts", key),
        certificate=certificate,
        certificate_expires=expires,
        lease=lease,
        run=run,
        version=version,
    )


async def get(db: Database, host_id: str) -> Host:
    """Raises NotFound; Garbled when the row cannot be read."""
    for row in await db.fetch(_GET, {"id": host_id}):
        return _host(row)
    raise NotFound(f"there is no host {host_id}")


async def by_name(db: Database, name: str) -> Host:
    """The host of that name; else the last retired one that had it. Raises NotFound."""
    for row in await db.fetch(_BY_NAME, {"name": name}) or await db.fetch(_BY_OLD_NAME, {"name": name}):
        return _host(row)
    raise NotFound(f"there is no host {name}")


async def by_mac(db: Database, mac: str) -> Host | None:
    """The host, not retired, that boots from this MAC (lower case, colons)."""
    for row in await db.fetch(_BY_MAC, {"mac": mac}):
        return _host(row)
    return None


_OVERDUE: Final = Statement(_SELECT.where(hosts.c.deadline <= bindparam("now")))
_RACKS: Final = Statement(select(hosts.c.id, hosts.c.rack).where(hosts.c.id.in_(listed("ids"))))


async def overdue(db: Database, now: float) -> list[Host]:
    """Hosts whose state should have ended before wall second `now`."""
    return [_host(row) for row in await db.fetch(_OVERDUE, {"now": now})]


async def racks_of(db: Database, host_ids: Iterable[str]) -> dict[str, str]:
    """Rack name by host id, of those that exist."""
    return dict(await db.fetch(_RACKS, {"ids": pack(sorted(host_ids))}))


@cache
def _every(filters: tuple[str, ...]) -> Statement:
    return Statement(_SELECT.where(*(hosts.c[name] == bindparam(name) for name in filters)))


async def every(
    db: Database,
    *,
    state: State | None = None,
    site: str | None = None,
    rack: str | None = None,
    sku: str | None = None,
    domain: str | None = None,
) -> list[Host]:
    """Hosts that match all of the given, retired ones too, by site, rack and position."""
    asked = {"state": None if state is None else State(state).value, "site": site, "rack": rack, "sku": sku}
    asked["domain"] = domain
    params: Params = {name: value for name, value in asked.items() if value is not None}
    found = [_host(row) for row in await db.fetch(_every(tuple(params)), params)]
    # Here and not in SQL: the two databases sort texts by different rules.
    found.sort(key=lambda host: (host.spec.site, host.spec.rack, host.spec.position, host.id))
    return found
