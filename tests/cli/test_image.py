"""`fleetctl image` and `fleetctl boot`: from a key to an image that the daemon took, and why a host does not come."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from fleetd.drivers.boot.capabilities import Sighting
from fleetd.model import proof
from fleetd.model.image import key_id, read_manifest, verify
from fleetd.sim.image import gpt_disk, tiny_image
from tests.cli.hand import hand
from tests.house import House
from tests.images import as_qcow2
from tests.kit.test_qcow2 import needs_qemu


@pytest.fixture
def key(daemon: House, tmp_path: Path) -> Path:
    """The file of a key that the daemon trusts."""
    path = tmp_path / "key.pem"
    path.touch(mode=0o600)
    path.write_bytes(proof.private_pem(daemon.image_key))
    return path


def test_a_key_pair_is_made_once(tmp_path: Path) -> None:
    file = tmp_path / "images.pem"
    made = hand(None, "image", "key", str(file))
    assert made.code == 0, made.err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    private = proof.load_private_key(file.read_bytes(), "key")
    (public,) = proof.load_public_keys(Path(f"{file}.pub").read_bytes())
    assert key_id(public) == key_id(private.public_key())
    assert key_id(public) in made.err
    before = file.read_bytes()
    again = hand(None, "image", "key", str(file))
    assert (again.code, file.read_bytes()) == (6, before)
    assert "try:" in again.err


def test_signed_added_listed_shown_verified_removed(daemon: House, key: Path, tmp_path: Path) -> None:
    file = tmp_path / "u.raw.gz"
    file.write_bytes(tiny_image("cli")[0])
    signed = hand(None, "image", "sign", str(file), "--name", "cli", "--key", str(key), "--description", "a test")
    assert signed.code == 0, signed.err
    manifest = read_manifest(Path(f"{file}.manifest.json").read_bytes())
    public = daemon.image_key.public_key()
    assert verify(manifest, {key_id(public): public}) == key_id(public)

    dry = hand(daemon, "image", "add", str(file), "--dry-run")
    assert (dry.code, dry.out) == (0, "")
    assert "would add" in dry.err
    assert hand(daemon, "image", "add", str(file), "--dry-run", "-o", "json").json["needed"] is True
    assert hand(daemon, "image", "show", "cli").code == 5

    added = hand(daemon, "image", "add", str(file), "-o", "json")
    assert added.code == 0, added.err
    assert added.json["raw_sha256"] == manifest.manifest.raw_sha256
    assert added.json["description"] == "a test"
    assert "added" in added.err
    again = hand(daemon, "image", "add", str(file), "-o", "json")
    assert (again.code, again.json) == (0, added.json)
    assert "already" in again.err

    assert "cli" in hand(daemon, "image", "list").out
    assert hand(daemon, "image", "list", "-o", "json", role="viewer").json["items"][0] == added.json
    assert manifest.manifest.sha256 in hand(daemon, "image", "show", "cli").out
    assert "good" in hand(daemon, "image", "verify", "cli").out
    assert hand(daemon, "image", "remove", "cli", "--yes", role="viewer").code == 4
    assert hand(daemon, "image", "remove", "cli").code == 2  # nobody is there to ask
    assert hand(daemon, "image", "remove", "cli", "--dry-run").code == 0
    assert hand(daemon, "image", "remove", "cli", "--yes").code == 0
    assert hand(daemon, "image", "remove", "cli", "--yes").code == 5


def test_damage_on_the_server_is_a_failed_verdict(daemon: House, key: Path, tmp_path: Path) -> None:
    file = tmp_path / "d.raw.gz"
    file.write_bytes(tiny_image("damage")[0])
    hand(None, "image", "sign", str(file), "--name", "damage", "--key", str(key))
    digest = hand(daemon, "image", "add", str(file), "-o", "json").json["sha256"]
    kept = daemon.folder / "images" / digest
    kept.chmod(0o644)
    kept.write_bytes(kept.read_bytes()[:-8] + b"12345678")
    found = hand(daemon, "image", "verify", "damage")
    assert found.code == 9
    assert "image add" in found.err
    # A SKU may name it, so `remove` may be refused: the same image once more takes its place.
    again = hand(daemon, "image", "add", str(file))
    assert (again.code, "added" in again.err) == (0, True)
    assert hand(daemon, "image", "verify", "damage").code == 0


def test_the_doctor_of_the_daemon_tells_what_no_image_names_and_what_has_no_file(
    daemon: House, key: Path, tmp_path: Path
) -> None:
    file = tmp_path / "g.raw.gz"
    file.write_bytes(tiny_image("gone")[0])
    hand(None, "image", "sign", str(file), "--name", "gone", "--key", str(key))
    digest = hand(daemon, "image", "add", str(file), "-o", "json").json["sha256"]
    folder = daemon.folder / "images"
    (folder / "left\x1b[2J.raw").write_bytes(bytes(2048))
    odd = os.fsencode(folder) + b"/\xff.raw"  # no UTF-8, and so no JSON
    os.close(os.open(odd, os.O_CREAT | os.O_WRONLY))
    try:
        assert "named by no image: 2, 2 KiB: \\xff.raw, left?[2J.raw" in hand(daemon, "doctor").out
        os.unlink(odd)
        found = hand(daemon, "doctor")
        assert "named by no image: 1, 2 KiB: left?[2J.raw" in found.out
        assert hand(daemon, "doctor", "-o", "json").json["images"]["unnamed"] == 1
        (folder / digest).unlink()
        lost = hand(daemon, "doctor")
        assert (lost.code, "file of image gone is gone" in lost.out) == (1, True)
    finally:
        (folder / "left\x1b[2J.raw").unlink()
        hand(daemon, "image", "remove", "gone", "--yes")


def test_what_was_typed_is_judged_before_the_file_is_read(key: Path, tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.raw")
    named = hand(None, "image", "sign", absent, "--name", "Bad Name", "--key", str(key))
    assert (named.code, "`name`" in named.err) == (2, True)
    placed = hand(None, "image", "sign", absent, "--name", "n", "--key", str(key), "--out", str(tmp_path / "no/where"))
    assert (placed.code, "--out" in placed.err) == (2, True)


def test_what_is_refused_says_why(daemon: House, key: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.raw.gz"
    file.write_bytes(tiny_image("refused")[0])
    bare = hand(daemon, "image", "add", str(file))
    assert (bare.code, "image sign" in bare.err) == (2, True)
    unsigned = hand(daemon, "image", "add", str(file), "--name", "refused")
    assert (unsigned.code, "not signed" in unsigned.err) == (2, True)
    stranger = tmp_path / "stranger.pem"
    assert hand(None, "image", "key", str(stranger)).code == 0
    assert hand(None, "image", "sign", str(file), "--name", "refused", "--key", str(stranger)).code == 0
    foreign = hand(daemon, "image", "add", str(file))
    assert (foreign.code, "not trusted" in foreign.err) == (2, True)
    assert hand(None, "image", "sign", str(file), "--name", "refused", "--key", str(key)).code == 0
    renamed = hand(daemon, "image", "add", str(file), "--name", "other")
    assert (renamed.code, "signed with the rest" in renamed.err) == (2, True)
    file.write_bytes(file.read_bytes() + b"x")
    longer = hand(daemon, "image", "add", str(file))
    assert (longer.code, "bytes, the manifest says" in longer.err) == (2, True)
    assert hand(daemon, "image", "add", str(tmp_path / "none"), "--name", "x").code == 2


@pytest.mark.parametrize("name", ["UPPER", "a/b", "x" * 65])
def test_a_bad_name_is_not_signed(key: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / "n.raw"
    file.write_bytes(gpt_disk("n"))
    found = hand(None, "image", "sign", str(file), "--name", name, "--key", str(key))
    assert (found.code, Path(f"{file}.manifest.json").exists()) == (2, False)


def test_a_key_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "n.raw"
    file.write_bytes(gpt_disk("n"))
    (tmp_path / "bad.pem").write_text("-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n")
    for bad in ("bad.pem", "none.pem"):
        found = hand(None, "image", "sign", str(file), "--name", "n", "--key", str(tmp_path / bad))
        assert (found.code, "try:" in found.err) == (2, True)


@needs_qemu
def test_qcow2_is_signed_and_converted(daemon: House, key: Path, tmp_path: Path) -> None:
    disk = gpt_disk("qcow")
    file = tmp_path / "q.qcow2"
    file.write_bytes(as_qcow2(tmp_path, disk, "-c"))
    signed = hand(None, "image", "sign", str(file), "--name", "qcow", "--key", str(key))
    assert signed.code == 0, signed.err
    said = json.loads(Path(f"{file}.manifest.json").read_text())["manifest"]
    assert said["source_sha256"] == said["sha256"]
    made = hand(daemon, "image", "add", str(file), "-o", "json")
    assert made.code == 0, made.err
    assert (made.json["format"], made.json["source_sha256"]) == ("raw.zst", said["sha256"])
    assert made.json["raw_bytes"] == len(disk)


def test_the_doctor_shows_the_trail_and_one_diagnosis(daemon: House) -> None:
    host = daemon.host("lou-a01-03")
    calm = hand(daemon, "boot", "doctor", host.name)
    assert calm.code == 0, calm.err
    assert "not expected" in calm.out
    boot = daemon.run(daemon.boots.arm(host, "deploy", intent="i", seconds=600))
    on_its_way = hand(daemon, "boot", "doctor", host.name)
    assert (on_its_way.code, "on its way" in on_its_way.out) == (0, True)
    assert ", until " in on_its_way.out
    seen = [Sighting(stage="dhcp", mac=host.spec.boot_mac, source="10.77.0.50", detail="DHCPACK", at=boot.armed + 1)]
    daemon.run(daemon.boots.seen(seen))
    daemon.run(daemon.boots.script(host.spec.boot_mac, uuid="wrong", serial="stranger", source="10.77.0.50"))
    found = hand(daemon, "boot", "doctor", host.name)
    assert found.code == 1
    assert "DHCPACK" in found.out
    assert "stranger" in found.out
    assert "try: compare serial" in found.err
    raw = hand(daemon, "boot", "doctor", host.name, "-o", "json")
    assert (raw.code, raw.json["stage"], raw.json["good"]) == (1, "script", False)
    assert hand(daemon, "boot", "doctor", "nobody").code == 5
