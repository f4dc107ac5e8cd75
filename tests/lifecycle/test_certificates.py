"""Proofs: issued only for a whole suite that passed on this very host, and void the moment anything else is true."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fleetd.kit.clock import parse_rfc3339
from fleetd.kit.errors import FleetError, Invalid, NotFound, Permanent, Refused
from fleetd.lifecycle.certificates import ProofDesk, load_or_create_key
from fleetd.model import proof
from fleetd.model.check import Outcome
from fleetd.model.host import Host
from fleetd.model.report import Identity, Nvml, Reading, fingerprint_parts
from fleetd.model.sku import Sku
from fleetd.store import certificates as rows
from fleetd.store import hosts as host_rows
from fleetd.store import inventory as inventory_rows
from tests.lifecycle.fleet import H100, Fleet, inventory, ledger
from tests.lifecycle.proofs import certify, desk, keep_report, report_of, verdicts_of

NAME = "lou-a01-01"


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with ledger() as db:
        fleet = Fleet(db)
        await fleet.fill(inventory({"lou-a01": 2}), available=False)
        yield fleet


@pytest.fixture
async def sku(fleet: Fleet) -> Sku:
    return await inventory_rows.sku(fleet.db, H100)


async def proven(fleet: Fleet) -> Host:
    return await certify(fleet, await fleet.named(NAME))


async def test_a_certificate_verifies_offline_with_the_sites_key(fleet: Fleet, sku: Sku) -> None:
    host = await proven(fleet)
    certificate = await desk(fleet).of_host(NAME)
    said = certificate.statement
    trusted = proof.load_public_keys(desk(fleet).public_key_pem().encode())
    assert proof.verify(certificate, trusted, fleet.clock.wall() + 1, sku=sku) == []
    assert (said.host, said.serial, said.site, said.suite) == (host.id, host.spec.serial, "louisiana", "acceptance")
    assert {v.check for v in said.verdicts} == set(sku.acceptance)
    assert host.certificate_expires == parse_rfc3339(said.expires)
    assert await desk(fleet).problems(host, fleet.clock.wall()) == []


async def test_a_new_proof_revokes_the_old_one(fleet: Fleet) -> None:
    first = await proven(fleet)
    fleet.clock.go(60)
    second = await certify(fleet, first)
    newest, oldest = await desk(fleet).history(NAME)
    assert (newest.certificate.statement.id, newest.revoked) == (second.certificate, None)
    assert oldest.reason == f"replaced by {second.certificate}"
    assert (await desk(fleet).of_host(host_id := second.id)).statement.id == second.certificate, host_id
    stale = msgspec.structs.replace(second, certificate=first.certificate)
    assert any("revoked: replaced" in p for p in await desk(fleet).problems(stale, fleet.clock.wall()))


@pytest.mark.parametrize("outcome", [Outcome.FAIL, Outcome.NOT_RUN])
async def test_only_a_whole_suite_of_passes_is_certified(fleet: Fleet, sku: Sku, outcome: Outcome) -> None:
    host = await fleet.named(NAME)
    report = report_of(host, sku)
    good = verdicts_of(host, sku)
    spoilt = [msgspec.structs.replace(v, outcome=outcome) if i == 3 else v for i, v in enumerate(good)]
    foreign = [msgspec.structs.replace(good[0], subject="host-other"), *good[1:]]
    unknown = [*good[:-1], msgspec.structs.replace(good[-1], check="gpu.colour")]
    for verdicts in (spoilt, good[:-1], [*good, good[0]], [], foreign, unknown):
        with pytest.raises(Permanent):
            desk(fleet).issue(
                host, suite="acceptance", verdicts=verdicts, report=report, report_digest="d", sku=sku, probe="p"
            )
    with pytest.raises(NotFound):
        await desk(fleet).of_host(NAME)


@pytest.mark.parametrize(
    "change",
    [
        {"host": "host-other"},
        {"nonce": ""},
        {"boot_id": Reading(absent="no such file")},
        {"identity": Identity(serial=Reading(v="SN-other"), uuid=Reading(v="u"))},
        {"identity": Identity()},
        {"nvml": Nvml()},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_report_that_is_not_of_this_host_proves_nothing(
    fleet: Fleet, sku: Sku, change: dict[str, object]
) -> None:
    host = await fleet.named(NAME)
    with pytest.raises(Refused):
        desk(fleet).issue(
            host,
            suite="acceptance",
            verdicts=verdicts_of(host, sku),
            report=report_of(host, sku, **change),
            report_digest="d",
            sku=sku,
            probe="p",
        )


async def test_a_quick_suite_or_another_sku_proves_nothing(fleet: Fleet, sku: Sku) -> None:
    host = await fleet.named(NAME)
    report, verdicts = report_of(host, sku), verdicts_of(host, sku)
    other = msgspec.structs.replace(sku, sku="acme.other")
    for suite, judged in (("quick", sku), ("acceptance", other)):
        with pytest.raises(Refused):
            desk(fleet).issue(
                host, suite=suite, verdicts=verdicts, report=report, report_digest="d", sku=judged, probe="p"
            )


async def test_a_changed_part_is_seen(fleet: Fleet, sku: Sku) -> None:
    host = await proven(fleet)
    report = report_of(host, sku)
    gpus = [*report.nvml.gpus]
    gpus[3] = msgspec.structs.replace(gpus[3], uuid=Reading(v="GPU-swapped"))
    swapped = msgspec.structs.replace(report, nvml=msgspec.structs.replace(report.nvml, gpus=gpus))
    (problem,) = await desk(fleet).current(host, fleet.clock.wall(), fingerprint_parts(swapped))
    assert "gpu GPU-swapped new" in problem
    await keep_report(fleet, host, swapped)
    assert await desk(fleet).problems(host, fleet.clock.wall()) == [problem]


async def test_reasons_why_a_certificate_is_not_good(fleet: Fleet) -> None:
    host = await proven(fleet)
    now = fleet.clock.wall()
    desk_ = desk(fleet)
    replace = msgspec.structs.replace

    async def problems(changed: Host, at: float = now) -> str:
        return "; ".join(await desk_.current(changed, at, None))

    assert await problems(host) == ""
    assert "no certificate" in await problems(replace(host, certificate=None))
    assert "not in the ledger" in await problems(replace(host, certificate="certificate-gone"))
    assert "expired" in await problems(host, now + 31 * 86_400)
    assert "expired" in await problems(replace(host, certificate_expires=now))
    assert "of host" in await problems(replace(host, id="host-other"))
    assert "serial" in await problems(replace(host, spec=replace(host.spec, serial="SN-new")))
    assert "SKU" in await problems(replace(host, spec=replace(host.spec, sku="acme.other")))
    assert "trusted" in "; ".join(
        await ProofDesk(fleet.db, fleet.clock, proof.new_key(), "louisiana").current(host, now, None)
    ), "signed by a key that is not the site's"
    await fleet.db.commit(desk_.revoke(host, "a person said so"))
    assert "a person said so" in await problems(host)
    assert desk_.revoke(replace(host, certificate=None), "again") == []


async def test_no_report_and_an_unreadable_one_are_problems(fleet: Fleet) -> None:
    host = await proven(fleet)
    await fleet.db.commit(
        [host_rows.save_report(host.id, "run-2", "quick", fleet.clock.wall(), "boot-2", "d", b"{broken")]
    )
    (problem,) = await desk(fleet).problems(host, fleet.clock.wall())
    assert "cannot be read" in problem
    other = await fleet.named("lou-a01-02")
    assert await desk(fleet).problems(other, fleet.clock.wall()) == [
        "it has no certificate",
        "no report of this host is kept",
    ]


async def test_a_row_edited_in_the_ledger_is_no_proof(fleet: Fleet) -> None:
    """Whoever can write the database still cannot make a host leaseable: the signature is the site's."""
    host = await proven(fleet)
    genuine = await desk(fleet).of_host(NAME)
    forged_statement = msgspec.structs.replace(
        genuine.statement, id="certificate-forged", expires="2099-01-01T00:00:00.000Z"
    )
    forged = msgspec.structs.replace(genuine, statement=forged_statement)
    await fleet.db.commit(rows.insert(forged, expires=parse_rfc3339("2099-01-01T00:00:00Z")))
    claimed = msgspec.structs.replace(host, certificate="certificate-forged", certificate_expires=9e9)
    assert any("signature is wrong" in p for p in await desk(fleet).problems(claimed, fleet.clock.wall()))


# --- the key


def test_the_key_is_made_once_and_only_for_us(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    old = os.umask(0)
    try:
        first = load_or_create_key(path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert proof.private_pem(load_or_create_key(path)) == proof.private_pem(first)
    path.chmod(0o640)
    with pytest.raises(Refused, match="others may read"):
        load_or_create_key(path)


@pytest.mark.parametrize(
    "content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_garbage_is_not_a_key_and_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "signing.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(Invalid):
        load_or_create_key(path)
    assert path.read_bytes() == content


def test_another_kind_of_key_or_no_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    with pytest.raises(Invalid, match="not Ed25519"):
        load_or_create_key(path)
    with pytest.raises(FleetError):
        load_or_create_key(tmp_path / "missing" / "signing.pem")
    link = tmp_path / "link.pem"
    link.symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(FleetError):
        load_or_create_key(link)
    assert not (tmp_path / "elsewhere.pem").exists()
