"""Certificates as they were signed; a revocation is a mark beside one, never an edit of it."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import bindparam, select, update

from fleetd.kit.clock import parse_rfc3339
from fleetd.kit.errors import Conflict, Invalid, NotFound
from fleetd.model.certificate import Certificate
from fleetd.store.database import Database, Op, Row, Statement
from fleetd.store.dialects import insert_into
from fleetd.store.rows import pack, unpack
from fleetd.store.tables import certificates

_INSERT: Final = Statement(insert_into(certificates))
_COLUMNS: Final = (
    certificates.c.id,
    certificates.c.doc,
    certificates.c.issued,
    certificates.c.expires,
    certificates.c.revoked,
    certificates.c.reason,
)
_GET: Final = Statement(select(*_COLUMNS).where(certificates.c.id == bindparam("of_id")))
_OF_HOST: Final = Statement(
    select(*_COLUMNS)
    .where(certificates.c.host == bindparam("of_host"))
    .order_by(certificates.c.issued.desc(), certificates.c.id.desc())
)
_REVOKE: Final = Statement(
    update(certificates)
    .where(certificates.c.id == bindparam("of_id"), certificates.c.revoked.is_(None))
    .values(revoked=bindparam("at"), reason=bindparam("reason"))
)


class StoredCertificate(NamedTuple):
    """Times in wall seconds; `reason` says why it was revoked."""

    certificate: Certificate
    issued: float
    expires: float
    revoked: float | None
    reason: str


def insert(certificate: Certificate, *, expires: float) -> list[Op]:
    """Keep it. That the host has it now is written by hosts.save.

    Raises:
        Invalid: `issued` is no RFC 3339 time.
    """
    statement = certificate.statement
    try:
        issued = parse_rfc3339(statement.issued)
    except ValueError as error:
        raise Invalid(f"certificate {statement.id}: `issued` is not a time", why=str(error)) from error
    params = {
        "id": statement.id,
        "host": statement.host,
        "issued": issued,
        "expires": expires,
        "revoked": None,
        "reason": "",
        "doc": pack(certificate),
    }
    return [Op(_INSERT, params, conflict=lambda: Conflict(f"certificate {statement.id} exists"))]


def _stored(row: Row) -> StoredCertificate:
    key, doc, issued, expires, revoked, reason = row
    return StoredCertificate(unpack(Certificate, doc, "certificates", key), issued, expires, revoked, reason)


async def get(db: Database, certificate_id: str) -> StoredCertificate:
    """Raises NotFound."""
    for row in await db.fetch(_GET, {"of_id": certificate_id}):
        return _stored(row)
    raise NotFound(f"there is no certificate {certificate_id}", remedy="`fleetctl certificate show HOST`")


async def of_host(db: Database, host_id: str) -> list[StoredCertificate]:
    """Every certificate of a host, newest first."""
    return [_stored(row) for row in await db.fetch(_OF_HOST, {"of_host": host_id})]


def revoke(certificate_id: str, reason: str, at: float) -> Op:
    """Mark it void from `at`; one that is void already keeps its first reason."""
    return Op(_REVOKE, {"of_id": certificate_id, "reason": reason, "at": at})
