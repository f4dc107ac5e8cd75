"""Listening: sockets that we bind ourselves (uvicorn would open a unix socket to all), and the peer's name from the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from litestar import Litestar
from uvicorn.protocols.http.h11_impl import H11Protocol

from fleetd.api.auth import PEER
from fleetd.kit.errors import Conflict, Invalid, NotFound, Refused
from fleetd.kit.peer import peer_of

UNIX_MODE = 0o660
HEAD_SECONDS = 20.0
KEEP_ALIVE_SECONDS = 75
MAX_HEAD = 64 * 1024
MAX_CONNECTIONS = 1024
GRACE_SECONDS = 5
_FIRST_FD = 3  # sd_listen_fds(3)


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """Certificate and key files, PEM."""

    certificate: Path
    key: Path


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """A bound socket; with `tls` it speaks HTTPS."""

    sock: Any
    tls: Tls | None = None


class PeerProtocol(H11Protocol):
    """uvicorn's HTTP protocol, which also says who is at the other end of a unix socket and hangs up on the mute."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = peer_of(transport.get_extra_info("socket"))
        # A fresh mapping: app_state is shared by all connections of the server.
        self.app_state = {**self.app_state, PEER: peer}
        self._late = self.loop.call_later(HEAD_SECONDS, self._hang_up)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _hang_up(self) -> None:
        """No whole request head since the connection began: nobody real is there."""
        cycle: object = self.cycle  # uvicorn types it as always there; it is None before the first request
        if cycle is None:
            self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers (the daemon has its own), saying when it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def bind_unix(path: Path, *, mode: int = UNIX_MODE, group: str | None = None) -> socket.socket:
    """A listening unix socket that never was open to others, not even between bind and chmod.

    Raises:
        Conflict: another daemon listens there.
        NotFound: there is no such group, or no such directory.
        Invalid: the path is longer than the kernel takes (107 bytes).
    """
    if len(os.fsencode(path)) > 107:
        raise Invalid("the path of the socket is too long", why=f"{path}: at most 107 bytes")
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(path))
            except (ConnectionRefusedError, FileNotFoundError):
                path.unlink(missing_ok=True)
            else:
                raise Conflict(f"another fleetd listens on {path}", remedy="stop it, or give this one another socket")
    sock = socket.socket(socket.AF_UNIX)
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(str(path))
    except FileNotFoundError as error:
        sock.close()
        raise NotFound(
            f"there is no directory {path.parent}", remedy="systemd makes it: RuntimeDirectory=fleetd"
        ) from error
    except OSError as error:
        sock.close()
        raise Conflict(f"cannot bind {path}", why=str(error), remedy="remove what stands there") from error
    finally:
        os.umask(before)
    if group is not None:
        try:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        except (KeyError, PermissionError) as error:
            sock.close()
            path.unlink(missing_ok=True)
            raise NotFound(f"the socket cannot be given to the group {group}", why=str(error)) from error
    sock.listen(1024)
    return sock


def bind_tcp(host: str, port: int, *, tls: bool = False) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one.

    Raises:
        Refused: an address beyond loopback without TLS: tokens would travel in clear.
        Conflict: the address is taken or not ours.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    loopback = str(address[0]).startswith("127.") or address[0] == "::1"
    if not loopback and not tls:
        raise Refused(
            f"the API does not listen on {host} without TLS",
            why="tokens would travel in clear",
            remedy="set a certificate and key for the API, or listen on 127.0.0.1",
        )
    # Named as TCP on purpose: asyncio switches Nagle off only then, and with it every answer waits 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise Conflict(f"cannot listen on {host}:{port}", why=str(error)) from error
    sock.listen(1024)
    return sock


def inherited(environment: Mapping[str, str]) -> list[socket.socket]:
    """The sockets systemd passed (LISTEN_FDS), if they were meant for this process; unix and TCP alike."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environment.get("LISTEN_FDS", "0")
    if not count.isdigit() or int(count) > 64:
        raise Invalid(f"LISTEN_FDS={count!r} is no count of sockets")
    found = []
    for fd in range(_FIRST_FD, _FIRST_FD + int(count)):
        os.set_inheritable(fd, False)
        found.append(socket.socket(fileno=fd))
    return found


async def serve(
    app: Litestar,
    listeners: Sequence[Listener],
    *,
    stopping: asyncio.Event,
    ready: Callable[[], None] | None = None,
    grace: int = GRACE_SECONDS,
) -> None:
    """Answer on all listeners until `stopping` is set; then finish what runs, at most `grace` seconds.

    Watchers end by themselves (they look at the app's own stop flag each second); what still runs after `grace` is
    cut off. `ready` is called once, when every listener accepts. The listeners are closed on return.
    """
    groups: dict[Tls | None, list[socket.socket]] = {}
    for listener in listeners:
        groups.setdefault(listener.tls, []).append(listener.sock)
    waiting = len(groups)

    def one_ready() -> None:
        nonlocal waiting
        waiting -= 1
        if waiting == 0 and ready is not None:
            ready()

    servers = [(_Server(_config(app, tls, grace), one_ready), socks) for tls, socks in groups.items()]
    desks = app.state.desks
    async with asyncio.TaskGroup() as group:
        for server, socks in servers:
            group.create_task(server.serve(sockets=socks), name="api")
        try:
            await stopping.wait()
        finally:
            desks.stopping.set()
            for server, _ in servers:
                server.should_exit = True


def _config(app: Litestar, tls: Tls | None, grace: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=PeerProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=grace,
        h11_max_incomplete_event_size=MAX_HEAD,
        ssl_certfile=None if tls is None else str(tls.certificate),
        ssl_keyfile=None if tls is None else str(tls.key),
    )
