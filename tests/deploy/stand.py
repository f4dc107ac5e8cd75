"""A folder that stands for a machine in the deploy environment, with small programs in place of the real ones."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
OVERLAY = ROOT / "deploy/overlay"
AGENT = OVERLAY / "usr/lib/fleetd/agent.py"
TOKEN = "a-token-of-one-boot_0123456789"
MAC = "52:54:00:aa:00:01"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIArhl7wVd7+YHTHd62ZvxoQsYSg+JyaQbe2mBbsTAFUm fleetd"
_SSHD = """\
import pathlib, signal, socket, sys
root = pathlib.Path(sys.argv[0]).parents[2]
signal.signal(signal.SIGTERM, lambda *_: ((root / "sshd-ended").touch(), sys.exit(0)))
(root / "sshd-started").write_text(" ".join(sys.argv[1:]))  # before it can be reached: who reaches it reads this
wire = socket.create_server(("127.0.0.1", {port}))
while True:
    wire.accept()[0].close()
"""
_KEYGEN = """\
import sys
path = sys.argv[sys.argv.index("-f") + 1]
open({root!r} + path, "w").write("private")
open({root!r} + path + ".pub", "w").write("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJswQS3Om/kiP0wGcOxwhIuKZk4t+FdYNBCs4zv0gtoS")
"""


def load_agent() -> ModuleType:
    """The agent as a module of its own; each test gets a fresh one."""
    spec = importlib.util.spec_from_file_location("fleetd_deploy_agent", AGENT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Machine:
    """Below `root`. `add_nic` and `cmdline` shape it; `console` is what it said."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.ssh_port = int(probe.getsockname()[1])
        self.file("/dev/console", "")
        self.file("/proc/uptime", "12.34 5.0")
        self.file("/proc/meminfo", "MemTotal:       480036 kB\n")
        self.file("/proc/cpuinfo", "model name\t: Some processor\n")
        self.file("/proc/sys/kernel/random/boot_id", "6183d3d1-076e-429a-a49d-43866a2e3aea\n")
        self.file("/proc/sys/kernel/osrelease", "6.1.0\n")
        self.file("/sys/class/dmi/id/product_serial", "SN 1/$(id)\n")
        self.file("/sys/class/dmi/id/product_uuid", "11111111-2222-3333-4444-555555555555\n")
        (root / "run/fleetd").mkdir(parents=True)
        self.program("/usr/bin/ip", "import sys")
        self.program("/usr/bin/busybox", "import sys")
        self.program("/usr/bin/ssh-keygen", _KEYGEN.format(root=str(root)))
        self.program("/usr/sbin/sshd", _SSHD.format(port=self.ssh_port))
        self.add_nic("eth0", MAC)

    def file(self, path: str, text: str) -> None:
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def program(self, path: str, source: str) -> None:
        # A stand-in is called by the path it has on the real machine, so it must learn its own from here.
        where = str(self.root / path.lstrip("/"))
        self.file(path, f"#!{sys.executable} -IS\nimport sys\nsys.argv[0] = {where!r}\n{source}\n")
        (self.root / path.lstrip("/")).chmod(0o755)

    def add_nic(self, name: str, mac: str, *, carrier: bool = True) -> None:
        self.file(f"/sys/class/net/{name}/address", f"{mac}\n")
        self.file(f"/sys/class/net/{name}/carrier", f"{int(carrier)}\n")
        (self.root / f"sys/class/net/{name}/device").mkdir()

    def cmdline(self, text: str) -> None:
        self.file("/proc/cmdline", text + "\n")

    def has(self, path: str) -> bool:
        return (self.root / path.lstrip("/")).exists()

    def text(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text()

    @property
    def console(self) -> str:
        return self.text("/dev/console")


class Server:
    """What `answers[path]` holds is given in turn, the last one for ever: (status, body, headers), or raw bytes."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, str, dict[str, str]] | bytes]] = {}
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.url = ""

    def paths(self) -> list[str]:
        return [path for _, path, _, _ in self.asked]

    def good(self) -> None:
        self.answers["/deploy/authorized_keys"] = [(200, KEY + "\n", {})]
        self.answers["/deploy/hello"] = [(204, "", {})]


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    server = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            server.asked.append((self.command, self.path, dict(self.headers), body))
            queue = server.answers.get(self.path.partition("?")[0], [(404, "", {})])
            answer = queue.pop(0) if len(queue) > 1 else queue[0]
            if isinstance(answer, bytes):
                self.wfile.write(answer)
                return
            status, text, headers = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = _answer  # noqa: N815 -- names of the library

        def log_message(self, *_: object) -> None:
            """Silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        server.url = f"http://127.0.0.1:{listener.server_port}"
        thread = threading.Thread(target=listener.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join(10)
