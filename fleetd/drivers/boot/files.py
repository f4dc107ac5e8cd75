"""The files that every host may have: fixed names, fixed places. A path in a request is never a path on the disk.

The ISO for virtual media is the same for all and holds no secret, but it must name its boot service: as built it holds a
placeholder of a fixed length, and `prepare_iso` writes the URL over it in a copy of its own.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from fleetd.kit.errors import Conflict, Invalid

URL_BYTES: Final = 200  # after `fleetd.url=` in the ISO's boot menus
PLACEHOLDER: Final = b"fleetd.url=" + b"@FLEETD-URL@".ljust(URL_BYTES, b"@")
ISO = "deploy.iso"


class Served(msgspec.Struct, frozen=True):
    """A file of the boot service: its name in the directory `files`, and the stage that a request for it means."""

    name: str
    stage: str


SERVED: Final = {
    "/deploy/vmlinuz": Served("vmlinuz", "kernel"),
    "/deploy/initrd": Served("initrd", "initrd"),
    "/deploy/deploy.iso": Served(ISO, "iso"),
    "/boot/ipxe.efi": Served("ipxe.efi", "http"),
    "/boot/snponly.efi": Served("snponly.efi", "http"),
}


class Files:
    """Where the files lie.

    Args:
        folder: the operator's directory; None: nothing is served.
        iso: the prepared copy, None when there is no ISO.
    """

    def __init__(self, folder: Path | None, iso: Path | None = None) -> None:
        self.folder, self.iso = folder, iso

    def path(self, served: Served) -> Path | None:
        """None: this service does not have it."""
        if served.name == ISO:
            return self.iso
        return None if self.folder is None else self.folder / served.name

    @staticmethod
    def served(request: web.Request) -> Served:
        """By the route that matched, not by what was sent."""
        resource = request.match_info.route.resource
        return SERVED[resource.canonical if resource is not None else ""]


def prepare_iso(source: Path, folder: Path, url: str) -> Path | None:
    """The ISO with `url` written in, under `folder`; made again only when source or URL changed. None: there is none.

    Blocking: call it in a thread.

    Raises:
        Invalid: the URL does not fit, or the ISO has no place for it.
        Conflict: the copy cannot be written.
    """
    if len(url) > URL_BYTES:
        raise Invalid(f"url is longer than the {URL_BYTES} bytes that the ISO has for it", where="url")
    try:
        return _prepared(source, folder, url, source.stat()) if source.exists() else None
    except OSError as error:
        raise Conflict(
            f"the copy of {source} cannot be made in {folder}",
            why=error.strerror or str(error),
            remedy="make room there, and let the service read the ISO",
        ) from error


def _prepared(source: Path, folder: Path, url: str, stat: os.stat_result) -> Path:
    made, note = folder / ISO, folder / f"{ISO}.json"
    mark = json.dumps({"url": url, "size": stat.st_size, "mtime": stat.st_mtime_ns, "inode": stat.st_ino}).encode()
    # As bytes: a note that a crash left may be no text.
    if made.is_file() and note.is_file() and note.read_bytes() == mark:
        return made
    fresh = folder / f"{ISO}.new"
    shutil.copyfile(source, fresh)
    with fresh.open("r+b") as file:
        places = _places(file.fileno(), stat.st_size)
        if not places:
            fresh.unlink()
            raise Invalid(f"{source} holds no place for the URL", remedy="build it anew: make deploy-image")
        for place in places:
            os.pwrite(file.fileno(), b"fleetd.url=" + url.encode("ascii").ljust(URL_BYTES), place)
        os.fsync(file.fileno())
    note.unlink(missing_ok=True)
    fresh.replace(made)
    note.write_bytes(mark)
    return made


def _places(handle: int, size: int) -> list[int]:
    """Offsets of every placeholder."""
    if not size:
        return []
    places = []
    with mmap.mmap(handle, size, access=mmap.ACCESS_READ) as view:
        at = view.find(PLACEHOLDER)
        while at >= 0:
            places.append(at)
            at = view.find(PLACEHOLDER, at + len(PLACEHOLDER))
    return places
