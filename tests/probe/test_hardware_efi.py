"""Boot entries that a tenant may have written, and the order in which this host boots after them."""

from __future__ import annotations

import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.probe.host import efi, efivars
from fleetd.probe.host.efi import HardDrive
from fleetd.probe.host.efivars import GLOBAL, SECURITY, Variables, boot_order, snapshot

ESP, GONE = uuid.UUID(int=0x1234), uuid.UUID(int=0x5678)
DISK = HardDrive(2, 4096, 131072, ESP)
END = b"\x7f\xff\x04\x00"


def entry(label, *nodes, attributes=1):
    path = b"".join(struct.pack("<BBH", kind, sub, 4 + len(data)) + data for kind, sub, data in nodes) + END
    return struct.pack("<IH", attributes, len(path)) + f"{label}\0".encode("utf-16-le") + path


def put(directory, name, data, guid=GLOBAL, attributes=7):
    (directory / f"{name}-{guid}").write_bytes(struct.pack("<I", attributes) + data)


def order(directory):
    data = (directory / f"BootOrder-{GLOBAL}").read_bytes()
    return [f"{n:04X}" for n in efi.numbers(data[4:])]


NIC = entry("UEFI PXEv4", (2, 1, bytes(8)), (3, 11, bytes(33)), (3, 12, bytes(23)))
HTTP = entry("UEFI HTTPv4", (3, 11, bytes(33)), (3, 12, bytes(23)), (3, 24, b""))
EVIL_HTTP = entry("UEFI HTTPv4", (3, 11, bytes(33)), (3, 24, b"http://198.51.100.7/x.efi"))
SHELL = entry("EFI Internal Shell", (4, 7, bytes(16)), (4, 6, bytes(16)))


@pytest.fixture
def firmware(tmp_path):
    put(tmp_path, "Boot0000", SHELL)
    put(tmp_path, "Boot0001", NIC)
    put(tmp_path, "Boot0002", HTTP)
    put(tmp_path, "BootOrder", struct.pack("<3H", 1, 2, 0))
    put(tmp_path, "SecureBoot", b"\1", attributes=6)
    put(tmp_path, "SetupMode", b"\0", attributes=6)
    put(tmp_path, "db", b"keys", SECURITY)
    return tmp_path


def test_our_entry_is_the_bytes_of_the_specification():
    data = efi.build("ab", DISK, "\\X")
    assert data.hex(" ") == (
        "01 00 00 00 38 00 61 00 62 00 00 00 "
        "04 01 2a 00 02 00 00 00 00 10 00 00 00 00 00 00 00 00 02 00 00 00 00 00 "
        + ESP.bytes_le.hex(" ")
        + " 02 02 04 04 0a 00 5c 00 58 00 00 00 7f ff 04 00"
    )
    option = efi.parse(data)
    assert (option.label, option.disk, option.file, option.uri, option.rest) == ("ab", DISK, "\\X", "", b"")


def test_our_disk_is_first_and_the_firmwares_entries_stay(firmware):
    report = boot_order(Variables(str(firmware)), DISK, {ESP})
    assert (report["first"], report["removed"], report["reason"]) == ("0003", [], "")
    assert order(firmware) == ["0003", "0001", "0002", "0000"]
    assert report["efi"]["entries"]["0003"] == "fleetd disk"
    assert report["efi"]["boot_order"] == order(firmware)
    option = efi.parse((firmware / f"Boot0003-{GLOBAL}").read_bytes()[4:])
    assert (option.disk, option.file, option.attributes) == (DISK, "\\EFI\\BOOT\\BOOTX64.EFI", 1)


def test_a_second_time_writes_nothing(firmware):
    boot_order(Variables(str(firmware)), DISK, {ESP})
    for path in firmware.iterdir():
        path.chmod(0o444)
    before = {path: path.stat().st_mtime_ns for path in firmware.iterdir()}
    assert boot_order(Variables(str(firmware)), DISK, {ESP})["first"] == "0003"
    assert {path: path.stat().st_mtime_ns for path in firmware.iterdir()} == before


def test_what_a_tenant_left_is_removed(firmware):
    put(firmware, "Boot0003", efi.build("fleetd disk", HardDrive(1, 2048, 100, GONE), efi.LOADER))
    put(firmware, "Boot0004", efi.build("ubuntu", HardDrive(1, 2048, 100, GONE), "\\EFI\\ubuntu\\shimx64.efi"))
    put(firmware, "Boot0005", EVIL_HTTP)
    put(firmware, "Boot0006", b"\1\0\0\0garbage")
    put(firmware, "Boot0007", efi.build("good os", DISK, "\\EFI\\os.efi"))
    put(firmware, "Boot0008", entry("mbr", (4, 1, struct.pack("<IQQ16sBB", 1, 1, 1, bytes(16), 1, 1))))
    put(firmware, "Boot0009", b"")
    put(firmware, "Driver0000", efi.build("rootkit", HardDrive(1, 2048, 100, GONE), "\\x.efi"))
    put(firmware, "SysPrep0001", efi.build("rootkit", HardDrive(1, 2048, 100, GONE), "\\x.efi"))
    put(firmware, "DriverOrder", struct.pack("<H", 0))
    put(firmware, "BootNext", struct.pack("<H", 4))
    put(firmware, "BootOrder", struct.pack("<9H", 4, 5, 6, 3, 7, 1, 2, 0, 0x99))
    report = boot_order(Variables(str(firmware)), DISK, {ESP})
    assert report["removed"] == ["0003", "0004", "0005", "0006", "0008", "0009", "Driver0000", "SysPrep0001"]
    assert (report["first"], order(firmware)) == ("0003", ["0003", "0007", "0001", "0002", "0000"])
    left = {path.name.split("-")[0] for path in firmware.iterdir()}
    assert not left & {"BootNext", "DriverOrder", "Driver0000", "SysPrep0001", "Boot0004"}


