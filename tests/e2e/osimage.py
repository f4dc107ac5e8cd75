"""The small real system that the end-to-end tests install: a raw disk image that boots under BIOS and UEFI from NVMe.

GPT with a BIOS boot partition, an ESP and an ext4 root; made from files, without mounting and without a loop device.
`python3 -m tests.e2e.osimage FOLDER` prints the path; beside it stands the same image as .zst.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy import archive, kernel, media, tree
from deploy import build as deploy_build
from deploy.packages import BASE, LOADERS, VIRTUAL, Apt, Deb, Flavour, run

OVERLAY = Path(__file__).parent / "os"
FLAVOUR = Flavour(
    "os",
    "linux-image-cloud-amd64",
    ("openssh-server", "python3-minimal", "libpython3-stdlib", "busybox-static", "dash", "kmod", "iproute2"),
    BASE,
    VIRTUAL,
)
# Of the deploy environment's own overlay: accounts, and the DHCP script.
_ACCOUNTS = ("etc/passwd", "etc/group", "etc/shadow", "etc/nsswitch.conf", "etc/hosts", "etc/shells")
SHARED = (*_ACCOUNTS, "usr/lib/fleetd/udhcpc")
ROOT_GUID = "5eed0000-0000-4000-8000-000000000003"
_DISK_GUID = "5eed0000-0000-4000-8000-000000000000"
_EPOCH = 1_700_000_000
_MIB = 1 << 20
_SECTOR = 512
_CORE_START = 2048  # of the BIOS boot partition, in sectors
_COMMAND_LINE = (
    f"root=PARTUUID={ROOT_GUID} rootfstype=ext4 rw rootwait console=tty0 console=ttyS0,115200"
    " quiet panic=30 net.ifnames=0"
)
_GRUB_CFG = f"""\
set timeout=0
if serial --unit=0 --speed=115200; then terminal_output console serial; fi
linux /vmlinuz {_COMMAND_LINE}
boot
"""
_FIND = """\
search --no-floppy --file /fleetd-e2e-os --set=root
set prefix=($root)/boot/grub
configfile /boot/grub/grub.cfg
"""
_MODULES = "part_gpt fat normal linux search search_fs_file configfile serial echo test boot"


def _inputs(debs: Sequence[Deb]) -> str:
    """A hash of all that shapes the image."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted([*Path(deploy_build.__file__).parent.rglob("*"), *OVERLAY.rglob("*"), here / "osimage.py"]):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for deb in debs:
        digest.update(f"{deb.name} {deb.version} {deb.sha256}\n".encode())
    return digest.hexdigest()[:16]


