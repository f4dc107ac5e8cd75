"""An NVMe controller as its admin queue shows it: capabilities, a sanitize that takes its time, and faults."""

from __future__ import annotations

import struct
from collections.abc import Callable

from fleetd.probe.host import nvme


class FakeNvme:
    """`nvme.Admin`. `act` is what an erase really does to the media; `log` every command but the reading ones."""

    def __init__(self, *, sanicap=0, oacs=0, fna=0, namespaces=(1,), allocated=None, formats=((0, 9),), used=0):
        self.sanicap, self.oacs, self.fna = sanicap, oacs, fna
        self.namespaces, self.allocated = list(namespaces), list(allocated or namespaces)
        self.formats, self.used = formats, used
        self.serial = "S1"
        self.log: list[nvme.Command] = []
        self.act: Callable[[nvme.Command], None] = lambda command: None
        self.refuses: dict[int, int] = {}  # opcode: status
        self.states: list[tuple[int, int, int]] = [(0xFFFF, 0, 0)]  # (progress, state, cdw10), the last one stays
        self.ends = 1  # state of a sanitize that is over
        self.closed = False

    def close(self):
        self.closed = True

    def __call__(self, command):
        if command.opcode == nvme.IDENTIFY:
            data = self._identify(command)
        elif command.opcode == nvme.GET_LOG_PAGE:
            assert (command.cdw10 & 0xFF, command.nsid, (command.cdw10 >> 16) + 1) == (0x81, nvme.ALL, 128)
            progress, state, cdw10 = self.states[0] if len(self.states) == 1 else self.states.pop(0)
            data = struct.pack("<HHI", progress, state, cdw10).ljust(512, b"\0")
        else:
            self.log.append(command)
            if status := self.refuses.get(command.opcode):
                raise nvme.status_error("Format NVM", status)
            if command.opcode == nvme.SANITIZE and command.cdw10 & 0b111 != 0b001:
                cdw10 = command.cdw10
                self.states = [(0x4000, 2, cdw10), (0x8000, 2, cdw10), (0xFFFF, self.ends, cdw10)]
            self.act(command)
            data = b""
        assert len(data) == command.length
        return data

    def _identify(self, command):
        data = bytearray(4096)
        if command.cdw10 == 0x01:
            data[4:24], data[24:64], data[64:72] = (
                self.serial.encode().ljust(20),
                b"MODEL".ljust(40),
                b"FW1".ljust(8),
            )
            struct.pack_into("<H", data, 256, self.oacs)
            struct.pack_into("<I", data, 328, self.sanicap)
            struct.pack_into("<I", data, 516, len(self.namespaces))
            data[524] = self.fna
        elif command.cdw10 in (0x02, 0x10):
            ids = self.namespaces if command.cdw10 == 0x02 else self.allocated
            struct.pack_into(f"<{len(ids)}I", data, 0, *ids)
        else:
            assert command.nsid in self.namespaces
            struct.pack_into("<Q", data, 0, 1000)
            data[25], data[26] = len(self.formats) - 1, self.used & 0xF | (self.used >> 4) << 5
            for i, (metadata, bits) in enumerate(self.formats):
                struct.pack_into("<HBB", data, 128 + 4 * i, metadata, bits, 0)
        return bytes(data)


def at_once(ask, what, **_):
    """`patience.polled` without the waiting."""
    while (fraction := ask()) is not None:
        yield fraction