@pytest.mark.parametrize("sub", [19, 34])
def test_a_target_of_a_tenants_over_the_network_is_removed(firmware, sub):
    """Kept behind our disk, it would start whenever that one is wiped."""
    put(firmware, "Boot0003", entry("iSCSI", (2, 1, bytes(8)), (3, 11, bytes(33)), (3, sub, bytes(14) + b"iqn.evil\0")))
    report = boot_order(Variables(str(firmware)), DISK, {ESP})
    assert report["removed"] == ["0003"]
    assert order(firmware)[1:] == ["0001", "0002", "0000"]


def test_without_a_disk_it_only_removes(firmware):
    put(firmware, "Boot0003", efi.build("fleetd disk", DISK, efi.LOADER))
    put(firmware, "BootOrder", struct.pack("<4H", 3, 1, 2, 0))
    report = boot_order(Variables(str(firmware)), None, set())
    assert (report["first"], report["removed"], order(firmware)) == ("", ["0003"], ["0001", "0002", "0000"])
    assert "no drive has an EFI system partition" in report["reason"]


def test_entries_of_the_same_bytes_are_one(firmware):
    for name in ("Boot0010", "Boot0011"):
        put(firmware, name, efi.build("fleetd disk", DISK, efi.LOADER))
    report = boot_order(Variables(str(firmware)), DISK, {ESP})
    assert (report["first"], report["removed"]) == ("0010", ["0011"])


def test_a_host_without_efi(tmp_path):
    report = boot_order(Variables(str(tmp_path / "absent")), DISK, set())
    assert report == {
        "efi": {
            "present": False,
            "secure_boot": None,
            "setup_mode": None,
            "keys": {},
            "sizes": {},
            "boot_order": [],
            "entries": {},
        },
        "removed": [],
        "first": "",
        "reason": "",
    }


def test_the_snapshot_tells_keys_by_their_hash(firmware):
    shot = snapshot(Variables(str(firmware)))
    assert (shot["present"], shot["secure_boot"], shot["setup_mode"]) == (True, True, False)
    assert list(shot["keys"]) == ["db"]
    assert len(shot["keys"]["db"]) == 64
    assert shot["boot_order"] == ["0001", "0002", "0000"]
    assert shot["entries"] == {"0000": "EFI Internal Shell", "0001": "UEFI PXEv4", "0002": "UEFI HTTPv4"}


class Deaf(Variables):
    """Firmware that takes a variable and keeps the old one."""

    def read(self, name, guid=GLOBAL):
        return b"\0\0" if name == "BootOrder" else super().read(name, guid)


def test_firmware_that_keeps_the_old_order_is_no_success(firmware):
    with pytest.raises(OSError, match="took BootOrder and reads back something else"):
        boot_order(Deaf(str(firmware)), DISK, {ESP})


def test_a_longer_variable_of_before_leaves_no_tail(firmware):
    variables = Variables(str(firmware))
    variables.write("BootOrder", b"\1\0\2\0\3\0")
    variables.write("BootOrder", b"\2\0")
    assert variables.read("BootOrder") == b"\2\0"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1\0\0\0\4\0",
        struct.pack("<IH", 1, 4) + "x".encode("utf-16-le") * 10,  # no end of the label
        struct.pack("<IH", 1, 400) + b"x\0\0\0" + END,  # path longer than the variable
        struct.pack("<IH", 1, 4) + b"x\0\0\0" + b"\4\1\0\0",  # node of length 0
        struct.pack("<IH", 1, 12) + b"x\0\0\0" + bytes.fromhex("040103 0000050000") + END,  # shorter than its own head
        struct.pack("<IH", 1, 4) + b"x\0\0\0" + b"\4\1\x2a\0",  # node longer than the path
        struct.pack("<IH", 1, 0) + b"x\0\0\0",  # no end of the path
        entry("x", *((1, 1, b""),) * 65),
        bytes(efi.MAX_OPTION + 1),
    ],
)
def test_malformed_entries(data):
    with pytest.raises(efi.Malformed):
        efi.parse(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_entry_or_malformed(data):
    for candidate in (data, struct.pack("<IH", 1, max(0, len(data) - 2)) + b"\0\0" + data, entry("x", (4, 1, data))):
        try:
            option = efi.parse(candidate)
        except efi.Malformed:
            continue
        assert option.label.isprintable()
        assert option.file.isprintable()
        assert len(option.label) <= 256
        assert option.disk is None or option.disk.number >= 0
        efivars.foreign(option, set())


@given(st.text(max_size=30), st.integers(1, 128), st.integers(0, 2**63), st.uuids())
def test_what_we_build_we_read(label, number, start, guid):
    label = "".join(c for c in label if c.isprintable())
    option = efi.parse(efi.build(label, HardDrive(number, start, 8, guid), "\\EFI\\A.EFI"))
    assert (option.label, option.disk) == (label, HardDrive(number, start, 8, guid))


@given(st.binary(max_size=5000))
def test_any_order_is_bounded_and_has_no_number_twice(data):
    found = efi.numbers(data)
    assert len(found) == len(set(found)) <= 1024


def test_hundreds_of_entries_hide_none_and_their_number_is_bounded(firmware, monkeypatch):
    for n in range(300):
        put(firmware, f"Boot{n:04X}", SHELL)
    put(firmware, "Boot0200", EVIL_HTTP)
    report = boot_order(Variables(str(firmware)), DISK, {ESP})
    assert (report["first"], report["removed"]) == ("012C", ["0200"])
    monkeypatch.setattr(efivars, "MAX_ENTRIES", 8)
    assert len(Variables(str(firmware)).entries()) == 8
