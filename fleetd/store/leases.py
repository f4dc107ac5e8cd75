"""Leases and their bindings: claiming is one unit, all or none, and the ledger itself forbids a host in two."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

import msgspec
from sqlalchemy import and_, bindparam, exists, false, literal_column, or_, select, text, update
from sqlalchemy import insert as _plain_insert

from fleetd.kit.errors import Conflict, NotFound
from fleetd.model.host import Host
from fleetd.model.lease import Lease, LeaseState
from fleetd.store.database import Database, Op, Params, Statement
from fleetd.store.dialects import insert_into, text_bind
from fleetd.store.rows import pack, unpack
from fleetd.store.tables import BOUND, bindings, hosts, leases

_LIVE: Final = "state IN ('delivering', 'active', 'ending')"
_INSERT: Final = Statement(insert_into(leases))
_SAVE: Final = Statement(
    update(leases)
    .where(leases.c.id == bindparam("lease_id"), leases.c.version == bindparam("read"))
    .values(
        state=bindparam("state"),
        ends=bindparam("ends"),
        doc=bindparam("doc"),
        version=leases.c.version + literal_column("1"),
    )
)
_taken = bindings.alias("taken")
# Design section 11, 1: no host is claimed without a certificate that is valid at that instant. The guard stands in
# the write itself, so nothing that happens between reading and writing can get around it.
_BIND: Final = Statement(
    _plain_insert(bindings).from_select(
        ["lease", "host", "bound"],
        select(text_bind("to_lease"), hosts.c.id, bindparam("now", type_=bindings.c.bound.type)).where(
            hosts.c.id == bindparam("host_id"),
            hosts.c.version == bindparam("read"),
            text("hosts.state = 'available'"),
            hosts.c.certificate.is_not(None),
            hosts.c.certificate_expires > bindparam("now"),
            text("hosts.tenant_data IN ('none', 'erased')"),
            hosts.c.lease_blocked.is_(false()),
            ~exists(
                select(literal_column("1"))
                .select_from(_taken)
                .where(_taken.c.host == bindparam("host_id"), text(f"taken.{BOUND}"))
            ),
        ),
    )
)
_RELEASE: Final = Statement(
    update(bindings)
    .where(bindings.c.lease == bindparam("of_lease"), bindings.c.host == bindparam("of_host"), text(BOUND))
    .values(released=bindparam("now"))
)
_GET: Final = Statement(select(leases.c.doc).where(leases.c.id == bindparam("id")))
_OF_HOST: Final = Statement(
    select(leases.c.id, leases.c.doc)
    .select_from(bindings.join(leases, leases.c.id == bindings.c.lease))
    .where(bindings.c.host == bindparam("of_host"), text(f"bindings.{BOUND}"))
)


def claim(lease: Lease, hosts: Sequence[Host], now: float) -> list[Op]:
    """Make the lease and bind every host, all or none. Put it before the ops that save these hosts in the same unit.

    Raises Conflict at commit, naming the first host that is not exactly as read, available, clean, not blocked by an
    alert, under a certificate that outlasts `now` (wall seconds), and in no live binding; nothing is written then.
    """
    return [insert(lease), *(bind(lease.id, host, now) for host in hosts)]


def insert(lease: Lease) -> Op:
    """The lease without hosts. Raises Conflict at commit when the id exists."""
    return Op(
        _INSERT,
        {
            "id": lease.id,
            "tenant": lease.request.tenant,
            "state": lease.state.value,
            "created": lease.created,
            "ends": lease.ends,
            "doc": pack(lease),
            "version": lease.version,
        },
        conflict=lambda: Conflict(f"lease {lease.id} exists"),
    )


def bind(lease_id: str, host: Host, now: float) -> Op:
    """Bind one more host under the guards of `claim`: a spare that is swapped in."""
    return Op(
        _BIND,
        {"to_lease": lease_id, "host_id": host.id, "read": host.version, "now": now},
        1,
        lambda: Conflict(
            f"host {host.spec.name} cannot be leased now",
            why="since it was read it was claimed, left the inventory, or lost its proof",
            remedy="nothing was claimed; repeat the request",
        ),
    )


def save(lease: Lease) -> Op:
    """Write all of it; guard: nobody wrote since `lease.version` was read. The row's version is then one higher."""
    newer = msgspec.structs.replace(lease, version=lease.version + 1)
    return Op(
        _SAVE,
        {
            "lease_id": lease.id,
            "read": lease.version,
            "state": lease.state.value,
            "ends": lease.ends,
            "doc": pack(newer),
        },
        1,
        lambda: Conflict(f"lease {lease.id} changed since it was read", remedy="read it again and repeat"),
    )


def release_binding(lease_id: str, host_id: str, now: float) -> Op:
    """Let the host go: reclaimed or swapped out. Raises Conflict at commit when this lease does not bind it."""
    return Op(
        _RELEASE,
        {"of_lease": lease_id, "of_host": host_id, "now": now},
        1,
        lambda: Conflict(f"lease {lease_id} does not bind host {host_id}"),
    )


async def get(db: Database, lease_id: str) -> Lease:
    """Raises NotFound."""
    for (doc,) in await db.fetch(_GET, {"id": lease_id}):
        return unpack(Lease, doc, "leases", lease_id)
    raise NotFound(f"there is no lease {lease_id}", remedy="list them: `fleetctl lease list`")


@cache
def _every(tenant: bool, state: bool, live: bool) -> Statement:
    query = select(leases.c.id, leases.c.doc)
    if tenant:
        query = query.where(leases.c.tenant == bindparam("tenant"))
    if state:
        query = query.where(leases.c.state == bindparam("state"))
    if live:
        bound = exists(
            select(literal_column("1"))
            .select_from(bindings)
            .where(and_(bindings.c.lease == leases.c.id, text(f"bindings.{BOUND}")))
        )
        query = query.where(or_(text(f"leases.{_LIVE}"), bound))
    return Statement(query.order_by(leases.c.created.desc(), leases.c.id.desc()))


async def every(
    db: Database, *, tenant: str | None = None, state: LeaseState | None = None, live: bool = False
) -> list[Lease]:
    """Leases, newest first. `live`: only those that are not over, or still bind a host that is being reclaimed."""
    params: Params = {"tenant": tenant, "state": None if state is None else LeaseState(state).value}
    rows = await db.fetch(_every(tenant is not None, state is not None, live), params)
    return [unpack(Lease, doc, "leases", key) for key, doc in rows]


async def of_host(db: Database, host_id: str) -> Lease | None:
    """The lease that binds this host now."""
    for key, doc in await db.fetch(_OF_HOST, {"of_host": host_id}):
        return unpack(Lease, doc, "leases", key)
    return None
