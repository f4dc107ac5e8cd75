"""The ledger past one machine: PostgreSQL by asyncpg, several daemons on it, the same group commit.

One connection writes. Every transaction begins with one advisory lock that all daemons of the ledger share, so they
write one after the other: the seq of an event is given in commit order, no guard can be overtaken between its look and its
commit (READ COMMITTED sees all that the holder before wrote), and no two transactions can deadlock. A daemon that is
stopped or cut off inside a transaction is thrown out by the server after `IDLE_MS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from fleetd.kit.errors import FleetError
from fleetd.kit.tasks import Workers, deadline
from fleetd.store import failures
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
if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
_Unit = tuple[Sequence[Op], "asyncio.Future[Result]"]


class _AgainError(Exception):
    """A unit failed after it changed something: the transaction is repeated with a savepoint a unit."""


class PostgresEngine:
    """Open with `PostgresEngine.open`; belongs to the loop that opened it."""

    dialect: Final = "postgresql"

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Unit] = []
        self._writer: _Connection | None = None
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._workers: Workers[str] = Workers(self._write, self._ignored, width=1)
        self._closed = False
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
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, ValueError) as error:
            await engine._drop_writer()
            raise failures.from_postgres(error) from error
        await engine._workers.__aenter__()
        return engine

    async def _connect(self) -> _Connection:
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

    async def _drop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            # Not close(): that would talk to a server that may be deaf. The server undoes what was open.
            writer.terminate()

    def _ignored(self, _key: str, error: Exception) -> None:
        """The worker answers every unit itself; what it still raises belongs to those left waiting."""
        units, self._waiting = self._waiting, []
        for _, future in units:
            if not future.done():
                future.set_exception(failures.from_postgres(error))

    # Writing -----------------------------------------------------------------------------------------------------

    def submit(self, ops: Sequence[Op]) -> asyncio.Future[Result]:
        """Queue one unit; the future resolves when it is durable, or with a FleetError when it changed nothing."""
        future: asyncio.Future[Result] = self._loop.create_future()
        if self._closed:
            future.set_exception(failures.closed())
            return future
        self._waiting.append((ops, future))
        self._workers.wake("writer")
        return future

    async def _write(self, _key: str) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting[:MAX_UNITS], self._waiting[MAX_UNITS:]
            units = [unit for unit in taken if not unit[1].done()]
            try:
                await self._transact(units)
            except asyncio.CancelledError:
                await self._drop_writer()
                self._fail([*units, *self._waiting], failures.closed)
                self._waiting = []
                raise
            except Exception as error:
                if failures.is_lost(error) or self._writer is None or self._writer.is_closed():
                    await self._drop_writer()
                lost = error
                self._fail(units, lambda: failures.from_postgres(lost))

    @staticmethod
    def _fail(units: Sequence[_Unit], error: Callable[[], FleetError]) -> None:
        for _, future in units:
            if not future.done():
                future.set_exception(error())

    async def _transact(self, units: Sequence[_Unit]) -> None:
        """All units in one transaction; hopefully first, then, if one of them failed late, each in a savepoint."""
        async with asyncio.timeout(BATCH):
            if self._writer is None or self._writer.is_closed():
                self._writer = await self._connect()
            writer = self._writer
            try:
                answers = await self._attempt(writer, [ops for ops, _ in units], careful=False)
            except _AgainError:
                answers = await self._attempt(writer, [ops for ops, _ in units], careful=True)
        last = 0
        for (_, future), answer in zip(units, answers, strict=True):
            if isinstance(answer, Result):
                last = max(last, answer.seq)
            if future.done():
                continue
            if isinstance(answer, Result):
                future.set_result(answer)
            else:
                future.set_exception(answer)
        if last:
            self.on_events(last)

    async def _attempt(
        self, writer: _Connection, units: Sequence[Sequence[Op]], *, careful: bool
    ) -> list[Result | FleetError]:
        answers: list[Result | FleetError] = []
        await writer.execute(_BEGIN)
        try:
            for ops in units:
                answers.append(await (self._careful(writer, ops) if careful else self._unit(writer, ops)))
            last = max((answer.seq for answer in answers if isinstance(answer, Result)), default=0)
            if last:
                await writer.execute(f"NOTIFY {CHANNEL}, '{last}'")
            await writer.execute("COMMIT")
        except BaseException:
            if not writer.is_closed() and writer.is_in_transaction():
                await _undo(writer)
            raise
        return answers

    async def _careful(self, writer: _Connection, ops: Sequence[Op]) -> Result | FleetError:
        await writer.execute("SAVEPOINT unit")
        try:
            answer = await self._unit(writer, ops, careful=True)
        except (asyncpg.PostgresError, OverflowError, ValueError, FleetError) as error:
            if failures.is_lost(error):
                raise
            await writer.execute("ROLLBACK TO unit")
            return failures.from_postgres(error)
        await writer.execute("RELEASE unit")
        return answer

    async def _unit(self, writer: _Connection, ops: Sequence[Op], *, careful: bool = False) -> Result | FleetError:
        seq = 0
        rows: list[Row] = []
        for index, op in enumerate(ops):
            statement, params, expect, _, proof, _ = op
            sql = statement.postgres
            try:
                if statement.returns or statement.sequenced:
                    found = await writer.fetch(sql.sql, *sql.args(params))
                    changed = len(found)
                    if statement.returns:
                        rows = found  # type: ignore[assignment]
                    if statement.sequenced:
                        seq = found[0][0]
                else:
                    changed = await _change(writer, statement, params)
                    if changed == 0 and statement.otherwise is not None:
                        changed = await _change(writer, statement.otherwise, params)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OverflowError, ValueError) as error:
                if failures.is_lost(error) and not isinstance(error, asyncpg.exceptions.DataError):
                    raise
                if not careful:
                    raise _AgainError from error
                raise failures.from_postgres(error, op) from error
            if expect is None or changed == expect:
                continue
            # The first op found nothing: nothing was changed, there is nothing to undo.
            if not careful and (index or changed):
                raise _AgainError
            if proof is not None and op.stale is not None:
                look = proof.postgres
                if not await writer.fetch(look.sql, *look.args(params)):
                    error_: FleetError = op.stale()
                    if careful:
                        raise error_
                    return error_
            if careful:
                raise failures.missed(op)
            return failures.missed(op)
        return Result(seq, rows)

    # Reading -----------------------------------------------------------------------------------------------------

    async def fetch(self, statement: Statement, params: Params) -> list[Row]:
        """All rows, of the state as of now."""
        if self._closed or self._pool is None:
            raise failures.closed()
        sql = statement.postgres
        try:
            return await self._pool.fetch(sql.sql, *sql.args(params))  # type: ignore[return-value]
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, ValueError) as error:
            raise failures.from_postgres(error) from error

    # The rest ----------------------------------------------------------------------------------------------------

    async def revision(self) -> str | None:
        """The schema's revision, None for an empty ledger."""
        if self._closed or self._pool is None:
            raise failures.closed()
        try:
            return await _revision(self._pool)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
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
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise failures.from_postgres(error) from error
        return done

    async def close(self) -> None:
        """Let what was queued become durable, then close. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        left = [future for _, future in self._waiting]
        await self._workers.drain(BATCH)
        self._fail(self._waiting, failures.closed)
        del left
        await self._workers.__aexit__(None, None, None)
        await self._drop_writer()
        if self._pool is not None:
            self._pool.terminate()


async def _change(writer: _Connection, statement: Statement, params: Params) -> int:
    sql = statement.postgres
    return int((await writer.execute(sql.sql, *sql.args(params))).rpartition(" ")[2])


async def _undo(writer: _Connection) -> None:
    try:
        await writer.execute("ROLLBACK")
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        writer.terminate()


async def _revision(connection: Any) -> str | None:
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    found = await connection.fetchval("SELECT version_num FROM alembic_version")
    return None if found is None else str(found)


def _ignore(_: int) -> None:
    return None
