"""`fleetctl host`, `rack`, `wait` against a real daemon: output, exit codes, what is asked before something is lost."""

from __future__ import annotations

from pathlib import Path

import yaml

from fleetd.model.host import State
from fleetd.model.run import RunHostState
from tests.cli.hand import hand
from tests.house import House


def test_list_is_a_table_of_all_hosts(daemon: House) -> None:
    said = hand(daemon, "host", "list")
    lines = said.out.splitlines()
    assert said.code == 0
    assert lines[0].split()[:5] == ["NAME", "RACK", "U", "SKU", "STATE"]
    assert [line.split()[0] for line in lines[1:]] == [f"lou-a01-0{n}" for n in (1, 2, 3, 4)] + [
        "lou-a02-01",
        "lou-a02-02",
    ]
    assert "\x1b[" not in said.out


def test_json_is_the_apis_own_and_o_works_in_both_places(daemon: House) -> None:
    api = daemon.get("/v1/hosts", params={"hosts": "rack=lou-a01"}).json()
    assert hand(daemon, "host", "list", "rack=lou-a01", "-o", "json").json == api
    assert hand(daemon, "-o", "json", "host", "list", "rack=lou-a01").json == api
    assert yaml.safe_load(hand(daemon, "host", "list", "rack=lou-a01", "-o", "yaml").out) == api
    assert hand(daemon, "host", "list", "rack=lou-a02", "-o", "name").out == "lou-a02-01\nlou-a02-02\n"
    assert "SERIAL" in hand(daemon, "host", "list", "-o", "wide").out
    assert hand(daemon, "-o", "json", "host", "list", "-o", "name").out.startswith("lou-a01-01\n")


