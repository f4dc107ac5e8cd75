"""Kill -9 at any instant loses no acknowledged write, and leaves no half of one."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fleetd.store import events, hosts
from fleetd.store.database import open_database

WRITER = """
import asyncio, os, sys
import msgspec
from fleetd.store import events, hosts
from fleetd.store.database import open_database
from tests.store.samples import a_host

async def main():
    db = await open_database(sys.argv[1])
    await db.commit([hosts.insert(a_host(n)) for n in range(20)])
    async def work(number):
        host = a_host(number)
        while True:
            event = events.Event(kind="host.state", at=1.0, host=host.id, data={"version": host.version + 1})
            await db.commit([hosts.save(host), events.append(event)])
            host = msgspec.structs.replace(host, version=host.version + 1)
            os.write(1, f"{host.id} {host.version}\\n".encode())  # acknowledged: whole lines, unbuffered
    await asyncio.gather(*map(work, range(20)))

asyncio.run(main())
"""


@pytest.mark.slow
async def test_kill_9_loses_nothing_acknowledged(url: str) -> None:
    root = Path(__file__).parents[2]
    read, write = os.pipe()
    writer = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-c", WRITER, url],
        stdout=write,
        cwd=root,
        env={**os.environ, "PYTHONPATH": "."},
    )
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = [await asyncio.to_thread(pipe.readline) for _ in range(200)]
        end = time.monotonic() + random.random() * 0.3
        while time.monotonic() < end:
            said.append(await asyncio.to_thread(pipe.readline))
        writer.kill()
        said += (await asyncio.to_thread(pipe.read)).splitlines(keepends=True)
    await asyncio.to_thread(writer.wait)
    acknowledged: dict[str, int] = {}
    for line in said:
        if line.endswith(b"\n"):
            key, version = line.decode().split()
            acknowledged[key] = int(version)
    assert len(acknowledged) == 20
    async with await open_database(url) as db:
        for host in await hosts.every(db):
            assert host.version >= acknowledged[host.id]
            # An event a write and a write an event: no half of a unit.
            told = [event.data["version"] for event in await events.after(db, 0, limit=10**6, host=host.id)]
            assert told == list(range(2, host.version + 1))
