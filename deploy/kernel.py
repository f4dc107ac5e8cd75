"""The kernel of the environment: its image, the modules that a flavour names with all they depend on, their firmware."""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy import elf
from deploy.packages import Deb, Failed, run
from deploy.tree import unpack


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package: `release` as uname -r tells it, `image` a bzImage, `modules` its folder."""

    release: str
    image: Path
    modules: Path


def unpack_kernel(debs: Sequence[Deb], package: str, scratch: Path) -> Kernel:
    """Of the closure's kernel, the newest. Raises Failed."""
    pattern = package.replace("linux-image-", "linux-image-*[0-9]-")
    found = [deb for deb in debs if deb.fits(pattern) and deb.name != package]
    if len(found) != 1:
        raise Failed(f"{package} does not lead to one kernel: {[deb.name for deb in found]}")
    unpack(found[0], scratch, lambda path: path.startswith(("boot/vmlinuz", "usr/lib/modules/")))
    image = next(scratch.glob("boot/vmlinuz-*"))
    release = image.name.removeprefix("vmlinuz-")
    (scratch / "lib").symlink_to("usr/lib")
    run(["depmod", "-b", scratch, release])
    return Kernel(release, image, scratch / "usr/lib/modules" / release)


def _name(path: str) -> str:
    """Module name of a path: without folder and without .ko, .ko.xz or .ko.zst."""
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


def choose(kernel: Kernel, wanted: Iterable[str]) -> list[str]:
    """Paths below the modules folder: those whose name is wanted, or that begin with a wanted path, and what they need."""
    needs: dict[str, list[str]] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    wanted = tuple(wanted)
    names = {word.replace("-", "_") for word in wanted if "/" not in word}
    folders = tuple(word for word in wanted if "/" in word)
    chosen = {path for path in needs if _name(path) in names or (folders and path.startswith(folders))}
    for path in list(chosen):
        chosen.update(needs[path])  # modules.dep holds the whole closure
    return sorted(chosen)


def install_modules(kernel: Kernel, chosen: Sequence[str], tree: Path) -> None:
    """Copy them and write the indexes that modprobe reads."""
    target = tree / "usr/lib/modules" / kernel.release
    for path in chosen:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kernel.modules / path, target / path)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copyfile(kernel.modules / name, target / name)
    run(["depmod", "-b", tree, kernel.release])
    for name in os.listdir(target):  # modprobe reads the binary indexes; the texts are for people
        if name in ("modules.symbols", "modules.alias", "modules.devname"):
            (target / name).unlink()


def install_firmware(kernel: Kernel, chosen: Sequence[str], debs: Sequence[Deb], tree: Path) -> tuple[int, list[str]]:
    """Of the firmware packages only what a chosen module names.

    Returns how many files, and what (as patterns) modules name and no package has.
    """
    named = sorted({name for path in chosen for name in elf.module_firmware(kernel.modules / path)})
    patterns = tuple(f"usr/lib/firmware/{name}" for name in named)
    count = 0
    for deb in debs:
        count += unpack(deb, tree, lambda path: any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns))
    folder = tree / "usr/lib/firmware"
    return count, [name for name in named if not any(folder.glob(name))]
