"""The ledger's door: one small interface over SQLite and PostgreSQL that every repository and room goes through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from sqlalchemy import func, literal_column, select

from fleetd.kit.errors import Invalid
from fleetd.kit.logs import get as get_logger
from fleetd.store.postgres import PostgresEngine
from fleetd.store.schema import Migration, head
from fleetd.store.sqlite import SqliteEngine
from fleetd.store.statement import Op, Params, Result, Row, Statement
from fleetd.store.tables import events

__all__ = ["Database", "Op", "Params", "Result", "Row", "Statement", "open_database"]

_log = get_logger("store")
LAST_EVENT: Final = Statement(select(func.coalesce(func.max(events.c.seq), literal_column("0"))))


class Engine(Protocol):
    """What the two databases have in common."""

    on_events: Callable[[int], None]

    @property
    def dialect(self) -> str: ...
    def submit(self, ops: Sequence[Op]) -> asyncio.Future[Result]: ...
    async def fetch(self, statement: Statement, params: Params) -> list[Row]: ...
    async def revision(self) -> str | None: ...
    async def migrate(self) -> Migration: ...
    async def close(self) -> None: ...


class Database:
    """An open ledger. Get it from `open_database`; use it on the loop that opened it; close it."""

    def __init__(self, engine: Engine, *, poll: float | None) -> None:
        self._engine = engine
        self._poll = poll  # seconds between looks at the table, where other daemons write too
        self._last = 0
        self._watchers: set[asyncio.Future[None]] = set()
        engine.on_events = self._announce
        self._submit = engine.submit

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect

    async def __aenter__(self) -> Database:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def migrate(self) -> None:
        """Bring the schema to this version's, whole or not at all; nothing happens when it is there already.

        Raises:
            Refused: a newer fleetd wrote this ledger.
        """
        done = await self._engine.migrate()
        if done.statements:
            _log.info("ledger migrated", before=done.before, after=done.after, dialect=self.dialect)

    async def revision(self) -> str | None:
        """The schema's revision now; None: empty."""
        return await self._engine.revision()

    async def current(self) -> bool:
        """True if the schema is this version's."""
        return await self._engine.revision() == head()

    async def commit(self, ops: Sequence[Op]) -> int:
        """Write one unit of work: all of its ops or none. On return it is durable.

        Returns:
            The seq of the unit's last event, 0 if it appended none.

        Raises:
            FleetError: of `op.conflict()` (a guard missed, a unique value is taken), StaleClaim from a claimed write.
            Conflict: the same without a `conflict`, or a row names another that does not exist.
            Invalid: a value the ledger cannot hold.
            Temporary: disk full, disk error, database gone. Nothing of the unit is there; only when the connection to
                PostgreSQL broke during COMMIT is that not known: guards on versions make writing it again harmless.

        A caller that is cancelled while it waits does not know whether the unit was written.
        """
        return (await self._submit(ops)).seq

    async def execute(self, ops: Sequence[Op]) -> Result:
        """As `commit`, and gives the rows of the unit's last RETURNING statement."""
        return await self._submit(ops)

    async def fetch(self, statement: Statement, params: Params) -> list[Row]:
        """The rows of a read; sees every commit that returned before.

        Raises:
            Temporary: the database does not answer. Garbled: its file is damaged.
        """
        return await self._engine.fetch(statement, params)

    async def wait_events(self, after: int, timeout: float) -> bool:
        """True as soon as an event with seq > `after` is committed, False after `timeout` seconds without one.

        On PostgreSQL other daemons' events count too: their notification is a hint, a look each second the truth.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while True:
            if self._last > after:
                return True
            # Other daemons' events, and those from before this one opened the ledger.
            self._last = max(self._last, int((await self.fetch(LAST_EVENT, {}))[0][0]))
            if self._last > after:
                return True
            left = end - loop.time()
            if left <= 0:
                return False
            await self._sleep_until_announced(left if self._poll is None else min(left, self._poll))

    async def _sleep_until_announced(self, seconds: float) -> None:
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.add(watcher)
        try:
            async with asyncio.timeout(seconds):
                await watcher
        except TimeoutError:
            return
        finally:
            self._watchers.discard(watcher)

    def _announce(self, seq: int) -> None:
        self._last = max(self._last, seq)
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)

    async def close(self) -> None:
        """Let what was queued become durable, wake who waits for events, close every connection."""
        await self._engine.close()
        self._announce(self._last)


async def open_database(url: str, *, inline: bool = False) -> Database:
    """Open the ledger; `migrate()` is the caller's next step.

    Args:
        url: `sqlite:////var/lib/fleetd/ledger.db` (or `sqlite:///:memory:` when inline), or `postgresql://user@host/name`.
        inline: SQLite only: commit on the loop's thread and without fsync, for tests in virtual time.

    Raises:
        Invalid: the URL. Temporary: file or server cannot be reached now.
    """
    scheme, separator, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/"):
        path = "/" + rest.lstrip("/")
        if path == "/:memory:":
            path = ":memory:"
            if not inline:
                raise Invalid(
                    "a ledger in memory is for tests only", remedy="name a file: sqlite:////var/lib/fleetd/ledger.db"
                )
        return Database(await SqliteEngine.open(path, inline=inline), poll=None)
    if scheme in ("postgresql", "postgres") and separator:
        if inline:
            raise Invalid("inline commits exist on SQLite only")
        return Database(await PostgresEngine.open(url), poll=1.0)
    raise Invalid(
        "the ledger's URL is neither sqlite:// nor postgresql://", remedy="write sqlite:////var/lib/fleetd/ledger.db"
    )
