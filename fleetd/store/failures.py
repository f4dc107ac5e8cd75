"""What a database driver raises, as the errors of the house; the drivers' own classes never leave this room."""

from __future__ import annotations

import re
import sqlite3
from typing import Final

import asyncpg

from fleetd.kit.errors import (
    Busy,
    Conflict,
    DeadlineExceeded,
    FleetError,
    Garbled,
    Invalid,
    Permanent,
    Temporary,
    Unreachable,
)
from fleetd.store.statement import Op
from fleetd.store.tables import metadata

_UNIQUE: Final = frozenset({"SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_ROWID"})
_DISK: Final = "free disk space or replace the disk under the ledger, then wait: fleetd tries again by itself"
_RESTORE: Final = "stop fleetd and restore the ledger from its backup"


def missed(op: Op) -> FleetError:
    """A guarded write found another number of rows than it named."""
    if op.conflict is not None:
        return op.conflict()
    return Conflict("a row was not written", why="it changed since it was read")


def _taken(op: Op | None, columns: str) -> FleetError:
    error = op.conflict() if op is not None and op.conflict is not None else None
    if not isinstance(error, Conflict):  # a NotFound, say, is what a missed guard means, not this
        error = Conflict("a row was not written")
    error.why = f"already taken: {columns}"
    return error


def closed() -> Unreachable:
    """The ledger was closed while something was still asked of it."""
    return Unreachable("the ledger is closed", remedy="fleetd is stopping; start it again")


def from_sqlite(error: BaseException, op: Op | None = None) -> FleetError:
    """Translate; `op` is the write that failed, when it is known."""
    if isinstance(error, FleetError):
        return error
    if isinstance(error, sqlite3.Error):
        return _sqlite(error, op)
    return _python(error)


def _python(error: BaseException) -> FleetError:
    if isinstance(error, TimeoutError):
        return DeadlineExceeded("the ledger did not answer in time")
    if isinstance(error, OverflowError | UnicodeEncodeError | ValueError):
        return Invalid("a value cannot be stored in the ledger", why=str(error))
    return Permanent("the ledger could not run a statement", why=f"{type(error).__name__}: {error}")


def _sqlite(error: sqlite3.Error, op: Op | None) -> FleetError:
    name: str = getattr(error, "sqlite_errorname", "") or ""
    text = str(error)
    if name in _UNIQUE:
        return _taken(op, text.rpartition(": ")[2])
    if name == "SQLITE_CONSTRAINT_FOREIGNKEY":
        return Conflict("the row names another row that does not exist", why=text)
    if name.startswith("SQLITE_CONSTRAINT") or name in ("SQLITE_MISMATCH", "SQLITE_TOOBIG"):
        return Invalid("the ledger refuses this value", why=text)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Busy("the ledger is held by another process", why=text)
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return Garbled("the ledger's file is damaged", why=text, remedy=_RESTORE)
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PROTOCOL")):
        return Temporary("the ledger could not be written or read", why=text, remedy=_DISK)
    return Permanent("the ledger could not run a statement", why=text)


def is_sqlite_busy(error: sqlite3.Error) -> bool:
    """Another process holds the write lock now."""
    return (getattr(error, "sqlite_errorname", "") or "").startswith("SQLITE_BUSY")


DRIVER: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # "another operation is in progress": the server ended the session in that very moment
    OSError,
    TimeoutError,
    ValueError,
    OverflowError,
)
_INDEXES: Final[dict[str, str]] = {
    str(index.name): ", ".join(f"{table.name}.{column.name}" for column in index.columns)
    for table in metadata.tables.values()
    for index in table.indexes
} | {
    f"pk_{table.name}": ", ".join(f"{table.name}.{column.name}" for column in table.primary_key)
    for table in metadata.tables.values()
}
_HIDDEN: Final = re.compile(r"://[^@/]*@")


def is_lost(error: BaseException) -> bool:
    """The connection itself is gone (or useless): a new one must be made."""
    return isinstance(
        error,
        asyncpg.PostgresConnectionError
        | asyncpg.InterfaceError
        | asyncpg.InternalClientError
        | asyncpg.exceptions.OperatorInterventionError
        | asyncpg.exceptions.ReadOnlySQLTransactionError
        | asyncpg.exceptions.IdleInTransactionSessionTimeoutError
        | OSError
        | TimeoutError,
    )


def from_postgres(error: BaseException, op: Op | None = None) -> FleetError:
    """Translate; `op` is the write that failed, when it is known."""
    if isinstance(error, FleetError):
        return error
    text = _HIDDEN.sub("://***@", str(error))
    if isinstance(error, asyncpg.DataError | asyncpg.exceptions.NotNullViolationError | asyncpg.CheckViolationError):
        return Invalid("the ledger refuses this value", why=text)
    if isinstance(error, asyncpg.UniqueViolationError):
        name = error.constraint_name or ""
        return _taken(op, _INDEXES.get(name, name))
    if isinstance(error, asyncpg.ForeignKeyViolationError):
        return Conflict("the row names another row that does not exist", why=text)
    if isinstance(error, asyncpg.exceptions.TransactionRollbackError | asyncpg.exceptions.LockNotAvailableError):
        return Busy("the ledger is held by another daemon", why=text)
    if isinstance(error, asyncpg.exceptions.QueryCanceledError):
        return DeadlineExceeded("the ledger did not answer in time", why=text)
    if isinstance(error, asyncpg.exceptions.InsufficientResourcesError | asyncpg.exceptions.PostgresIOError):
        return Temporary("the ledger could not be written or read", why=text, remedy=_DISK)
    if isinstance(error, asyncpg.exceptions.InvalidAuthorizationSpecificationError):
        return Permanent("PostgreSQL refuses the ledger's login", why=text, remedy="correct `store` in fleetd.yaml")
    if is_lost(error):
        return Unreachable(
            "PostgreSQL does not answer",
            why=text or type(error).__name__,
            remedy="check that PostgreSQL runs (`pg_isready`); fleetd connects again by itself",
        )
    if isinstance(error, asyncpg.PostgresError):
        return Permanent("the ledger could not run a statement", why=text)
    return _python(error)
