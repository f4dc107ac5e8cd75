"""The ledger past one machine: PostgreSQL by asyncpg, several daemons on it, the same group commit.

One connection writes. Every transaction begins with one advisory lock that all daemons of the ledger share, so they
write one after the other: the seq of an event is given in commit order, no guard can be overtaken between its look and its
commit (READ COMMITTED sees all that the holder before wrote), and no two transactions can deadlock. A daemon that is
stopped or cut off inside a transaction is thrown out by the server after `IDLE_MS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import asyncpg

from fleetd.kit.tasks import Workers, deadline
from fleetd.store import failures
from fleetd.store.pipeline import AgainError, Answers, Run, Writer, one_by_one, pipeline
from fleetd.store.schema import Migration, migration
from fleetd.store.statement import Op, Params, Result, Row, Statement

MAX_UNITS: Final = 500  # in one transaction
IDLE_MS: Final = 5000  # a transaction nobody continues is undone by the server after this
STATEMENT_MS: Final = 30_000
CONNECT: Final = 10.0  # seconds
BATCH: Final = 60.0  # seconds for a whole transaction, waiting for other daemons included
READERS: Final = 4
CHANNEL: Final = "fleetd_events"
LOCK: Final = 0x666C656574  # "fleet"

_BEGIN: Final = f"BEGIN; SELECT pg_advisory_xact_lock({LOCK})"
_Unit = tuple[Sequence[Op], "asyncio.Future[Result]"]


class PostgresEngine:
    """Open with `PostgresEngine.open`; belongs to the loop that opened it."""

    dialect: Final = "postgresql"

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Unit] = []
        self._writer: Writer | None = None
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._workers: Workers[str] = Workers(self._write, self._ignored, width=1)
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.on_events: Callable[[int], None] = _ignore

    @classmethod
    async def open(cls, url: str) -> PostgresEngine:
        """Connect.

        Raises:
            Unreachable: nobody answers. Permanent: the login or the URL is refused.
        """
        engine = cls(url)
        try:
            engine._writer = await engine._connect()
            engine._pool = await deadline(
                asyncpg.create_pool(
                    url,
                    min_size=1,
                    max_size=READERS,
                    timeout=CONNECT,
                    command_timeout=STATEMENT_MS / 1000,
                    statement_cache_size=512,
                    server_settings={"application_name": "fleetd reader", "default_transaction_read_only": "on"},
                ),
                CONNECT,
            )
        except failures.DRIVER as error:
            engine._drop_writer()
            raise failures.from_postgres(error) from error
        await engine._workers.__aenter__()
        return engine

    async def _connect(self) -> Writer:
        connection = await asyncpg.connect(
            self._url,
            timeout=CONNECT,
            command_timeout=BATCH,
            statement_cache_size=512,
            server_settings={
                "application_name": "fleetd writer",
                "synchronous_commit": "on",
                "default_transaction_isolation": "read committed",
                "idle_in_transaction_session_timeout": str(IDLE_MS),
                "statement_timeout": str(STATEMENT_MS),
            },
        )
        await connection.add_listener(CHANNEL, self._heard)
        return connection

    def _heard(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        text = str(payload)
        if text.isdecimal():
            self.on_events(int(text))

    def _drop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            # Not close(): that would talk to a server that may be deaf. The server undoes what was open.
            writer.terminate()

    def _ignored(self, _key: str, _error: Exception) -> None:
        """Nothing is left to do: `_write` answered every unit before it raised."""

    # Writing -----------------------------------------------------------------------------------------------------

    def submit(self, ops: Sequence[Op]) -> asyncio.Future[Result]:
        """Queue one unit; the future resolves when it is durable, or with a FleetError when it changed nothing."""
        future: asyncio.Future[Result] = self._loop.create_future()
        if self._closed:
            future.set_exception(failures.closed())
            return future
        self._waiting.append((ops, future))
        self._idle.clear()
        self._workers.wake("writer")
        return future

    async def _write(self, _key: str) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting[:MAX_UNITS], self._waiting[MAX_UNITS:]
            units = [unit for unit in taken if not unit[1].done()]
            try:
                await self._transact(units)
            except failures.DRIVER as error:
                if failures.is_lost(error) or self._writer is None or self._writer.is_closed():
                    self._drop_writer()
                _fail(units, error)
            except BaseException as error:
                # Cancelled, or a fault of ours: nobody may wait for ever, and the connection is in an unknown state.
                self._drop_writer()
                _fail(units + self._waiting, error)
                self._waiting = []
                self._idle.set()
                raise
        self._idle.set()

    async def _transact(self, units: Sequence[_Unit]) -> None:
        """All units in one transaction: pipelined first; if one of them failed late, again, each in a savepoint."""
        async with asyncio.timeout(BATCH):
            if self._writer is None or self._writer.is_closed():
                self._writer = await self._connect()
            try:
                answers = await self._attempt(self._writer, [ops for ops, _ in units], pipeline)
            except AgainError:
                answers = await self._attempt(self._writer, [ops for ops, _ in units], one_by_one)
        last = _last(answers)
        for (_, future), answer in zip(units, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Result):
                future.set_result(answer)
            else:
                future.set_exception(answer)
        if last:
            self.on_events(last)

    async def _attempt(self, writer: Writer, units: Sequence[Sequence[Op]], run: Run) -> Answers:
        try:
            await writer.execute(_BEGIN)
            answers = await run(writer, units)
            if last := _last(answers):
                await writer.execute(f"NOTIFY {CHANNEL}, '{last}'")
            await writer.execute("COMMIT")
        except BaseException:
            await _undo(writer)
            raise
        return answers

    # Reading -----------------------------------------------------------------------------------------------------

    async def fetch(self, statement: Statement, params: Params) -> list[Row]:
        """All rows, of the state as of now."""
        if self._closed or self._pool is None:
            raise failures.closed()
        sql = statement.postgres
        try:
            return await self._pool.fetch(sql.sql, *sql.args(params))  # type: ignore[return-value]
        except failures.DRIVER as error:
            raise failures.from_postgres(error) from error

    # The rest ----------------------------------------------------------------------------------------------------

    async def revision(self) -> str | None:
        """The schema's revision, None for an empty ledger."""
        if self._closed or self._pool is None:
            raise failures.closed()
        try:
            return await _revision(self._pool)
        except failures.DRIVER as error:
            raise failures.from_postgres(error) from error

    async def migrate(self) -> Migration:
        """To the newest schema, in one transaction, under the writers' lock: two daemons may ask at once."""
        try:
            async with asyncio.timeout(BATCH):
                connection = await asyncpg.connect(self._url, timeout=CONNECT, command_timeout=BATCH)
                try:
                    await connection.execute(_BEGIN)
                    done = migration("postgresql", await _revision(connection))
                    for statement in done.statements:
                        await connection.execute(statement)
                    await connection.execute("COMMIT")
                finally:
                    await connection.close(timeout=CONNECT)
        except failures.DRIVER as error:
            raise failures.from_postgres(error) from error
        return done

    async def close(self) -> None:
        """Let what was queued become durable, then close. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        await self._idle.wait()  # bounded: each transaction has its deadline
        await self._workers.drain(BATCH)
        await self._workers.__aexit__(None, None, None)
        self._drop_writer()
        if self._pool is not None:
            self._pool.terminate()


def _last(answers: Answers) -> int:
    return max((answer.seq for answer in answers if isinstance(answer, Result)), default=0)


def _fail(units: Sequence[_Unit], error: BaseException) -> None:
    for _, future in units:
        if not future.done():
            cancelled = isinstance(error, asyncio.CancelledError)
            future.set_exception(failures.closed() if cancelled else failures.from_postgres(error))


async def _undo(writer: Writer) -> None:
    if writer.is_closed() or not writer.is_in_transaction():
        return
    try:
        await writer.execute("ROLLBACK")
    except failures.DRIVER:
        writer.terminate()


async def _revision(connection: Any) -> str | None:
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    found = await connection.fetchval("SELECT version_num FROM alembic_version")
    return None if found is None else str(found)


def _ignore(_: int) -> None:
    return None
