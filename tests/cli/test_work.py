"""`fleetctl run`, `lease`, `inventory`, `capacity`, `events`, brakes and doctor against a real daemon."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fleetd.kit import pause
from fleetd.model.check import Finding
from fleetd.model.run import RunHostState, RunState
from fleetd.store import runs as run_rows
from tests.cli.hand import hand
from tests.house import House
from tests.lifecycle.fleet import H100, KEY, inventory


def end(daemon: House, run_id: str, *, failing: str = "") -> None:
    """What the engine does: every host of the run passes, but for one."""

    async def work() -> None:
        db = daemon.fleet.db
        bad = (await daemon.fleet.named(failing)).id if failing else ""
        for place in await run_rows.hosts(db, run_id):
            finding = Finding(code="gpu.count", message="7 of 8", remedy="reseat GPU 3") if place.host == bad else None
            state = RunHostState.FAILED if finding else RunHostState.PASSED
            await db.commit([run_rows.save_host(msgspec.structs.replace(place, state=state, finding=finding))])
        run = await run_rows.get(db, run_id)
        state_of_run = RunState.FAILED if bad else RunState.PASSED
        await db.commit([run_rows.save(msgspec.structs.replace(run, state=state_of_run, finished=2.0e9))])

    daemon.run(work())


def started(daemon: House) -> str:
    said = hand(daemon, "run", "start", "validate", "lou-a01-[01-02]", "--detach", "-o", "name")
    assert said.code == 0, said.err
    assert "fleetctl run watch" in said.err
    return said.out.strip()


def test_dry_run_folds_hosts_with_the_same_steps(daemon: House) -> None:
    said = hand(daemon, "rack", "bringup", "lou-a02", "--dry-run")
    assert said.code == 0
    assert said.out.startswith("2 hosts: lou-a02-01 lou-a02-02\n  enroll")
    assert "nothing was changed" in said.err
    plan = hand(daemon, "run", "start", "rack-bringup", "all", "--dry-run", "-o", "json").json
    assert len(plan["hosts"]) == 2
    assert len(plan["skipped"]) == 4
    assert hand(daemon, "run", "list").err == "no runs\n"


def test_a_run_that_passed_is_0_and_one_that_did_not_is_9(daemon: House) -> None:
    good = started(daemon)
    assert hand(daemon, "run", "watch", good, "--timeout", "0.01").code == 8
    end(daemon, good)
    said = hand(daemon, "run", "watch", good)
    assert said.code == 0
    assert "passed" in said.err
    bad = started(daemon)
    end(daemon, bad, failing="lou-a01-02")
    said = hand(daemon, "run", "watch", bad)
    assert said.code == 9
    assert "lou-a01-02" in said.out
    assert "reseat GPU 3" in said.out
    assert f"fleetctl run retry {bad}" in said.err
    assert hand(daemon, "run", "watch", bad, "-o", "json").json["counts"]["failed"] == 1
    shown = hand(daemon, "run", "show", bad)
    assert shown.code == 0
    assert "gpu.count: 7 of 8" in shown.out
    assert hand(daemon, "run", "show", bad, "--host", "lou-a01-02", "-o", "json").json["items"] == []
    again = hand(daemon, "run", "retry", bad, "--detach", "-o", "name")
    assert again.code == 0
    assert hand(daemon, "run", "cancel", again.out.strip()).code == 2
    assert hand(daemon, "run", "cancel", again.out.strip(), "--yes").code == 0
    end(daemon, again.out.strip())
    assert hand(daemon, "run", "retry", good).code == 6
    assert hand(daemon, "run", "show", "run-nothing").code == 5
    assert hand(daemon, "run", "start", "nothing", "all").code == 5
    assert hand(daemon, "run", "start", "rack-bringup", "rack=lou-a01").code == 6


@contextlib.contextmanager
def fleetctl(daemon: House, *words: str) -> Iterator[subprocess.Popen[str]]:
    """As a process of its own, that Ctrl-C can reach."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fleetd.cli.main", "--socket", str(daemon.socket), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell starts with SIGINT ignored, and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_ctrl_c_detaches_and_says_how_to_come_back(daemon: House) -> None:
    run = started(daemon)
    place = daemon.run(run_rows.hosts(daemon.fleet.db, run))[0]
    working = msgspec.structs.replace(place, state=RunHostState.ACTIVE)
    daemon.run(daemon.fleet.db.commit([run_rows.save_host(working)]))
    with fleetctl(daemon, "run", "watch", run) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("lou-a01-0")  # it has looked and told: it follows
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert out == ""
    assert f"fleetctl run watch {run}" in err
    assert daemon.get(f"/v1/runs/{run}").json()["state"] == "running"
    end(daemon, run)


