"""The host-side program on a machine of QEMU's: its drives, TPM and firmware, judged from outside.

The kernel and the userland are those of the deploy environment; only /init is ours, which runs the zipapp as the daemon does.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fleetd.probe.build import build
from tests.e2e.builds import deploy_files
from tests.e2e.lab import tool

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

OVMF = Path("/usr/share/OVMF")
MB = 1 << 20
NONCE = "n" * 43
SIZES = {"one": 96, "two": 48, "multi": 64, "meta": 32, "virtio": 64, "scsi": 48}
SERIALS = ["NV-1", "NV-2", "NV-3", "VB-1", "SC-1"]
INIT = """#!/usr/bin/busybox sh
/usr/bin/busybox mount -t proc proc /proc
/usr/bin/busybox mount -t sysfs sys /sys
/usr/bin/busybox mount -t devtmpfs dev /dev 2>/dev/null
/usr/bin/busybox sh /etc/rcS >/dev/null 2>&1
/usr/bin/python3 -B /guest.py </dev/null 2>&1
/usr/bin/busybox poweroff -f
"""
GUEST = Path(__file__).parent / "hardware_guest.py"


def data(name: str, size: int) -> bytes:
    """What a tenant left: no block of it is zeros, none is there twice."""
    return random.Random(name).randbytes(size)


def cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A newc archive, which the kernel lays over the initrd's."""
    out = b""
    for name, (mode, content) in [*files.items(), ("TRAILER!!!", (0, b""))]:
        fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return out


@pytest.fixture
def initrd(tmp_path):
    files = {
        "init": (0o100755, INIT.encode()),
        "guest.py": (0o100644, GUEST.read_bytes()),
        "host.pyz": (0o100644, build("host").data),
        "nonce": (0o100600, NONCE.encode()),
    }
    base = (deploy_files() / "initrd").read_bytes()
    path = tmp_path / "initrd"
    path.write_bytes(base + bytes(-len(base) % 512) + cpio(files))
    return path


@pytest.fixture
def chip(tmp_path):
    """An emulated TPM; its control socket."""
    socket = tmp_path / "swtpm.sock"
    (tmp_path / "tpm").mkdir()
    with subprocess.Popen(
        [tool("swtpm"), "socket", "--tpm2", "--tpmstate", f"dir={tmp_path}/tpm", "--ctrl", f"type=unixio,path={socket}"]
    ) as process:
        yield socket
        process.terminate()


