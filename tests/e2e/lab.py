"""A network of its own for real machines: a namespace with one bridge, and every process in it dies with the test.

Needs root. Logs of all processes stand in one folder, which is kept (and named) when a test failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

BRIDGE, GATEWAY, PREFIX = "br0", "10.77.0.1", 24
_NAMESPACE = "fleetd-e2e-"
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_CLONE_NEWNET = 0x40000000
# Program and the Debian package that brings it.
TOOLS = {
    "ip": "iproute2",
    "setpriv": "util-linux",
    "taskset": "util-linux",
    "qemu-system-x86_64": "qemu-system-x86",
    "dnsmasq": "dnsmasq-base",
    "ipmi_sim": "openipmi",
    "swtpm": "swtpm",
    "ssh": "openssh-client",
    "openssl": "openssl",
    "zstd": "zstd",
    "ipmitool": "ipmitool",
    "curl": "curl",
}


def tool(name: str) -> str:
    """Path of a program. In CI a missing one is a failure, elsewhere too: `make e2e` was asked for by hand."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.fail(f"no {name}: apt-get install {TOOLS.get(name, name)}")
    return found


def require() -> None:
    """Fail at once, and say everything that is missing. No skips: whoever runs this wants it proven."""
    if os.geteuid() != 0:
        pytest.fail("make e2e needs root: it makes a network namespace, taps and machines")
    missing = sorted({package for name, package in TOOLS.items() if shutil.which(name, path=_PATH) is None})
    files = {"/usr/lib/ipxe/undionly.kpxe": "ipxe", "/usr/share/OVMF/OVMF_CODE_4M.fd": "ovmf"}
    missing += sorted(package for path, package in files.items() if not Path(path).exists())
    if missing:
        pytest.fail(f"make e2e needs packages: apt-get install {' '.join(missing)}")
    if not Path("/dev/net/tun").exists():
        pytest.fail("make e2e needs /dev/net/tun (modprobe tun)")


class Process:
    """A program in the namespace. `log` is everything it said, from byte `began` on; before that its forebears did."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path, began: int) -> None:
        self.name, self.log, self.began, self._process = name, log, began, process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code, None while it runs, negative for a signal."""
        return self._process.returncode

    async def ended(self) -> int:
        return await self._process.wait()

    async def stop(self, *, first: signal.Signals = signal.SIGTERM, seconds: float = 15.0) -> int:
        """Ask with `first`, then kill; returns the exit code."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(first)
        try:
            return await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        return await self._process.wait()


class Lab:
    """The namespace and what runs in it. Made by `lab()`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"{_NAMESPACE}{os.getpid()}"
        self.processes: list[Process] = []

    def start(self) -> None:
        sweep()
        _ip("netns", "add", self.name)
        self._inside("link", "set", "lo", "up")
        self._inside("link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
        self._inside("addr", "add", f"{GATEWAY}/{PREFIX}", "dev", BRIDGE)
        self._inside("link", "set", BRIDGE, "up")

    def address(self, address: str) -> None:
        """One more address of the bridge: where a BMC answers."""
        self._inside("addr", "add", f"{address}/{PREFIX}", "dev", BRIDGE)

    def tap(self, name: str) -> str:
        """A port of the bridge for one machine."""
        self._inside("tuntap", "add", name, "mode", "tap")
        self._inside("link", "set", name, "master", BRIDGE, "up")
        return name

    def _inside(self, *arguments: str) -> None:
        _ip("-n", self.name, *arguments)

    def command(self, *command: str) -> list[str]:
        """The command as it runs inside; it is killed when this process dies, however that happens."""
        return [
            *(tool("ip"), "netns", "exec", self.name, tool("setpriv"), "--pdeathsig", "KILL", "--"),
            *command,
        ]

    async def spawn(
        self, name: str, *command: str, environment: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> Process:
        """Start a program inside; its output is appended to `<name>.log`."""
        log = self.folder / f"{name}.log"
        began = log.stat().st_size if log.exists() else 0
        with log.open("ab") as sink:
            process = await asyncio.create_subprocess_exec(
                *self.command(*command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                cwd=folder or self.folder,
                env={**os.environ, **(environment or {})},
            )
        started = Process(name, process, log, began)
        self.processes.append(started)
        return started

    async def run(
        self, *command: str, timeout: float, stdin: bytes = b"", environment: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Exit code and all output of a short command inside. Raises TimeoutError, and kills it then."""
        process = await asyncio.create_subprocess_exec(
            *self.command(*command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(stdin), timeout)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, output.decode(errors="replace")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread stands in the namespace: sockets made here belong to it."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/self/ns/net").open("rb") as home, Path(f"/run/netns/{self.name}").open("rb") as there:
            if libc.setns(there.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield
            finally:
                if libc.setns(home.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")

    async def stop(self) -> None:
        """Last started, first stopped; then the namespace goes, with whatever is left in it."""
        for process in reversed(self.processes):
            if process.code is None:
                await process.stop(seconds=10)
        _clear(self.name)


@contextlib.asynccontextmanager
async def lab(folder: Path) -> AsyncIterator[Lab]:
    """A started lab; `folder` takes its logs."""
    require()
    made = Lab(folder)
    made.start()
    try:
        yield made
    finally:
        await made.stop()


def sweep() -> None:
    """Namespaces of test runs that were killed."""
    for path in Path("/run/netns").glob(f"{_NAMESPACE}*"):
        owner = path.name.removeprefix(_NAMESPACE)
        if not Path("/proc", owner).exists() or owner == str(os.getpid()):
            _clear(path.name)


def _clear(name: str) -> None:
    found = subprocess.run([tool("ip"), "netns", "pids", name], capture_output=True, text=True, check=False)
    for pid in found.stdout.split():
        if pid != str(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    subprocess.run([tool("ip"), "netns", "del", name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run([tool("ip"), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
