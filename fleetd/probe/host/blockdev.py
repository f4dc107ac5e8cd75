"""Sectors of one opened disk, past every cache: what is read back must have come from the drive.

Opened with O_DIRECT (no page cache) and O_EXCL (the kernel refuses while a mount, md, dm or swap holds the disk or a
partition of it), and the serial is read again from the device that was really opened: a renumbered nvme0 is not hit.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct

from . import devices

# include/uapi/linux/fs.h
BLKRRPART, BLKFLSBUF, BLKSSZGET, BLKROGET = 0x125F, 0x1261, 0x1268, 0x125E
BLKZEROOUT, BLKGETSIZE64 = 0x127F, 0x80081272
CHUNK = 4 << 20
ZERO_AT_ONCE = 1 << 30  # one BLKZEROOUT cannot be interrupted, so a large range is cut


class BlockDevice:
    """`machine.Blocks` over a block device, or over a regular file that stands for one (sectors of 512 bytes).

    Offsets and lengths are bytes and multiples of `sector`. Raises OSError with a reason a person can read.
    """

    def __init__(self, path: str, *, serial: str = "", sys: str = "/sys", proc: str = "/proc") -> None:
        self.path = path
        self._fd = _open(path)
        try:
            self._is_block = stat.S_ISBLK(os.fstat(self._fd).st_mode)
            if self._is_block:
                _admit(self._fd, path, serial, sys, proc)
                self.sector = _uint(self._fd, BLKSSZGET)
                self.size = struct.unpack("=Q", fcntl.ioctl(self._fd, BLKGETSIZE64, bytes(8)))[0]
            else:
                self.sector, self.size = 512, os.fstat(self._fd).st_size
            if self.sector not in (512, 1024, 2048, 4096) or self.size % self.sector:
                raise OSError(errno.EINVAL, f"{path}: sectors of {self.sector} bytes cannot be used")
            self._buffer = mmap.mmap(-1, CHUNK)  # page aligned, as O_DIRECT asks
        except BaseException:
            os.close(self._fd)
            raise
        self._zeroout = self._is_block
        self._wrote = False

    def __enter__(self) -> BlockDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OSError(errno.EINVAL, f"{self.path}: {length} bytes at {offset} are beyond its {self.size} bytes")
        if offset % self.sector or length % self.sector:
            raise OSError(errno.EINVAL, f"{self.path}: {length} bytes at {offset} are not whole sectors")

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        self._check(offset, length)
        pieces = []
        with memoryview(self._buffer) as view:
            while length:
                with view[: min(length, CHUNK)] as window:
                    got = os.preadv(self._fd, [window], offset)
                    if got <= 0:
                        raise OSError(errno.EIO, f"{self.path}: the drive ends at {offset} of {self.size}")
                    pieces.append(bytes(window[:got]))
                offset, length = offset + got, length - got
        return b"".join(pieces)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """All of `data`. A view of page-aligned memory goes to the drive as it is, anything else is copied first."""
        self._check(offset, len(data))
        self._wrote = True
        with memoryview(data) as source, memoryview(self._buffer) as view:
            if isinstance(source.obj, mmap.mmap) and self._put_all(source, offset):
                return
            done = 0
            while done < len(source):
                length = min(len(source) - done, CHUNK)
                with view[:length] as window:
                    window[:] = source[done : done + length]
                    done += self._put(window, offset + done)

    def _put_all(self, source: memoryview, offset: int) -> bool:
        """Without a copy; False when the memory is not aligned as O_DIRECT asks."""
        done = 0
        try:
            while done < len(source):
                with source[done:] as window:
                    done += self._put(window, offset + done)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def _put(self, window: memoryview, offset: int) -> int:
        got = os.pwritev(self._fd, [window], offset)
        if got <= 0:
            raise OSError(errno.EIO, f"{self.path}: the drive takes no more at {offset}")
        return got

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros; the drive may do it without writing each block (Write Zeroes, WRITE SAME)."""
        self._check(offset, length)
        self._wrote = True
        while length:
            step = min(length, ZERO_AT_ONCE)
            if not (self._zeroout and self._zero_out(offset, step)):
                self.overwrite(offset, step)
            offset, length = offset + step, length - step

    def _zero_out(self, offset: int, length: int) -> bool:
        try:
            fcntl.ioctl(self._fd, BLKZEROOUT, struct.pack("=QQ", offset, length))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EREMOTEIO):
                raise
            self._zeroout = False
        return self._zeroout

    def overwrite(self, offset: int, length: int) -> None:
        """Zeros as data, block by block, with no help of the drive that could leave the old block where it is."""
        self._check(offset, length)
        self._wrote = True
        self._buffer[:] = bytes(CHUNK)
        with memoryview(self._buffer) as view:
            while length:
                with view[: min(length, CHUNK)] as window:
                    done = self._put(window, offset)
                offset, length = offset + done, length - done

    def flush(self) -> None:
        """Returns when the drive says that its own cache is on the medium, too."""
        os.fsync(self._fd)
        if self._is_block:
            fcntl.ioctl(self._fd, BLKFLSBUF)

    def close(self) -> None:
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        self._buffer.close()
        try:
            if self._is_block and self._wrote:
                _reread(fd)
        finally:
            os.close(fd)


def _open(path: str) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        is_block = stat.S_ISBLK(os.stat(path, follow_symlinks=False).st_mode)
        return os.open(path, flags | os.O_DIRECT | (os.O_EXCL if is_block else 0))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise OSError(errno.EBUSY, f"{path} is in use: mounted, or part of md, dm or swap") from error
        if error.errno == errno.EINVAL and not is_block:
            return os.open(path, flags)  # a file on tmpfs knows no O_DIRECT; a disk always does
        raise


def _admit(fd: int, path: str, serial: str, sys: str, proc: str) -> None:
    """Raises OSError unless this is a whole disk of this host, free, writable, and the one that is meant."""
    at = os.fstat(fd).st_rdev
    block = devices.block_of(os.major(at), os.minor(at), sys)
    if not block or not os.path.exists(f"{sys}/block/{block}"):
        raise OSError(errno.ENXIO, f"{path} is not a whole disk")
    if why := devices.outside(block, sys):
        raise OSError(errno.EPERM, f"{path} is not a drive of this host: {why}")
    if why := devices.in_use(block, sys, proc):
        raise OSError(errno.EBUSY, f"{path} is in use: {why}")
    if _uint(fd, BLKROGET):
        raise OSError(errno.EROFS, f"{path} is read-only; remedy: lift its write protection, or pull the drive")
    now = devices.serial_of(block, sys)
    if not serial or now != serial:
        raise OSError(errno.ENODEV, f"{path} is now the drive {now!r}, not {serial!r}")


def _uint(fd: int, request: int) -> int:
    value: int = struct.unpack("=I", fcntl.ioctl(fd, request, bytes(4)))[0]
    return value


def _reread(fd: int) -> None:
    """Let the kernel see the new partition table. EBUSY and EINVAL: it keeps the old view until the next boot,
    which harms nobody here, as nothing is mounted in the deploy environment and all access is by whole disk."""
    try:
        fcntl.ioctl(fd, BLKRRPART)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EINVAL):
            raise
