"""`fleetctl certificate verify`: offline, against a key that came another way."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fleetd.kit import pause
from fleetd.kit.clock import rfc3339
from fleetd.model import proof
from fleetd.model.certificate import Certificate, CheckProof, Statement
from tests.cli.hand import hand

KEY = proof.new_key()


def certificate(expires_in: float = 3600.0) -> Certificate:
    parts = {"board": ("SN1", "uuid-1"), "gpu": ("GPU-1",), "gpu-serial": ("1",), "nic": (), "nvme": ()}
    now = pause.wall()
    statement = Statement(
        format=proof.FORMAT,
        id="certificate-1",
        site="louisiana",
        host="host-1",
        host_name="lou-a01-01",
        serial="SN1",
        uuid="uuid-1",
        sku="dell.x",
        sku_digest="0" * 64,
        suite="acceptance",
        fingerprint=proof.fingerprint(parts),
        parts=parts,
        probe="1",
        report="0" * 64,
        boot_id="b",
        nonce="n",
        verdicts=(CheckProof(check="gpu.count", outcome="pass", measured="8", expected="8", evidence="0" * 64),),
        issued=rfc3339(now - 60) or "",
        expires=rfc3339(now + expires_in) or "",
    )
    return proof.sign(statement, KEY)


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    path = tmp_path / "trust.pem"
    path.write_bytes(proof.public_pem(KEY.public_key()))
    return path


def test_good_is_0(tmp_path: Path, trust: Path) -> None:
    file = tmp_path / "c.json"
    file.write_bytes(proof.write_certificate(certificate()))
    said = hand(None, "certificate", "verify", str(file), "--trust", str(trust))
    assert said.code == 0, said
    assert "verdict  good" in said.out
    assert hand(None, "certificate", "verify", str(file), "--trust", str(trust), "-o", "json").json["good"] is True


def test_expired_changed_and_foreign_are_9(tmp_path: Path, trust: Path) -> None:
    good = certificate()
    changed = msgspec.structs.replace(good, statement=msgspec.structs.replace(good.statement, host_name="other"))
    stranger = tmp_path / "stranger.pem"
    stranger.write_bytes(proof.public_pem(proof.new_key().public_key()))
    for number, (made, keys) in enumerate(((certificate(-30.0), trust), (changed, trust), (good, stranger))):
        file = tmp_path / f"c{number}.json"
        file.write_bytes(proof.write_certificate(made))
        said = hand(None, "certificate", "verify", str(file), "--trust", str(keys))
        assert said.code == 9, number
        assert "error: this certificate proves nothing" in said.err


def test_no_certificate_and_no_key_are_2(tmp_path: Path, trust: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text("{}")
    assert hand(None, "certificate", "verify", str(file), "--trust", str(trust)).code == 2
    assert hand(None, "certificate", "verify", str(tmp_path / "none"), "--trust", str(trust)).code == 2
    assert hand(None, "certificate", "verify", str(file)).code == 2
    file.write_bytes(proof.write_certificate(certificate()))
    trust.write_text("no key")
    assert hand(None, "certificate", "verify", str(file), "--trust", str(trust)).code == 2
