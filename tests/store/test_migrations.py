"""From an empty ledger to the newest schema, once, whole, and the same as the tables that statements are compiled from."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from fleetd.kit.errors import FleetError, Refused
from fleetd.store import access, hosts, images, schema
from fleetd.store.database import open_database
from fleetd.store.tables import metadata
from tests.store.postgres_server import PostgresServer
from tests.store.samples import ready


async def test_from_empty_and_again(empty_url: str) -> None:
    async with await open_database(empty_url) as db:
        assert await db.revision() is None
        assert not await db.current()
        with pytest.raises(FleetError):
            await access.setting(db, "a")
        await db.migrate()
        assert await db.current()
        await db.commit([access.set_setting("a", "1")])
        await db.migrate()
        assert await access.setting(db, "a") == "1"
    async with await open_database(empty_url) as db:
        await db.migrate()
        assert await db.revision() == schema.head()
        assert await access.setting(db, "a") == "1"


async def test_images_join_a_ledger_that_has_data(
    empty_url: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 0001 with hosts in it to the newest: nothing that is there changes."""
    module = f"fleetd.store.{'sqlite' if backend == 'sqlite' else 'postgres'}.migration"
    name = "sqlite" if backend == "sqlite" else "postgresql"
    host = ready(1)
    async with await open_database(empty_url) as db:
        with monkeypatch.context() as patched:
            patched.setattr(module, lambda *_: schema.migration(name, None, "0001"))
            await db.migrate()
        assert await db.revision() == "0001"
        await db.commit([hosts.insert(host), access.set_setting("a", "1")])
    async with await open_database(empty_url) as db:
        assert not await db.current()
        await db.migrate()
        assert await db.current()
        assert await hosts.get(db, host.id) == host
        assert await access.setting(db, "a") == "1"
        assert await images.every(db) == []


async def test_two_at_once(empty_url: str) -> None:
    one, two = await open_database(empty_url), await open_database(empty_url)
    await asyncio.gather(one.migrate(), two.migrate())
    assert await one.current()
    await one.close()
    await two.close()


async def test_a_newer_ledger_is_refused_and_left_alone(url: str, sql: object) -> None:
    assert callable(sql)
    sql("UPDATE alembic_version SET version_num = '9999'")
    async with await open_database(url) as db:
        with pytest.raises(Refused, match="9999"):
            await db.migrate()
        assert await db.revision() == "9999"


async def test_a_migration_that_fails_leaves_nothing(
    empty_url: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = schema.migration("sqlite" if backend == "sqlite" else "postgresql", None)
    bad = good._replace(statements=(*good.statements[:-3], "CREATE NONSENSE"))
    monkeypatch.setattr(f"fleetd.store.{'sqlite' if backend == 'sqlite' else 'postgres'}.migration", lambda *_: bad)
    async with await open_database(empty_url) as db:
        with pytest.raises(FleetError, match="statement"):
            await db.migrate()
        assert await db.revision() is None
        monkeypatch.undo()
        await db.migrate()
        assert await db.current()


def test_migrated_tables_are_the_declared_ones_on_sqlite(sqlite_template: Path) -> None:
    engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(sqlite_template))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        written = "\n".join(
            row[0] for row in connection.connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
        )
    engine.dispose()
    for table in metadata.tables.values():
        for constraint in table.constraints:
            # SQLite writes the key of an AUTOINCREMENT table in its column, without a name.
            assert str(constraint.name) in written or constraint.name == "pk_events", constraint
        for index in table.indexes:
            where = index.dialect_options["sqlite"]["where"]
            assert where is None or str(where) in written, index


@pytest.mark.peers
def test_migrated_tables_are_the_declared_ones_on_postgresql(postgres: PostgresServer) -> None:
    columns = postgres.run(
        "SELECT table_name || '.' || column_name || ' ' || is_nullable FROM information_schema.columns "
        "WHERE table_schema = 'public' AND table_name <> 'alembic_version'",
        "template",
    ).split("\n")
    declared = {
        f"{table.name}.{column.name} {'YES' if column.nullable else 'NO'}"
        for table in metadata.tables.values()
        for column in table.columns
    }
    assert {line for line in columns if line} == declared
    named = set(postgres.run("SELECT indexname FROM pg_indexes", "template").split())
    named |= set(postgres.run("SELECT conname FROM pg_constraint", "template").split())
    for table in metadata.tables.values():
        assert {str(index.name) for index in table.indexes} <= named
        assert {str(constraint.name) for constraint in table.constraints} <= named


def test_the_scripts_are_in_packages() -> None:
    """So that `find:` installs them without a line of package data."""
    assert (schema.FOLDER / "__init__.py").exists()
    assert (schema.FOLDER / "versions" / "__init__.py").exists()
    assert {path.suffix for path in schema.FOLDER.rglob("*") if path.is_file() and path.suffix != ".pyc"} == {".py"}
