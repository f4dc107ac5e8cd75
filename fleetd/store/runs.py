"""Runs, their hosts, and the journal of steps: what a restarted daemon resumes from."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import msgspec
from sqlalchemy import Table, bindparam, literal_column, select, text, update
from sqlalchemy import insert as _plain_insert

from fleetd.kit.errors import Conflict, NotFound
from fleetd.model.boot import Claim
from fleetd.model.run import Run, RunHost, RunState, StepRecord
from fleetd.store.claims import PROOF, guard_params, held, stale
from fleetd.store.database import Database, Op, Params, Statement
from fleetd.store.dialects import insert_into
from fleetd.store.rows import pack, unpack
from fleetd.store.tables import IN_RUN, run_hosts, runs
from fleetd.store.tables import steps as journal

_INSERT: Final = Statement(insert_into(runs))
_SAVE: Final = Statement(
    update(runs)
    .where(runs.c.id == bindparam("run_id"), runs.c.version == bindparam("read"))
    .values(state=bindparam("state"), doc=bindparam("doc"), version=runs.c.version + literal_column("1"))
)
_GET: Final = Statement(select(runs.c.doc).where(runs.c.id == bindparam("id")))
_ACTIVE: Final = Statement(
    select(runs.c.id, runs.c.doc).where(text("runs.state = 'running'")).order_by(runs.c.created, runs.c.id)
)


def insert(run: Run) -> Op:
    """A new run. Raises Conflict at commit when the id exists."""
    return Op(
        _INSERT,
        {
            "id": run.id,
            "state": run.state.value,
            "playbook": run.playbook,
            "created": run.created,
            "doc": pack(run),
            "version": run.version,
        },
        conflict=lambda: Conflict(f"run {run.id} exists"),
    )


def save(run: Run) -> Op:
    """Write all of it; guard: nobody wrote since `run.version` was read. The row's version is then one higher."""
    newer = msgspec.structs.replace(run, version=run.version + 1)
    return Op(
        _SAVE,
        {"run_id": run.id, "read": run.version, "state": run.state.value, "doc": pack(newer)},
        1,
        lambda: Conflict(f"run {run.id} changed since it was read", remedy="read it again and repeat"),
    )


async def get(db: Database, run_id: str) -> Run:
    """Raises NotFound."""
    for (doc,) in await db.fetch(_GET, {"id": run_id}):
        return unpack(Run, doc, "runs", run_id)
    raise NotFound(f"there is no run {run_id}", remedy="list them: `fleetctl run list`")


@cache
def _every(state: bool) -> Statement:
    query = select(runs.c.id, runs.c.doc)
    if state:
        query = query.where(runs.c.state == bindparam("state"))
    return Statement(query.order_by(runs.c.created.desc(), runs.c.id.desc()).limit(bindparam("limit")))


async def every(db: Database, *, state: RunState | None = None, limit: int = 100) -> list[Run]:
    """Runs, newest first."""
    params: Params = {"limit": limit, "state": None if state is None else RunState(state).value}
    return [unpack(Run, doc, "runs", key) for key, doc in await db.fetch(_every(state is not None), params)]


async def active(db: Database) -> list[Run]:
    """Every run that is not finished, oldest first."""
    return [unpack(Run, doc, "runs", key) for key, doc in await db.fetch(_ACTIVE, {})]


# Hosts in runs ----------------------------------------------------------------------------------------------------

