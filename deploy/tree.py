"""The file tree of a booted environment: unpacked parts, the libraries they need, compiled Python, busybox, an overlay."""

from __future__ import annotations

import fnmatch
import functools
import os
import posixpath
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy import elf
from deploy.packages import PRUNED, Deb, Failed, Part, run

_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_MERGED = ("bin", "sbin", "lib", "lib64")
_COMPILE = """
import os, py_compile, sys
root, shown = sys.argv[1:]
for folder, inner, names in os.walk(root):
    inner.sort()
    for name in sorted(names):
        if name.endswith(".py"):
            path = os.path.join(folder, name)
            py_compile.compile(path, path + "c", shown + path[len(root):], doraise=True, optimize=2,
                               invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
            os.unlink(path)
"""


def merged(path: str) -> str:
    """The place of a package's path in a tree where /bin, /sbin and /lib are links into /usr."""
    path = posixpath.normpath(path).lstrip("/")
    return f"usr/{path}" if path.split("/", 1)[0] in _MERGED else path


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def unpack(deb: Deb, target: Path, wanted: Callable[[str], bool]) -> int:
    """Put the files for which `wanted(merged path)` into `target`; links become relative. Returns how many."""
    count = 0
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb.path)], stdout=subprocess.PIPE) as source:
        assert source.stdout is not None
        linked: list[tuple[str, str]] = []
        with tarfile.open(fileobj=source.stdout, mode="r|") as archive:
            for member in archive:
                name = merged(member.name)
                if member.isdir() or not wanted(name):
                    continue
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                count += 1
                if member.issym():
                    here = posixpath.dirname(posixpath.normpath(member.name))
                    where = merged(posixpath.join("/", here, member.linkname))
                    path.unlink(missing_ok=True)
                    path.symlink_to(posixpath.relpath(where, posixpath.dirname(name)))
                elif member.islnk():
                    linked.append((name, merged(member.linkname)))
                elif member.isreg():
                    data = archive.extractfile(member)
                    assert data is not None
                    path.unlink(missing_ok=True)
                    with path.open("wb") as file:
                        shutil.copyfileobj(data, file)
                    path.chmod(0o755 if member.mode & 0o100 else 0o644)
        for name, where in linked:
            if (target / where).is_file():
                shutil.copy2(target / where, target / name)
        while source.stdout.read(1 << 16):
            pass  # the padding after the last member, so that the packer can end
    if source.returncode:
        raise Failed(f"{deb.path.name} cannot be unpacked; remove it and build again")
    return count


def _wanted(part: Part, path: str) -> bool:
    return _matches(path, part.files) and not _matches(path, part.without) and not _matches(path, PRUNED)


def _is_library(path: str) -> bool:
    return path.startswith(f"{_LIBRARIES}/lib") and ".so" in path and path.count("/") == 3


def unpack_parts(debs: Sequence[Deb], parts: Sequence[Part], tree: Path) -> None:
    """Raises Failed for a part that no package fits or that gave nothing: a name has changed."""
    for part in parts:
        found = [deb for deb in debs if deb.fits(part.package)]
        if not found:
            raise Failed(f"no package fits {part.package}")
        count = 0
        for deb in found:
            count += unpack(deb, tree, functools.partial(_wanted, part))
        if not count:
            raise Failed(f"nothing of {part.package} fits {' '.join(part.files)}")


def add_libraries(debs: Sequence[Deb], tree: Path, scratch: Path) -> list[str]:
    """Copy the shared libraries that programs in `tree` need. Returns their names. Raises Failed naming one that is absent."""
    for deb in debs:
        unpack(deb, scratch, _is_library)
    have: dict[str, Path] = {path.name: path for path in sorted(scratch.glob(f"{_LIBRARIES}/*"))}
    present = {path.name for path in tree.rglob("*.so*")}
    todo = [path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink()]
    added = []
    for path in todo:  # grows while it is walked
        for name in elf.needed(path):
            if name in present:
                continue
            if name not in have:
                raise Failed(f"{path.relative_to(tree)} needs {name}, which no package of the closure brings")
            target = tree / _LIBRARIES / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(have[name].resolve(), target)
            target.chmod(0o755 if name.startswith("ld-") else 0o644)
            present.add(name)
            added.append(name)
            todo.append(target)
    return sorted(added)


def compile_python(tree: Path) -> None:
    """The standard library as bytecode only, made by the very interpreter of the tree: half the size, and a fast start."""
    interpreters = sorted(path for path in (tree / "usr/bin").glob("python3.*") if not path.is_symlink())
    if len(interpreters) != 1:
        raise Failed("the tree holds no single Python")
    python = interpreters[0]
    library = tree / "usr/lib" / python.name
    for cache in sorted(library.rglob("__pycache__")):
        shutil.rmtree(cache)
    loader = tree / _LIBRARIES / "ld-linux-x86-64.so.2"
    environment = {"PYTHONHOME": str(tree / "usr"), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    libraries = str(tree / _LIBRARIES)
    run(
        [loader, "--library-path", libraries, python, "-S", "-c", _COMPILE, library, f"/usr/lib/{python.name}"],
        env=environment,
    )
    (tree / "usr/bin/python3").unlink(missing_ok=True)
    (tree / "usr/bin/python3").symlink_to(python.name)


def link_busybox(tree: Path) -> None:
    """A link for every applet whose name is not taken by a real program."""
    busybox = tree / "usr/bin/busybox"
    for path in run([busybox, "--list-full"]).split():
        link = tree / merged(path)
        taken = [tree / "usr" / folder / link.name for folder in ("bin", "sbin")]
        if link.name == "busybox" or any(os.path.lexists(other) for other in taken):
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(posixpath.relpath("usr/bin/busybox", posixpath.dirname(merged(path))))
    shell = tree / "usr/bin/sh"
    shell.unlink(missing_ok=True)
    # Not busybox's shell: that one runs its own applets before what stands in PATH.
    shell.symlink_to("dash")


def lay_over(overlay: Path, tree: Path) -> None:
    """Copy the overlay. What begins with `#!` may be run, whatever the checkout's modes are."""
    for path in sorted(overlay.rglob("*")):
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        target = tree / merged(path.relative_to(overlay).as_posix())
        target.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        target.unlink(missing_ok=True)
        target.write_bytes(data)
        target.chmod(0o755 if data.startswith(b"#!") else 0o644)


def skeleton(tree: Path) -> None:
    """The folders and links that packages expect to be there already."""
    for name in ("dev", "proc", "sys", "run", "tmp", "root", "mnt", "var/lib", "var/empty", "etc", "usr/lib64"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name in _MERGED:
        if not os.path.lexists(tree / name):
            (tree / name).symlink_to(f"usr/{name}")
    if not os.path.lexists(tree / "var/run"):
        (tree / "var/run").symlink_to("../run")


def certificates(tree: Path) -> None:
    """One file of all certificate authorities, where OpenSSL looks by itself; nothing if there are none."""
    found = sorted((tree / "usr/share/ca-certificates").rglob("*.crt"))
    if found:
        target = tree / "etc/ssl/certs/ca-certificates.crt"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"".join(path.read_bytes() for path in found))
        shutil.rmtree(tree / "usr/share/ca-certificates")
        link = tree / "usr/lib/ssl/cert.pem"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("../../../etc/ssl/certs/ca-certificates.crt")


def size_of(tree: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
