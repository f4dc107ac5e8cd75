"""Runs inside the machine of test_hardware.py, as root, with the zipapp beside it: says `@@ word {json}` on the console."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import time
import uuid
import zlib

sys.path.insert(0, "/host.pyz")

from host import devices, efi, efivars, real, tpm

SERIALS = ["NV-1", "NV-2", "NV-3", "VB-1", "SC-1"]


def text(path):
    with open(path) as file:
        return file.read()


NONCE = text("/nonce")


def say(word, **told):
    sys.stdout.write(f"\n@@{word} {json.dumps(told)}\n")
    sys.stdout.flush()


def host(command, intent, **more):
    """As the daemon runs it."""
    order = {"intent": intent, "nonce": NONCE, "host_serial": "HOST-1", **more}
    began = time.monotonic()
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "/host.pyz", command],
        input=json.dumps(order).encode(),
        capture_output=True,
        timeout=300,
    )
    try:
        report = json.loads(done.stdout)
    except ValueError:
        report = {"crashed": done.stderr.decode()[-2000:]}
    return {**report, "exit": done.returncode, "took": round(time.monotonic() - began, 2)}


def wait_for_disks():
    """The kernel probes controllers in its own time."""
    for _ in range(300):
        found = devices.find()
        # NV-3 has a format that Linux cannot use: 0 bytes
        if len(found) == len(SERIALS) and all(disk.blocks and (disk.size or disk.serial == "NV-3") for disk in found):
            return
        time.sleep(0.1)


def gpt(disk, guid):
    """A table with one EFI system partition."""
    sectors = disk.size // 512
    kind = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le
    entries = struct.pack("<16s16sQQQ72s", kind, guid.bytes_le, 2048, 2048 + 40959, 0, b"E\0").ljust(128 * 128, b"\0")
    head = struct.pack(
        "<8sIIIIQQQQ16sQIII",
        b"EFI PART",
        0x10000,
        92,
        0,
        0,
        1,
        sectors - 1,
        34,
        sectors - 34,
        bytes(16),
        2,
        128,
        128,
        zlib.crc32(entries),
    )
    head = head[:16] + struct.pack("<I", zlib.crc32(head)) + head[20:]
    mbr = (
        bytes(446) + struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff" * 3, 1, sectors - 1) + bytes(48) + b"\x55\xaa"
    )
    with disk.open() as blocks:
        blocks.write(0, mbr + head.ljust(512, b"\0") + entries)
        blocks.flush()


def change_auth(chip, handle, new):
    tpm.answer(chip, "change", tpm.with_password(0x129, handle, struct.pack(">H", len(new)) + new))


def attempt(word, act):
    try:
        act()
    except OSError as error:
        say(word, error=str(error))
    else:
        say(word, error="")


def drives_part():
    drives = {drive.serial: drive for drive in real.RealMachine().drives()}
    everything = [{"serial": serial} for serial in SERIALS]
    say("inspect", **host("inspect", "i-0"))
    held = [os.open(f"/dev/{name}", os.O_RDONLY | os.O_EXCL) for name in ("nvme0n2", "vda")]  # as a mount does
    before = [os.pread(fd, 1 << 20, 0) for fd in held]
    say("held", **host("wipe", "i-held", drives=everything))
    say("held-data", same=[os.pread(fd, 1 << 20, 0) for fd in held] == before)
    for fd in held:
        os.close(fd)
    say("wipe", **host("wipe", "i-wipe", drives=everything))
    attempt("sanitize", lambda: list(drives["NV-1"].erase("nvme-sanitize-block", "i")))
    one = drives["NV-1"]
    with one.open() as blocks:
        blocks.write(0, b"x" * (1 << 20))
    list(one.erase("nvme-format-crypto", "i"))
    with one.open() as blocks:
        say("crypto", left=any(blocks.read(0, 1 << 20)))
    other = next(disk for disk in devices.find() if disk.serial == "NV-2")
    attempt(
        "renumbered", lambda: list(real.RealDrive(other._replace(serial="NV-1")).erase("nvme-format-user-data", "i"))
    )
    return drives


def tpm_part():
    chip = tpm.Chip()
    change_auth(chip, 0x40000001, b"tenant")
    change_auth(chip, 0x4000000B, b"tenant")
    say("owned", left=tpm.state(chip).left())
    chip.close()
    say("clear-tpm", **host("clear-tpm", "i-tpm"))
    chip = tpm.Chip()
    change_auth(chip, tpm.LOCKOUT, b"tenant")
    chip.close()
    say("clear-tpm-locked", **host("clear-tpm", "i-tpm-2"))


def efi_part(drives):
    variables = efivars.Variables()
    say("firmware-entries", before=[name[4:] for name in variables.entries("Boot")])
    guid = uuid.uuid4()
    gpt(drives["VB-1"], guid)
    gone = efi.HardDrive(1, 2048, 4096, uuid.uuid4())
    variables.write("Boot0F01", efi.build("ubuntu", gone, "\\EFI\\ubuntu\\shimx64.efi"))
    variables.write("Boot0F02", efi.build("fleetd disk", gone, efi.LOADER))
    order = variables.read("BootOrder") or b""
    variables.write("BootOrder", struct.pack("<2H", 0xF01, 0xF02) + order)
    variables.write("BootNext", struct.pack("<H", 0xF01))
    say("boot-order", **host("boot-order", "i-boot", prefer="disk"))
    said = subprocess.run(["/usr/bin/efibootmgr", "-v"], capture_output=True, text=True, timeout=30).stdout
    say("efibootmgr", said=said, guid=str(guid))
    say("again", **host("boot-order", "i-boot-2", prefer="disk"))


def main():
    os.makedirs("/run/fleetd", mode=0o700, exist_ok=True)
    with open("/run/fleetd/deploy", "w") as file:
        file.write(hashlib.sha256(NONCE.encode()).hexdigest())
    wait_for_disks()
    say("start", uptime=text("/proc/uptime"))
    drives = drives_part()
    tpm_part()
    efi_part(drives)
    say("end", uptime=text("/proc/uptime"))


main()
