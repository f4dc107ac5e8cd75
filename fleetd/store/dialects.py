"""The one place where the two databases differ in SQL: lists and maps as parameters, and upserts.

A list or map is passed as one JSON text, so a statement's SQL never changes with its length (no expanding IN), and
the same parameters serve both databases.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter, Select, Table, Text, bindparam, column, select
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import TableValuedAlias


class _JsonList(FunctionElement[Any]):
    inherit_cache = True
    name = "json_list"


class _JsonMap(FunctionElement[Any]):
    inherit_cache = True
    name = "json_map"


@compiles(_JsonList, "sqlite")
@compiles(_JsonMap, "sqlite")
def _sqlite_json(element: FunctionElement[Any], compiler: Any, **kw: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **kw)})"


@compiles(_JsonList, "postgresql")
def _postgres_list(element: FunctionElement[Any], compiler: Any, **kw: Any) -> str:
    return f"json_array_elements_text(CAST({compiler.process(element.clauses, **kw)} AS JSON))"


@compiles(_JsonMap, "postgresql")
def _postgres_map(element: FunctionElement[Any], compiler: Any, **kw: Any) -> str:
    return f"json_each_text(CAST({compiler.process(element.clauses, **kw)} AS JSON))"


def text_bind(name: str) -> BindParameter[str]:
    """A parameter whose type cannot be inferred from a column beside it."""
    return bindparam(name, type_=Text)


def values_of(parameter: str) -> TableValuedAlias:
    """The elements of a JSON list of strings as a table with the column `value`."""
    return _JsonList(text_bind(parameter)).table_valued(column("value", Text)).alias(f"{parameter}_list")


def listed(parameter: str) -> Select[Any]:
    """For `column.in_(listed("x"))`: true for the values of the JSON list passed as `x`."""
    return select(values_of(parameter).c.value)


def pairs_of(parameter: str) -> TableValuedAlias:
    """The entries of a JSON object of strings as a table with the columns `key` and `value`."""
    return (
        _JsonMap(text_bind(parameter))
        .table_valued(column("key", Text), column("value", Text))
        .alias(f"{parameter}_map")
    )


def insert_into(table: Table, *, without: tuple[str, ...] = ()) -> Insert:
    """INSERT of every column from the parameter of its name (PostgreSQL's construct compiles for both)."""
    return insert(table).values({c.name: bindparam(c.name, type_=c.type) for c in table.c if c.name not in without})


def upsert(table: Table) -> Insert:
    """INSERT of every column; a row of the same primary key is overwritten."""
    statement = insert_into(table)
    keys = {c.name for c in table.primary_key}
    return statement.on_conflict_do_update(
        index_elements=sorted(keys), set_={c.name: statement.excluded[c.name] for c in table.c if c.name not in keys}
    )
