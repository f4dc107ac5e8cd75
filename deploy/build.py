"""`python3 -m deploy.build --flavour mini|product --out FOLDER`: kernel, initrd, ISO, network loaders and a manifest.

Needs no privilege and no mount. Same packages, same sources of this folder and same tools: same bytes, which `--check`
proves by building twice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy import archive, kernel, media, tree
from deploy.packages import FLAVOURS, LOADERS, Apt, Deb, Failed, Flavour, run

OVERLAY = Path(__file__).parent / "overlay"
NETWORK_LOADERS = ("ipxe.efi", "snponly.efi", "undionly.kpxe")
OUTPUTS = ("vmlinuz", "initrd", "deploy.iso", *NETWORK_LOADERS)
_EPOCH = 1_700_000_000  # any fixed moment would do; SOURCE_DATE_EPOCH overrides it


@dataclass(frozen=True)
class Fetched:
    """What a build is made from. `absent`: optional packages that the configured archive does not carry."""

    debs: list[Deb]
    loaders: list[Deb]
    firmware: list[Deb]
    absent: list[str]


def fetch(flavour: Flavour, cache: Path) -> Fetched:
    """Ask apt. Raises Failed."""
    apt = Apt(cache)
    there = apt.known(flavour.optional)
    return Fetched(
        debs=apt.closure([*flavour.ask, flavour.kernel]),
        loaders=apt.alone(LOADERS),
        firmware=apt.alone(there),
        absent=[name for name in flavour.optional if name not in there],
    )


def populate(target: Path, flavour: Flavour, debs: Sequence[Deb], overlay: Path, scratch: Path) -> None:
    """A whole tree without kernel modules. Raises Failed."""
    tree.skeleton(target)
    tree.unpack_parts(debs, flavour.parts, target)
    tree.add_libraries(debs, target, scratch)
    tree.compile_python(target)
    tree.link_busybox(target)
    tree.lay_over(overlay, target)
    tree.certificates(target)


def _is_loader(path: str) -> bool:
    return path.startswith(("usr/lib/grub/", "usr/lib/ipxe/", "boot/"))


def _version(program: str, *arguments: str) -> str:
    first = run([program, *(arguments or ("--version",))]).strip().splitlines()
    return first[0].strip() if first else ""


def _tools() -> dict[str, str]:
    """Programs of this machine whose version shapes the output."""
    return {name: _version(name) for name in ("zstd", "xorriso", "grub-mkimage", "mformat", "depmod")}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tell(line: str) -> None:
    """A build takes minutes: who waits for it is told what it does."""
    print(f"deploy.build: {line}", file=sys.stderr, flush=True)


def build(flavour: Flavour, fetched: Fetched, out: Path, epoch: int) -> dict[str, object]:
    """Write everything into `out`; the manifest is the last file. Raises Failed."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="fleetd-deploy-") as folder:
        scratch = Path(folder)
        root = scratch / "root"
        _tell(f"unpacking {len(fetched.debs)} packages and {flavour.kernel}")
        populate(root, flavour, fetched.debs, OVERLAY, scratch / "libraries")
        found = kernel.unpack_kernel(fetched.debs, flavour.kernel, scratch / "kernel")
        chosen = kernel.choose(found, flavour.modules)
        kernel.install_modules(found, chosen, root)
        firmware, deaf = kernel.install_firmware(found, chosen, fetched.firmware, root)
        shutil.copyfile(found.image, out / "vmlinuz")
        _tell(f"packing the initrd: {len(chosen)} modules, {firmware} firmware files")
        unpacked = archive.pack(root, epoch, out / "initrd", flavour.level)
        for deb in fetched.loaders:
            tree.unpack(deb, scratch / "loaders", _is_loader)
        for name in NETWORK_LOADERS:
            shutil.copyfile(scratch / "loaders/usr/lib/ipxe" / name, out / name)
        _tell("writing the ISO")
        media.build_iso(out / "vmlinuz", out / "initrd", scratch / "loaders", scratch, out / "deploy.iso", epoch)
    manifest: dict[str, object] = {
        "flavour": flavour.name,
        "epoch": epoch,
        "kernel": found.release,
        "modules": len(chosen),
        "firmware_files": firmware,
        "firmware_files_absent": deaf,
        "firmware_packages_absent": fetched.absent,
        "initrd_unpacked_bytes": unpacked,
        "tools": _tools(),
        "packages": {
            deb.name: {"version": deb.version, "sha256": deb.sha256}
            for deb in sorted([*fetched.debs, *fetched.loaders, *fetched.firmware], key=lambda deb: deb.name)
        },
        "files": {name: {"bytes": (out / name).stat().st_size, "sha256": sha256(out / name)} for name in OUTPUTS},
    }
    part = out / "manifest.json.part"
    part.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    os.replace(part, out / "manifest.json")
    return manifest


def _check(flavour: Flavour, fetched: Fetched, out: Path, epoch: int) -> list[str]:
    """Build once more beside `out`, and name the files that differ."""
    _tell("building once more, to compare")
    with tempfile.TemporaryDirectory(prefix="fleetd-deploy-check-") as folder:
        build(flavour, fetched, Path(folder), epoch)
        return [name for name in (*OUTPUTS, "manifest.json") if sha256(out / name) != sha256(Path(folder) / name)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="deploy.build", description="Build fleetd's deploy environment.")
    parser.add_argument("--flavour", choices=sorted(FLAVOURS), default="mini")
    parser.add_argument("--out", type=Path, default=Path("build/deploy"))
    parser.add_argument("--cache", type=Path, default=Path("build/packages"), help="where fetched packages are kept")
    parser.add_argument("--check", action="store_true", help="build twice and fail if a byte differs")
    options = parser.parse_args(arguments)
    stamp = os.environ.get("SOURCE_DATE_EPOCH", str(_EPOCH))
    if not re.fullmatch(r"[0-9]{9,10}", stamp):
        parser.error("SOURCE_DATE_EPOCH must be seconds since 1970")
    flavour = FLAVOURS[options.flavour]
    try:
        _tell(f"asking apt for the packages of {flavour.name}, into {options.cache}")
        fetched = fetch(flavour, options.cache)
        manifest = build(flavour, fetched, options.out, int(stamp))
        differ = _check(flavour, fetched, options.out, int(stamp)) if options.check else []
    except Failed as failure:
        _tell(str(failure))
        return 1
    except OSError as error:  # no room, or a folder that is not ours to write: which one stands in it
        _tell(f"{error}; nothing in {options.out} is to be used without its manifest.json")
        return 1
    except KeyboardInterrupt:
        _tell(f"interrupted; nothing in {options.out} is to be used without its manifest.json")
        return 130
    for name in OUTPUTS:
        print(f"{(options.out / name).stat().st_size:>12,} {options.out / name}")
    unpacked = manifest["initrd_unpacked_bytes"]
    print(f"kernel {manifest['kernel']}, {manifest['modules']} modules, initrd unpacked {unpacked:,} bytes")
    if manifest["firmware_files_absent"]:
        print("some drivers may ask for firmware that is not in it: firmware_files_absent in manifest.json")
    if fetched.absent:
        print(f"not in the configured archive: {' '.join(fetched.absent)}")
    if differ:
        _tell(f"two builds differ in {', '.join(differ)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