_INSERT_HOST: Final = Statement(insert_into(run_hosts))
_PLACE: Final = (run_hosts.c.run == bindparam("in_run"), run_hosts.c.host == bindparam("in_host"))
_HOST_VALUES: Final[dict[str, Any]] = {
    "wave": bindparam("wave"),
    "state": bindparam("state"),
    "doc": bindparam("doc"),
}
_SAVE_HOST: Final = Statement(update(run_hosts).where(*_PLACE).values(_HOST_VALUES))
_SAVE_CLAIMED_HOST: Final = Statement(update(run_hosts).where(*_PLACE, held()).values(_HOST_VALUES))
_HOST: Final = Statement(select(run_hosts.c.doc).where(*_PLACE))
_HOSTS: Final = Statement(
    select(run_hosts.c.host, run_hosts.c.doc)
    .where(run_hosts.c.run == bindparam("in_run"))
    .order_by(run_hosts.c.wave, run_hosts.c.host)
)
_HOST_ACTIVE: Final = Statement(
    select(run_hosts.c.run, run_hosts.c.doc).where(run_hosts.c.host == bindparam("in_host"), text(IN_RUN))
)
_HOSTS_ACTIVE: Final = Statement(select(run_hosts.c.run, run_hosts.c.host, run_hosts.c.doc).where(text(IN_RUN)))


def insert_host(rh: RunHost) -> Op:
    """Put a host into a run. Raises Conflict at commit when it is pending or active in any run."""
    return Op(
        _INSERT_HOST,
        {"run": rh.run, "host": rh.host, "wave": rh.wave, "state": rh.state.value, "doc": pack(rh)},
        conflict=lambda: Conflict(
            f"host {rh.host} is already in an active run", remedy="wait for it, or `fleetctl run cancel RUN`"
        ),
    )


def save_host(rh: RunHost, *, claim: Claim | None = None) -> Op:
    """Write its place in the run; with `claim`, only while that is the newest of the host (StaleClaim).

    Raises at commit: NotFound when the host is not in the run; Conflict when another active run has it.
    """
    params: Params = {
        "in_run": rh.run,
        "in_host": rh.host,
        "wave": rh.wave,
        "state": rh.state.value,
        "doc": pack(rh),
    }

    def missing() -> NotFound:
        return NotFound(f"host {rh.host} is not in run {rh.run}")

    if claim is None:
        return Op(_SAVE_HOST, params, 1, missing)
    return Op(_SAVE_CLAIMED_HOST, params | guard_params(claim), 1, missing, PROOF, lambda: stale(claim))


async def host(db: Database, run_id: str, host_id: str) -> RunHost:
    """A host's place in a run. Raises NotFound."""
    for (doc,) in await db.fetch(_HOST, {"in_run": run_id, "in_host": host_id}):
        return unpack(RunHost, doc, "run_hosts", f"{run_id}/{host_id}")
    raise NotFound(f"host {host_id} is not in run {run_id}")


async def hosts(db: Database, run_id: str) -> list[RunHost]:
    """Every host of a run, by wave."""
    rows = await db.fetch(_HOSTS, {"in_run": run_id})
    return [unpack(RunHost, doc, "run_hosts", f"{run_id}/{key}") for key, doc in rows]


async def active_of(db: Database, host_id: str) -> RunHost | None:
    """The host's place in the run that has it, None when no run has."""
    for run_id, doc in await db.fetch(_HOST_ACTIVE, {"in_host": host_id}):
        return unpack(RunHost, doc, "run_hosts", f"{run_id}/{host_id}")
    return None


async def active_hosts(db: Database) -> list[RunHost]:
    """Every host that a run has now, over all runs."""
    rows = await db.fetch(_HOSTS_ACTIVE, {})
    return [unpack(RunHost, doc, "run_hosts", f"{run_id}/{key}") for run_id, key, doc in rows]


# The journal ------------------------------------------------------------------------------------------------------


def _claimed_insert(table: Table) -> Statement:
    names = [column.name for column in table.columns]
    row = select(*(bindparam(column.name, type_=column.type) for column in table.columns)).where(held())
    return Statement(_plain_insert(table).from_select(names, row))


