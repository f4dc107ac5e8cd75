"""Drives that are a table of pages: what the flow meets where nothing is of metal.

A drive's state as JSON (`ROOT/drives/<name>.json`)::

    {"name", "serial", "model", "firmware", "bytes", "sector",
     "content": what a person would say lies on it: "blank", "factory", "tenant:<lease>", "image:<name>", "partial:<name>"
     "base": "blank", or a word: what was never written reads as zeros, or as noise that follows from the word
     "pages": {"<number>": base64 of 4096 bytes}, "zeros": [[first page, page after the last], …],
     "erase": "ok"|"refuses"|"lies", "write_error_at": %, "flip_at": %, "seconds": {"erase": n, "write": n}}

The two faults of writing strike within the next image, at so many percent of its bytes.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from .machine import Blocks

PAGE = 4096
_ZERO = bytes(PAGE)


class Pages:
    """The bytes of one drive. Ranges are whole pages; what was never written follows from `base`."""

    def __init__(self, base: str = "blank") -> None:
        self.base = base
        self._pages: dict[int, bytes] = {}
        self._zeros: list[tuple[int, int]] = []  # page ranges that are zero although the base is not

    def fill(self, base: str) -> None:
        """Forget everything written."""
        self.base, self._pages, self._zeros = base, {}, []

    def read(self, offset: int, length: int) -> bytes:
        first = offset // PAGE
        if length == PAGE:
            return self._page(first)
        count = length // PAGE
        if self.base == "blank" and len(self._pages) < count:
            found = bytearray(length)
            for number, page in self._pages.items():
                if first <= number < first + count:
                    found[(number - first) * PAGE : (number - first + 1) * PAGE] = page
            return bytes(found)
        return b"".join([self._page(number) for number in range(first, first + count)])

    def _page(self, number: int) -> bytes:
        page = self._pages.get(number)
        if page is not None:
            return page
        if self.base == "blank" or any(first <= number < end for first, end in self._zeros):
            return _ZERO
        return hashlib.sha256(f"{self.base}/{number}".encode()).digest() * (PAGE // 32)

    def write(self, offset: int, data: bytes) -> None:
        first = offset // PAGE
        pages = self._pages
        for at in range(0, len(data), PAGE):
            page = data[at : at + PAGE]
            if page == _ZERO and self.base == "blank":
                pages.pop(first + at // PAGE, None)
            else:
                pages[first + at // PAGE] = page

    def zero(self, offset: int, length: int) -> None:
        first, end = offset // PAGE, (offset + length) // PAGE
        if len(self._pages) < end - first:
            self._pages = {n: page for n, page in self._pages.items() if not first <= n < end}
        else:
            for number in range(first, end):
                self._pages.pop(number, None)
        if self.base != "blank":
            self._zeros.append((first, end))

    def dump(self) -> dict[str, Any]:
        pages = {str(n): base64.b64encode(page).decode("ascii") for n, page in self._pages.items()}
        return {"base": self.base, "pages": pages, "zeros": [list(span) for span in self._zeros]}

    def load(self, state: dict[str, Any]) -> None:
        self.base = str(state["base"])
        self._pages = {int(n): base64.b64decode(page) for n, page in state.get("pages", {}).items()}
        self._zeros = [(int(first), int(end)) for first, end in state.get("zeros", [])]


class SimulatedDrive:
    """See `machine.Drive`. `save` is told whenever the state is as a program would leave it; `note` of each act.

    `alive` is asked before each act: a host that lost its power does nothing more.
    """

    def __init__(
        self,
        state: dict[str, Any],
        *,
        save: Callable[[SimulatedDrive], None],
        note: Callable[..., None],
        pages: Pages | None = None,
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        self.name, self.serial, self.model = str(state["name"]), str(state["serial"]), str(state["model"])
        self.firmware = str(state.get("firmware", "1.0"))
        self.size = int(state["bytes"]) // 512 * 512
        self.content = str(state["content"])
        self.state, self.save, self.alive = state, save, alive
        self.note = note
        self.opened = False
        self.pages = pages or Pages(self.content)
        if pages is None and "base" in state:
            self.pages.load(state)
        self.image_bytes = 0  # of the image that is being written; 0: none is

    def dump(self) -> dict[str, Any]:
        """The state as JSON."""
        return {**self.state, "content": self.content, **self.pages.dump()}

    def methods(self) -> list[str]:
        return ["simulated-format", "overwrite"]

    def erase(self, method: str, intent: str) -> Iterator[float]:
        firmware = self.state.get("erase", "ok")
        self.living()
        self.note("wipe.drive", intent=intent, drive=self.serial, firmware=firmware, method=method)
        if firmware == "refuses":
            said = (
                "Format NVM: Invalid Format (status 0x10a)" if method != "overwrite" else "the drive is write protected"
            )
            raise OSError(errno.EIO, said)
        self._take_time("erase")
        if firmware != "lies":
            self.pages.fill("blank")
            self.content = "blank"
            self.save(self)
        yield 1.0

    def open(self) -> Blocks:
        self.living()
        if self.opened:
            raise OSError(errno.EBUSY, "the drive is in use")
        self.opened = True
        return SimulatedBlocks(self)

    def living(self) -> None:
        """Raises OSError when the host has lost its power."""
        if not self.alive():
            raise OSError(errno.ENODEV, "the host has lost its power")

    def begin_image(self, name: str, length: int) -> None:
        """An image of so many bytes is about to be written."""
        self._take_time("write")
        self.content, self.image_bytes = f"partial:{name}", length

    def end_image(self, content: str) -> None:
        self.content, self.image_bytes = content, 0
        self.save(self)

    def _take_time(self, verb: str) -> None:
        if seconds := float(self.state.get("seconds", {}).get(verb, 0)):
            time.sleep(min(seconds, 3600.0))

    def hurt(self, fault: str, offset: int, data: bytes) -> int | None:
        """Where in these bytes the fault `write_error_at` or `flip_at` strikes; None when it does not.

        It strikes the first bytes of the image, other than zeros, that reach its place.
        """
        percent = self.state.get(fault)
        if percent is None or not self.image_bytes:
            return None
        place = min(self.image_bytes - 1, int(self.image_bytes * float(percent) / 100))
        if offset >= self.image_bytes or offset + len(data) <= place or not any(data):
            return None
        return max(0, place - offset)


class SimulatedBlocks:
    """See `machine.Blocks`."""

    def __init__(self, drive: SimulatedDrive) -> None:
        self._drive, self.size = drive, drive.size
        self.sector = int(drive.state.get("sector", 512))
        self._open = True

    def __enter__(self) -> SimulatedBlocks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, offset: int, length: int) -> None:
        self._drive.living()
        if not self._open:
            raise OSError(errno.EBADF, "the drive was closed")
        if offset < 0 or length < 0 or offset + length > self.size or offset % self.sector or length % self.sector:
            raise OSError(errno.EINVAL, f"{length} bytes at {offset} are not whole sectors of this drive")

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        start, end = offset // PAGE * PAGE, -(-(offset + length) // PAGE) * PAGE
        found = self._drive.pages.read(start, end - start)
        return found if len(found) == length else found[offset - start : offset - start + length]

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        length = len(data)
        self._check(offset, length)
        whole = bytes(data)
        if self._drive.hurt("write_error_at", offset, whole) is not None:
            self._drive.note("drive.misbehaves", drive=self._drive.serial, how="write_error_at")
            raise OSError(errno.EIO, "write error: unrecovered media error")
        at = self._drive.hurt("flip_at", offset, whole)
        if at is not None:
            self._drive.note("drive.misbehaves", drive=self._drive.serial, how="flip_at")
            whole = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        if length >= 2 * PAGE and whole == bytes(length):
            self.zero(offset, length)
        else:
            self._put(offset, whole)

    def _put(self, offset: int, data: bytes) -> None:
        """Whole pages, with what lay around the data in the first and the last."""
        pages = self._drive.pages
        before, after = offset % PAGE, -(offset + len(data)) % PAGE
        if before:
            data = pages.read(offset - before, PAGE)[:before] + data
        if after:
            data += pages.read(offset - before + len(data) + after - PAGE, PAGE)[PAGE - after :]
        pages.write(offset - before, data)

    def zero(self, offset: int, length: int) -> None:
        self._check(offset, length)
        start, end = -(-offset // PAGE) * PAGE, (offset + length) // PAGE * PAGE
        if start >= end:
            self._put(offset, bytes(length))
            return
        self._drive.pages.zero(start, end - start)
        if start > offset:
            self._put(offset, bytes(start - offset))
        if offset + length > end:
            self._put(end, bytes(offset + length - end))

    def flush(self) -> None:
        self._check(0, 0)

    def close(self) -> None:
        if self._open:
            self._open = self._drive.opened = False
            if self._drive.alive():
                self._drive.save(self._drive)
