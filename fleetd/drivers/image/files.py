"""The server's directory of images: what comes in is bounded, durable before it is believed, and read-only ever after.

Layout: `<sha256>` (0444) for what is served, `incoming/` (0700) for what is not yet. What a crash left in `incoming` is
removed at the next start.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Collection
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from fleetd.drivers.image import convert
from fleetd.drivers.image.capabilities import Stranger, Taken
from fleetd.kit import diskimage, qcow2
from fleetd.kit.diskimage import Measured, Stopped
from fleetd.kit.errors import Busy, Conflict, Invalid, NotFound, Permanent
from fleetd.kit.logs import get
from fleetd.kit.tasks import in_thread
from fleetd.model.image import DIGEST, Manifest

T = TypeVar("T")
BLOCK: Final = 4 * 1024**2  # bytes written at once, off the loop
ROOM_EACH: Final = 64 * 1024**2  # bytes after which the room is looked at again
RESERVE: Final = 256 * 1024**2  # bytes that stay free: the ledger may stand on the same file system
_OURS: Final = frozenset({"incoming", "lost+found"})  # no image, and none of our business
_INCOMING: Final = re.compile(r"[0-9a-f]{32}(\.(raw|zst))?")

log = get("images")


class ImageFiles:
    """The directory, made if absent.

    Args:
        reserve: bytes that must stay free.

    Raises:
        Invalid: it cannot be made or written.
    """

    def __init__(self, folder: Path, *, reserve: int = RESERVE) -> None:
        self.folder, self._reserve = folder, reserve
        self._incoming = folder / "incoming"
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True)
                folder.chmod(0o755)  # whatever the umask: the boot service reads here, as another user
            self._incoming.mkdir(exist_ok=True, mode=0o700)
            for left in self._incoming.iterdir():
                if _INCOMING.fullmatch(left.name):
                    left.unlink()
        except OSError as error:
            raise Invalid(
                f"the directory of images {folder} cannot be used",
                why=error.strerror or str(error),
                remedy="set images.dir in fleetd.yaml to a directory that fleetd may write",
            ) from error

    def require_room(self, need: int) -> None:
        qcow2.require_room(self.folder, need, self._reserve)

    async def take(self, stream: AsyncIterator[bytes], *, most: int) -> Taken:
        path = self._incoming / secrets.token_hex(16)
        self.require_room(0)
        size = checked = 0
        head = b""
        block = bytearray()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                async for chunk in stream:
                    size += len(chunk)
                    if size > most:
                        raise Invalid(
                            "the stream is longer than announced", why=f"more than {most} bytes", where="body"
                        )
                    if len(head) < 4:
                        head = (head + chunk[:4])[:4]
                    block += chunk
                    if len(block) >= BLOCK:
                        await in_thread(partial(_write, handle, block))
                        block = bytearray()
                    if size - checked >= ROOM_EACH:
                        self.require_room(0)
                        checked = size
                await in_thread(partial(_finish, handle, block))
            finally:
                os.close(handle)
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _disk(error, self.folder) from error
            raise
        return Taken(path=path, bytes=size, qcow2=head == qcow2.MAGIC)

    async def measure(self, taken: Taken, manifest: Manifest) -> Measured:
        if taken.qcow2:
            return await _stoppable(lambda stop: convert.hash_only(taken.path, most=manifest.bytes, stop=stop))
        return await self._measure(taken.path, manifest)

    @staticmethod
    async def _measure(path: Path, manifest: Manifest) -> Measured:
        return await _stoppable(
            lambda stop: diskimage.measure(
                path, manifest.format.value, most=manifest.bytes, most_raw=manifest.raw_bytes, stop=stop
            )
        )

    async def convert(self, taken: Taken, manifest: Manifest) -> tuple[Taken, Measured]:
        raw, packed = taken.path.with_suffix(".raw"), taken.path.with_suffix(".zst")
        try:
            measured = await _stoppable(
                lambda stop: convert.convert(
                    taken.path, raw, packed, most=manifest.raw_bytes, reserve=self._reserve, stop=stop
                )
            )
        except BaseException as error:
            packed.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _disk(error, self.folder) from error
            raise
        finally:
            raw.unlink(missing_ok=True)
        return Taken(path=packed, bytes=measured.bytes), measured

    async def keep(self, taken: Taken, sha256: str) -> None:
        try:
            await in_thread(lambda: self._keep(taken.path, self._named(sha256)))
        except OSError as error:
            raise _disk(error, self.folder) from error

    def _keep(self, path: Path, target: Path) -> None:
        path.chmod(0o444)
        os.replace(path, target)  # the same digest is the same content: replacing it changes nothing, and mends damage
        diskimage.sync_folder(self.folder)

    async def drop(self, taken: Taken) -> None:
        try:
            taken.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("images.leftover", path=str(taken.path), error=error.strerror)

    async def verify(self, manifest: Manifest) -> Measured:
        path = self._named(manifest.sha256)
        if not path.is_file():
            raise NotFound(
                f"the file of image {manifest.name} is gone",
                why=f"there is no {path}",
                remedy="`fleetctl image add` it again from where it was built",
            )
        return await self._measure(path, manifest)

    async def remove(self, sha256: str) -> None:
        try:
            self._named(sha256).unlink(missing_ok=True)
        except OSError as error:
            raise _disk(error, self.folder) from error

    def has(self, sha256: str, size: int) -> bool:
        try:
            return self._named(sha256).stat().st_size == size
        except OSError:
            return False

    async def strangers(self, named: Collection[str]) -> list[Stranger]:
        try:
            return await in_thread(lambda: self._strangers(named))
        except OSError as error:
            raise _disk(error, self.folder) from error

    def _strangers(self, named: Collection[str]) -> list[Stranger]:
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name not in named and entry.name not in _OURS:
                    size = entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else 0
                    found.append(Stranger(name=os.fsencode(entry.name).decode(errors="backslashreplace"), bytes=size))
        return sorted(found, key=lambda stranger: stranger.name)

    def _named(self, sha256: str) -> Path:
        if not DIGEST.fullmatch(sha256):
            raise Invalid("that is no sha256", where="sha256")
        return self.folder / sha256


async def _stoppable(work: Callable[[threading.Event], T]) -> T:
    """Long work in a thread, that ends soon after its caller is cancelled."""
    stop = threading.Event()
    try:
        return await in_thread(lambda: work(stop), stop=stop.set)
    except Stopped as error:
        raise Busy("the work on the image was stopped") from error


def _write(handle: int, data: bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _finish(handle: int, data: bytearray) -> None:
    _write(handle, data)
    os.fsync(handle)


def _disk(error: OSError, folder: Path) -> Permanent:
    kind = Conflict if error.errno in (28, 122) else Permanent  # ENOSPC, EDQUOT
    return kind(
        f"the directory of images {folder} cannot be written",
        why=error.strerror or str(error),
        remedy="make room there (`df -h`, `fleetctl image list`), or look at the disk under it",
    )
