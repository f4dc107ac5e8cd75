"""A statement is declared once in SQLAlchemy Core and compiled to SQL once per dialect; what runs hot is a string.

Measured (reference: performance): Core or ORM at execution costs 1,600 us and more a write, a precompiled string 10.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Integer
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert, UpdateBase
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.expression import bindparam

from fleetd.kit.errors import FleetError

Row: TypeAlias = tuple[Any, ...]  # columns by position (asyncpg's Record can do the same)
Params: TypeAlias = dict[str, Any]

_SQLITE: Final = sqlite.dialect(paramstyle="qmark")
_POSTGRES: Final = PGDialect_asyncpg()  # type: ignore[no-untyped-call]
ORDINAL: Final = "ordinal__"


class Postgres(NamedTuple):
    """SQL with $1, $2 …, and the parameter names in that order."""

    sql: str
    names: tuple[str, ...]

    def args(self, params: Params) -> list[Any]:
        return [params[name] for name in self.names]


class Sqlite(NamedTuple):
    """SQL with ? parameters, and what takes their values out of the caller's dict: by position is cheaper."""

    sql: str
    args: Callable[[Params], Row]


class Statement:
    """One statement. Parameters are named; a caller passes a dict that holds at least those names.

    Args:
        clause: Core select, insert, update or delete.
        returns: a write whose RETURNING rows the caller wants.
        sequenced: the insert into `events`: its generated number is the unit's event seq.
        wide: a read that may go over many rows; it never runs on the loop's thread.
    """

    def __init__(
        self,
        clause: ClauseElement,
        *,
        returns: bool = False,
        sequenced: bool = False,
        wide: bool = False,
    ) -> None:
        self.clause = clause
        self.returns = returns
        self.sequenced = sequenced
        self.wide = wide

    @cached_property
    def sqlite(self) -> Sqlite:
        return _compile_sqlite(self.clause)

    @cached_property
    def postgres(self) -> Postgres:
        if self.sequenced:  # SQLite tells the number without the RETURNING, which costs it 4 us
            assert isinstance(self.clause, Insert)
            return _compile_postgres(self.clause.returning(*self.clause.table.primary_key))
        return _compile_postgres(self.clause)

    @cached_property
    def postgres_many(self) -> Postgres:
        """The same write, answering each changed row with the ordinal it was given: a pipeline's hits."""
        assert isinstance(self.clause, UpdateBase)
        returning: Any = self.clause
        return _compile_postgres(returning.returning(bindparam(ORDINAL, type_=Integer)))


def _compile_sqlite(clause: ClauseElement) -> Sqlite:
    compiled = clause.compile(dialect=_SQLITE)
    assert isinstance(compiled, SQLCompiler)
    names = list(compiled.positiontup or ())
    sql = str(compiled)
    if names and isinstance(compiled.params[names[-1]], int):
        # SQLite's compiler adds `OFFSET 0` behind a LIMIT, its number as a parameter.
        assert sql.endswith("OFFSET ?")
        sql = f"{sql[:-1]}{compiled.params[names.pop()]}"
    if not names:
        return Sqlite(sql, _nothing)
    if len(names) == 1:
        only = names[0]
        return Sqlite(sql, lambda params: (params[only],))
    return Sqlite(sql, itemgetter(*names))


def _nothing(_: Params) -> Row:
    return ()


def _compile_postgres(clause: ClauseElement) -> Postgres:
    compiled = clause.compile(dialect=_POSTGRES)
    assert isinstance(compiled, SQLCompiler)
    return Postgres(str(compiled), tuple(compiled.positiontup or ()))


class Op(NamedTuple):
    """One guarded write of a unit of work.

    ``expect``: rows it must change, else the whole unit is undone and ``conflict()`` raised. ``proof`` tells a stale
    claim from a moved row after such a miss: when it finds no row, ``stale()`` is raised instead. ``otherwise`` makes
    the same guarded write in full, tried when this one changes no row.
    """

    statement: Statement
    params: Params
    expect: int | None = None
    conflict: Callable[[], FleetError] | None = None
    proof: Statement | None = None
    stale: Callable[[], FleetError] | None = None
    otherwise: Callable[[], Op] | None = None


class Result(NamedTuple):
    """What a unit did: its last event's seq (0 if none) and the rows of its last RETURNING statement."""

    seq: int
    rows: list[Row]