async def run(tmp_path, initrd, chip):
    """Boot, and return the words that the guest said, by their first one."""
    (tmp_path / "vars.fd").write_bytes((OVMF / "OVMF_VARS_4M.fd").read_bytes())
    for name, size in SIZES.items():
        (tmp_path / name).write_bytes(data(name, size * MB))

    def drive(name):
        return ("-drive", f"file={tmp_path / name},format=raw,if=none,id={name},discard=unmap")

    process = await asyncio.create_subprocess_exec(
        tool("qemu-system-x86_64"),
        *("-machine", "q35", "-accel", "tcg", "-cpu", "Nehalem-v1,+aes,+pclmulqdq,+rdrand", "-m", "768"),
        *("-display", "none", "-serial", "stdio", "-no-reboot", "-nic", "none", "-smbios", "type=1,serial=HOST-1"),
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={OVMF}/OVMF_CODE_4M.fd"),
        *("-drive", f"if=pflash,unit=1,format=raw,file={tmp_path}/vars.fd"),
        *(
            "-kernel",
            str(deploy_files() / "vmlinuz"),
            "-initrd",
            str(initrd),
            "-append",
            "console=ttyS0 quiet panic=-1",
        ),
        *("-chardev", f"socket,id=tpm,path={chip}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"),
        *("-device", "tpm-tis,tpmdev=tpm0"),
        *(word for name in SIZES for word in drive(name)),
        *("-device", "nvme,id=n1,serial=NV-1", "-device", "nvme-ns,drive=one,bus=n1,nsid=1"),
        *("-device", "nvme-ns,drive=two,bus=n1,nsid=2"),
        *("-device", "nvme-subsys,id=sub,nqn=sub", "-device", "nvme,id=n2,serial=NV-2,subsys=sub"),
        *("-device", "nvme-ns,drive=multi,bus=n2,nsid=3"),
        *("-device", "nvme,id=n3,serial=NV-3"),
        *("-device", "nvme-ns,drive=meta,bus=n3,nsid=1,ms=8,mset=1,logical_block_size=512,physical_block_size=512"),
        *("-device", "virtio-blk-pci,drive=virtio,serial=VB-1,bootindex=9"),
        *("-device", "virtio-scsi-pci,id=scsi", "-device", "scsi-hd,drive=scsi,bus=scsi.0,serial=SC-1"),
        stdout=asyncio.subprocess.PIPE,
        stderr=sys.stderr,
    )
    assert process.stdout is not None
    told = {}
    log = b""
    try:
        # by progress: every line of the guest is one, and so is every line of the firmware
        while line := await asyncio.wait_for(process.stdout.readline(), 120):
            log += line
            if b"@@" in line:
                word, _, rest = line.decode(errors="replace").partition("@@")[2].strip().partition(" ")
                told[word] = json.loads(rest)
        await asyncio.wait_for(process.wait(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        (tmp_path / "console.log").write_bytes(log)
    assert "end" in told, log[-3000:].decode(errors="replace")
    return told


def blocks_left(tmp_path, name):
    """How many 4 KiB blocks of the tenant's are anywhere in the drive's file, and whether the file is zeros."""
    before = data(name, SIZES[name] * MB)
    ours = {hashlib.sha256(before[at : at + 4096]).digest() for at in range(0, len(before), 4096)}
    after = (tmp_path / name).read_bytes()
    assert len(after) == len(before)
    found = sum(hashlib.sha256(after[at : at + 4096]).digest() in ours for at in range(0, len(after), 4096))
    return found, not any(after)


async def test_drives_tpm_and_firmware_of_a_machine(tmp_path, initrd, chip):
    told = await run(tmp_path, initrd, chip)
    # what it is
    picture = told["inspect"]["snapshot"]
    assert [(d["name"], d["serial"], d["bytes"] // MB) for d in picture["drives"]] == [
        ("nvme0n1,nvme0n2", "NV-1", 96),
        ("nvme1n1", "NV-2", 64),
        ("nvme2n1", "NV-3", 0),
        ("sda", "SC-1", 48),
        ("vda", "VB-1", 64),
    ]
    assert picture["efi"]["present"]
    assert picture["tpm"] == {"present": True, "version": "2.0", "vendor": "IBM"}
    assert picture["bios"]["vendor"]
    # a drive that is in use is not touched, and the others are not held back by it
    held = {d["serial"]: d for d in told["held"]["drives"]}
    assert not told["held"]["ok"]
    assert [held[s]["erased"] for s in SERIALS] == [False, True, False, False, True]
    # a tenant's format with metadata, which Linux shows as 0 bytes, is mended, and nothing is claimed of it yet
    assert "had 0 bytes and has 33554432 now; remedy: wipe once more" in held["NV-3"]["reason"]
    assert "in use" in held["VB-1"]["reason"]
    assert "nvme0n2 is in use" in held["NV-1"]["reason"]
    assert told["held-data"]["same"]
    # then all are erased, each by what it knows
    assert told["wipe"]["ok"], told["wipe"]
    drives = {d["serial"]: d for d in told["wipe"]["drives"]}
    assert [drives[s]["method"] for s in SERIALS] == [
        *["nvme-format-user-data"] * 3,
        *["overwrite"] * 2,
    ]
    assert all((d["nonzero"], d["pattern_left"]) == (0, 0) and d["pattern_written"] > 32 for d in drives.values())
    # from outside: not a block of the tenant's, in any namespace; beyond our own table on the one that was written after
    assert {name: blocks_left(tmp_path, name) for name in SIZES} == {name: (0, name != "virtio") for name in SIZES}
    # a controller without sanitize says so, and nothing is taken for done
    assert "status 0x" in told["sanitize"]["error"]
    # a crypto format is followed by zeros, a drive under another's name is refused
    assert told["crypto"] == {"left": False}
    assert "is now the drive 'NV-2'" in told["renumbered"]["error"]
    # the TPM was a tenant's
    assert told["owned"]["left"] == "owner password, endorsement password"
    assert told["clear-tpm"]["tpm"]["method"] == "TPM2_Clear(lockout)"
    assert told["clear-tpm"]["tpm"]["cleared"]
    assert told["clear-tpm-locked"]["tpm"]["cleared"] is False
    assert "lockout password" in told["clear-tpm-locked"]["tpm"]["reason"]
    # the firmware's boot order
    order = told["boot-order"]
    assert order["ok"], order
    assert set(order["removed"]) == {"0F01", "0F02"}
    assert order["efi"]["entries"][order["first"]] == "fleetd disk"
    assert order["efi"]["boot_order"][0] == order["first"]
    assert set(told["firmware-entries"]["before"]) <= set(order["efi"]["entries"])
    assert f"HD(1,GPT,{told['efibootmgr']['guid']},0x800,0xa000)" in told["efibootmgr"]["said"]
    assert told["again"]["first"] == order["first"]
    assert told["again"]["removed"] == []
