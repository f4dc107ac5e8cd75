"""This host: what `/sys`, `/dev` and its firmware say, behind the protocols of `machine.py`."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import ata, devices, efi, efivars, nvme, partition, scsi, seed, snapshot, tpm
from .blockdev import BlockDevice
from .machine import INTENTS, MARKER, Blocks, Drive, Journal, first_line
from .order import Refusal
from .source import HttpSource, Source

MARK = 4096  # bytes
MARKS = 64  # a drive's block devices get so many each
STEP = 256 << 20  # bytes between two signs of life of an overwrite


class RealMachine:
    """This host."""

    lanes = 16

    def __init__(self) -> None:
        self._journal = Journal(INTENTS)
        self.began, self.ended, self.entry = self._journal.began, self._journal.ended, self._journal.entry

    def serial(self) -> str:
        return first_line("/sys/class/dmi/id/product_serial")

    def marker(self) -> str:
        return first_line(MARKER)

    def drives(self) -> Sequence[Drive]:
        """Every disk of the host. Raises Refusal when one cannot be told from another: leaving it out would leave data."""
        found = devices.find()
        seen: dict[str, str] = {}
        for disk in found:
            if not disk.serial:
                raise Refusal("drive-no-serial", f"{disk.name} ({disk.model}) has no serial; remedy: pull the drive")
            if disk.serial in seen:
                both = f"{seen[disk.serial]} and {disk.name}"
                raise Refusal("drive-same-serial", f"{both} have the serial {disk.serial!r}; remedy: pull one")
            seen[disk.serial] = disk.name
        return [RealDrive(disk) for disk in found]

    def note(self, what: str, **data: Any) -> None:
        """Nobody listens on a real host."""

    def source(self, urls: Sequence[str], length: int) -> Source:
        return HttpSource(urls, length)

    def seed_volume(self, files: dict[str, bytes], length: int, sector: int) -> bytes:
        return seed.fat_volume(files, length, sector)

    def inspect(self) -> dict[str, Any]:
        return snapshot.take()

    def clear_tpm(self) -> dict[str, Any]:
        return tpm.clear_host()

    def boot_order(self, drive: Drive | None) -> dict[str, Any]:
        variables = efivars.Variables()
        disk: efi.HardDrive | None = None
        present: set[uuid.UUID] = set()
        for one in self.drives() if variables.present else ():
            with one.open() as blocks:
                present |= {part.guid for part in _partitions(blocks)}
                if drive is not None and one.serial == drive.serial:
                    system = partition.system_partition(blocks)
                    sector = blocks.sector
                    if system is not None:
                        place = (system.start // sector, system.length // sector)
                        disk = efi.HardDrive(system.number, *place, system.guid)
        return efivars.boot_order(variables, disk, present)


def _partitions(blocks: Blocks) -> list[partition.Partition]:
    try:
        return partition.read(blocks).partitions(blocks.sector)
    except partition.BadTable:
        return []


class RealDrive:
    """A drive of metal: one or more block devices (an NVMe controller has one a namespace) that are erased together."""

    def __init__(self, disk: devices.Found, *, dev: str = "/dev", sys: str = "/sys") -> None:
        self._disk, self._dev, self._sys = disk, dev, sys
        self.name = ",".join(disk.blocks) or disk.name
        self.serial, self.model, self.firmware, self.size = disk.serial, disk.model, disk.firmware, disk.size

    def open(self) -> Blocks:
        """The first namespace's. Raises OSError, also when anything on this host uses it."""
        if not self._disk.blocks:
            raise OSError(errno.ENXIO, f"{self.name} has no namespace; remedy: create one, or pull the drive")
        return self._open(self._disk.blocks[0])

    def _open(self, block: str) -> BlockDevice:
        return BlockDevice(f"{self._dev}/{block}", serial=self.serial, sys=self._sys)

    def methods(self) -> list[str]:
        """Raises OSError when the drive does not even answer what it is."""
        found: list[str] = []
        if self._disk.kind == "nvme":
            with self._controller() as (_, controller):
                found = nvme.methods(controller)
        elif self._disk.kind == "ata":
            with self._generic() as send:
                found = ata.methods(ata.identify(send))
        elif self._disk.kind == "scsi":
            with self._generic() as send:
                found = scsi.methods(send)
        return [*found, "overwrite"]

    def erase(self, method: str, intent: str) -> Iterator[float]:
        """See `machine.Drive`. Random marks are written first and none of them may be left after.

        What a crypto erase leaves reads as noise, and some block erases leave ones: a drive whose marks are gone is
        then zeroed by its own means, so that the caller's rule "reads as zeros" holds for every method. A drive whose
        marks are still there is never zeroed: that would only hide a lie.
        """
        for block in self._disk.blocks:
            self._open(block).close()  # free and still this drive: a controller formats what is mounted just as well
        if method == "overwrite":
            self._all_seen()
            self._all_reached()
            yield from self._each(lambda blocks, at, length: blocks.overwrite(at, length))
            self._must_be_zero()
            return
        marks = self._mark()
        for fraction in self._by_drive(method):
            yield fraction * 0.9
        if not self._gone(marks):
            if len(marks) != len(self._disk.blocks):
                raise OSError(errno.EIO, "the drive took no marks before, so what is on it now may be what was")
            for fraction in self._each(lambda blocks, at, length: blocks.zero(at, length)):
                yield 0.9 + fraction * 0.1
        self._must_be_zero()
        yield 1.0

    def _by_drive(self, method: str) -> Iterator[float]:
        if self._disk.kind == "nvme":
            with self._controller() as (admin, _):
                if not method.startswith("nvme-sanitize"):
                    self._all_seen()
                yield from nvme.erase(admin, method)
        elif self._disk.kind in ("ata", "scsi"):
            with self._generic() as send:
                yield from (ata if self._disk.kind == "ata" else scsi).erase(send, method)
        else:
            raise OSError(errno.EOPNOTSUPP, f"{self.name}: the drive does not know {method}")

    def _all_seen(self) -> None:
        """Raises OSError when the drive holds namespaces that no block device shows: they would keep their data."""
        if self._disk.kind == "nvme":
            with self._controller() as (admin, controller):
                if unseen := nvme.hidden(admin, controller):
                    which = ", ".join(map(str, unseen[:8]))
                    raise OSError(errno.EBUSY, f"namespaces {which} are not attached; remedy: delete them, then again")
                if len(nvme.active(admin)) != len(self._disk.blocks):
                    raise OSError(errno.ENXIO, "not every namespace has a block device; remedy: reset the host")

    def _all_reached(self) -> None:
        """Raises OSError when the drive has sectors that no write reaches: they would keep their data."""
        if self._disk.kind == "ata":
            with self._generic() as send:
                if beyond := ata.hidden(send):
                    where = f"{beyond} sectors lie behind its highest address (HPA), where no overwrite reaches"
                    raise OSError(errno.EPERM, f"{where}; remedy: lift that and wipe again, or pull the drive")

    @contextlib.contextmanager
    def _controller(self) -> Iterator[tuple[nvme.Device, nvme.Controller]]:
        """The controller, after its own word that it is still this drive."""
        device = nvme.Device(f"{self._dev}/{self._disk.name}")
        try:
            controller = nvme.identify(device)
            if controller.serial != self.serial:
                raise OSError(errno.ENODEV, f"{self._disk.name} is now the drive {controller.serial!r}")
            yield device, controller
        finally:
            device.close()

    @contextlib.contextmanager
    def _generic(self) -> Iterator[scsi.Generic]:
        self.open().close()  # free, writable, and still this drive
        device = scsi.Generic(f"{self._dev}/{self._disk.name}")
        try:
            if devices.serial_of(device.block(self._sys), self._sys) != self.serial:
                raise OSError(errno.ENODEV, f"{self._disk.name} is now another drive")
            yield device
        finally:
            device.close()

    def _each(self, act: Callable[[BlockDevice, int, int], None]) -> Iterator[float]:
        """`act` over every byte of every block device, in steps."""
        for n, block in enumerate(self._disk.blocks):
            with self._open(block) as blocks:
                for at in range(0, blocks.size, STEP):
                    act(blocks, at, min(STEP, blocks.size - at))
                    yield (n + min(1.0, (at + STEP) / blocks.size)) / len(self._disk.blocks)
                blocks.flush()

    def _mark(self) -> dict[str, list[bytes]]:
        """Random blocks all over the drive. A drive that takes no writes any more gets none, and may still erase."""
        marks: dict[str, list[bytes]] = {}
        for block in self._disk.blocks:
            with contextlib.suppress(OSError), self._open(block) as blocks:
                written = [os.urandom(MARK) for _ in places(blocks.size)]
                for at, mark in zip(places(blocks.size), written, strict=True):
                    blocks.write(at, mark)
                blocks.flush()
                marks[block] = written
        return marks

    def _gone(self, marks: dict[str, list[bytes]]) -> bool:
        """Whether all reads as zeros already. Raises OSError when a mark is still there."""
        zeros = True
        for block in self._disk.blocks:
            with self._open(block) as blocks:
                now = [blocks.read(at, MARK) for at in places(blocks.size)]
            left = len(set(now) & set(marks.get(block, ())))
            if left:
                raise OSError(errno.EIO, f"the drive said erased, and {left} of {MARKS} marks are still on {block}")
            zeros = zeros and not any(map(any, now))
        return zeros

    def _must_be_zero(self) -> None:
        """The caller reads back the first block device; all of them are looked at here.

        A tenant may have left a format that Linux shows as 0 bytes; Format NVM mends it, and the drive is then larger
        than the one whose samples the caller chose: that is no proof, so it must be wiped once more.
        """
        if not self._gone({}):
            raise OSError(errno.EIO, "the drive said erased, and does not read as zeros")
        with self.open() as blocks:
            if blocks.size != self.size:
                sizes = f"{self.size} bytes and has {blocks.size} now"
                raise OSError(errno.EAGAIN, f"the drive had {sizes}; remedy: wipe once more")


def places(size: int) -> list[int]:
    """Offsets of the marks: first and last block, and evenly between them; fewer on a drive of few blocks."""
    blocks = max(1, size // MARK)
    return sorted({i * (blocks - 1) // (MARKS - 1) * MARK for i in range(MARKS)})