@pytest.mark.slow
def test_follow_events_as_lines_of_json(daemon: House) -> None:
    start = daemon.get("/v1/health").json()["database"]["last_event"]
    hand(daemon, "host", "identify", "lou-a01-02")
    with fleetctl(daemon, "events", "-f", "-o", "json", "--after", str(start)) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert (first["kind"], first["seq"]) == ("host.identify", start + 1)
    assert process.returncode == 130


def test_events_list(daemon: House) -> None:
    hand(daemon, "host", "identify", "lou-a01-02")
    said = hand(daemon, "events", "--kinds", "audit,host.identify", "--limit", "1000")
    assert "host.identify" in said.out
    assert hand(daemon, "events", "--host", "nobody").code == 5
    raw = hand(daemon, "events", "--after", "0", "--limit", "3", "-o", "json").json
    assert [event["seq"] for event in raw["items"]] == [1, 2, 3]


def test_leases(daemon: House, tmp_path: Path) -> None:
    key = tmp_path / "key.pub"
    key.write_text(KEY + "\n")
    words = ["--tenant", "acme", "--sku", H100, "--ends", "2d", "--ssh-key", str(key)]
    dry = hand(daemon, "lease", "create", *words, "--count", "50", "--dry-run")
    assert dry.code == 6
    assert "why: " in dry.err
    planned = hand(daemon, "lease", "create", *words, "--count", "2", "--dry-run", "-o", "json")
    assert planned.code == 0
    assert len(planned.json["hosts"]) == planned.json["count"] == 2
    named = hand(daemon, "lease", "create", *words, "--dry-run", "-o", "name")
    assert named.out.split() == [host["name"] for host in planned.json["hosts"][:1]]
    key.write_text(KEY.replace("AAAA", "AAAB") + "\n")
    bad = hand(daemon, "lease", "create", *words, "--dry-run")
    assert (bad.code, "the SSH key is damaged" in bad.err) == (2, True)
    key.write_text(KEY + "\n")
    assert hand(daemon, "lease", "list", "-o", "name").out == ""
    much = hand(daemon, "lease", "create", *words, "--count", "50")
    assert much.code == 6
    assert "why: " in much.err
    made = hand(daemon, "lease", "create", *words, "-o", "json")
    assert made.code == 0
    lease = made.json
    assert lease["ssh_keys"] == [KEY]
    assert hand(daemon, "lease", "list", "-o", "name").out.split() == [lease["id"]]
    assert lease["hosts"][0]["name"] in hand(daemon, "lease", "show", lease["id"]).out
    waiting = hand(daemon, "host", "list", "lou-a01-[01-04]", "-o", "wide").out
    assert lease["id"] in waiting
    daemon.run(daemon.fleet.hand_over(daemon.run(daemon.fleet.leases.get(lease["id"]))))
    assert hand(daemon, "lease", "extend", lease["id"], "--ends", "9d").code == 0
    assert hand(daemon, "lease", "extend", lease["id"], "--ends", "2001-01-01T00:00:00Z").code == 2
    refused = hand(daemon, "lease", "release", lease["id"], "--no-input")
    assert refused.code == 2
    assert "all data on it is lost" in refused.err
    assert hand(daemon, "lease", "show", lease["id"], role="globex").code == 5
    assert hand(daemon, "lease", "release", lease["id"], "--yes", role="globex").code == 5
    assert hand(daemon, "lease", "release", lease["id"], "--yes").code == 0
    assert hand(daemon, "lease", "create", "--tenant", "acme", "--sku", "nothing", "--ends", "1d").code in (2, 5)
    assert hand(daemon, "lease", "create", *words, "--user-data", str(tmp_path / "none")).code == 2


