"""What the tests of the host-side imaging share: drives in memory, a small image, and an HTTP server that misbehaves."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

from fleetd.probe.host.order import Image
from fleetd.probe.host.simulated import SimulatedBlocks, SimulatedDrive
from fleetd.probe.host.source import HttpSource
from fleetd.probe.host.standin import SimulatedMachine
from fleetd.sim.image import gpt_disk

GB = 10**9
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKeyOfTheTest someone@somewhere"
SEED = {
    "hostname": "lou-a01-01",
    "instance_id": "i-1",
    "authorized_keys": [KEY],
    "host_key_private": "-----BEGIN OPENSSH PRIVATE KEY-----\nSECRET-KEY\n-----END OPENSSH PRIVATE KEY-----\n",
    "host_key_public": "ssh-ed25519 BBBB host",
    "phone_home_url": "http://127.0.0.1:1",
    "phone_home_token": "SECRET-TOKEN",
}


def drive(size: int = 2 * GB, **state: Any) -> SimulatedDrive:
    """A blank drive in memory."""
    known = {"name": "nvme0n1", "serial": "D0", "model": "M", "bytes": size, "content": "blank"}
    return SimulatedDrive(known | state, save=lambda _: None, note=lambda *_, **__: None)


def blocks(size: int = 2 * GB, **state: Any) -> SimulatedBlocks:
    return SimulatedBlocks(drive(size, **state))


class Bench(SimulatedMachine):
    """A machine whose one drive is in memory; `told` has its notes, `source_options` go to the source."""

    def __init__(self, one: SimulatedDrive, **source_options: Any) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        super().__init__({}, lambda what, **data: self.told.append((what, data)))
        self._drives, self._options = [one], source_options

    def source(self, urls: Any, length: int) -> HttpSource:
        return HttpSource(urls, length, **self._options)


def disk_image(length: int = 192 * 1024) -> bytes:
    """A GPT disk of so many bytes: noise, and in a large one a long hole."""
    disk = bytearray(gpt_disk("test", length // 512))
    if length > 8 << 20:
        noise = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range(1 << 15))  # 1 MiB
        for at in range(1 << 20, length - (1 << 20), 3 << 20):
            if not length // 3 < at < length // 2:
                disk[at : at + len(noise)] = noise[: max(0, min(len(noise), length - (1 << 20) - at))]
    return bytes(disk)


def packed(disk: bytes, kind: str) -> bytes:
    """The image as served."""
    if kind == "raw.gz":
        return gzip.compress(disk, 1, mtime=0)
    if kind == "raw.zst":
        return subprocess.run(["zstd", "-q", "-c", "-3"], input=disk, capture_output=True, check=True).stdout
    return disk


def described(served: bytes, disk: bytes, kind: str, *urls: str, **change: Any) -> Image:
    return Image(
        name="ubuntu",
        format=kind,
        bytes=len(served),
        sha256=hashlib.sha256(served).hexdigest(),
        raw_bytes=len(disk),
        raw_sha256=hashlib.sha256(disk).hexdigest(),
        urls=urls,
    )._replace(**change)


def kinds() -> list[str]:
    return ["raw", "raw.gz", *(["raw.zst"] if shutil.which("zstd") else [])]


Answer = Callable[["Request"], None]


class Request(http.server.BaseHTTPRequestHandler):
    """`server.script` says what to do; `server.asked` keeps each request's path and headers."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers.items())))
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.server.script(self)

    def say(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def start(self) -> int:
        """Where the asked range begins."""
        span = self.headers.get("Range", "")
        return int(span.removeprefix("bytes=").partition("-")[0]) if span else 0

    def give(self, data: bytes, *, cut: int | None = None, **headers: str) -> None:
        """`data` as a good server would, or `cut` after so many bytes of this answer."""
        start = self.start()
        said = {"Content-Length": str(len(data) - start), "ETag": '"v1"'}
        if start:
            said["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        self.say(206 if start else 200, said | headers, body if cut is None else body[:cut])


class Server(http.server.ThreadingHTTPServer):
    """One on a free local port; `script` is called with each request."""

    daemon_threads = True

    def __init__(self, script: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.script = script
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/image"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what the tests are about."""


@contextlib.contextmanager
def serving(script: Answer) -> Iterator[Server]:
    server = Server(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def finish(work: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Run a generator to its end: (its value, its progress)."""
    progress = []
    while True:
        try:
            progress.append(next(work))
        except StopIteration as done:
            return done.value, progress