def test_range_from_file_and_stdin(daemon: House, tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("lou-a01-01  # first\n# nobody\nlou-a01-03\n")
    assert hand(daemon, "-o", "name", "host", "list", f"@{file}").out == "lou-a01-01\nlou-a01-03\n"
    assert hand(daemon, "-o", "name", "host", "list", "-", stdin="lou-a01-02\n").out == "lou-a01-02\n"
    assert hand(daemon, "host", "list", f"@{file}x").code == 2
    assert hand(daemon, "host", "expand", "--", "rack=lou-a01", "-lou-a01-[01-03]").out == "lou-a01-04\n"


def test_range_that_names_nothing_is_5(daemon: House) -> None:
    said = hand(daemon, "host", "list", "nowhere-[01-18]")
    assert said.code == 5
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "try: " in said.err
    for words in (
        ["host", "show", "nobody"],
        ["host", "why", "nobody"],
        ["rack", "show", "x"],
        ["rack", "bringup", "x"],
    ):
        assert hand(daemon, *words).code == 5, words


def test_bad_range_is_2(daemon: House) -> None:
    assert hand(daemon, "host", "list", "a[3-1]").code == 2
    assert hand(daemon, "host", "list", "colour=red").code == 2
    assert hand(daemon, "host", "power", "off").code == 2


def test_show_and_why_speak_to_people(daemon: House) -> None:
    shown = hand(daemon, "host", "show", "lou-a02-01").out
    assert "louisiana / lou-a02 / U1" in shown
    assert "leaseable    " in shown.replace("leaseable  ", "leaseable    ")
    why = hand(daemon, "host", "why", "lou-a02-01")
    assert why.code == 0
    assert "fleetctl rack bringup lou-a02" in why.out
    assert hand(daemon, "host", "why", "lou-a02-01", "-o", "json").json["state"] == "registered"


def test_power_says_what_is_lost_and_asks(daemon: House) -> None:
    assert hand(daemon, "host", "power", "on", "lou-a01-01").out.split() == ["HOST", "POWER", "lou-a01-01", "on"]
    refused = hand(daemon, "host", "power", "off", "lou-a01-01")
    assert refused.code == 2
    assert "lou-a01-01: available" in refused.err
    assert "--yes" in refused.err
    dry = hand(daemon, "host", "power", "off", "lou-a01-01", "--dry-run")
    assert (dry.code, dry.out) == (0, "")
    assert hand(daemon, "host", "power", "status", "lou-a01-01", "-o", "json").json["items"] == [
        {"host": "lou-a01-01", "power": "on"}
    ]
    done = hand(daemon, "host", "power", "off", "lou-a01-01", "--yes")
    assert (done.code, daemon.rig.hosts[0].power_state) == (0, "off")


def test_some_failed_is_3_and_names_them(daemon: House) -> None:
    said = hand(daemon, "host", "power", "status", "lou-a01-[01-04]")
    assert said.code == 3
    assert said.out.split()[2::2] == ["lou-a01-01", "lou-a01-02"]
    assert "lou-a01-03: " in said.err
    assert "2 of 4 hosts failed" in said.err


def test_all_failed_is_their_code(daemon: House) -> None:
    said = hand(daemon, "host", "power", "status", "lou-a01-[03-04]")
    assert (said.code, said.out) == (1, "")
    alone = hand(daemon, "host", "power", "status", "lou-a01-03")
    assert alone.code == 1
    assert alone.err.startswith("error: ")


def test_boot_and_identify(daemon: House) -> None:
    assert hand(daemon, "host", "boot", "network", "lou-a01-01").code == 0
    assert daemon.rig.hosts[0].boot_once == "network"
    assert hand(daemon, "host", "identify", "lou-a01-[01-02]").code == 0
    assert hand(daemon, "host", "identify", "lou-a01-02", "--off").code == 0
    assert [h.identify_led for h in daemon.rig.hosts] == [True, False]


def test_maintenance_quarantine_release_retire(daemon: House) -> None:
    words = ("lou-a01-04", "--reason", "swap a fan", "--yes")
    done = hand(daemon, "host", "maintenance", *words, "--until", "4h", "-o", "json")
    assert done.code == 0
    assert done.json["items"][0]["state"] == "maintenance"
    assert hand(daemon, "host", "quarantine", "lou-a01-04", "--reason", "x", "--yes").code == 6
    released = hand(daemon, "host", "release", "lou-a01-04", "-o", "json")
    assert released.code == 0
    run = released.json["items"][0]["id"]
    assert hand(daemon, "host", "power", "off", "lou-a01-04", "--yes").code == 6
    assert hand(daemon, "run", "cancel", run, "--yes").code == 0
    assert hand(daemon, "host", "maintenance", *words, "--until", "yesterday").code == 2
    out = hand(daemon, "host", "quarantine", "lou-a01-03", "--reason", "burnt smell", "--yes")
    assert out.code == 0
    shown = hand(daemon, "host", "show", "lou-a01-03").out
    assert "burnt smell" in shown
    assert "quarantined" in shown


def test_history_and_steps(daemon: House) -> None:
    hand(daemon, "host", "identify", "lou-a01-02")
    said = hand(daemon, "host", "history", "lou-a01-02", "--limit", "5")
    assert "host.identify" in said.out
    assert hand(daemon, "host", "history", "lou-a01-02", "--steps", "-o", "json").json == {"items": [], "next": None}


def test_racks_and_catalogue(daemon: House) -> None:
    assert hand(daemon, "-o", "name", "rack", "list").out == "lou-a01\nlou-a02\n"
    shown = hand(daemon, "rack", "show", "lou-a02").out
    assert shown.index("lou-a02-02") < shown.index("lou-a02-01")  # from the top down
    for noun, ref in (
        ("site", "louisiana"),
        ("sku", "dell.xe9680-h100-8"),
        ("playbook", "validate"),
        ("check", "gpu.count"),
    ):
        assert ref in hand(daemon, noun, "list", "-o", "name").out.split()
        assert ref in hand(daemon, noun, "list").out
        assert hand(daemon, noun, "show", ref).code == 0
        assert hand(daemon, noun, "show", "nothing").code == 5


def test_wait(daemon: House) -> None:
    daemon.put("lou-a01-01", alerts=())  # whatever was done to it before, it is proven and at rest
    assert hand(daemon, "wait", "lou-a01-01", "--for", "leaseable", "--timeout", "10s").code == 0
    assert hand(daemon, "wait", "lou-a01-01", "--for", "state=available").code == 0
    late = hand(daemon, "wait", "lou-a02-[01-02]", "--for", "state=available", "--timeout", "0.1s")
    assert late.code == 7
    assert "lou-a02-01: registered" in late.err
    assert hand(daemon, "wait", "lou-a01-01", "--for", "state=asleep").code == 2
    assert hand(daemon, "wait", "lou-a01-01", "--for", "leaseable", "--timeout", "soon").code == 2
    assert hand(daemon, "wait", "nobody", "--for", "leaseable").code == 5
    daemon.put("lou-a01-02", state=State.MAINTENANCE)
    stuck = hand(daemon, "wait", "lou-a01-02", "--for", "state=available", "--fail-fast")
    assert stuck.code == 9


def test_wait_gives_up_on_a_quarantined_host_unless_a_run_has_it(daemon: House) -> None:
    """A released host stays quarantined until its run has begun the step that failed."""

    def waits(*codes: int) -> None:
        for goal, code in zip(("state=available", "leaseable", "state=quarantined"), codes, strict=True):
            words = ("wait", "lou-a02-02", "--for", goal, "--timeout", "0.3s", "--fail-fast")
            assert hand(daemon, *words).code == code, goal

    daemon.put("lou-a02-02", state=State.QUARANTINED, resume_state=State.VALIDATING)
    waits(9, 9, 0)
    run = hand(daemon, "host", "release", "lou-a02-02", "-o", "json").json["items"][0]["id"]
    assert daemon.host("lou-a02-02").state is State.QUARANTINED
    waits(7, 7, 0)
    daemon.run(daemon.fleet.run_ends(run, RunHostState.FAILED, lambda host: {"state": State.QUARANTINED}))
    waits(9, 9, 0)


def test_viewer_is_denied_with_4(daemon: House) -> None:
    said = hand(daemon, "host", "identify", "lou-a01-01", role="viewer")
    assert said.code == 4
    assert "viewer" in said.err
    assert hand(daemon, "host", "list", role="viewer").code == 0
    assert hand(daemon, "host", "list", role="acme").code == 4