def test_capacity(daemon: House) -> None:
    said = hand(daemon, "capacity")
    assert said.out.splitlines()[0].split()[:4] == ["SKU", "SITE", "TOTAL", "LEASEABLE"]
    assert "registered (2)" in said.out
    assert hand(daemon, "capacity", "-o", "json").json == daemon.get("/v1/capacity").json()
    assert "lou-a02" in hand(daemon, "capacity", "--by-rack").out


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_inventory_plan_apply_export(daemon: House, tmp_path: Path) -> None:
    folder = write(tmp_path / "inv", inventory({"lou-a01": 4, "lou-a02": 2, "lou-a03": 2}))
    (folder / "racks" / "README.md").write_text("not an inventory file")
    planned = hand(daemon, "inventory", "plan", str(folder))
    assert planned.code == 10
    assert "+ add 2 hosts: lou-a03-01 lou-a03-02" in planned.out
    assert "--plan " in planned.err
    assert hand(daemon, "inventory", "apply", str(folder), "--plan", "0" * 64).code == 6
    assert hand(daemon, "inventory", "apply", str(folder), "--dry-run").code == 0
    assert hand(daemon, "host", "show", "lou-a03-01").code == 5
    digest = hand(daemon, "inventory", "plan", str(folder), "-o", "json").json["digest"]
    assert hand(daemon, "inventory", "apply", str(folder), "--plan", digest).code == 0
    same = hand(daemon, "inventory", "plan", str(folder))
    assert (same.code, same.out) == (0, "no changes\n")
    assert hand(daemon, "inventory", "export", str(tmp_path / "out")).code == 0
    assert hand(daemon, "inventory", "plan", str(tmp_path / "out")).code == 0
    assert hand(daemon, "inventory", "export", str(tmp_path / "out")).code == 6
    assert "# sites/louisiana.yaml" in hand(daemon, "inventory", "export").out


def test_a_host_that_vanished_is_asked_about(daemon: House, tmp_path: Path) -> None:
    exported = hand(daemon, "inventory", "export", "-o", "json").json["files"]
    folder = write(tmp_path / "inv", exported)
    fewer = inventory({"lou-a02": 1})["racks/louisiana/lou-a02.yaml"]
    name = next(name for name in exported if name.endswith("lou-a02.yaml"))
    lines = exported[name].split("- name: lou-a02-02")[0] if "- name: lou-a02-02" in exported[name] else fewer
    (folder / name).write_text(lines)
    planned = hand(daemon, "inventory", "plan", str(folder))
    assert planned.code == 10, planned
    assert "maintenance host lou-a02-02" in planned.out
    asked = hand(daemon, "inventory", "apply", str(folder))
    assert asked.code == 2
    assert "maintenance host lou-a02-02" in asked.err
    assert daemon.host("lou-a02-02").state == "registered"


def test_inventory_errors_name_file_and_line(daemon: House, tmp_path: Path) -> None:
    folder = write(tmp_path, {"sites/x.yaml": "site: x\nhalls: [h1]\ncolour: red\n"})
    said = hand(daemon, "inventory", "plan", str(folder))
    assert said.code == 2
    assert said.err.startswith("error: sites/x.yaml:3: ")
    assert hand(daemon, "inventory", "plan", str(tmp_path / "nowhere")).code == 5
    (tmp_path / "empty").mkdir()
    assert hand(daemon, "inventory", "plan", str(tmp_path / "empty")).code == 5
    (folder / "sites" / "y.yaml").symlink_to("/etc/hostname")
    assert "link out of the inventory" in hand(daemon, "inventory", "plan", str(folder)).err


