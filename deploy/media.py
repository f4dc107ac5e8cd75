"""The ISO for virtual media, and FAT file systems: made from files, without mounting, the same bytes every time."""

from __future__ import annotations

import shutil
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from deploy.packages import Failed, run

URL_FIELD = 200  # characters after `fleetd.url=` in the ISO; the boot service writes its URL there, padded with spaces
PLACEHOLDER = "@FLEETD-URL@".ljust(URL_FIELD, "@")
_BIOS = "biosdisk iso9660 linux normal search search_fs_file configfile serial echo test boot"
_UEFI = "part_msdos part_gpt fat iso9660 linux normal search search_fs_file configfile serial echo test boot all_video"

GRUB_CFG = f"""\
set timeout=0
if serial --unit=0 --speed=115200; then terminal_output console serial; fi
echo "fleetd: loading the deploy environment"
linux /deploy/vmlinuz console=tty0 console=ttyS0,115200 panic=30 fleetd.url={PLACEHOLDER}
initrd /deploy/initrd
boot
"""
_FIND = """\
search --no-floppy --file /deploy/fleetd-deploy.iso.marker --set=root
set prefix=($root)/boot/grub
configfile /boot/grub/grub.cfg
"""


def fat_image(target: Path, label: str, files: Mapping[str, Path], epoch: int, *, room: int = 1 << 20) -> None:
    """A FAT file system that holds `files` (path in it -> source), with `room` bytes to spare."""
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in files.values()) + room
    sectors = -(-size // (1 << 20)) * 2048
    env = {"SOURCE_DATE_EPOCH": str(epoch), "MTOOLS_SKIP_CHECK": "1"}
    target.unlink(missing_ok=True)
    shape = f"-C -T {sectors} -h 16 -s 63 -N f1ee7d00 -v {label}".split()
    run(["mformat", "-i", target, *shape, "::"], env=env)
    made: set[str] = set()
    for name, source in sorted(files.items()):
        folders = name.split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            folder = "/".join(folders[:depth])
            if folder not in made:
                run(["mmd", "-i", target, f"::/{folder}"], env=env)
                made.add(folder)
        run(["mcopy", "-i", target, source, f"::/{name}"], env=env)
    stamp_fat(target, epoch)


def stamp_fat(image: Path, epoch: int) -> None:
    """Give every directory entry of a FAT image one time: mtools stamps what it creates with the clock."""
    data = bytearray(image.read_bytes())
    moment = time.gmtime(max(epoch, 315_532_800))
    day = (moment.tm_year - 1980) << 9 | moment.tm_mon << 5 | moment.tm_mday
    clock = moment.tm_hour << 11 | moment.tm_min << 5 | moment.tm_sec // 2
    size, per_cluster, reserved, fats, roots = struct.unpack_from("<HBHBH", data, 11)
    short, long = struct.unpack_from("<H", data, 22)[0], struct.unpack_from("<I", data, 36)[0]
    fat_sectors = short or long
    first = reserved + fats * fat_sectors + -(-roots * 32 // size)
    total = struct.unpack_from("<H", data, 19)[0] or struct.unpack_from("<I", data, 32)[0]
    clusters = (total - first) // per_cluster
    width = 32 if not short else 16 if clusters >= 4085 else 12
    table = reserved * size

    def following(cluster: int) -> int:
        if width == 12:
            (pair,) = struct.unpack_from("<H", data, table + cluster * 3 // 2)
            return int(pair >> 4 if cluster & 1 else pair & 0xFFF)
        if width == 16:
            return int(struct.unpack_from("<H", data, table + cluster * 2)[0])
        return int(struct.unpack_from("<I", data, table + cluster * 4)[0]) & 0x0FFFFFFF

    def spans(cluster: int) -> list[tuple[int, int]]:
        found = []
        while 2 <= cluster < clusters + 2:
            found.append(((first + (cluster - 2) * per_cluster) * size, per_cluster * size))
            cluster = following(cluster)
        return found

    if width == 32:
        todo = [spans(struct.unpack_from("<I", data, 44)[0])]
    else:
        todo = [[((reserved + fats * fat_sectors) * size, roots * 32)]]
    for chain in todo:  # grows while it is walked
        for start, length in chain:
            for at in range(start, start + length, 32):
                if data[at] in (0, 0xE5) or data[at + 11] == 0x0F:
                    continue
                data[at + 13] = 0
                struct.pack_into("<HHH", data, at + 14, clock, day, day)
                struct.pack_into("<HH", data, at + 22, clock, day)
                if data[at + 11] & 0x10 and data[at : at + 1] != b".":
                    high, low = struct.unpack_from("<H", data, at + 20)[0], struct.unpack_from("<H", data, at + 26)[0]
                    todo.append(spans(high << 16 | low))
    image.write_bytes(data)


def grub_image(loaders: Path, platform: str, target: Path, modules: str, config: Path | None = None) -> None:
    """A GRUB core image from the modules in `loaders`; it reads /boot/grub/grub.cfg, or first what `config` says."""
    folder = loaders / "usr/lib/grub" / platform.removesuffix("-eltorito")
    first: list[str | Path] = ["-c", config] if config is not None else []
    run(["grub-mkimage", "-O", platform, "-d", folder, "-o", target, "-p", "/boot/grub", *first, *modules.split()])


def build_iso(kernel: Path, initrd: Path, loaders: Path, scratch: Path, target: Path, epoch: int) -> None:
    """Kernel and initrd as a CD that BIOS and UEFI boot, with the placeholder for the URL in its grub.cfg.

    Raises Failed when the placeholder is not in the ISO exactly once, in one piece.
    """
    root = scratch / "iso"
    (root / "boot/grub").mkdir(parents=True)
    (root / "deploy").mkdir()
    shutil.copyfile(kernel, root / "deploy/vmlinuz")
    shutil.copyfile(initrd, root / "deploy/initrd")
    (root / "deploy/fleetd-deploy.iso.marker").write_text("fleetd deploy environment\n")
    (root / "boot/grub/grub.cfg").write_text(GRUB_CFG)
    grub_image(loaders, "i386-pc-eltorito", root / "boot/grub/eltorito.img", _BIOS)
    find = scratch / "find.cfg"
    find.write_text(_FIND)
    grub_image(loaders, "x86_64-efi", scratch / "bootx64.efi", _UEFI, find)
    fat_image(scratch / "efi.img", "FLEETD", {"EFI/BOOT/BOOTX64.EFI": scratch / "bootx64.efi"}, epoch, room=256 << 10)
    stamp = time.strftime("%Y%m%d%H%M%S00", time.gmtime(epoch))
    target.unlink(missing_ok=True)
    run(
        [
            *("xorriso", "-as", "mkisofs", "-quiet", "-o", target, "-V", "FLEETD_DEPLOY", "-r", "-J"),
            f"--modification-date={stamp}",
            *("--set_all_file_dates", stamp),
            *("-b", "boot/grub/eltorito.img", "-no-emul-boot", "-boot-load-size", "4"),
            *("-boot-info-table", "--grub2-boot-info"),
            *("--grub2-mbr", loaders / "usr/lib/grub/i386-pc/boot_hybrid.img", "-partition_offset", "16"),
            *("-append_partition", "2", "0xef", scratch / "efi.img", "-eltorito-alt-boot"),
            *("-e", "--interval:appended_partition_2:all::", "-no-emul-boot"),
            root,
        ],
        env={"SOURCE_DATE_EPOCH": str(epoch)},
    )
    data = target.read_bytes()
    if data.count(b"fleetd.url=") != 1 or data.count(b"fleetd.url=" + PLACEHOLDER.encode() + b"\n") != 1:
        raise Failed("the ISO does not hold the placeholder for the URL exactly once")
