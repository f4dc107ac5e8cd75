"""Issues the proofs that make hosts leaseable, and says what is wrong with one. An unreadable proof is none.

A certificate is issued only here, only for a complete suite in which every verdict is a pass, over the very report
that was judged; `model/proof.py` refuses the same again while it builds the statement.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleetd.kit.clock import Clock, parse_rfc3339
from fleetd.kit.errors import FleetError, Invalid, NotFound, Refused
from fleetd.kit.ids import new_id
from fleetd.lifecycle.hosts import find
from fleetd.model import proof
from fleetd.model.certificate import Certificate
from fleetd.model.check import Verdict
from fleetd.model.event import Event
from fleetd.model.host import Host
from fleetd.model.report import Report, fingerprint_parts, read_report
from fleetd.model.sku import Sku
from fleetd.store import certificates as rows
from fleetd.store import events
from fleetd.store import hosts as host_rows
from fleetd.store.certificates import StoredCertificate
from fleetd.store.database import Database, Op

ISSUING = "acceptance"  # the only suite whose pass makes a host leaseable
_ROUNDING = 0.001  # seconds: statements carry milliseconds, so one may seem issued that much in the future


def load_or_create_key(path: Path) -> Ed25519PrivateKey:
    """The site's signing key: PEM, mode 0600; made on the first start.

    Raises:
        Refused: others may read the file. Invalid: it is not an Ed25519 PEM key.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _load(path)
    except OSError as error:
        raise Invalid(f"the signing key {path} cannot be made", why=str(error), where=str(path)) from error
    key = proof.new_key()
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(proof.private_pem(key))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)  # half a key would stop every later start
        raise Invalid(f"the signing key {path} cannot be written", why=str(error), where=str(path)) from error
    return key


def _load(path: Path) -> Ed25519PrivateKey:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            pem = file.read(proof.MAX_PEM + 1)
    except OSError as error:
        raise Invalid(f"the signing key {path} cannot be read", why=str(error), where=str(path)) from error
    if mode & 0o077:
        raise Refused(
            f"others may read the signing key {path}",
            why=f"its mode is {mode & 0o777:04o}, it must be 0600",
            remedy=f"chmod 600 {path}; if it was ever copied, make a new one and publish its public key",
        )
    return proof.load_private_key(pem, str(path))


