"""Every stage at which a boot can stand still has one diagnosis and one remedy."""

from __future__ import annotations

from typing import Any

import pytest

from fleetd.lifecycle.boottrail import MAX_ENTRIES, MAX_KEPT, MAX_MACHINES, MAX_RELAYS, Entry, Trail, diagnose
from fleetd.model.boot import Boot
from fleetd.model.host import Host
from tests.store.samples import NOW, a_boot, a_host

HOST = a_host(1)
MAC, SERIAL = HOST.spec.boot_mac, HOST.spec.serial
LATE = NOW + 800  # everything was quiet for longer than anything takes, and the boot did not expire


def entry(stage: str, **changed: Any) -> Entry:
    fields: dict[str, Any] = {"at": NOW + 5, "mac": MAC, "source": "10.77.0.50"}
    return Entry(stage=stage, **fields | changed)


def armed(**changed: Any) -> Boot:
    return a_boot("1", HOST, **changed)


DHCP = entry("dhcp")
TFTP = entry("tftp", mac="")
SCRIPT = entry("script", answer="boot", serial=SERIAL)
KERNEL, INITRD, ISO = entry("kernel", mac=""), entry("initrd", mac=""), entry("iso", mac="")
KEYS = entry("keys", answer="boot")

CASES = [
    ("nothing was heard", [], "power", "nothing was heard", "console"),
    (
        "nothing was heard but a relay",
        [entry("relay", mac="", source="10.79.0.1", at=LATE - 1), entry("relay", mac="", source="10.80.0.1")],
        "dhcp",
        "relays at 10.79.0.1, 10.80.0.1",
        "dnsmasq.relayed",
    ),
    (
        "a relay, and it is not its own",
        [entry("dhcp", source=""), entry("relay", mac="", source="10.79.0.1", at=LATE - 1)],
        "dhcp",
        "gets none",
        "DHCP range",
    ),
    ("no address", [entry("dhcp", source="")], "dhcp", "gets none", "DHCP"),
    (
        "no address, and why",
        [entry("dhcp", source="", detail="UEFI firmware asks; ignored: the inventory does not have this MAC")],
        "dhcp",
        "does not have this MAC",
        "DHCP",
    ),
    (
        "a proxy told it",
        [entry("dhcp", source="", detail="UEFI firmware was told its boot file")],
        "address",
        "no boot loader",
        "UDP 69",
    ),
    (
        "loader missing",
        [DHCP, entry("tftp", detail="undionly.kpxe is not there")],
        "loader",
        "is not there",
        "undionly",
    ),
    ("iPXE of the NIC, no script", [DHCP, entry("rom", detail="iPXE 1.0")], "loader", "never asked", "boot.url"),
    ("address, no loader", [DHCP], "address", "no boot loader", "UDP 69"),
    ("loader, no script", [DHCP, TFTP], "loader", "never asked for its script", "Secure Boot"),
    ("UEFI HTTP loader, no script", [DHCP, entry("http", mac="")], "loader", "never asked", "boot.url"),
    (
        "script by another serial",
        [DHCP, entry("script", answer="denied", serial="X", detail="serial 'X', UUID 'Y'")],
        "script",
        "serial 'X'",
        "another machine on this port",
    ),
    (
        "from another MAC",
        [entry("script", mac="aa:bb:cc:dd:ee:ff", answer="local", serial=SERIAL)],
        "script",
        "aa:bb:cc:dd:ee:ff",
        "boot_mac",
    ),
    (
        "sent to its disk: expired",
        [DHCP, entry("script", answer="local", serial=SERIAL, detail="the armed boot expired")],
        "script",
        "because the armed boot expired",
        "arms a boot",
    ),
    ("script, no kernel", [DHCP, TFTP, SCRIPT], "script", "fetched no kernel", "vmlinuz"),
    ("kernel, no initrd", [DHCP, TFTP, SCRIPT, KERNEL], "kernel", "no initrd", "initrd"),
    ("initrd, no keys", [DHCP, TFTP, SCRIPT, KERNEL, INITRD], "initrd", "never asked for its keys", "memory"),
    ("medium, nothing more", [ISO], "iso", "boot medium", "virtual CD"),
    ("keys, no hello", [DHCP, TFTP, SCRIPT, KERNEL, INITRD, KEYS], "keys", "did not phone home", "console"),
    ("medium, keys, no hello", [ISO, SCRIPT, KEYS], "keys", "did not phone home", "console"),
    (
        "keys denied",
        [SCRIPT, KERNEL, INITRD, entry("keys", answer="denied", detail="the token is of a boot that expired")],
        "keys",
        "that expired",
        "through fleetd",
    ),
    (
        "hello denied",
        [SCRIPT, KEYS, entry("hello", answer="denied", detail="SMBIOS serial 'A'; inventory 'B', BMC 'B'")],
        "hello",
        "SMBIOS serial 'A'",
        "inventory",
    ),
]


@pytest.mark.parametrize(("name", "trail", "stage", "what", "remedy"), CASES, ids=[case[0] for case in CASES])
def test_each_stage_has_its_diagnosis(name: str, trail: list[Entry], stage: str, what: str, remedy: str) -> None:
    found = diagnose(HOST, armed(), trail, LATE)
    assert (found.ok, found.stage) == (False, stage), found
    assert what in found.what
    assert remedy in found.remedy


@pytest.mark.parametrize(("name", "trail", "stage", "what", "remedy"), CASES, ids=[case[0] for case in CASES])
def test_an_expired_boot_says_so_too(name: str, trail: list[Entry], stage: str, what: str, remedy: str) -> None:
    found = diagnose(HOST, armed(), trail, NOW + 1000)
    assert (found.ok, found.stage) == (False, stage)
    assert "expired 100 s ago" in found.what
    assert "boot it again" in found.remedy


