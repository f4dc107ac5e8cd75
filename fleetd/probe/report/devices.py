"""Facts that the kernel gives through a device, not a file: its log, and what an NVMe drive says of its health.

Reads only. /dev/kmsg is read without blocking, and never more than a bounded amount.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

NVME_IOCTL_ADMIN_CMD = 0xC0484E41  # _IOWR('N', 0x41, struct nvme_admin_cmd), 72 bytes
_COMMAND = struct.Struct("<BBHIIIQQIIIIIIIIII")
_TIMEOUT_MS = 5000


def read_device(path: str, limit: int) -> bytes:
    """All records that stand in the ring buffer now, newest kept when they exceed `limit` bytes. Raises OSError."""
    records: list[bytes] = []
    size = 0
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for _ in range(500_000):
            try:
                record = os.read(fd, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # overwritten while we read: the next read goes on behind the gap
            if not record:
                break
            # Continuation lines (" SUBSYSTEM=…") belong to the record and hold no message.
            first = record.split(b"\n", 1)[0]
            if b"NVRM" in first:
                records.append(first)
                size += len(first) + 1
                while size > limit:
                    size -= len(records.pop(len(records) // 2)) + 1
    finally:
        os.close(fd)
    return b"\n".join(records) + b"\n"


def get_health_page(path: str) -> bytes:
    """Ask the controller at `path` for its SMART / Health page. Reads only. Raises OSError; needs CAP_SYS_ADMIN."""
    page = ctypes.create_string_buffer(512)
    last_dword = 512 // 4 - 1
    command = bytearray(
        _COMMAND.pack(
            0x02, 0, 0, 0xFFFFFFFF, 0, 0, 0, ctypes.addressof(page), 0, 512,
            last_dword << 16 | 0x02, 0, 0, 0, 0, 0, _TIMEOUT_MS, 0,
        )
    )  # fmt: skip
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = fcntl.ioctl(fd, NVME_IOCTL_ADMIN_CMD, command)
    finally:
        os.close(fd)
    if status:
        raise OSError(5, f"NVMe status {status:#x}", path)
    return page.raw
