"""Where facts stand as files: the real system, a copy under another root, or a dictionary. All reads are bounded.

Under another root two things that are not files are replaced by files: ``/dev/kmsg`` holds kernel log records one a
line, and ``/dev/nvmeN.smart`` holds the 512 bytes that the drive would answer to Get Log Page 02h.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from .devices import get_health_page, read_device

T = TypeVar("T")
Reading = dict[str, Any]  # {"v": value} or {"absent": reason}
LIMIT = 64 * 1024
LOG_LIMIT = 2 * 1024 * 1024


class Files(Protocol):
    """Paths are absolute, as on the real system. Every method raises OSError, and nothing else, when it cannot."""

    def read(self, path: str, limit: int = LIMIT) -> bytes:
        """At most `limit` bytes from the start."""

    def names(self, path: str) -> list[str]:
        """Entries of a directory, sorted."""

    def target(self, path: str) -> str:
        """Last part of what a symbolic link points to."""

    def exists(self, path: str) -> bool: ...

    def kernel_log(self) -> bytes:
        """Records of /dev/kmsg, one a line."""

    def smart(self, name: str) -> bytes:
        """The SMART / Health log page (512 bytes) of the controller `name`."""


class Tree:
    """A directory tree: the real root, or a fake one below `root`."""

    def __init__(self, root: str = "/") -> None:
        self.real = os.path.abspath(root) == "/"
        self._root = "" if self.real else os.path.abspath(root)

    def _at(self, path: str) -> str:
        return self._root + path

    def read(self, path: str, limit: int = LIMIT) -> bytes:
        with open(self._at(path), "rb") as file:
            return file.read(limit)

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(self._at(path)))

    def target(self, path: str) -> str:
        return posixpath.basename(os.readlink(self._at(path)))

    def exists(self, path: str) -> bool:
        return os.path.lexists(self._at(path))

    def kernel_log(self) -> bytes:
        if not self.real:
            return self.read("/dev/kmsg", LOG_LIMIT)
        return read_device("/dev/kmsg", LOG_LIMIT)

    def smart(self, name: str) -> bytes:
        if not self.real:
            return self.read(f"/dev/{name}.smart", 512)
        return get_health_page(f"/dev/{name}")


class Table:
    """A dictionary in place of a tree: `contents` by path, `links` by path to their target."""

    def __init__(self, contents: Mapping[str, bytes], links: Mapping[str, str]) -> None:
        self._contents, self._links = contents, links
        self._children: dict[str, set[str]] = {}
        for path in (*contents, *links):
            while path not in ("", "/"):
                parent, name = posixpath.split(path)
                known = self._children.setdefault(parent, set())
                if name in known:
                    break
                known.add(name)
                path = parent

    def read(self, path: str, limit: int = LIMIT) -> bytes:
        try:
            return self._contents[path][:limit]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory", path) from None

    def names(self, path: str) -> list[str]:
        try:
            return sorted(self._children[path])
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory", path) from None

    def target(self, path: str) -> str:
        try:
            return posixpath.basename(self._links[path])
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory", path) from None

    def exists(self, path: str) -> bool:
        return path in self._contents or path in self._links or path in self._children

    def kernel_log(self) -> bytes:
        return self.read("/dev/kmsg", LOG_LIMIT)

    def smart(self, name: str) -> bytes:
        return self.read(f"/dev/{name}.smart", 512)


def absent(error: object) -> Reading:
    """A reading that could not be made, with a bounded reason."""
    if isinstance(error, OSError):
        reason = (error.strerror or type(error).__name__).lower()
    elif isinstance(error, BaseException):
        reason = f"{type(error).__name__}: {error}"
    else:
        reason = str(error)
    return {"absent": reason[:200] or "unknown"}


def attempt(read: Callable[[], T], decode: Callable[[T], Any] | None = None) -> Reading:
    """Read and decode; a missing file or a text that is not what it should be becomes an absence, never an end."""
    try:
        value: Any = read()
        if decode is not None:
            value = decode(value)
    except (OSError, ValueError, LookupError, ArithmeticError) as error:
        return absent(error)
    return {"v": value}


def text(data: bytes, longest: int = 512) -> str:
    """One line of sysfs as printable text, at most `longest` characters. Raises ValueError when it is empty."""
    found = "".join(c if c.isprintable() else "?" for c in data.decode("utf-8", "replace").strip()[:longest])
    if not found:
        raise ValueError("empty")
    return found


def line(files: Files, path: str) -> Reading:
    return attempt(lambda: text(files.read(path)))
