"""Image serving: `fleetd boot` against nginx (sendfile) per CPU second, and 200 hosts at once under admission.

Both serve the same file to the same client in the same run, one after the other, twice; CPU is the server process's own, as
the kernel counts it. Loopback charges part of the receiver's work to the sender, to both alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from fleetd.api.server import bind_unix
from fleetd.drivers.boot.capabilities import BootHost, BootScript, Hello, ImageGrant, Sighting
from fleetd.drivers.boot.desk_wire import DeskServer
from fleetd.kit.errors import Denied
from tests.world import free_port

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024
AIM = 80  # % of nginx per CPU second
LARGE, FETCHES, AT_ONCE = 512 * MIB, 16, 4  # 8 GiB a round
HOSTS, RACKS, SERVER, RACK = 200, 10, 16, 4
SMALL, PIECE, PAUSE = 24 * MIB, MIB, 0.1  # a host that writes 10 MiB/s
FAIR = 1.5 * HOSTS / SERVER * SMALL / PIECE * PAUSE  # seconds until the last one's turn, with room for what others cost
PATIENCE = 4


class Desk:
    """Grants tickets that read `host.rack`."""

    async def script(self, mac: str, *, uuid: str, serial: str, source: str) -> BootScript:
        return BootScript()

    async def authorized_keys(self, token: str, *, source: str) -> str:
        raise Denied("no keys here")

    async def hello(self, token: str, hello: Hello, *, source: str) -> None:
        raise Denied("no boots here")

    async def grant(self, digest: str, ticket: str, *, source: str) -> ImageGrant:
        host, _, rack = ticket.partition("-in-")
        return ImageGrant(host=host, rack=rack)

    async def hosts(self) -> list[BootHost]:
        return []

    async def seen(self, sightings: list[Sighting]) -> None:
        return None


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of these processes."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def image(folder: Path, size: int) -> str:
    """A file of noise, named by its sha256."""
    block, digest = random.Random(size).randbytes(MIB), hashlib.sha256()
    with (folder / "new").open("wb") as file:
        for _ in range(size // MIB):
            file.write(block)
            digest.update(block)
    (folder / "new").chmod(0o444)
    (folder / "new").rename(folder / digest.hexdigest())
    return digest.hexdigest()


async def listening(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return


async def round_of(url: str, pids: list[int]) -> tuple[float, float]:
    """CPU seconds a GiB, and wall GiB a second."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with gate:
            process = await asyncio.create_subprocess_exec("curl", "-sf", "-o", "/dev/null", url)
            assert await process.wait() == 0

    used, began = cpu_seconds(pids), time.monotonic()
    await asyncio.gather(*(one() for _ in range(FETCHES)))
    wall = time.monotonic() - began
    gib = LARGE * FETCHES / 1024**3
    return (cpu_seconds(pids) - used) / gib, gib / wall


def nginx(folder: Path, port: int) -> subprocess.Popen[bytes]:
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log; user root;\n"
        f"events {{ }}\nhttp {{ access_log off; sendfile on; tcp_nopush on; server {{ listen 127.0.0.1:{port};"
        f" root {folder}; location / {{ }} }} }}\n"
    )
    return subprocess.Popen(["nginx", "-c", str(config), "-e", str(folder / "nginx.log")], stderr=subprocess.DEVNULL)


async def against_nginx(folder: Path, digest: str, port: int, pid: int) -> None:
    print(f"  {FETCHES} fetches of {LARGE // MIB} MiB, {AT_ONCE} at once; server CPU only")
    found: dict[str, list[tuple[float, float]]] = {"fleetd boot": [], "nginx": []}
    peer_port = free_port()
    peer = nginx(folder, peer_port)
    try:
        await listening(peer_port)
        workers = [int(p) for p in Path(f"/proc/{peer.pid}/task/{peer.pid}/children").read_text().split()]
        for _ in range(2):
            found["nginx"].append(await round_of(f"http://127.0.0.1:{peer_port}/images/{digest}", workers))
            url = f"http://127.0.0.1:{port}/images/{digest}?ticket=bench-host-in-rack0"
            found["fleetd boot"].append(await round_of(url, [pid]))
    finally:
        peer.terminate()
        peer.wait()
    best = {name: min(rounds) for name, rounds in found.items()}
    for name, (cpu, wall) in best.items():
        print(f"  {name:<22} {cpu:.3f} CPU s/GiB  {1 / cpu:6.1f} GiB per CPU s  ({wall:.1f} GiB/s by the clock)")
    share = 100 * best["nginx"][0] / best["fleetd boot"][0]
    print(
        f"  against nginx          {share:.0f} % per CPU second; the aim of {AIM} % is {'met' if share >= AIM else 'MISSED'}"
    )


