"""The initrd: a cpio archive in which nothing depends on when, where or by whom it was packed."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from deploy.packages import Failed


def _entry(name: str, number: int, mode: int, mtime: int, data: bytes, links: int) -> bytes:
    """One member of the `newc` format; header and data are padded to 4 bytes."""
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, links, mtime, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def mode_of(path: Path) -> int:
    """The mode it gets in the archive: by kind and by whether its owner may run it, never by the umask of the builder."""
    found = path.lstat().st_mode
    if stat.S_ISLNK(found):
        return stat.S_IFLNK | 0o777
    if stat.S_ISDIR(found):
        return stat.S_IFDIR | (0o1777 if path.name == "tmp" else 0o700 if path.name == "root" else 0o755)
    return stat.S_IFREG | (0o755 if found & stat.S_IXUSR else 0o600 if path.name == "shadow" else 0o644)


def members(tree: Path, epoch: int) -> Iterator[bytes]:
    """The archive of `tree`, member by member in the order of their names. Raises Failed for a device or a socket."""
    # The root is a member too: the kernel's own is open to everybody, which sshd rightly dislikes.
    paths = [".", *sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*"))]
    for number, name in enumerate(paths, 1):
        path = tree / name
        mode = mode_of(path)
        if stat.S_ISLNK(mode):
            data = os.readlink(path).encode()
        elif stat.S_ISDIR(mode):
            data = b""
        elif path.is_file():
            data = path.read_bytes()
        else:
            raise Failed(f"{name} is neither a file nor a folder nor a link")
        yield _entry(name, number, mode, epoch, data, 2 if stat.S_ISDIR(mode) else 1)
    end = _entry("TRAILER!!!", 0, 0, 0, b"", 1)
    yield end


def write_cpio(tree: Path, epoch: int, file: IO[bytes]) -> int:
    """Returns the bytes written; the end is padded to 512."""
    size = 0
    for data in members(tree, epoch):
        size += file.write(data)
    return size + file.write(bytes(-size % 512))


def pack(tree: Path, epoch: int, target: Path, level: int) -> int:
    """cpio.zst at `target`; returns the bytes before compression. The thread count is fixed: it shapes the output."""
    command = ["zstd", "-q", "-f", f"-{level}", "-T2", "-o", str(target)]
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE) as zstd:
            assert zstd.stdin is not None
            size = write_cpio(tree, epoch, zstd.stdin)
    except FileNotFoundError as error:
        raise Failed("zstd is not installed") from error
    if zstd.returncode:
        raise Failed(f"zstd failed with {zstd.returncode}")
    return size
