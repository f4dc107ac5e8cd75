"""Our boot variables read by efibootmgr, and its own read by us. Package: efibootmgr."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import uuid

import pytest

from fleetd.probe.host import efi
from fleetd.probe.host.efivars import GLOBAL, Variables, boot_order, snapshot

pytestmark = [pytest.mark.peers, pytest.mark.slow]

ESP = uuid.UUID("11111111-2222-3333-4444-555555555555")
DISK = efi.HardDrive(2, 4096, 131072, ESP)


@pytest.fixture
def firmware(tmp_path):
    """A directory with the variables of a machine that has one network entry."""
    nic = bytes.fromhex("02010c00d041030a00000000" + "01010600 0003" + "7fff0400")
    entry = struct.pack("<IH", 1, len(nic)) + "UEFI PXEv4\0".encode("utf-16-le") + nic
    for name, data in (("Boot0000", entry), ("BootOrder", b"\0\0"), ("BootCurrent", b"\0\0"), ("Timeout", b"\3\0")):
        (tmp_path / f"{name}-{GLOBAL}").write_bytes(struct.pack("<I", 7) + data)
    return tmp_path


def efibootmgr(directory, *arguments):
    program = shutil.which("efibootmgr", path=os.environ.get("PATH", "") + ":/usr/sbin:/bin:/sbin")
    if program is None:
        why = "no efibootmgr; apt install efibootmgr"
        pytest.fail(why) if os.environ.get("CI") == "1" else pytest.skip(why)
    done = subprocess.run(
        [program, *arguments],
        env={"EFIVARFS_PATH": f"{directory}/", "LANG": "C"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_efibootmgr_reads_our_entry_as_what_it_is(firmware):
    report = boot_order(Variables(str(firmware)), DISK, {ESP})
    said = efibootmgr(firmware, "-v")
    assert "BootOrder: 0001,0000" in said
    [line] = [line for line in said.splitlines() if line.startswith(f"Boot{report['first']}*")]
    assert "fleetd disk" in line
    assert f"HD(2,GPT,{ESP},0x1000,0x20000)" in line
    assert "EFI\\BOOT\\BOOTX64.EFI" in line


def test_we_read_what_efibootmgr_wrote(firmware):
    boot_order(Variables(str(firmware)), DISK, {ESP})
    efibootmgr(firmware, "-o", "0000,0001")
    assert snapshot(Variables(str(firmware)))["boot_order"] == ["0000", "0001"]
    efibootmgr(firmware, "-n", "0000")
    assert (firmware / f"BootNext-{GLOBAL}").exists()
    report = boot_order(Variables(str(firmware)), DISK, {ESP})
    assert (report["first"], report["efi"]["boot_order"]) == ("0001", ["0001", "0000"])
    assert "BootNext" not in efibootmgr(firmware)
    efibootmgr(firmware, "-b", "0001", "-B")
    assert list(snapshot(Variables(str(firmware)))["entries"]) == ["0000"]