async def crowd(port: int, digest: str) -> None:
    """All hosts at once; each reads as a disk writes, and comes again when told."""
    began = time.monotonic()
    waits: dict[str, float] = {}
    told = 0

    async def one(session: aiohttp.ClientSession, n: int) -> None:
        with contextlib.suppress(TimeoutError):  # then its wait is missing, and it counts as starved
            async with asyncio.timeout(PATIENCE * FAIR):
                await fetch(session, n)

    async def fetch(session: aiohttp.ClientSession, n: int) -> None:
        nonlocal told
        url = f"http://127.0.0.1:{port}/images/{digest}?ticket=crowd-host-{n:03}-in-rack{n % RACKS}"
        while True:
            async with session.get(url) as answer:
                if answer.status == 503:
                    told += 1
                    await asyncio.sleep(float(answer.headers["Retry-After"]))
                    continue
                first = time.monotonic() - began
                got = 0
                while piece := await answer.content.read(PIECE):
                    got += len(piece)
                    await asyncio.sleep(PAUSE * len(piece) / PIECE)
                assert got == SMALL
                waits[url] = first
                return

    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with (
        aiohttp.ClientSession(
            connector=connector, read_bufsize=256 * 1024, timeout=aiohttp.ClientTimeout(total=900)
        ) as session,
        asyncio.TaskGroup() as group,
    ):
        for n in range(HOSTS):
            group.create_task(one(session, n))
    order = sorted(waits.values())
    print(f"  {HOSTS} hosts in {RACKS} racks, {SMALL // MIB} MiB each, at most {SERVER} at once and {RACK} of a rack")
    print(
        f"  wait for the first byte: first {order[0]:.1f} s, median {statistics.median(order):.1f} s, last {order[-1]:.1f} s;"
        f" all done after {time.monotonic() - began:.1f} s"
    )
    starved = HOSTS - sum(wait <= FAIR for wait in order)
    print(
        f"  told to come again     {told} times; first byte later than a fair {FAIR:.0f} s, or never: {starved or 'none'}"
    )


async def measure(folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "files").mkdir()
    large, small = image(folder / "images", LARGE), image(folder / "images", SMALL)
    port = free_port()
    (folder / "boot.yaml").write_text(
        f"listen: 127.0.0.1:{port}\nurl: http://127.0.0.1:{port}\ndesk: desk.sock\nfiles: files\nimages: images\n"
        f"state: state\ndrain: 1\nlog_level: error\nadmission: {{server: {SERVER}, rack: {RACK}}}\n"
    )
    desk: Any = Desk()
    server = DeskServer(desk, bind_unix(folder / "desk.sock"))
    await server.start()
    command = (sys.executable, "-m", "fleetd", "boot", "--config", str(folder / "boot.yaml"))
    service = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    try:
        await listening(port)
        await against_nginx(folder, large, port, service.pid)
        await crowd(port, small)
    finally:
        service.terminate()
        await service.wait()
        await server.stop()


def main() -> None:
    if missing := [
        name for name in ("nginx", "curl") if shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin") is None
    ]:
        print(f"  NOT MEASURED: {' and '.join(missing)} missing; requirements/apt-install requirements/bench.apt")
        return
    with tempfile.TemporaryDirectory(prefix="fleetd-bench-") as folder:
        asyncio.run(measure(Path(folder)))
