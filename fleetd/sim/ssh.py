"""sshd of every simulated host behind one listener an address or one for all: who is meant tells the local address.

A host answers while a system runs on it, shows that system's host key, lets in only its authorized key, and executes
only the three commands of `probe/remote.py`. A reboot cuts every connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import asyncssh

from fleetd.probe import remote
from fleetd.sim.host import Running, SimHost
from fleetd.sim.system import Depth, System, Workshop

MAX_STDIN = 16 * 1024 * 1024
LOGIN_SECONDS = 20.0
Lookup = Callable[[str], SimHost | None]


class _Seat:
    """A host with its system and its open connections."""

    def __init__(self, host: SimHost, workshop: Workshop | None) -> None:
        self.host = host
        self.system = System(host, workshop)
        self.connections: set[asyncssh.SSHServerConnection] = set()
        host.on_stop.append(self.stop)

    def stop(self) -> None:
        self.system.stop()
        connections, self.connections = self.connections, set()
        for connection in connections:
            connection.abort()


class _Login(asyncssh.SSHServer):
    """Who may log in is asked at the moment of the login."""

    def __init__(self, seat: _Seat, running: Running) -> None:
        self._seat, self._running = seat, running
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._seat.connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._seat.connections.discard(self._connection)

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        if self._seat.host.running is not self._running:
            return False
        shown = key.export_public_key("openssh").decode("ascii").split()[:2]
        allowed = any(line.split()[:2] == shown for line in self._running.authorized_key.splitlines())
        if not allowed:
            self._seat.host.log("ssh.denied", username=username)
        return allowed


class SshServer:
    """The SSH wire of a site.

    Args:
        lookup: the host that has a local address, or None.
        depth: `full` runs pushed programs as processes, `fast` in process.
        folder: where `full` may write; needed for it.
        processes: how many processes may run at once.
    """

    def __init__(
        self, lookup: Lookup, *, depth: Depth = "fast", folder: Path | None = None, processes: int = 3
    ) -> None:
        if depth == "full" and folder is None:
            raise ValueError("depth `full` needs a folder")
        self._lookup = lookup
        self._workshop = Workshop(folder, processes) if depth == "full" and folder is not None else None
        self._seats: dict[str, _Seat] = {}
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, addresses: Sequence[str], port: int = 0) -> int:
        """Listen on each address at one port; 0 takes a free one. Returns the port. Raises OSError."""
        for address in addresses:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            sock.listen(1024)
            sock.setblocking(False)
            port = sock.getsockname()[1]
            self._spawn(self._accept(sock))
        return port

    async def close(self) -> None:
        """Stop listening, cut every connection, wait for what ran."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for seat in self._seats.values():
            seat.stop()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except OSError:  # out of descriptors: those who wait are served when some are free
                await asyncio.sleep(0.1)
                continue
            sock.setblocking(False)
            host = self._lookup(sock.getsockname()[0])
            if host is None or host.running is None:
                # no sshd there: the same as a refused connection
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
                continue
            self._spawn(self._serve(sock, host, host.running))

    def _seat(self, host: SimHost) -> _Seat:
        seat = self._seats.get(host.name)
        if seat is None:
            seat = self._seats[host.name] = _Seat(host, self._workshop)
        return seat

    async def _serve(self, sock: socket.socket, host: SimHost, running: Running) -> None:
        seat = self._seat(host)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncssh.run_server(
                sock,
                server_factory=lambda: _Login(seat, running),
                server_host_keys=[asyncssh.import_private_key(running.host_key_private)],
                process_factory=lambda process: _handle(seat, process),
                encoding=None,
                encryption_algs=["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"],
                compression_algs=None,
                password_auth=False,
                kbdint_auth=False,
                gss_host=None,
                allow_scp=False,
                agent_forwarding=False,
                x11_forwarding=False,
                line_editor=False,
                login_timeout=LOGIN_SECONDS,
                connect_timeout=LOGIN_SECONDS,
            )
        except (asyncssh.Error, OSError, TimeoutError):
            sock.close()  # a client that could not log in, or went away


async def _handle(seat: _Seat, process: asyncssh.SSHServerProcess[bytes]) -> None:
    """One command of one login."""
    with contextlib.suppress(asyncssh.Error, OSError):
        command = remote.parse(process.command or "")
        if command is None:
            seat.host.log("ssh.command.refused", command=(process.command or "")[:200])
            process.stderr.write(b"this shell executes fleetd's commands only\n")
            process.exit(126)
            return
        if command.verb == "test":
            process.exit(0 if seat.system.has(command.digest) else 1)
            return
        stdin = await _read_all(process.stdin)
        if command.verb == "push":
            process.exit(0 if seat.system.push(command.digest, stdin) else 1)
            return

        def tell(chunk: bytes) -> None:
            # whoever asked may be gone: the work goes on
            with contextlib.suppress(asyncssh.Error, OSError):
                process.stderr.write(chunk)

        answer = await seat.system.run(command.name, command.digest, command.arguments, stdin, tell)
        process.stdout.write(answer.stdout)
        process.exit(answer.code)


async def _read_all(stream: asyncssh.SSHReader[bytes]) -> bytes:
    """All of standard input, cut at MAX_STDIN."""
    data = bytearray()
    while len(data) < MAX_STDIN and (chunk := await stream.read(65536)):
        data += chunk
    return bytes(data)