class ProofDesk:
    """Certificates of one site's hosts, signed with its key."""

    def __init__(self, db: Database, clock: Clock, key: Ed25519PrivateKey, site: str) -> None:
        self._db, self._clock, self._key, self._site = db, clock, key, site
        self._public = key.public_key()

    def issue(
        self,
        host: Host,
        *,
        suite: str,
        verdicts: Sequence[Verdict],
        report: Report,
        report_digest: str,
        sku: Sku,
        probe: str,
    ) -> tuple[Certificate, float, list[Op]]:
        """A signed certificate, its expiry (wall seconds) and the ops that store it.

        The caller writes id and expiry into the host's row in the same commit; a former certificate is revoked.

        Raises:
            Refused: the verdicts are not exactly those of the suite, or one is not a pass, or is of another subject;
                the report is not of this host, or does not show its parts.
        """
        if suite != ISSUING:
            raise Refused(f"no certificate for the suite `{suite}`", why=f"only {ISSUING} proves a host")
        if sku.sku != host.spec.sku:
            raise Refused(f"no certificate: host {host.name} is {host.spec.sku}, judged as {sku.sku}")
        if report.host != host.id:
            raise Refused(f"no certificate: the report is of host `{report.host[:60]}`, not of {host.id}")
        if not report.nonce or not report.boot_id.v:
            raise Refused("no certificate: the report shows not which question and which boot it answers")
        if report.identity.serial.v != host.spec.serial:
            raise Refused(
                f"no certificate: the report shows serial {(report.identity.serial.v or 'none')[:60]!r}",
                why=f"the inventory says {host.spec.serial}",
                remedy="compare the serial at the rack with the inventory",
            )
        subjects = {host.id, host.spec.nvlink_domain}
        foreign = [v.check for v in verdicts if v.subject not in subjects]
        if foreign:
            raise Refused("no certificate: a verdict is of another subject", why=", ".join(foreign)[:300])
        now = self._clock.wall()
        statement = proof.build_statement(
            id=new_id("certificate", now),
            site=host.spec.site or self._site,
            host=host.id,
            host_name=host.name,
            sku=sku,
            suite=suite,
            report=report,
            report_digest=report_digest,
            probe=probe,
            verdicts=verdicts,
            issued=now,
        )
        certificate = proof.sign(statement, self._key)
        expires = parse_rfc3339(statement.expires)
        data = {"name": host.name, "certificate": statement.id, "expires": statement.expires, "checks": len(verdicts)}
        event = Event(kind="certificate.issued", at=now, site=host.spec.site, host=host.id, run=host.run, data=data)
        ops = list(rows.insert(certificate, expires=expires))
        if host.certificate is not None:
            ops.append(rows.revoke(host.certificate, f"replaced by {statement.id}", now))
        return certificate, expires, [*ops, events.append(event)]

    def revoke(self, host: Host, reason: str) -> list[Op]:
        """Ops that end the host's certificate; the caller clears it in the host's row in the same commit."""
        if host.certificate is None:
            return []
        now = self._clock.wall()
        data = {"name": host.name, "certificate": host.certificate, "reason": reason}
        event = Event(kind="certificate.revoked", at=now, site=host.spec.site, host=host.id, run=host.run, data=data)
        return [rows.revoke(host.certificate, reason, now), events.append(event)]

    async def problems(self, host: Host, now: float) -> list[str]:
        """Why no current proof says that this host may be leased at wall second `now`; [] = one does.

        The fingerprint is compared with the newest report that the host gave.
        """
        stored = await host_rows.latest_report(self._db, host.id)
        if stored is None:
            return [*await self.current(host, now, None), "no report of this host is kept"]
        try:
            parts = fingerprint_parts(read_report(stored.data))
        except FleetError as error:
            return [f"its newest report cannot be read: {error}"]
        return await self.current(host, now, parts)

    async def current(self, host: Host, now: float, parts: Mapping[str, Sequence[str]] | None) -> list[str]:
        """Reasons why the host's certificate is not good. `parts`: what the hardware shows now; None: not compared.

        A SKU text that was edited since does not void it: the certificate names the text it was judged by, and an
        edit must not empty a site at once.
        """
        if host.certificate is None:
            return ["it has no certificate"]
        try:
            stored = await rows.get(self._db, host.certificate)
        except NotFound:
            return [f"its certificate {host.certificate} is not in the ledger"]
        said = stored.certificate.statement
        found = list(proof.verify(stored.certificate, [self._public], now + _ROUNDING))
        if stored.revoked is not None:
            found.append(f"its certificate was revoked: {stored.reason}")
        if said.host != host.id:
            found.append(f"its certificate is of host {said.host}")
        if said.serial != host.spec.serial:
            found.append(f"its certificate is of serial {said.serial}, the inventory says {host.spec.serial}")
        if said.sku != host.spec.sku:
            found.append(f"its certificate is for SKU {said.sku}, the inventory says {host.spec.sku}")
        if said.suite != ISSUING:
            found.append(f"its certificate is for the suite {said.suite}")
        if host.certificate_expires is None or host.certificate_expires <= now:
            found.append("its certificate has expired")
        if parts is not None and proof.fingerprint(parts) != said.fingerprint:
            found.append(f"its parts are not those of the certificate: {_changed(said.parts, parts)}")
        return found

    async def of_host(self, ref: str) -> Certificate:
        """The newest certificate of a host, whatever became of it. Raises NotFound, Ambiguous."""
        history = await self.history(ref)
        if not history:
            raise NotFound(f"host {ref} was never proven", remedy=f"fleetctl host validate {ref}")
        return history[0].certificate

    async def history(self, ref: str) -> list[StoredCertificate]:
        """All certificates of a host, newest first. Raises NotFound, Ambiguous."""
        host = await find(self._db, ref)
        return await rows.of_host(self._db, host.id)

    def public_key_pem(self) -> str:
        """What a verifier needs; to be given to him by a way of its own."""
        return proof.public_pem(self._public).decode()


def _changed(before: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]]) -> str:
    """`gpu: GPU-… gone, GPU-… new`, shortened."""
    told = []
    for kind in sorted({*before, *after}):
        gone = sorted(set(before.get(kind, ())) - set(after.get(kind, ())))
        new = sorted(set(after.get(kind, ())) - set(before.get(kind, ())))
        told += [f"{kind} {part} gone" for part in gone] + [f"{kind} {part} new" for part in new]
    return ", ".join(told[:8]) + (f" and {len(told) - 8} more" if len(told) > 8 else "")
