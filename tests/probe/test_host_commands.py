"""The host-side program as a process on a directory that stands for a host: it refuses, acts once, and reads back."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.probe.build import build
from fleetd.probe.host import machine as machines
from fleetd.probe.host import order as orders
from fleetd.probe.host.machine import Journal, RealMachine, RootMachine
from fleetd.probe.host.work import choose, perform, sample_offsets

NONCE = "n" * 43


@pytest.fixture
def root(tmp_path):
    """A host with three drives, booted by NONCE into the deploy environment."""
    (tmp_path / "drives").mkdir()
    for i, size in enumerate((4_000_000, 2_000_000, 4_000_000)):
        drive = {"name": f"nvme{i}", "serial": f"D{i}", "model": f"M{i}", "bytes": size, "content": "tenant:a"}
        (tmp_path / "drives" / f"nvme{i}.json").write_text(json.dumps(drive))
    dmi = tmp_path / "sys/class/dmi/id"
    dmi.mkdir(parents=True)
    (dmi / "product_serial").write_text("HOST-1\n")
    (tmp_path / "run/fleetd").mkdir(parents=True)
    (tmp_path / "run/fleetd/deploy").write_text(hashlib.sha256(NONCE.encode()).hexdigest() + "\n")
    return tmp_path


def order(**more):
    said = {
        "intent": "step-1",
        "nonce": NONCE,
        "host_serial": "HOST-1",
        "drives": [{"serial": f"D{i}"} for i in range(3)],
    }
    return said | more


IMAGE = {
    "image": {"name": "ubuntu", "digest": "sha256:11"},
    "seed": {
        "hostname": "h",
        "authorized_keys": ["ssh-ed25519 AAAA"],
        "host_key_private": "SECRET-KEY",
        "host_key_public": "ssh-ed25519 BBBB",
        "phone_home_url": "http://x",
        "phone_home_token": "SECRET-TOKEN",
    },
}


def act(command, said, root):
    """In this process: (report, progress)."""
    work = perform(command, json.dumps(said).encode() if isinstance(said, dict) else said, RootMachine(str(root)))
    progress = []
    while True:
        try:
            progress.append(next(work))
        except StopIteration as done:
            return done.value, progress


def contents(root):
    return [json.loads(p.read_text())["content"] for p in sorted((root / "drives").glob("*.json"))]


def test_a_wipe_erases_and_reads_back(root):
    report, progress = act("wipe", order(), root)
    assert report["ok"]
    assert [(d["serial"], d["erased"], d["samples"] > 2) for d in report["drives"]] == [
        (f"D{i}", True, True) for i in range(3)
    ]
    assert contents(root) == ["blank"] * 3
    assert [p["event"] for p in progress] == ["erasing", "erased"] * 3
    log = [json.loads(line)["what"] for line in (root / "drives/log.jsonl").read_text().splitlines()]
    assert log == ["wipe.begin", "wipe.drive", "wipe.drive", "wipe.drive", "wipe.done"]


def test_the_ledgers_hash_of_the_nonce_serves_as_well(root):
    assert act("wipe", order(nonce=hashlib.sha256(NONCE.encode()).hexdigest()), root)[0]["ok"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"nonce": "m" * 43}, "other-boot"),
        ({"nonce": "ü"}, "other-boot"),
        ({"host_serial": "HOST-2"}, "other-host"),
        ({"drives": [{"serial": "D0"}, {"serial": "D1"}, {"serial": "D9"}]}, "other-drives"),
        ({"drives": [{"serial": "D0"}]}, "other-drives"),
        ({"drives": [{"serial": "D0"}, {"serial": "D0"}]}, "bad-order"),
        ({"drives": []}, "bad-order"),
        ({"drives": "D0"}, "bad-order"),
        ({"drives": [1]}, "bad-order"),
        ({"intent": "../../etc/x"}, "bad-order"),
        ({"intent": ""}, "bad-order"),
        ({"intent": "a/b"}, "bad-order"),
        ({"nonce": None}, "bad-order"),
        ({"host_serial": 5}, "bad-order"),
    ],
)
def test_an_order_that_does_not_fit_is_refused_untouched(root, change, code):
    report, progress = act("wipe", order(**change), root)
    assert report["refused"]["code"] == code
    assert (progress, contents(root)) == ([], ["tenant:a"] * 3)
    assert not (root / "run/fleetd/intents").exists()


def test_without_the_marker_of_a_deploy_boot_nothing_is_touched(root):
    (root / "run/fleetd/deploy").unlink()
    for command in ("wipe", "write-image"):
        report, _ = act(command, order(**IMAGE), root)
        assert report["refused"]["code"] == "not-deploy"
    (root / "run/fleetd/deploy").write_text("")
    assert act("wipe", order(), root)[0]["refused"]["code"] == "not-deploy"
    assert contents(root) == ["tenant:a"] * 3


def test_a_placeholder_is_no_serial(root):
    (root / "sys/class/dmi/id/product_serial").write_text("To be filled by O.E.M.\n")
    report, _ = act("wipe", order(host_serial="To be filled by O.E.M."), root)
    assert report["refused"]["code"] == "no-serial"


def test_the_same_intent_never_acts_twice(root):
    first, _ = act("wipe", order(), root)
    path = root / "drives/nvme0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"content": "tenant:b"}))
    again, progress = act("wipe", order(), root)
    assert again == {**first, "again": True}
    assert progress == []
    assert contents(root)[0] == "tenant:b"
    assert act("write-image", order(**IMAGE), root)[0]["refused"]["code"] == "intent-reused"
    assert act("status", {"intent": "step-1"}, root)[0] == {**first, "state": "done"}


def test_an_intent_that_was_cut_off_is_not_begun_again(root):
    work = perform("wipe", json.dumps(order()).encode(), RootMachine(str(root)))
    next(work)
    work.close()
    entry = root / "run/fleetd/intents/step-1.json"
    running = json.loads(entry.read_text())
    assert act("wipe", order(), root)[0]["state"] == "running"
    assert act("status", {"intent": "step-1"}, root)[0]["state"] == "running"
    entry.write_text(json.dumps(running | {"pid": 2**22 + 5}))  # no such process: it was killed
    report, _ = act("wipe", order(), root)
    assert (report["ok"], report["interrupted"]) == (False, True)
    entry.write_text("{damaged")
    assert act("wipe", order(), root)[0]["ok"] is False
    assert contents(root) == ["tenant:a"] * 3


def test_of_two_at_once_one_acts(tmp_path):
    journal = Journal(str(tmp_path / "j"))
    assert journal.began("i", {"state": "running"}) is None
    assert journal.began("i", {"state": "running"})["state"] == "running"
    assert sorted(os.listdir(tmp_path / "j")) == ["i.json"]


@pytest.mark.parametrize(("firmware", "said"), [("lies", "still there"), ("refuses", "Invalid Format")])
def test_a_drive_that_keeps_its_data_is_found(root, firmware, said):
    path = root / "drives/nvme1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"erase": firmware}))
    report, _ = act("wipe", order(), root)
    assert not report["ok"]
    assert [d["erased"] for d in report["drives"]] == [True, False, True]
    assert said in report["drives"][1]["reason"]


def test_an_image_goes_to_the_smallest_drive_and_is_read_back(root):
    report, _ = act("write-image", order(**IMAGE), root)
    assert report["ok"]
    assert (report["image"], report["digest"]) == ("ubuntu", "sha256:11")
    assert [d["serial"] for d in report["drives"]] == ["D1"]
    journal = "".join(p.read_text() for p in (root / "run/fleetd/intents").iterdir())
    assert "SECRET" not in json.dumps(report) + journal


@pytest.mark.parametrize(
    ("rule", "serial"), [("smallest", "D1"), ("serial:D2", "D2"), ("model:M0", "D0"), ("serial:D[2-9]", "D2")]
)
def test_rules_choose_one_drive(root, rule, serial):
    assert choose(rule, RootMachine(str(root)).drives()).serial == serial


@pytest.mark.parametrize("rule", ["serial:D*", "model:X", "biggest", "serial:", ""])
def test_rules_that_choose_none_or_several_are_refused(root, rule):
    report, _ = act("write-image", order(**IMAGE, rule=rule or "x"), root)
    assert report["refused"]["code"] in ("bad-order", "no-system-drive")
    assert contents(root) == ["tenant:a"] * 3


@given(st.binary(max_size=200))
def test_no_input_does_more_than_be_refused(data):
    with pytest.raises(orders.Refusal):
        orders.read("wipe", data)


def test_oversized_and_deep_input_is_refused():
    with pytest.raises(orders.Refusal):
        orders.read("wipe", b" " * (orders.MAX_ORDER + 1))
    with pytest.raises(orders.Refusal):
        orders.read("wipe", b"[" * 100_000)


@given(st.integers(4096, 2**43), st.text(max_size=20))
def test_samples_lie_on_the_drive_and_hold_both_ends(size, intent):
    offsets = sample_offsets(size, intent, "D")
    assert offsets == sorted(set(offsets))
    assert offsets[0] == 0
    assert offsets[-1] == (size // 4096 - 1) * 4096


def test_real_drives_are_never_acted_on(monkeypatch):
    """Even with everything right: a marker, the serial, the drives."""
    monkeypatch.setattr(RealMachine, "serial", lambda _: "HOST-1")
    monkeypatch.setattr(RealMachine, "marker", lambda _: hashlib.sha256(NONCE.encode()).hexdigest())
    drive = machines.RealDrive("nvme0", "D0", "M", 4096)
    monkeypatch.setattr(RealMachine, "drives", lambda _: [drive])
    for command, more in (("wipe", {}), ("write-image", IMAGE)):
        work = perform(command, json.dumps(order(drives=[{"serial": "D0"}], **more)).encode(), RealMachine())
        with pytest.raises(StopIteration) as done:
            next(work)
        assert done.value.value["refused"]["code"] == "imaging-not-landed"
    for verb in (lambda: drive.erase("i"), lambda: drive.write("i", b""), lambda: drive.read(0, 1)):
        with pytest.raises(orders.Refusal):
            verb()


@pytest.mark.slow
def test_the_zipapp_speaks_as_it_should(root, tmp_path):
    path = tmp_path / "host.pyz"
    path.write_bytes(build("host").data)

    def run(*arguments, stdin=b""):
        return subprocess.run(
            [sys.executable, "-I", "-S", path, *arguments], input=stdin, capture_output=True, timeout=30
        )

    done = run("wipe", "--root", root, stdin=json.dumps(order()).encode())
    assert done.returncode == 0
    assert json.loads(done.stdout)["ok"]
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["erasing", "erased"] * 3
    refused = run("wipe", "--root", root, stdin=json.dumps(order(intent="b", host_serial="X")).encode())
    assert (refused.returncode, json.loads(refused.stdout)["refused"]["code"]) == (3, "other-host")
    assert run("wipe", "--root", "/", stdin=b"{}").returncode == 3
    assert run("erase").returncode == 2
    here = run("wipe", stdin=json.dumps(order(intent="c")).encode())  # this very machine
    assert json.loads(here.stdout)["refused"]["code"] == "not-deploy"
    assert json.loads(run("status").stdout)["deploy"] is False
