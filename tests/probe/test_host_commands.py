"""The host-side program as a process on a directory that stands for a host: it refuses, acts once, and reads back."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest

from fleetd.probe.build import build
from fleetd.probe.host import efivars
from fleetd.probe.host.machine import Journal, started
from fleetd.probe.host.order import Refusal
from fleetd.probe.host.standin import RootMachine
from fleetd.probe.host.work import choose, perform
from tests.probe.imaging import SEED, disk_image, finish, packed, serving

NONCE = "n" * 43


@pytest.fixture
def root(tmp_path):
    """A host with three drives, booted by NONCE into the deploy environment."""
    (tmp_path / "drives").mkdir()
    for i, size in enumerate((64_000_000, 48_000_000, 64_000_000)):
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


DISK = disk_image()
SERVED = packed(DISK, "raw.gz")
IMAGE = {
    "image": {
        "name": "ubuntu",
        "format": "raw.gz",
        "bytes": len(SERVED),
        "sha256": hashlib.sha256(SERVED).hexdigest(),
        "raw_bytes": len(DISK),
        "raw_sha256": hashlib.sha256(DISK).hexdigest(),
        "urls": ["http://127.0.0.1:9/image"],
    },
    "seed": SEED,
}


@pytest.fixture
def served():
    """The order's fields for an image that a server really serves."""
    with serving(lambda request: request.give(SERVED)) as server:
        yield {**IMAGE, "image": IMAGE["image"] | {"urls": [f"{server.url}?ticket=SECRET"]}}


def act(command, said, root):
    """In this process: (report, progress)."""
    work = perform(command, json.dumps(said).encode() if isinstance(said, dict) else said, RootMachine(str(root)))
    progress = []
    while True:
        try:
            progress.append(next(work))
        except StopIteration as done:
            return done.value, progress


def told(root):
    return [json.loads(line)["what"] for line in (root / "drives/log.jsonl").read_text().splitlines()]


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
    assert told(root) == ["wipe.begin", "wipe.drive", "wipe.drive", "wipe.drive", "wipe.done"]


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
    for command in ("wipe", "write-image", "inspect", "clear-tpm", "boot-order"):
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
    for gone in (
        {"pid": 2**22 + 5},  # no such process: it was killed
        {"started": running["started"] - 1},  # the kernel gave its id to another one
        {"started": None},
    ):
        entry.write_text(json.dumps(running | gone))
        report, _ = act("wipe", order(), root)
        assert (report["ok"], report["interrupted"]) == (False, True)
        assert act("status", {"intent": "step-1"}, root)[0]["interrupted"] is True
    entry.write_text("{damaged")
    assert act("wipe", order(), root)[0]["ok"] is False
    assert contents(root) == ["tenant:a"] * 3


def test_two_orders_never_work_side_by_side(root):
    """One that arrived late, on a line thought to be cut, beside the one that was given in its place."""
    work = perform("wipe", json.dumps(order()).encode(), RootMachine(str(root)))
    next(work)
    second = act("wipe", order(intent="step-2"), root)[0]
    assert second["refused"]["code"] == "busy"
    assert "step-1" in second["refused"]["reason"]
    assert act("status", {"intent": "step-2"}, root)[0]["state"] == "unknown"
    report, _ = finish(work)
    assert report["ok"] is True
    assert act("wipe", order(intent="step-2"), root)[0]["ok"] is True
    # the program of one that was cut off is gone: a fresh intent need not wait for it
    dead = {"state": "running", "pid": os.getpid(), "started": 1}
    (root / "run/fleetd/intents/step-0.json").write_text(json.dumps(dead))
    assert act("wipe", order(intent="step-3"), root)[0]["ok"] is True


