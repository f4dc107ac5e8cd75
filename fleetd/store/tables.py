"""The one declaration of the ledger's schema; migrations create it, repositories compile statements from it.

Columns stand only where the ledger searches, guards or constrains; the rest of a struct is one JSON text (`doc`,
`spec`, `status`). JSON is kept as TEXT on both databases: PostgreSQL's jsonb refuses the NUL that a hostile host may
send, and fleetd never asks the database to look inside. Times are wall seconds (double).
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

from fleetd.model.lease import LeaseState
from fleetd.model.run import RunHostState, RunState

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Not on `state`: SQLite rewrites every partial index whose condition names a written column, on each transition.
NOT_RETIRED: Final = "NOT retired"
IN_RUN: Final = "state IN ('pending', 'active')"
BOUND: Final = "released IS NULL"
OPEN: Final = "closed IS NULL"
KEPT: Final = "removed IS NULL"

# SQLite's INTEGER PRIMARY KEY is the rowid, given in commit order by its single writer.
_Serial = BigInteger().with_variant(Integer, "sqlite")


def _one_of(column: str, words: Any) -> CheckConstraint:
    # OR, not IN: SQLite builds a table for an IN of three or more at each write, 3 us of an update's 11.
    return CheckConstraint(" OR ".join(f"{column} = '{word}'" for word in words), name=column)


def _partial(name: str, *columns: Any, where: str, unique: bool = True) -> Index:
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


hosts = Table(
    "hosts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("site", Text, nullable=False),
    Column("rack", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("sku", Text, nullable=False),
    Column("domain", Text),
    Column("serial", Text, nullable=False),
    Column("bmc_address", Text, nullable=False),
    Column("boot_mac", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("spec_version", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("retired", Boolean, nullable=False),  # state is retired
    Column("state_since", Double, nullable=False),
    Column("deadline", Double),
    Column("resume_state", Text),
    Column("tenant_data", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("certificate", Text),
    Column("certificate_expires", Double),
    Column("lease_blocked", Boolean, nullable=False),
    Column("version", BigInteger, nullable=False),
    # No CHECK on state: a new state stays a one-place change (design section 3); decoding refuses unknown words.
    _one_of("tenant_data", ("none", "possible", "erased")),
    CheckConstraint("version >= 1", name="version"),
)
_partial("uq_hosts_name", hosts.c.name, where=NOT_RETIRED)
_partial("uq_hosts_serial", hosts.c.serial, where=NOT_RETIRED)
_partial("uq_hosts_place", hosts.c.site, hosts.c.rack, hosts.c.position, where=NOT_RETIRED)
_partial("uq_hosts_bmc_address", hosts.c.bmc_address, where=NOT_RETIRED)
_partial("uq_hosts_boot_mac", hosts.c.boot_mac, where=NOT_RETIRED)
Index("ix_hosts_place", hosts.c.site, hosts.c.rack)
Index("ix_hosts_sku", hosts.c.sku)

claims = Table(
    "claims",
    metadata,
    Column("host", Text, ForeignKey("hosts.id"), primary_key=True),
    Column("owner", Text, nullable=False),  # empty: dropped; the row stays so that the token never falls back
    Column("token", BigInteger, nullable=False),
    Column("expires", Double, nullable=False),
    CheckConstraint("token >= 1", name="token"),
    sqlite_with_rowid=False,  # one search less in the guard of every write
)

facts = Table(
    "facts",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("host", Text, ForeignKey("hosts.id"), nullable=False),
    Column("fact", Text, nullable=False),
    Column("value", Text, nullable=False),
    Column("since", Double, nullable=False),
    Column("until", Double),
)
_partial("uq_facts_current", facts.c.host, facts.c.fact, where="until IS NULL")
Index("ix_facts_host", facts.c.host)

parts = Table(
    "parts",
    metadata,
    Column("host", Text, ForeignKey("hosts.id"), primary_key=True),
    Column("part", Text, primary_key=True),  # "kind:value"
    Column("site", Text, nullable=False),
    Column("since", Double, nullable=False),
)
Index("ix_parts_part", parts.c.part)

reports = Table(
    "reports",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("host", Text, ForeignKey("hosts.id"), nullable=False),
    Column("run", Text),
    Column("suite", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("data", LargeBinary, nullable=False),
)
Index("ix_reports_host", reports.c.host, reports.c.id)
Index("ix_reports_run", reports.c.run)

runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("playbook", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("doc", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    _one_of("state", RunState),
)
Index("ix_runs_created", runs.c.created)
_partial("ix_runs_active", runs.c.id, where="state = 'running'", unique=False)

run_hosts = Table(
    "run_hosts",
    metadata,
    Column("run", Text, ForeignKey("runs.id"), primary_key=True),
    Column("host", Text, ForeignKey("hosts.id"), primary_key=True),
    Column("wave", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("doc", Text, nullable=False),
    _one_of("state", RunHostState),
)
# Design section 5: a host is in at most one active run, by constraint.
_partial("uq_run_hosts_active", run_hosts.c.host, where=IN_RUN)

steps = Table(
    "steps",
    metadata,
    Column("run", Text, primary_key=True),
    Column("host", Text, primary_key=True),
    Column("idx", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("began", Double, nullable=False),
    Column("ended", Double),
    Column("doc", Text, nullable=False),
    ForeignKeyConstraint(["run", "host"], ["run_hosts.run", "run_hosts.host"]),
)
Index("ix_steps_host", steps.c.host, steps.c.began)

leases = Table(
    "leases",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("ends", Double, nullable=False),
    Column("doc", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    _one_of("state", LeaseState),
)
Index("ix_leases_tenant", leases.c.tenant, leases.c.created)
_partial("ix_leases_live", leases.c.id, where="state IN ('delivering', 'active', 'ending')", unique=False)

bindings = Table(
    "bindings",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("lease", Text, ForeignKey("leases.id"), nullable=False),
    Column("host", Text, ForeignKey("hosts.id"), nullable=False),
    Column("bound", Double, nullable=False),
    Column("released", Double),
)
# Design section 7: no host is ever in two live leases, by constraint.
_partial("uq_bindings_live", bindings.c.host, where=BOUND)
Index("ix_bindings_lease", bindings.c.lease)

events = Table(
    "events",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("site", Text, nullable=False),
    Column("host", Text),
    Column("run", Text),
    Column("lease", Text),
    Column("principal", Text, nullable=False),
    Column("data", Text, nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice, even after old events were pruned
)
_partial("ix_events_host", events.c.host, events.c.seq, where="host IS NOT NULL", unique=False)
_partial("ix_events_run", events.c.run, events.c.seq, where="run IS NOT NULL", unique=False)

certificates = Table(
    "certificates",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, ForeignKey("hosts.id"), nullable=False),
    Column("issued", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Column("revoked", Double),
    Column("reason", Text, nullable=False),
    Column("doc", Text, nullable=False),
)
Index("ix_certificates_host", certificates.c.host, certificates.c.issued)

secrets = Table(
    "secrets",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("status", Text, primary_key=True),
    Column("sealed", Text, nullable=False),
    Column("at", Double, nullable=False),
    _one_of("status", ("current", "pending", "old")),
)

boots = Table(
    "boots",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, ForeignKey("hosts.id"), nullable=False),
    Column("token_hash", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("private_key", Text, nullable=False),  # sealed; blank once the boot is closed
    Column("met", Double),
    Column("closed", Double),
    Column("doc", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    _one_of("environment", ("deploy", "disk")),
)
# A written disk keeps its token: it comes back with it boot after boot, but in one open boot at a time.
_partial("uq_boots_token_hash", boots.c.token_hash, where=OPEN)
Index("ix_boots_token_hash", boots.c.token_hash)
_partial("uq_boots_open", boots.c.host, where=OPEN)
Index("ix_boots_host", boots.c.host)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("hash", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("revoked", Double),
    Column("doc", Text, nullable=False),
)
Index("uq_tokens_hash", tokens.c.hash, unique=True)

answers = Table(  # of requests that carried an Idempotency-Key
    "answers",
    metadata,
    Column("principal", Text, primary_key=True),
    Column("route", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("at", Double, nullable=False),
)
Index("ix_answers_at", answers.c.at)

settings = Table(
    "settings",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

inventory = Table(  # what `inventory apply` wrote beside the hosts: sites, racks, SKUs, playbooks
    "inventory",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("doc", Text, nullable=False),
    _one_of("kind", ("site", "rack", "sku", "playbook")),
)

images = Table(
    "images",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("sha256", Text, nullable=False),  # of the file as served; two names may share one file
    Column("added", Double, nullable=False),
    Column("removed", Double),
    Column("doc", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    CheckConstraint("version >= 1", name="version"),
)
_partial("uq_images_name", images.c.name, where=KEPT)
_partial("ix_images_sha256", images.c.sha256, where=KEPT, unique=False)
