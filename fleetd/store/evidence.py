"""What was seen on a host: facts with their history, the parts it holds now, and the probe's reports.

Everything here came from a host's mouth: texts lose their NULs, reports are bounded.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sqlalchemy import bindparam, delete, exists, func, insert, literal_column, select, text, update

from fleetd.kit.errors import Invalid
from fleetd.store.database import Database, Op, Row, Statement
from fleetd.store.dialects import insert_into, listed, pairs_of, text_bind, values_of
from fleetd.store.rows import pack, plain, unreadable
from fleetd.store.tables import facts as _facts
from fleetd.store.tables import hosts, reports
from fleetd.store.tables import parts as _parts

MAX_REPORT: Final = 64 * 1024 * 1024  # bytes, unpacked


class Fact(NamedTuple):
    """A fact of a host over a time, wall seconds; `until` None: it holds now."""

    fact: str
    value: str
    since: float
    until: float | None


class StoredReport(NamedTuple):
    """A probe's report as it came. `at` in wall seconds; `digest` is what a certificate names; `data` unpacked."""

    host: str
    at: float
    boot_id: str
    digest: str
    data: bytes
    run: str | None
    suite: str


# Facts ------------------------------------------------------------------------------------------------------------

_told = pairs_of("facts")
_CLOSE: Final = Statement(
    update(_facts)
    .where(
        _facts.c.host == bindparam("of_host"),
        _facts.c.until.is_(None),
        exists(
            select(literal_column("1"))
            .select_from(_told)
            .where(_told.c.key == _facts.c.fact, _told.c.value != _facts.c.value)
            .correlate(_facts)
        ),
    )
    .values(until=bindparam("at"))
)
_OPEN: Final = Statement(
    insert(_facts).from_select(
        ["host", "fact", "value", "since"],
        select(text_bind("of_host"), _told.c.key, _told.c.value, bindparam("at", type_=_facts.c.since.type)).where(
            ~exists(
                select(literal_column("1"))
                .select_from(_facts)
                .where(_facts.c.host == bindparam("of_host"), _facts.c.fact == _told.c.key, _facts.c.until.is_(None))
                .correlate(_told)
            )
        ),
    )
)
_FACTS: Final = Statement(
    select(_facts.c.fact, _facts.c.value, _facts.c.since, _facts.c.until)
    .where(_facts.c.host == bindparam("of_host"))
    .order_by(_facts.c.id)
)


def record_facts(host_id: str, facts: Mapping[str, str], at: float) -> list[Op]:
    """Note what holds from `at` on: a changed value is closed and the new one opened, an equal one left alone."""
    told = {plain(fact): plain(value) for fact, value in facts.items()}
    params = {"of_host": host_id, "facts": pack(told), "at": at}
    return [Op(_CLOSE, params), Op(_OPEN, params)]


async def facts(db: Database, host_id: str) -> list[Fact]:
    """Every fact of a host with its history, in the order they were learned."""
    return [Fact(*row) for row in await db.fetch(_FACTS, {"of_host": host_id})]


# Parts ------------------------------------------------------------------------------------------------------------

_held = values_of("parts")
_IS_DRIVE: Final = func.substr(_parts.c.part, literal_column("1"), literal_column("6")) == literal_column("'drive:'")
_gone = (_parts.c.host == bindparam("of_host"), _parts.c.part.not_in(listed("parts")))
_REMOVE: Final = Statement(delete(_parts).where(*_gone, ~_IS_DRIVE))
_REMOVE_DRIVES: Final = Statement(delete(_parts).where(*_gone, _IS_DRIVE))
_DRIVES: Final = Statement(select(_parts.c.part).where(_parts.c.host == bindparam("of_host"), _IS_DRIVE))
_ADD: Final = Statement(
    insert(_parts).from_select(
        ["host", "part", "site", "since"],
        select(
            text_bind("of_host"), _held.c.value, text_bind("site"), bindparam("at", type_=_parts.c.since.type)
        ).where(
            ~exists(
                select(literal_column("1"))
                .select_from(_parts)
                .where(_parts.c.host == bindparam("of_host"), _parts.c.part == _held.c.value)
                .correlate(_held)
            )
        ),
    )
)
_ELSEWHERE: Final = Statement(
    select(_parts.c.part, hosts.c.name)
    .select_from(_parts.join(hosts, hosts.c.id == _parts.c.host))
    .where(_parts.c.host != bindparam("of_host"), text("NOT hosts.retired"), _parts.c.part.in_(listed("parts")))
    .order_by(_parts.c.since, _parts.c.host)
)