@pytest.mark.parametrize("count", range(7))
def test_one_that_was_seen_just_now_is_on_its_way(count: int) -> None:
    trail = [DHCP, TFTP, SCRIPT, KERNEL, INITRD, KEYS][:count]
    found = diagnose(HOST, armed(), trail, NOW + 10)
    assert found.ok
    assert "on its way for 10 s" in found.what


def test_one_that_nobody_waits_for_is_not_on_its_way() -> None:
    """Its step is over, or the daemon was restarted: the token is gone, so patience would be for nothing."""
    found = diagnose(HOST, armed(), [], NOW, waited=False)
    assert (found.stage, found.ok) == ("power", False)
    assert "no step waits" in found.what
    assert "boot it again" in found.remedy


def test_up_and_not_expected_are_good() -> None:
    met = armed(met=NOW + 60, source="10.77.0.50")
    assert diagnose(HOST, met, [], LATE).stage == "up"
    assert diagnose(HOST, None, [], LATE).ok
    asked = [entry("script", answer="local", at=LATE - 60, serial=SERIAL)]
    quiet = diagnose(HOST, None, asked, LATE)
    assert quiet.ok
    assert "1 times in the last hour" in quiet.what
    assert diagnose(HOST, armed(closed=NOW), asked, LATE).stage == "none"


def test_what_is_older_than_the_boot_does_not_count() -> None:
    old = [entry("dhcp", at=NOW - 100), entry("script", at=NOW - 90, answer="denied", detail="x")]
    assert diagnose(HOST, armed(), old, LATE).stage == "power"


def test_a_second_good_answer_mends_a_denied_one() -> None:
    trail = [entry("script", answer="denied", detail="x"), entry("script", answer="boot", at=NOW + 9, serial=SERIAL)]
    assert diagnose(HOST, armed(), trail, LATE).what == "it has its script, and fetched no kernel"


@pytest.mark.parametrize(
    ("trail", "stage"),
    [
        ([], "power"),
        ([entry("script", answer="local", serial=SERIAL)], "script"),
        ([entry("hello", answer="denied")], "hello"),
    ],
)
def test_a_boot_from_disk_is_expected_only_to_phone_home(trail: list[Entry], stage: str) -> None:
    assert diagnose(HOST, armed(environment="disk"), trail, LATE).stage == stage


class TestTrail:
    def of(self, trail: Trail, host: Host = HOST) -> list[str]:
        return [e.stage for e in trail.of(host)]

    def test_a_wire_without_a_mac_counts_by_address(self) -> None:
        trail = Trail(NOW)
        trail.add(entry("tftp", mac="", source="10.77.0.50", at=1.0))  # its MAC is told a moment later
        trail.add(entry("dhcp", mac=MAC.upper(), source="10.77.0.50", at=2.0))
        trail.add(entry("kernel", mac="", source="10.77.0.50", at=3.0))
        trail.add(entry("kernel", mac="", source="10.77.0.99", at=4.0))
        assert self.of(trail) == ["tftp", "dhcp", "kernel"]

    def test_relays_without_a_network_are_kept_apart_and_bounded(self) -> None:
        trail = Trail(NOW)
        for number in range(500):
            trail.add(entry("relay", mac="", source=f"10.1.{number >> 8}.{number & 255}", at=float(number)))
        trail.add(entry("relay", mac="", source="10.1.1.200", at=1000.0))
        assert self.of(trail) == []
        assert len(trail.relays()) == MAX_RELAYS
        assert trail.relays()[-1] == entry("relay", mac="", source="10.1.1.200", at=1000.0)
        assert not trail._machines

    def test_another_mac_with_our_serial_is_ours_to_know(self) -> None:
        trail = Trail(NOW)
        trail.add(entry("script", mac="aa:bb:cc:dd:ee:ff", serial=SERIAL, source="10.77.0.60"))
        trail.add(entry("script", mac="aa:bb:cc:dd:ee:00", serial="OTHER", source="10.77.0.61"))
        assert self.of(trail) == ["script"]

    def test_it_is_bounded_whatever_comes(self) -> None:
        trail = Trail(NOW)
        for number in range(MAX_MACHINES + 500):
            trail.add(entry("dhcp", mac=f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}", source=f"s{number}"))
        for number in range(MAX_ENTRIES * 3):
            trail.add(entry("dhcp", at=float(number), detail="x" * 10_000 + "\n\x1b[31m"))
        found = trail.of(HOST)
        assert len(found) == MAX_ENTRIES
        assert all(len(e.detail) <= 200 for e in found)
        assert len(trail._machines) <= MAX_MACHINES
        assert len(trail._macs) <= MAX_MACHINES

    def test_strangers_that_make_up_machines_fill_no_memory(self) -> None:
        trail = Trail(NOW)
        for number in range(2000):
            for at in range(MAX_ENTRIES):
                trail.add(entry("script", at=float(at), mac=f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"))
            trail.add(entry("tftp", mac="", source=f"10.1.{number >> 8}.{number & 255}"))
            trail.add(
                entry("dhcp", mac=f"06:00:00:00:00:{number & 255:02x}", source=f"10.1.{number >> 8}.{number & 255}")
            )
        assert sum(len(entries) for entries in trail._machines.values()) == trail._kept <= MAX_KEPT
        trail.add(entry("dhcp"))
        assert self.of(trail) == ["dhcp"]

    def test_control_characters_never_reach_a_terminal(self) -> None:
        trail = Trail(NOW)
        trail.add(entry("dhcp", detail="\x1b]0;owned\x07"))
        assert trail.of(HOST)[0].detail == "?]0;owned?"
