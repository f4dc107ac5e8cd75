"""How Alembic writes a migration's SQL; store/schema.py asks for it and the engine runs it."""

from __future__ import annotations

from alembic import context

from fleetd.store.tables import metadata

context.configure(
    dialect_name=context.config.attributes["dialect"],
    target_metadata=metadata,
    literal_binds=True,
    transactional_ddl=False,  # the engine opens the transaction, under its own lock
)
context.run_migrations()