def _root(debs: Sequence[Deb], scratch: Path) -> tuple[Path, kernel.Kernel]:
    root = scratch / "root"
    deploy_build.populate(root, FLAVOUR, debs, OVERLAY, scratch / "libraries")
    shared = scratch / "shared"
    for name in SHARED:
        (shared / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(deploy_build.OVERLAY / name, shared / name)
    tree.lay_over(shared, root)
    found = kernel.unpack_kernel(debs, FLAVOUR.kernel, scratch / "kernel")
    kernel.install_modules(found, kernel.choose(found, FLAVOUR.modules), root)
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(archive.mode_of(path) & 0o7777)
    root.chmod(0o755)
    return root, found


def _esp(found: kernel.Kernel, loaders: Path, scratch: Path) -> Path:
    """The ESP: GRUB at the removable path for UEFI, and the kernel for both kinds of firmware."""
    find, cfg, marker = scratch / "find.cfg", scratch / "grub.cfg", scratch / "marker"
    find.write_text(_FIND)
    cfg.write_text(_GRUB_CFG)
    marker.write_text("fleetd end-to-end test system\n")
    media.grub_image(loaders, "x86_64-efi", scratch / "bootx64.efi", _MODULES, find)
    files = {
        "EFI/BOOT/BOOTX64.EFI": scratch / "bootx64.efi",
        "vmlinuz": found.image,
        "boot/grub/grub.cfg": cfg,
        "fleetd-e2e-os": marker,
    }
    media.fat_image(scratch / "esp.img", "ESP", files, _EPOCH)
    media.grub_image(loaders, "i386-pc", scratch / "core.img", f"biosdisk {_MODULES}", find)
    return scratch / "esp.img"


def _boot_sectors(loaders: Path, core: Path) -> tuple[bytes, bytes]:
    """boot.img and core.img told where core.img begins, as grub-bios-setup would write them."""
    boot = bytearray((loaders / "usr/lib/grub/i386-pc/boot.img").read_bytes())
    data = bytearray(core.read_bytes())
    struct.pack_into("<Q", boot, 0x5C, _CORE_START)
    boot[0x66:0x68] = b"\x90\x90"  # no jump that trusts the BIOS's drive number less
    sectors = -(-len(data) // _SECTOR)
    struct.pack_into("<QHH", data, 0x1F4, _CORE_START + 1, sectors - 1, 0x820)
    return bytes(boot[:440]), bytes(data)


def _disk(target: Path, esp: Path, root: Path, boot: bytes, core: bytes) -> None:
    esp_sectors, root_sectors = esp.stat().st_size // _SECTOR, root.stat().st_size // _SECTOR
    first = 2 * _CORE_START
    total = (first + esp_sectors + root_sectors) * _SECTOR + _MIB
    target.unlink(missing_ok=True)
    with target.open("wb") as file:
        file.truncate(total)
    parts = (
        (1, _CORE_START, _CORE_START, "ef02", "bios"),
        (2, first, esp_sectors, "ef00", "esp"),
        (3, first + esp_sectors, root_sectors, "8304", "root"),
    )
    words: list[str | Path] = ["sgdisk", "-U", _DISK_GUID]
    for number, start, length, kind, name in parts:
        guid = f"{_DISK_GUID[:-1]}{number}"
        words += ["-n", f"{number}:{start}:{start + length - 1}", "-t", f"{number}:{kind}"]
        words += ["-c", f"{number}:{name}", "-u", f"{number}:{guid}"]
    run([*words, target])
    for source, sector in ((esp, first), (root, first + esp_sectors)):
        place = f"seek={sector * _SECTOR // _MIB}"
        run(["dd", f"if={source}", f"of={target}", "bs=1M", place, "conv=notrunc,sparse", "status=none"])
    with target.open("r+b") as file:
        file.write(boot)
        file.seek(_CORE_START * _SECTOR)
        file.write(core)


def build(out_dir: Path, cache: Path = Path("build/packages")) -> Path:
    """The raw image in `out_dir`, built when its inputs changed. Raises deploy.packages.Failed."""
    apt = Apt(cache)
    debs = apt.closure([*FLAVOUR.ask, FLAVOUR.kernel])
    loaders = apt.alone([name for name in LOADERS if name.startswith("grub")])
    target = out_dir / f"os-{_inputs([*debs, *loaders])}.raw"
    packed = target.with_suffix(".raw.zst")
    if target.is_file() and packed.is_file():
        return target
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fleetd-os-") as folder:
        scratch = Path(folder)
        root, found = _root(debs, scratch)
        for deb in loaders:
            tree.unpack(deb, scratch / "loaders", lambda path: path.startswith("usr/lib/grub/"))
        esp = _esp(found, scratch / "loaders", scratch)
        size = tree.size_of(root) // _MIB * 9 // 8 + 24
        image = scratch / "root.img"
        with image.open("wb") as file:
            file.truncate(size * _MIB)
        options = ["-q", "-F", "-L", "root", "-m", "0", "-J", "size=4", "-U", ROOT_GUID, "-d", str(root)]
        run(["mkfs.ext4", *options, "-E", f"lazy_itable_init=1,root_owner=0:0,hash_seed={ROOT_GUID}", image])
        part = scratch / "disk.raw"
        _disk(part, esp, image, *_boot_sectors(scratch / "loaders", scratch / "core.img"))
        run(["zstd", "-q", "-f", "-T2", "-6", part, "-o", scratch / "disk.zst"])
        for source, final in ((scratch / "disk.zst", packed), (part, target)):
            beside = final.with_name(final.name + ".part")
            run(["cp", "--sparse=always", source, beside])
            os.replace(beside, final)
    return target


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else "build/e2e-os")))  # noqa: T201