def test_brakes(daemon: House) -> None:
    assert hand(daemon, "freeze", "rack:lou-a01", "--reason", "smoke").code == 0
    assert "smoke" in hand(daemon, "brakes").out
    assert hand(daemon, "thaw", "rack:lou-a01").code == 2
    assert hand(daemon, "thaw", "rack:lou-a01", "--yes").code == 0
    assert hand(daemon, "thaw", "rack:lou-a01", "--yes").code == 5
    assert hand(daemon, "brakes").err == "no brake is on\n"
    assert hand(daemon, "freeze", "hall:x", "--reason", "x").code == 2
    daemon.run(daemon.fleet.brakes.hold("lease-expiry", "too many"))
    assert "lease-expiry" in hand(daemon, "brakes", "-o", "name").out
    assert hand(daemon, "lift", "lease-expiry", "--yes").code == 0
    assert hand(daemon, "lift", "lease-expiry", "--yes").code == 5


def test_doctor(daemon: House) -> None:
    said = hand(daemon, "doctor")
    assert said.code == 0, said
    assert "all is well" in said.out
    daemon.engine_age = 1000.0
    try:
        sick = hand(daemon, "doctor")
    finally:
        daemon.engine_age = 0.5
    assert sick.code == 1
    assert "no sign of life" in sick.out
    assert hand(daemon, "doctor", role="acme").code == 4


def test_contexts_fan_out_and_name_what_is_missing(daemon: House, tmp_path: Path) -> None:
    file = tmp_path / "contexts.yaml"
    file.write_text(
        f"contexts:\n  louisiana: {{socket: {daemon.socket}}}\n"
        f"  tcp: {{url: 'http://127.0.0.1:{daemon.port}', token_file: {daemon.token_file('viewer')}}}\n"
        f"  ohio: {{socket: {tmp_path}/none.sock}}\n"
    )
    env = {"FLEETD_CONTEXTS": str(file)}
    both = hand(None, "--context", "louisiana,tcp", "host", "list", "lou-a01-01", "-o", "json", **env)
    assert both.code == 0
    assert [item["context"] for item in both.json["items"]] == ["louisiana", "tcp"]
    some = hand(None, "--context", "all", "capacity", **env)
    assert some.code == 3
    assert "error: ohio: " in some.err
    assert some.out.splitlines()[0].startswith("CONTEXT")
    assert hand(None, "host", "list", "lou-a01-01", FLEETD_CONTEXT="louisiana", **env).code == 0
    assert hand(None, "--context", "ohio", "host", "list", **env).code == 1
    assert hand(None, "--context", "mars", "host", "list", **env).code == 5
    assert hand(None, "--context", "all", "doctor", **env).code == 2
    file.write_text("contexts:\n  x: {colour: red}\n")
    assert f"{file}:2" in hand(None, "--context", "x", "doctor", **env).err


@pytest.mark.slow
def test_lease_create_waits_for_the_hand_over(daemon: House) -> None:
    words = ["--tenant", "acme", "--sku", H100, "--ends", "2d", "--wait", "--timeout", "20s", "-o", "json"]
    with fleetctl(daemon, "lease", "create", *words) as process:
        deadline = pause.steady() + 10
        while not (found := [r for r in daemon.get("/v1/leases").json()["items"] if r["state"] == "delivering"]):
            assert pause.steady() < deadline
        daemon.run(daemon.fleet.hand_over(daemon.run(daemon.fleet.leases.get(found[0]["id"]))))
        out, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert json.loads(out)["state"] == "active"


def test_a_private_key_given_for_a_public_one_is_never_sent(tmp_path: Path) -> None:
    file = tmp_path / "id_ed25519"
    file.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n-----END OPENSSH PRIVATE KEY-----\n")
    words = ("lease", "create", "--tenant", "t", "--sku", "s", "--ends", "1d", "--ssh-key", str(file))
    found = hand(None, "--socket", str(tmp_path / "nobody.sock"), *words)
    assert (found.code, "private key" in found.err, f"{file}.pub" in found.err) == (2, True, True)
    assert "secret" not in found.err
