"""How a batch of units runs inside one PostgreSQL transaction without a round trip a statement.

Most units look alike: one guarded write, then events. `pipeline` sends the guarded writes of neighbouring units as one
stream, learns from RETURNING which of them hit, and then streams the events of those. That is the same as one unit after
the other, since events read nothing. Whatever else a unit holds runs in its place. Is there anything to undo for one
unit, the whole transaction is run again by `one_by_one`, a savepoint each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg

from fleetd.kit.errors import FleetError
from fleetd.store import failures
from fleetd.store.statement import ORDINAL, Op, Params, Result, Row, Statement

if TYPE_CHECKING:
    Writer: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Writer: TypeAlias = asyncpg.Connection
Units: TypeAlias = Sequence[Sequence[Op]]
Answers: TypeAlias = list[Result | FleetError]
Run: TypeAlias = Callable[[Writer, Units], Awaitable[Answers]]


class AgainError(Exception):
    """A unit failed after it changed something, or spoiled the transaction."""

    def __init__(self, error: FleetError) -> None:
        super().__init__(error.what)
        self.error = error


def _plain(ops: Sequence[Op]) -> bool:
    """One write, then nothing but events."""
    return (
        bool(ops)
        and not ops[0].statement.returns
        and ops[0].expect in (None, 1)
        and not ops[0].statement.sequenced
        and all(op.statement.sequenced for op in ops[1:])
    )


async def pipeline(writer: Writer, units: Units) -> Answers:
    """Run all units. Raises AgainError when one of them needs to be undone."""
    answers: Answers = []
    for plain, group in groupby(units, _plain):
        if plain:
            answers += await _plain_units(writer, list(group))
        else:
            for ops in group:
                answers.append(await _unit(writer, ops))
    return answers


async def _plain_units(writer: Writer, units: Units) -> Answers:
    answers: Answers = [Result(0, []) for _ in units]
    try:
        missed = await _heads(writer, [ops[0] for ops in units])
        for index in missed:
            answers[index] = await _miss(writer, units[index][0])
        tails = [(index, op) for index, ops in enumerate(units) if index not in missed for op in ops[1:]]
        if tails:
            sql = tails[0][1].statement.postgres
            rows = await writer.fetchmany(sql.sql, [sql.args(op.params) for _, op in tails])
            for (index, _), row in zip(tails, rows, strict=True):
                answers[index] = Result(row[0], [])
    except failures.DRIVER as error:
        if failures.is_lost(error):
            raise
        raise AgainError(failures.from_postgres(error)) from error
    return answers


async def _heads(writer: Writer, ops: Sequence[Op]) -> set[int]:
    """Run these in order; which of them missed their guard."""
    missed: set[int] = set()
    for statement, group in groupby(enumerate(ops), lambda pair: pair[1].statement):
        members = list(group)
        hit = await _stream(writer, statement, members)
        late = [(index, op) for index, op in members if index not in hit]
        full = [(index, op.otherwise()) for index, op in late if op.otherwise is not None]
        for other, again in groupby(full, lambda pair: pair[1].statement):
            hit |= await _stream(writer, other, list(again))
        late = [(index, op) for index, op in late if index not in hit]
        missed.update(index for index, op in late if op.expect == 1)
    return missed


async def _stream(writer: Writer, statement: Statement, members: Sequence[tuple[int, Op]]) -> set[int]:
    sql = statement.postgres_many
    found = await writer.fetchmany(sql.sql, [sql.args({**op.params, ORDINAL: index}) for index, op in members])
    hits = [row[0] for row in found]
    expected = {index for index, op in members if op.expect == 1}
    if len(hits) != len(set(hits)) and any(hits.count(index) > 1 for index in expected):
        raise AgainError(failures.missed(members[0][1]))
    return set(hits)


async def _miss(writer: Writer, op: Op) -> FleetError:
    if op.proof is not None and op.stale is not None:
        look = op.proof.postgres
        if not await writer.fetch(look.sql, *look.args(op.params)):
            return op.stale()
    return failures.missed(op)


async def one_by_one(writer: Writer, units: Units) -> Answers:
    """Run each unit in a savepoint of its own."""
    answers: Answers = []
    for ops in units:
        await writer.execute("SAVEPOINT unit")
        try:
            answers.append(await _unit(writer, ops))
        except AgainError as again:
            await writer.execute("ROLLBACK TO unit")
            answers.append(again.error)
        await writer.execute("RELEASE unit")
    return answers


async def _unit(writer: Writer, ops: Sequence[Op]) -> Result | FleetError:
    """Run one unit. Its FleetError is returned if it changed nothing, raised in an AgainError if it must be undone."""
    seq = 0
    rows: list[Row] = []
    first = True
    for op in ops:
        statement, params = op.statement, op.params
        try:
            if statement.returns or statement.sequenced:
                sql = statement.postgres
                found: list[Any] = await writer.fetch(sql.sql, *sql.args(params))
                changed = len(found)
                if statement.returns:
                    rows = found
                if statement.sequenced:
                    seq = found[0][0]
            else:
                changed = await _change(writer, statement, params)
                if changed == 0 and op.otherwise is not None:
                    full = op.otherwise()
                    changed = await _change(writer, full.statement, full.params)
        except failures.DRIVER as error:
            if failures.is_lost(error):
                raise
            # PostgreSQL takes nothing more in a transaction in which a statement failed.
            raise AgainError(failures.from_postgres(error, op)) from error
        if op.expect is not None and changed != op.expect:
            problem = await _miss(writer, op)
            if first and changed == 0:
                return problem
            raise AgainError(problem)
        first = False
    return Result(seq, rows)


async def _change(writer: Writer, statement: Statement, params: Params) -> int:
    sql = statement.postgres
    return int((await writer.execute(sql.sql, *sql.args(params))).rpartition(" ")[2])
