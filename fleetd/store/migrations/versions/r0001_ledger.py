"""The ledger as fleetd 0.1 knows it. Claims and their fencing tokens are in it from the first day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "answers",
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("principal", "route", "key", name=op.f("pk_answers")),
    )
    op.create_index("ix_answers_at", "answers", ["at"], unique=False)
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("run", sa.Text(), nullable=True),
        sa.Column("lease", sa.Text(), nullable=True),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_events_host",
        "events",
        ["host", "seq"],
        unique=False,
        sqlite_where=sa.text("host IS NOT NULL"),
        postgresql_where=sa.text("host IS NOT NULL"),
    )
    op.create_index(
        "ix_events_run",
        "events",
        ["run", "seq"],
        unique=False,
        sqlite_where=sa.text("run IS NOT NULL"),
        postgresql_where=sa.text("run IS NOT NULL"),
    )
    op.create_table(
        "hosts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("rack", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=True),
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("bmc_address", sa.Text(), nullable=False),
        sa.Column("boot_mac", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("spec_version", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("retired", sa.Boolean(), nullable=False),
        sa.Column("state_since", sa.Double(), nullable=False),
        sa.Column("deadline", sa.Double(), nullable=True),
        sa.Column("resume_state", sa.Text(), nullable=True),
        sa.Column("tenant_data", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("certificate", sa.Text(), nullable=True),
        sa.Column("certificate_expires", sa.Double(), nullable=True),
        sa.Column("lease_blocked", sa.Boolean(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "tenant_data = 'none' OR tenant_data = 'possible' OR tenant_data = 'erased'",
            name=op.f("ck_hosts_tenant_data"),
        ),
        sa.CheckConstraint("version >= 1", name=op.f("ck_hosts_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hosts")),
    )
    op.create_index("ix_hosts_place", "hosts", ["site", "rack"], unique=False)
    op.create_index("ix_hosts_sku", "hosts", ["sku"], unique=False)
    op.create_index(
        "uq_hosts_bmc_address",
        "hosts",
        ["bmc_address"],
        unique=True,
        sqlite_where=sa.text("NOT retired"),
        postgresql_where=sa.text("NOT retired"),
    )
    op.create_index(
        "uq_hosts_boot_mac",
        "hosts",
        ["boot_mac"],
        unique=True,
        sqlite_where=sa.text("NOT retired"),
        postgresql_where=sa.text("NOT retired"),
    )
    op.create_index(
        "uq_hosts_name",
        "hosts",
        ["name"],
        unique=True,
        sqlite_where=sa.text("NOT retired"),
        postgresql_where=sa.text("NOT retired"),
    )
    op.create_index(
        "uq_hosts_place",
        "hosts",
        ["site", "rack", "position"],
        unique=True,
        sqlite_where=sa.text("NOT retired"),
        postgresql_where=sa.text("NOT retired"),
    )
    op.create_index(
        "uq_hosts_serial",
        "hosts",
        ["serial"],
        unique=True,
        sqlite_where=sa.text("NOT retired"),
        postgresql_where=sa.text("NOT retired"),
    )
    op.create_table(
        "inventory",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("doc", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "kind = 'site' OR kind = 'rack' OR kind = 'sku' OR kind = 'playbook'", name=op.f("ck_inventory_kind")
        ),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("pk_inventory")),
    )
    op.create_table(
        "leases",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("ends", sa.Double(), nullable=False),
        sa.Column("doc", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "state = 'delivering' OR state = 'active' OR state = 'ending' OR state = 'ended' OR state = 'failed'",
            name=op.f("ck_leases_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leases")),
    )
    op.create_index(
        "ix_leases_live",
        "leases",
        ["id"],
        unique=False,
        sqlite_where=sa.text("state IN ('delivering', 'active', 'ending')"),
        postgresql_where=sa.text("state IN ('delivering', 'active', 'ending')"),
    )
    op.create_index("ix_leases_tenant", "leases", ["tenant", "created"], unique=False)
    op.create_table(
        "runs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("playbook", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("doc", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "state = 'running' OR state = 'passed' OR state = 'failed' OR state = 'stopped' OR state = 'cancelled'",
            name=op.f("ck_runs_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index(
        "ix_runs_active",
        "runs",
        ["id"],
        unique=False,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index("ix_runs_created", "runs", ["created"], unique=False)
    op.create_table(
        "secrets",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "status = 'current' OR status = 'pending' OR status = 'old'", name=op.f("ck_secrets_status")
        ),
        sa.PrimaryKeyConstraint("owner", "kind", "status", name=op.f("pk_secrets")),
    )
    op.create_table(
        "settings",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_settings")),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("revoked", sa.Double(), nullable=True),
        sa.Column("doc", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
    )
    op.create_index("uq_tokens_hash", "tokens", ["hash"], unique=True)
    op.create_table(
        "bindings",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("lease", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("bound", sa.Double(), nullable=False),
        sa.Column("released", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["host"], ["hosts.id"], name=op.f("fk_bindings_host_hosts")),
        sa.ForeignKeyConstraint(["lease"], ["leases.id"], name=op.f("fk_bindings_lease_leases")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bindings")),
    )
    op.create_index("ix_bindings_lease", "bindings", ["lease"], unique=False)
    op.create_index(
        "uq_bindings_live",
        "bindings",
        ["host"],
        unique=True,
        sqlite_where=sa.text("released IS NULL"),
        postgresql_where=sa.text("released IS NULL"),
    )
    op.create_table(
        "boots",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("private_key", sa.Text(), nullable=False),
        sa.Column("met", sa.Double(), nullable=True),
        sa.Column("closed", sa.Double(), nullable=True),
        sa.Column("doc", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("environment = 'deploy' OR environment = 'disk'", name=op.f("ck_boots_environment")),
        sa.ForeignKeyConstraint(["host"], ["hosts.id"], name=op.f("fk_boots_host_hosts")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_boots")),
    )
    op.create_index("ix_boots_host", "boots", ["host"], unique=False)
    op.create_index(
        "uq_boots_open",
        "boots",
        ["host"],
        unique=True,
        sqlite_where=sa.text("closed IS NULL"),
        postgresql_where=sa.text("closed IS NULL"),
    )
    op.create_index(
        "uq_boots_token_hash",
        "boots",
        ["token_hash"],
        unique=True,
        sqlite_where=sa.text("closed IS NULL"),
        postgresql_where=sa.text("closed IS NULL"),
    )
    op.create_index("ix_boots_token_hash", "boots", ["token_hash"])
    op.create_table(
        "certificates",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("issued", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("revoked", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("doc", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["host"], ["hosts.id"], name=op.f("fk_certificates_host_hosts")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_certificates")),
    )
    op.create_index("ix_certificates_host", "certificates", ["host", "issued"], unique=False)
    op.create_table(
        "claims",
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.CheckConstraint("token >= 1", name=op.f("ck_claims_token")),
        sa.ForeignKeyConstraint(["host"], ["hosts.id"], name=op.f("fk_claims_host_hosts")),
        sa.PrimaryKeyConstraint("host", name=op.f("pk_claims")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "facts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("fact", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("until", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["host"], ["hosts.id"], name=op.f("fk_facts_host_hosts")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_facts")),
    )
    op.create_index("ix_facts_host", "facts", ["host"], unique=False)
    op.create_index(
        "uq_facts_current",
        "facts",
        ["host", "fact"],
        unique=True,
        sqlite_where=sa.text("until IS NULL"),
        postgresql_where=sa.text("until IS NULL"),
    )
    op.create_table(
        "parts",
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["host"], ["hosts.id"], name=op.f("fk_parts_host_hosts")),
        sa.PrimaryKeyConstraint("host", "part", name=op.f("pk_parts")),
    )
    op.create_index("ix_parts_part", "parts", ["part"], unique=False)
    op.create_table(
        "reports",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("run", sa.Text(), nullable=True),
        sa.Column("suite", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["host"], ["hosts.id"], name=op.f("fk_reports_host_hosts")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reports")),
    )
    op.create_index("ix_reports_host", "reports", ["host", "id"], unique=False)
    op.create_index("ix_reports_run", "reports", ["run"], unique=False)
    op.create_table(
        "run_hosts",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("doc", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "state = 'pending' OR state = 'active' OR state = 'passed' OR state = 'failed' OR state = 'held'",
            name=op.f("ck_run_hosts_state"),
        ),
        sa.ForeignKeyConstraint(["host"], ["hosts.id"], name=op.f("fk_run_hosts_host_hosts")),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_run_hosts_run_runs")),
        sa.PrimaryKeyConstraint("run", "host", name=op.f("pk_run_hosts")),
    )
    op.create_index(
        "uq_run_hosts_active",
        "run_hosts",
        ["host"],
        unique=True,
        sqlite_where=sa.text("state IN ('pending', 'active')"),
        postgresql_where=sa.text("state IN ('pending', 'active')"),
    )
    op.create_table(
        "steps",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("idx", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("began", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.Column("doc", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run", "host"], ["run_hosts.run", "run_hosts.host"], name=op.f("fk_steps_run_host_run_hosts")
        ),
        sa.PrimaryKeyConstraint("run", "host", "idx", "attempt", name=op.f("pk_steps")),
    )
    op.create_index("ix_steps_host", "steps", ["host", "began"], unique=False)
