"""Reports and verdicts of a healthy host, and a certificate for one, made by the real desk."""

from __future__ import annotations

import hashlib
import itertools

import msgspec

from fleetd.lifecycle.certificates import ProofDesk
from fleetd.model import proof
from fleetd.model.check import Outcome, Verdict
from fleetd.model.host import Host, State
from fleetd.model.report import Gpu, Identity, Nic, Nvme, Nvml, Reading, Report
from fleetd.model.sku import Sku
from fleetd.store import hosts as host_rows
from fleetd.store import inventory
from tests.lifecycle.fleet import Fleet

KEY = proof.new_key()
_nonces = itertools.count(1)


def desk(fleet: Fleet) -> ProofDesk:
    return ProofDesk(fleet.db, fleet.clock, KEY, "louisiana")


def report_of(host: Host, sku: Sku, /, **changes: object) -> Report:
    def part(kind: str, i: int) -> str:
        return f"{kind}-{hashlib.sha256(f'{host.id}/{kind}/{i}'.encode()).hexdigest()[:12]}"

    gpus = [Gpu(index=i, uuid=Reading(v=part("GPU", i)), serial=Reading(v=part("S", i))) for i in range(sku.gpu.count)]
    report = Report(
        format="fleetd.report/1",
        probe="0.1.0",
        nonce=f"nonce-{next(_nonces)}",
        host=host.id,
        boot_id=Reading(v="boot-1"),
        identity=Identity(serial=Reading(v=host.spec.serial), uuid=Reading(v=part("uuid", 0))),
        nvml=Nvml(gpus=gpus),
        nics=Reading(v=[Nic(name="mlx5_0", guid=Reading(v=part("nic", 0)))]),
        nvme=Reading(v=[Nvme(name="nvme0", serial=Reading(v=part("nvme", 0)))]),
    )
    return msgspec.structs.replace(report, **changes)


def verdicts_of(host: Host, sku: Sku) -> list[Verdict]:
    return [
        Verdict(check=check, subject=host.id, outcome=Outcome.PASS, measured="as it should be", expected="so")
        for check in sku.acceptance
    ]


async def keep_report(fleet: Fleet, host: Host, report: Report) -> str:
    data = msgspec.json.encode(report)
    digest = hashlib.sha256(data).hexdigest()
    boot = report.boot_id.v or ""
    await fleet.db.commit(
        [host_rows.save_report(host.id, "run-1", "acceptance", fleet.clock.wall(), boot, digest, data)]
    )
    return digest


async def certify(fleet: Fleet, host: Host) -> Host:
    """An available host under a real certificate."""
    sku = await inventory.sku(fleet.db, host.spec.sku)
    report = report_of(host, sku)
    digest = await keep_report(fleet, host, report)
    certificate, expires, ops = desk(fleet).issue(
        host,
        suite="acceptance",
        verdicts=verdicts_of(host, sku),
        report=report,
        report_digest=digest,
        sku=sku,
        probe="0.1.0",
    )
    proven = msgspec.structs.replace(
        host, state=State.AVAILABLE, certificate=certificate.statement.id, certificate_expires=expires
    )
    await fleet.db.commit([host_rows.save(proven), *ops])
    return await host_rows.get(fleet.db, host.id)
