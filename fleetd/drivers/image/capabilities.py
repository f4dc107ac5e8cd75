"""What lifecycle may ask of the directory of images. A file there is named by its sha256 and never changes.

Raises: Invalid (the stream or file is not what was announced), Conflict (no room), Unsupported (a program is missing),
NotFound, DeadlineExceeded, Permanent when the directory cannot be written.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Protocol

import msgspec

from fleetd.kit.diskimage import Measured
from fleetd.model.image import Manifest

__all__ = ["ImageStore", "Measured", "Stranger", "Taken"]


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """A file that came in and is not yet kept. `qcow2`: it must be converted first."""

    path: Path
    bytes: int
    qcow2: bool = False


class Stranger(msgspec.Struct, frozen=True, kw_only=True):
    """Something in the directory that no image names; `bytes` is 0 for what is no file. A name that is no UTF-8 is escaped."""

    name: str
    bytes: int


class ImageStore(Protocol):
    """The directory."""

    def require_room(self, need: int) -> None:
        """Raises Conflict unless so many bytes fit."""

    async def take(self, stream: AsyncIterator[bytes], *, most: int) -> Taken:
        """Write the stream to a temporary file, durable; a byte more than `most` is refused. Raises Invalid, Conflict."""

    async def measure(self, taken: Taken, manifest: Manifest) -> Measured:
        """What the file is, never read or unpacked further than the manifest says. Of a qcow2 the raw half is 0."""

    async def convert(self, taken: Taken, manifest: Manifest) -> tuple[Taken, Measured]:
        """A qcow2 file as raw.zst beside it. Raises Invalid for one that leans on other files or claims too much."""

    async def keep(self, taken: Taken, sha256: str) -> None:
        """Give the file its name, read-only and durable; the same content twice is one file."""

    async def drop(self, taken: Taken) -> None:
        """Forget a file that is not kept; one that is gone already is fine."""

    async def verify(self, manifest: Manifest) -> Measured:
        """Measure a kept file anew. Raises NotFound; Invalid when it cannot be unpacked."""

    async def remove(self, sha256: str) -> None:
        """Delete a kept file; one that is gone already is fine."""

    def has(self, sha256: str, size: int) -> bool:
        """Is a file of that name and size (bytes) kept?"""

    async def strangers(self, named: Collection[str]) -> list[Stranger]:
        """What stands in the directory beside the files of these digests, by name. It is told, and never deleted: an
        older ledger may have been restored, or another daemon may use the directory."""