_STEP: Final = (
    journal.c.run == bindparam("in_run"),
    journal.c.host == bindparam("in_host"),
)
_BEGIN: Final = Statement(insert_into(journal))
_BEGIN_CLAIMED: Final = _claimed_insert(journal)
_EXACT: Final = (*_STEP, journal.c.idx == bindparam("at_idx"), journal.c.attempt == bindparam("at_attempt"))
_END_VALUES: Final[dict[str, Any]] = {"ended": bindparam("ended"), "doc": bindparam("doc")}
_END: Final = Statement(update(journal).where(*_EXACT, journal.c.ended.is_(None)).values(_END_VALUES))
_END_CLAIMED: Final = Statement(update(journal).where(*_EXACT, journal.c.ended.is_(None), held()).values(_END_VALUES))
_STEPS: Final = Statement(
    select(journal.c.doc).where(*_STEP).order_by(journal.c.began, journal.c.idx, journal.c.attempt)
)
_OPEN: Final = Statement(
    select(journal.c.doc)
    .where(*_STEP, journal.c.ended.is_(None))
    .order_by(journal.c.began.desc(), journal.c.idx.desc(), journal.c.attempt.desc())
    .limit(bindparam("limit"))
)
_OF_HOST: Final = Statement(
    select(journal.c.run, journal.c.doc)
    .where(journal.c.host == bindparam("in_host"))
    .order_by(journal.c.began.desc(), journal.c.idx.desc(), journal.c.attempt.desc())
    .limit(bindparam("limit"))
)


def _named(record: StepRecord) -> str:
    return f"step {record.index} ({record.name}), attempt {record.attempt}, of host {record.host} in run {record.run}"


def begin_step(record: StepRecord, *, claim: Claim | None) -> Op:
    """Journal the intent, before the step acts.

    Raises at commit: StaleClaim; Conflict when this attempt began already or the host is not in the run.
    """
    params: Params = {
        "run": record.run,
        "host": record.host,
        "idx": record.index,
        "attempt": record.attempt,
        "began": record.began,
        "ended": record.ended,
        "doc": pack(record),
    }

    def twice() -> Conflict:
        return Conflict(f"{_named(record)}, began already")

    if claim is None:
        return Op(_BEGIN, params, 1, twice)
    return Op(_BEGIN_CLAIMED, params | guard_params(claim), 1, twice, PROOF, lambda: stale(claim))


def end_step(record: StepRecord, *, claim: Claim | None) -> Op:
    """Journal the result, after it read back.

    Raises at commit: StaleClaim; Conflict when it has ended or never began.
    """
    params: Params = {
        "in_run": record.run,
        "in_host": record.host,
        "at_idx": record.index,
        "at_attempt": record.attempt,
        "ended": record.ended,
        "doc": pack(record),
    }

    def over() -> Conflict:
        return Conflict(f"{_named(record)}, is not open")

    if claim is None:
        return Op(_END, params, 1, over)
    return Op(_END_CLAIMED, params | guard_params(claim), 1, over, PROOF, lambda: stale(claim))


async def steps(db: Database, run_id: str, host_id: str) -> list[StepRecord]:
    """The journal of one host in one run, oldest first."""
    rows = await db.fetch(_STEPS, {"in_run": run_id, "in_host": host_id})
    return [unpack(StepRecord, doc, "steps", f"{run_id}/{host_id}") for (doc,) in rows]


async def open_step(db: Database, run_id: str, host_id: str) -> StepRecord | None:
    """The newest intent without a result: after a crash it is verified first, never blindly repeated."""
    for (doc,) in await db.fetch(_OPEN, {"in_run": run_id, "in_host": host_id, "limit": 1}):
        return unpack(StepRecord, doc, "steps", f"{run_id}/{host_id}")
    return None


async def steps_of_host(db: Database, host_id: str, limit: int) -> list[StepRecord]:
    """The journal of a host over all runs, newest first."""
    rows = await db.fetch(_OF_HOST, {"in_host": host_id, "limit": limit})
    return [unpack(StepRecord, doc, "steps", f"{run_id}/{host_id}") for run_id, doc in rows]