def _flat(parts: Mapping[str, Sequence[str]]) -> str:
    return pack(sorted({f"{kind}:{plain(value)}" for kind, values in parts.items() for value in values}))


def replace_parts(host_id: str, site: str, parts: Mapping[str, Sequence[str]], at: float) -> list[Op]:
    """The parts (kind to values) that the host holds now, all of them: what is not named is gone, drives excepted."""
    params = {"of_host": host_id, "site": site, "parts": _flat(parts), "at": at}
    return [Op(_REMOVE, params), Op(_ADD, params)]


def replace_drives(host_id: str, site: str, serials: Sequence[str], at: float) -> list[Op]:
    """The drives that stand in the host when they are erased, all of them and of every kind (`drive:<serial>`).

    Kept apart from the probe's parts: a probe tells of NVMe only, and only of a host that came so far as to be proven.
    """
    params = {"of_host": host_id, "site": site, "parts": _flat({"drive": serials}), "at": at}
    return [Op(_REMOVE_DRIVES, params), Op(_ADD, params)]


async def drives_of(db: Database, host_id: str) -> frozenset[str]:
    """Serials of the drives that the last erase of this host saw; empty when none is on record."""
    rows = await db.fetch(_DRIVES, {"of_host": host_id})
    return frozenset(part.partition(":")[2] for (part,) in rows)


async def parts_elsewhere(db: Database, host_id: str, parts: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Which of these parts are recorded now on another host, not retired: part value to that host's name."""
    rows = await db.fetch(_ELSEWHERE, {"of_host": host_id, "parts": _flat(parts)})
    return {part.partition(":")[2]: name for part, name in rows}


# Reports ----------------------------------------------------------------------------------------------------------

_SAVE: Final = Statement(insert_into(reports, without=("id",)))
_COLUMNS: Final = (
    reports.c.id,
    reports.c.host,
    reports.c.at,
    reports.c.boot_id,
    reports.c.digest,
    reports.c.data,
    reports.c.run,
    reports.c.suite,
)
_LATEST: Final = Statement(
    select(*_COLUMNS)
    .where(reports.c.host == bindparam("of_host"))
    .order_by(reports.c.id.desc())
    .limit(bindparam("limit"))
)
_newest = (
    select(func.max(reports.c.id).label("id")).where(reports.c.run == bindparam("of_run")).group_by(reports.c.host)
)
_OF_RUN: Final = Statement(select(*_COLUMNS).where(reports.c.id.in_(_newest)).order_by(reports.c.id), wide=True)
_PRUNE: Final = Statement(
    delete(reports).where(
        reports.c.at < bindparam("before"),
        reports.c.id.not_in(select(func.max(reports.c.id).label("id")).group_by(reports.c.host)),
    )
)


def save_report(host_id: str, run_id: str | None, suite: str, at: float, boot_id: str, digest: str, data: bytes) -> Op:
    """Keep a report, compressed.

    Raises:
        Invalid: it is larger than 64 MiB.
    """
    if len(data) > MAX_REPORT:
        raise Invalid(f"the report of {host_id} is larger than {MAX_REPORT} bytes")
    params = {
        "host": host_id,
        "run": run_id,
        "suite": suite,
        "at": at,
        "boot_id": plain(boot_id),
        "digest": digest,
        "data": zlib.compress(data, 6),
    }
    return Op(_SAVE, params)


def _report(row: Row) -> StoredReport:
    key, host, at, boot_id, digest, data, run, suite = row
    try:
        unpacked = zlib.decompressobj()
        content = unpacked.decompress(data, MAX_REPORT)
        if unpacked.unconsumed_tail or not unpacked.eof:
            raise unreadable("reports", key, "truncated or too large")
    except zlib.error as error:
        raise unreadable("reports", key, error) from error
    return StoredReport(host, at, boot_id, digest, content, run, suite)


async def latest_report(db: Database, host_id: str) -> StoredReport | None:
    """The newest report of a host."""
    for row in await db.fetch(_LATEST, {"of_host": host_id, "limit": 1}):
        return _report(row)
    return None


async def reports_of_run(db: Database, run_id: str) -> dict[str, StoredReport]:
    """The newest report of each host of a run, by host id."""
    return {report.host: report for report in map(_report, await db.fetch(_OF_RUN, {"of_run": run_id}))}


def prune_reports(before: float) -> Op:
    """Forget reports older than `before` (wall seconds); the newest of each host stays."""
    return Op(_PRUNE, {"before": before})
