"""What a DHCP server says is only ever an argument: the script that udhcpc calls, with programs that write down their words."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.deploy.stand import OVERLAY

pytestmark = pytest.mark.slow


def called(folder: Path, event: str, **values: str) -> tuple[int, list[str]]:
    """(exit code, the `ip` commands). The script's own paths are turned to `folder`."""
    log = folder / "log"
    log.touch()
    ip, busybox = folder / "ip", folder / "busybox"
    ip.write_text(f'#!/bin/sh\necho "$#:$*" >>{log}\n')
    busybox.write_text('#!/bin/sh\n[ "$1" = cat ] && echo 2 && exit 0\nexec "$@"\n')
    for program in (ip, busybox):
        program.chmod(0o755)
    text = (OVERLAY / "usr/lib/fleetd/udhcpc").read_text()
    assert text.startswith("#!/usr/bin/busybox sh\n")
    for old, new in (
        ("/usr/bin/ip", ip),
        ("/run/resolv.conf", folder / "run"),
        ("/etc/resolv.conf", folder / "resolv"),
    ):
        assert old in text
        text = text.replace(old, str(new))
    script = folder / "script"
    script.write_text(text)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "interface": "eth0", **values}
    done = subprocess.run(["sh", str(script), event], env=environment, cwd=folder, timeout=20, check=False)
    return done.returncode, log.read_text().splitlines()


def test_a_lease_sets_address_route_mtu_and_resolver(tmp_path: Path) -> None:
    code, words = called(
        tmp_path,
        "bound",
        ip="10.77.0.51",
        mask="24",
        router="10.77.0.1 10.77.0.2",
        dns="10.77.0.1 bad;word",
        mtu="9000",
    )
    assert code == 0
    assert words == [
        "5:addr replace 10.77.0.51/24 dev eth0",
        "6:link set dev eth0 mtu 9000",
        "9:route replace default via 10.77.0.1 dev eth0 metric 102",
    ]
    assert (tmp_path / "resolv").read_text() == "nameserver 10.77.0.1\n"


@pytest.mark.parametrize(
    "values",
    [
        {"ip": "$(touch owned)"},
        {"ip": "10.0.0.1; touch owned"},
        {"ip": ""},
        {"ip": "1" * 40},
        {"ip": "10.0.0.1", "mask": "99"},
        {"ip": "10.0.0.1", "mask": "24;touch owned"},
        {"ip": "10.0.0.1", "interface": "eth0;touch owned"},
        {"ip": "10.0.0.1", "interface": "-batch"},
    ],
)
def test_a_lease_that_is_none_sets_nothing(tmp_path: Path, values: dict[str, str]) -> None:
    code, words = called(tmp_path, "bound", **values)
    assert code == 1
    assert words == []
    assert not (tmp_path / "owned").exists()


def test_strange_extras_are_left_out(tmp_path: Path) -> None:
    code, words = called(
        tmp_path, "bound", ip="10.0.0.5", router="`touch owned` -x 10.0.0.1", dns="$(touch owned)", mtu="99999999"
    )
    assert code == 0
    assert words == ["5:addr replace 10.0.0.5/24 dev eth0", "9:route replace default via 10.0.0.1 dev eth0 metric 102"]
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "resolv").exists()
