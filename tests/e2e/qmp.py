"""QEMU's monitor, as far as a power button needs it: three commands, and why a machine stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

from tests.e2e.lab import Process

_REBOOTS = ("guest-reset", "host-qmp-system-reset")
PATIENCE = 60.0  # seconds for QEMU to open its monitor


class Monitor:
    """The monitor of one QEMU process. Made by `connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def command(self, name: str) -> None:
        """Fire a command; its answer passes among the events."""
        self._writer.write(json.dumps({"execute": name}).encode() + b"\n")
        with contextlib.suppress(OSError):
            await self._writer.drain()

    async def rebooted(self) -> bool:
        """Returns when QEMU has gone: True when the machine wanted to start again, False when it shut down or was killed."""
        again = False
        with contextlib.suppress(OSError):
            while line := await self._reader.readline():
                said = json.loads(line)
                if said.get("event") == "SHUTDOWN":
                    again = said["data"].get("reason") in _REBOOTS
        return again

    def close(self) -> None:
        self._writer.close()


async def connect(socket: Path, qemu: Process) -> Monitor:
    """Raises AssertionError with QEMU's own words when it ended instead."""
    async with asyncio.timeout(PATIENCE):
        while True:
            assert qemu.code is None, f"QEMU ended: {qemu.log.read_text()[-2000:]}"
            try:
                reader, writer = await asyncio.open_unix_connection(socket)
                break
            except OSError:
                await asyncio.sleep(0.02)
        await reader.readline()
    monitor = Monitor(reader, writer)
    await monitor.command("qmp_capabilities")
    return monitor
