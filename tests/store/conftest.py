"""Every test of the ledger runs on both databases: `db` is an open, migrated, empty one, `url` its address."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from fleetd.store.database import Database, open_database
from tests.store.postgres_server import PostgresServer, find_postgres

_count = itertools.count(1)
BACKENDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)]


def _migrate(url: str) -> None:
    async def run() -> None:
        async with await open_database(url) as ledger:
            await ledger.migrate()

    asyncio.run(run())


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The server, started once."""
    if find_postgres() is None:
        if os.environ.get("CI") == "1":
            pytest.fail("no PostgreSQL server programs: apt-get install postgresql")
        pytest.skip("no PostgreSQL server programs: apt-get install postgresql")
    with PostgresServer() as server:
        _migrate(server.database("template"))
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file to copy."""
    path = tmp_path_factory.mktemp("ledger") / "template.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def empty_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A ledger without tables."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.database(f"empty{next(_count)}")


@pytest.fixture
def url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated, empty ledger."""
    if backend == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "ledger.db")
        return f"sqlite:///{tmp_path}/ledger.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.copy("template", f"test{next(_count)}")


@pytest.fixture
async def db(url: str) -> AsyncIterator[Database]:
    ledger = await open_database(url)
    yield ledger
    await ledger.close()


@pytest.fixture
def sql(backend: str, url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Look at (or damage) the tables from outside of fleetd."""
    if backend == "sqlite":
        import sqlite3

        def run(statement: str) -> str:
            connection = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
            try:
                return "\n".join("|".join(map(str, row)) for row in connection.execute(statement).fetchall())
            finally:
                connection.close()

        return run
    server: PostgresServer = request.getfixturevalue("postgres")
    return lambda statement: server.run(statement, url.rpartition("/")[2]).strip()
