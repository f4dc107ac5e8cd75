"""The built-in ledger: SQLite in WAL mode with group commit, nothing to install.

Every write that is ready when the disk becomes free goes into one transaction, and one COMMIT (synchronous=FULL: fsync
of the log) makes them all durable. A unit that fails hurts no other: nearly always its first op misses a guard and
changed nothing; if not, the transaction is run again with a SAVEPOINT around each unit (always, they would cost 4 us
each). The statements run on the loop's thread, only
the COMMIT on the writer thread: sqlite3 gives up the GIL at every row it steps, and a thread that has to win it back
each time against a busy loop stalls (measured, 200 workers beside a busy loop: 4 s a transition with everything on
the thread, 0.6 s so; on an idle loop both reach 50,000 transitions/s). For the same reason only wide reads use
threads. WAL readers never wait for the writer.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from fleetd.kit.errors import FleetError, Temporary
from fleetd.store import failures
from fleetd.store.schema import Migration, migration
from fleetd.store.statement import Op, Params, Result, Row, Statement

MAX_UNITS: Final = 1000  # in one transaction: about 10 ms of the loop's time
BUSY_MS: Final = 5000  # patience with another process that holds the lock
READERS: Final = 2

_Unit = tuple[Sequence[Op], "asyncio.Future[Result]"]
_Answer = tuple["asyncio.Future[Result]", Result | FleetError]


class _AgainError(Exception):
    """A unit failed after it changed something: the transaction is run again, with a SAVEPOINT around each unit."""

    def __init__(self, error: FleetError) -> None:
        super().__init__(error.what)
        self.error = error


class _BatchLostError(Exception):
    """SQLite itself rolled the whole transaction back (disk full, I/O error)."""


def _connect(path: str, *, synchronous: str, busy_ms: int) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=busy_ms / 1000, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    for pragma in (
        "journal_mode = WAL",
        f"synchronous = {synchronous}",
        "foreign_keys = ON",
        "temp_store = MEMORY",
        "cache_size = -32768",
        "wal_autocheckpoint = 4000",
        "journal_size_limit = 67108864",
        f"busy_timeout = {busy_ms}",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


class SqliteEngine:
    """Open with `SqliteEngine.open`; belongs to the loop that opened it.

    Args of `open`:
        path: of the database file, made with mode 0600 if absent, or ":memory:" (inline only).
        inline: commit at once on the loop's thread and without fsync: for tests in virtual time, which a thread or a
            disk would hold up. A killed process still loses nothing then; a power cut may.
    """

    dialect: Final = "sqlite"

    def __init__(self, writer: sqlite3.Connection, reader: sqlite3.Connection, path: str, *, inline: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = writer
        self._cursor = writer.cursor()
        self._reader = reader
        self._path = path
        self._inline = inline
        self._waiting: list[_Unit] = []
        self._busy = False
        self._careful = False
        self._closed = False
        self._idle: asyncio.Future[None] | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="ledger-writer", daemon=True)
        self._readers: ThreadPoolExecutor | None = None
        self._local = threading.local()
        self._wide: list[sqlite3.Connection] = []
        self.on_events: Callable[[int], None] = _ignore

    @classmethod
    async def open(cls, path: str, *, inline: bool = False) -> SqliteEngine:
        """Raises Temporary or Garbled when the file cannot be opened."""
        try:
            if path != ":memory:":
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            writer = _connect(path, synchronous="NORMAL" if inline else "FULL", busy_ms=BUSY_MS)
            reader = writer if inline else _connect(path, synchronous="FULL", busy_ms=BUSY_MS)
            if not inline:
                # BEGIN must never hold the loop; the writer thread waits instead.
                writer.execute("PRAGMA busy_timeout = 0")
                reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            raise failures.from_sqlite(error) from error
        except OSError as error:
            raise Temporary(
                f"the ledger's file {path} cannot be opened",
                why=error.strerror or str(error),
                remedy="make its folder exist and belong to the user that fleetd runs as",
            ) from error
        engine = cls(writer, reader, path, inline=inline)
        if not inline:
            engine._thread.start()
            engine._readers = ThreadPoolExecutor(READERS, thread_name_prefix="ledger-reader")
        return engine

    # Writing ------------------------------------------------------------------------------------------------------

    def submit(self, ops: Sequence[Op]) -> asyncio.Future[Result]:
        """Queue one unit; the future resolves when it is durable, or with a FleetError when it changed nothing."""
        future: asyncio.Future[Result] = self._loop.create_future()
        if self._closed:
            future.set_exception(failures.closed())
            return future
        self._waiting.append((ops, future))
        if self._inline:
            self._begin()
        elif not self._busy:
            self._busy = True
            # Not at once: whoever else is ready in this turn of the loop joins the transaction.
            self._loop.call_soon(self._begin)
        return future

    def _begin(self) -> None:
        try:
            self._cursor.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if failures.is_sqlite_busy(error) and not self._inline:
                self._jobs.put(self._begin_patiently)
            else:
                self._settle(self._take(), error)
            return
        self._fill()

    def _begin_patiently(self) -> None:
        """On the writer thread: wait for the other process."""
        problem: sqlite3.Error | None = None
        try:
            self._writer.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            problem = error
        finally:
            self._writer.execute("PRAGMA busy_timeout = 0")
        if problem is None:
            self._call(self._fill)
        else:
            lost = problem
            self._call(lambda: self._settle(self._take(), lost))

    def _take(self) -> list[_Answer]:
        """The units of one transaction, nothing done yet. Who gave up before its turn is not written."""
        units, self._waiting = self._waiting[:MAX_UNITS], self._waiting[MAX_UNITS:]
        return [(future, Result(0, [])) for _, future in units]

    def _fill(self) -> None:
        units, self._waiting = self._waiting[:MAX_UNITS], self._waiting[MAX_UNITS:]
        careful, self._careful = self._careful, False
        answers: list[_Answer] = []
        try:
            for ops, future in units:
                if not future.done():
                    answers.append((future, self._careful_unit(ops) if careful else self._unit(ops)))
        except _AgainError:
            self._writer.execute("ROLLBACK")
            self._waiting = units + self._waiting
            self._careful = True
            self._begin()
            return
        except _BatchLostError as error:
            cause = error.__cause__
            assert isinstance(cause, sqlite3.Error)
            self._settle([(future, Result(0, [])) for _, future in units], cause)
            return
        if self._inline:
            self._settle(answers, self._commit())
        else:
            self._jobs.put(lambda: self._commit_apart(answers))

    def _careful_unit(self, ops: Sequence[Op]) -> Result | FleetError:
        execute = self._cursor.execute
        execute("SAVEPOINT unit")
        try:
            answer = self._unit(ops)
        except _AgainError as again:
            execute("ROLLBACK TO unit")
            answer = again.error
        execute("RELEASE unit")
        return answer

    def _unit(self, ops: Sequence[Op]) -> Result | FleetError:
        """Run one unit. Its FleetError is returned if it changed nothing, raised in an _AgainError if it must be undone."""
        cursor = self._cursor
        execute = cursor.execute
        seq = changed = 0
        rows: list[Row] = []
        op: Op | None = None
        first = True
        try:
            for op in ops:
                statement, params, expect, _, proof, _, otherwise = op
                sql, args = statement.sqlite
                execute(sql, args(params))
                if statement.returns:
                    rows = cursor.fetchall()
                    changed = len(rows)
                else:
                    changed = cursor.rowcount
                if changed == 0 and otherwise is not None:
                    full = otherwise()
                    execute(full.statement.sqlite.sql, full.statement.sqlite.args(full.params))
                    changed = cursor.rowcount
                if statement.sequenced:
                    seq = cursor.lastrowid or 0
                if expect is not None and changed != expect:
                    stale = proof is not None and not execute(proof.sqlite.sql, proof.sqlite.args(params)).fetchall()
                    raise op.stale() if stale and op.stale is not None else failures.missed(op)
                first = False
        except Exception as error:
            if not self._writer.in_transaction:
                raise _BatchLostError from error
            problem = failures.from_sqlite(error, op)
            # The first op changed nothing if it missed, and SQLite undid it alone if it failed.
            if first and (changed == 0 or problem is not error):
                return problem
            raise _AgainError(problem) from error
        return Result(seq, rows)

    def _commit(self) -> sqlite3.Error | None:
        try:
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            return error
        return None

    def _commit_apart(self, answers: list[_Answer]) -> None:
        """On the writer thread: the one call that waits for the disk."""
        problem = self._commit()
        self._call(lambda: self._settle(answers, problem))

    def _settle(self, answers: list[_Answer], problem: sqlite3.Error | None) -> None:
        """Tell every unit of the transaction how it went, then start the next transaction."""
        last = 0
        if problem is not None and self._writer.in_transaction:
            try:
                self._writer.execute("ROLLBACK")
            except sqlite3.Error as error:
                problem = error
        for future, answer in answers:
            if problem is not None:
                answer = failures.from_sqlite(problem)  # one of its own for everyone who waits
            if isinstance(answer, Result):
                last = answer.seq or last  # they grow
                if not future.done():
                    future.set_result(answer)
            elif not future.done():
                future.set_exception(answer)
        if last:
            self.on_events(last)
        if self._waiting:
            self._begin()
            return
        self._busy = False
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is gone, and with it everyone who waited
            self._closed = True

    # Reading ------------------------------------------------------------------------------------------------------

    async def fetch(self, statement: Statement, params: Params) -> list[Row]:
        """All rows, of the state as of now: everything acknowledged is seen."""
        if self._closed:
            raise failures.closed()
        if statement.wide and self._readers is not None:
            return await self._loop.run_in_executor(self._readers, self._fetch_apart, statement, params)
        try:
            return self._reader.execute(statement.sqlite.sql, statement.sqlite.args(params)).fetchall()
        except (sqlite3.Error, OverflowError, ValueError) as error:
            raise failures.from_sqlite(error) from error

    def _fetch_apart(self, statement: Statement, params: Params) -> list[Row]:
        try:
            reader: sqlite3.Connection | None = getattr(self._local, "reader", None)
            if reader is None:
                reader = self._local.reader = _connect(self._path, synchronous="FULL", busy_ms=BUSY_MS)
                reader.execute("PRAGMA query_only = ON")
                self._wide.append(reader)
            return reader.execute(statement.sqlite.sql, statement.sqlite.args(params)).fetchall()
        except (sqlite3.Error, OverflowError, ValueError) as error:
            raise failures.from_sqlite(error) from error

    # The rest -----------------------------------------------------------------------------------------------------

    async def revision(self) -> str | None:
        """The schema's revision, None for an empty ledger."""
        return self._revision()

    def _revision(self) -> str | None:
        try:
            found = self._writer.execute(
                "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
            ).fetchall()
            row = self._writer.execute("SELECT version_num FROM alembic_version").fetchone() if found else None
        except sqlite3.Error as error:
            raise failures.from_sqlite(error) from error
        return None if row is None else str(row[0])

    async def migrate(self) -> Migration:
        """To the newest schema, in one transaction. Call it before the first write."""
        try:
            self._writer.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                done = migration("sqlite", self._revision())
                for statement in done.statements:
                    self._writer.execute(statement)
                self._writer.execute("COMMIT")
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                if not self._inline:
                    self._writer.execute("PRAGMA busy_timeout = 0")
        except sqlite3.Error as error:
            raise failures.from_sqlite(error) from error
        return done

    async def close(self) -> None:
        """Let what was queued become durable, then close. Safe to call twice."""
        if self._closed:
            return
        self._closed = True  # takes nothing more; what was queued goes on
        if self._busy:
            self._idle = self._loop.create_future()
            await self._idle
        if not self._inline:
            self._jobs.put(None)
            self._thread.join()
        if self._readers is not None:
            self._readers.shutdown(wait=True)
        for connection in (*self._wide, self._reader, self._writer):
            connection.close()


def _ignore(_: int) -> None:
    return None
