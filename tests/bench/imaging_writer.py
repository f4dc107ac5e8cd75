"""The image writer against `zstd -d | dd oflag=direct` on the same file, onto the same kind of target.

Ours fetches over HTTP, takes the SHA-256 of what comes and of what it unpacks to, leaves out zeros, and reads everything
back; the pipe of two programs does none of that. The ratio is of the writing alone; the read-back stands beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fleetd.probe.host.blockdev import BlockDevice
from fleetd.probe.host.machine import Blocks
from fleetd.probe.host.order import Image, Seed
from fleetd.probe.host.seed import render
from fleetd.probe.host.standin import SimulatedMachine
from fleetd.probe.host.write import Tally, write_image
from fleetd.sim.image import gpt_disk

MIB = 1 << 20
# Serves one file, by sendfile, in a process of its own: its processor time is not the writer's.
_SERVER = """
import os, socket, sys
listening = socket.socket(fileno=int(sys.argv[1]))
size = os.path.getsize(sys.argv[2])
while True:
    connection, _ = listening.accept()
    with connection, open(sys.argv[2], "rb") as file:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % size)
        connection.sendfile(file)
"""


class Cost(NamedTuple):
    """Seconds. `cpu`: this process and its children, the server not among them."""

    wall: float
    cpu: float


class FileDrive:
    """A file that stands for a drive, opened with O_DIRECT as a real one is."""

    name, serial, model, firmware = "file", "FILE", "file", ""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size

    def methods(self) -> list[str]:
        return ["overwrite"]

    def erase(self, method: str, intent: str) -> Iterator[float]:
        yield 1.0

    def open(self) -> Blocks:
        return BlockDevice(str(self.path))


def _now() -> tuple[float, float]:
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic(), own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def _since(began: tuple[float, float]) -> Cost:
    wall, cpu = _now()
    return Cost(wall - began[0], cpu - began[1])


def make_disk(path: Path, length: int) -> None:
    """A disk like an installed system's: a third is holes, the rest packs to about half."""
    with path.open("wb") as file:
        file.write(gpt_disk("bench", length // 512))
        rng = random.Random(1)
        for n, at in enumerate(range(MIB, length - 2 * MIB, MIB)):
            if n % 12 < 8:
                file.seek(at)
                text = b"".join(b"/usr/lib/python3/dist-packages/%08x\n" % rng.getrandbits(32) for _ in range(9000))
                file.write((rng.randbytes(MIB // 3) + text * 3)[:MIB])


@contextlib.contextmanager
def served(path: Path) -> Iterator[str]:
    """URL of the file at a server of its own process."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        os.set_inheritable(listening.fileno(), True)
        server = subprocess.Popen(
            [sys.executable, "-I", "-c", _SERVER, str(listening.fileno()), str(path)], pass_fds=[listening.fileno()]
        )
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/image"
        finally:
            server.kill()
            server.wait()


def two_programs(packed: Path, target: Path) -> Cost:
    """`zstd -d | dd`, as an administrator would."""
    began = _now()
    command = 'zstd -dcq --long=27 "$1" | dd of="$2" bs=4M iflag=fullblock oflag=direct conv=notrunc,fsync status=none'
    subprocess.run(["sh", "-c", command, "sh", str(packed), str(target)], check=True)
    return _since(began)


def writer(image: Image, target: Path) -> tuple[Cost, Cost]:
    """(until the last block was written, from there to the end: read-back, seed, first block)."""
    drive, machine = FileDrive(target), SimulatedMachine({}, lambda *_, **__: None)
    seed = Seed("h", "i", (), "key", "key", "http://127.0.0.1", "token")
    began = _now()
    written: tuple[float, float] | None = None
    for progress in write_image(image, render(seed), drive, machine, Tally()):
        if progress.get("what") == "read-back" and written is None:
            written = _now()
        if progress.get("what") == "write" and progress["done"] == image.raw_bytes:
            written = _now()
    assert written is not None
    first = Cost(written[0] - began[0], written[1] - began[1])
    return first, _since(written)


def measure(folder: Path, length: int = 512 * MIB, rounds: int = 3) -> dict[str, Any]:
    """Both, in turns, on a file of so many bytes in `folder`; the best round of each."""
    disk, packed, target = folder / "disk.raw", folder / "disk.raw.zst", folder / "target"
    make_disk(disk, length)
    subprocess.run(["zstd", "-q", "-3", "-f", str(disk), "-o", str(packed)], check=True)
    with target.open("wb") as file:
        file.truncate(length + 64 * MIB)
    image = Image(
        name="bench",
        format="raw.zst",
        bytes=packed.stat().st_size,
        sha256=hashlib.sha256(packed.read_bytes()).hexdigest(),
        raw_bytes=length,
        raw_sha256=hashlib.sha256(disk.read_bytes()).hexdigest(),
        urls=(),
    )
    theirs, ours, back = [], [], []
    with served(packed) as url:
        for _ in range(rounds):
            theirs.append(two_programs(packed, target))
            first, rest = writer(image._replace(urls=(url,)), target)
            ours.append(first)
            back.append(rest)
    best = {"pipe": min(theirs), "writer": min(ours), "read-back": min(back)}
    return {
        "raw_mib": length / MIB,
        "packed_mib": image.bytes / MIB,
        **{
            name: {"wall": round(cost.wall, 3), "cpu": round(min(c.cpu for c in costs), 3)}
            for (name, cost), costs in zip(best.items(), (theirs, ours, back), strict=True)
        },
        "throughput_ratio": best["pipe"].wall / best["writer"].wall,
        "cpu_ratio": min(c.cpu for c in ours) / min(c.cpu for c in theirs),
    }


def show(found: dict[str, Any]) -> None:
    print(f"image writer, {found['raw_mib']:.0f} MiB raw, {found['packed_mib']:.0f} MiB as raw.zst, O_DIRECT to a file")
    for name in ("pipe", "writer", "read-back"):
        cost = found[name]
        speed = found["raw_mib"] / max(cost["wall"], 1e-9)
        print(f"  {name:<10} {cost['wall']:7.2f} s wall  {cost['cpu']:7.2f} s CPU  {speed:7.0f} MiB/s")
    print(
        f"  writing at {found['throughput_ratio']:.2f} of `zstd -d | dd`'s speed, for {found['cpu_ratio']:.2f} of its CPU,"
    )
    print("  with HTTP and both checksums; the read-back of every byte comes on top")


def main() -> None:
    """FLEETD_BENCH_MIB: size of the disk; FLEETD_BENCH_DIR: a folder on the storage to measure."""
    if shutil.which("zstd") is None:
        print("  NOT MEASURED: zstd missing; requirements/apt-install requirements/bench.apt")
        return
    length = int(os.environ.get("FLEETD_BENCH_MIB", "512")) * MIB
    with tempfile.TemporaryDirectory(dir=os.environ.get("FLEETD_BENCH_DIR")) as folder:
        show(measure(Path(folder), length))


if __name__ == "__main__":
    main()