def test_a_program_that_was_killed_and_not_waited_for_is_dead(tmp_path):
    """Its id still stands in the table of processes until its parent has looked: no work comes of it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        began = started(process.pid)
        assert began > 0
        assert started(process.pid) == began
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert started(process.pid) == 0
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_text("7 (a) 1 (b c) S " + " ".join(map(str, range(4, 53))))
    assert started(7, str(tmp_path)) == 22


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


def test_an_image_goes_to_the_smallest_drive_and_is_read_back(root, served):
    report, progress = act("write-image", order(**served), root)
    assert report["ok"], report
    assert (report["image"], report["digest"], report["code"]) == (
        "ubuntu",
        f"sha256:{served['image']['raw_sha256']}",
        "",
    )
    (written,) = report["drives"]
    assert (written["serial"], written["written"], written["read_bytes"]) == ("D1", True, len(DISK))
    assert contents(root) == ["tenant:a", "image:ubuntu", "tenant:a"]
    assert told(root) == ["drive.write", "image.write"]
    assert [p["event"] for p in progress] == ["writing", "progress", "written"]
    journal = "".join(p.read_text() for p in (root / "run/fleetd/intents").iterdir())
    assert "SECRET" not in json.dumps([report, progress]) + journal
    assert act("write-image", order(**served), root) == ({**report, "again": True}, [])


def test_a_drive_plugged_in_during_the_write_spoils_no_report_of_it(root, served):
    """The firmware's order is set last, and looks at all drives anew: one of them may be nobody's by then."""

    class Plugged(RootMachine):
        def boot_order(self, drive):
            raise Refusal("drive-same-serial", "nvme1 and nvme7 have the serial 'D1'; remedy: pull one")

    machine = Plugged(str(root))
    report, _ = finish(perform("write-image", json.dumps(order(**served)).encode(), machine))
    assert report["ok"]
    assert "pull one" in report["efi"]["reason"]
    assert act("status", {"intent": "step-1"}, root)[0] == report


def test_an_image_that_is_not_the_manifests_is_reported_with_its_code(root, served):
    image = served["image"] | {"sha256": "0" * 64}
    report, progress = act("write-image", order(**served | {"image": image}), root)
    assert (report["ok"], report["code"], report["digest"]) == (False, "image-checksum", "")
    assert "unbootable" in report["drives"][0]["reason"]
    assert contents(root)[1] == "partial:ubuntu"
    assert told(root) == ["drive.write", "image.failed"]
    assert progress[-1]["event"] == "failed"


def test_inspect_reads_and_journals_nothing(root):
    asked = {"nonce": NONCE, "host_serial": "HOST-1"}
    report, _ = act("inspect", asked, root)
    assert report["ok"]
    assert [d["serial"] for d in report["snapshot"]["drives"]] == ["D0", "D1", "D2"]
    assert set(report["snapshot"]) == {"bios", "board", "drives", "nics", "pci", "efi", "tpm"}
    assert not (root / "run/fleetd/intents").exists()
    assert act("inspect", asked | {"nonce": "x"}, root)[0]["refused"]["code"] == "other-boot"
    assert act("inspect", asked | {"host_serial": "x"}, root)[0]["refused"]["code"] == "other-host"


def test_the_firmware_is_set_and_the_tpm_cleared_once_an_intent(root):
    efi = {"present": True, "boot_order": ["0000", "0001"], "entries": {"0000": "PXE", "0001": "fleetd disk"}}
    (root / "host.json").write_text(json.dumps({"efi": efi, "tpm": {"present": True}}))
    base = {"nonce": NONCE, "host_serial": "HOST-1"}
    report, _ = act("boot-order", base | {"intent": "b", "prefer": "disk", "rule": "serial:D1"}, root)
    assert (report["ok"], report["removed"], report["first"]) == (True, ["0001"], "0001")
    assert report["efi"]["boot_order"] == ["0001", "0000"]
    assert act("inspect", base, root)[0]["snapshot"]["efi"]["entries"]["0001"] == "fleetd disk"
    again, _ = act("boot-order", base | {"intent": "b", "prefer": "disk", "rule": "serial:D1"}, root)
    assert again["again"]
    blank, _ = act("boot-order", base | {"intent": "c"}, root)  # no drive can boot: it only removes
    assert (blank["first"], blank["efi"]["boot_order"]) == ("", ["0000"])
    assert act("boot-order", base | {"intent": "d", "prefer": "network"}, root)[0]["refused"]["code"] == "bad-order"
    assert (
        act("boot-order", base | {"intent": "e", "rule": "serial:X"}, root)[0]["refused"]["code"] == "no-system-drive"
    )
    tpm, _ = act("clear-tpm", base | {"intent": "t"}, root)
    assert (tpm["ok"], tpm["tpm"]["cleared"]) == (True, True)
    assert act("clear-tpm", base | {"intent": "b"}, root)[0]["refused"]["code"] == "intent-reused"
    assert act("status", {"intent": "t"}, root)[0] == tpm
    assert contents(root) == ["tenant:a"] * 3


def test_drives_just_wiped_leave_nothing_to_put_first_and_that_is_no_failure(root, tmp_path):
    """As in a reclaim by UEFI: the boot order is set between the erase and the next image."""
    firmware = tmp_path / "efivars"
    firmware.mkdir()
    (firmware / f"SetupMode-{efivars.GLOBAL}").write_bytes(b"\6\0\0\0\0")

    class Uefi(RootMachine):
        def boot_order(self, drive):
            return efivars.boot_order(efivars.Variables(str(firmware)), None, set())

    said = json.dumps({"intent": "b", "nonce": NONCE, "host_serial": "HOST-1", "rule": "serial:D1"}).encode()
    report, _ = finish(perform("boot-order", said, Uefi(str(root))))
    assert report["ok"]
    assert "no drive has an EFI system partition" in report["reason"]


@pytest.mark.parametrize(
    ("tpm", "ok"),
    [
        ({"present": False, "cleared": False}, True),
        ({"present": True, "cleared": False, "reason": "lockout"}, False),
        (OSError(5, "TPM gone"), False),
    ],
)
def test_a_tpm_that_stays_owned_is_no_success(root, tpm, ok):
    class Owned(RootMachine):
        def clear_tpm(self):
            if isinstance(tpm, OSError):
                raise tpm
            return {"method": "none", "pending_reboot": False, "reason": ""} | tpm

    data = json.dumps({"nonce": NONCE, "host_serial": "HOST-1", "intent": "t"}).encode()
    with pytest.raises(StopIteration) as done:
        next(perform("clear-tpm", data, Owned(str(root))))
    assert done.value.value["ok"] is ok


@pytest.mark.parametrize(
    ("rule", "serial"), [("smallest", "D1"), ("serial:D2", "D2"), ("model:M0", "D0"), ("serial:D[2-9]", "D2")]
)
def test_rules_choose_one_drive(root, rule, serial):
    assert choose(rule, RootMachine(str(root)).drives()).serial == serial


@pytest.mark.parametrize(
    "rule",
    ["serial:D*", "model:X", "biggest", "serial:", "", "size:1-2", "size:0-1", "size:1", "size:-5-9", "size:٣-٤"],
)
def test_rules_that_choose_none_or_several_are_refused(root, rule):
    report, _ = act("write-image", order(**IMAGE, rule=rule or "x"), root)
    assert report["refused"]["code"] in ("bad-order", "no-system-drive")
    assert contents(root) == ["tenant:a"] * 3


def test_a_tie_for_the_smallest_is_refused_and_a_size_names_one(root):
    path = root / "drives/nvme1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bytes": 64_000_000}))
    report, _ = act("write-image", order(**IMAGE), root)
    assert report["refused"] == {
        "code": "no-system-drive",
        "reason": "'smallest' fits 3 drives of this host, it must fit one",
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bytes": 480 * 10**9}))
    drives = RootMachine(str(root)).drives()
    assert choose("size:480-480", drives).serial == "D1"
    assert choose("size:400-1000", drives).serial == "D1"


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


def test_the_zipapp_works_on_without_a_listener(root, tmp_path):
    """The line is cut in the middle: no pipe is read any more, the session hangs up, and the report waits in the journal."""
    path = tmp_path / "host.pyz"
    path.write_bytes(build("host").data)
    for place in (root / "drives").iterdir():
        place.write_text(json.dumps(json.loads(place.read_text()) | {"seconds": {"erase": 0.3}}))
    command = [sys.executable, "-I", "-S", path, "wipe", "--root", root]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(json.dumps(order()).encode())
        process.stdin.close()
        assert json.loads(process.stderr.readline())["event"] == "erasing"
        process.stdout.close()
        process.stderr.close()
        for number in (signal.SIGHUP, signal.SIGPIPE):
            process.send_signal(number)
        process.wait(30)  # its code says only that nobody took the last words
    report = act("status", {"intent": "step-1"}, root)[0]
    assert (report["ok"], report["state"], len(report["drives"])) == (True, "done", 3)
    assert contents(root) == ["blank"] * 3
