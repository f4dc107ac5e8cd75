"""The boot desk over a unix socket: `fleetd boot` has the open ports, the daemon has the ledger, and this is all between them.

HTTP/1.1 with JSON: ``POST /desk/<call>``, arguments as an object, the answer as JSON. An error is its code, its texts and
`retry_after`, and comes out as the same class. The kernel says who calls: root, the daemon's own user, members of one group.
"""

from __future__ import annotations

import asyncio
import grp
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
import msgspec
from aiohttp import web

from fleetd.drivers.boot.capabilities import BootDesk, BootHost, BootScript, Hello, ImageGrant, Sighting
from fleetd.kit.errors import (
    DeadlineExceeded,
    Denied,
    FleetError,
    Garbled,
    Invalid,
    Permanent,
    Temporary,
    Unreachable,
    every_error,
)
from fleetd.kit.logs import get
from fleetd.kit.peer import peer_of

CALL_SECONDS = 10.0
CONNECT_SECONDS = 2.0
RETRY_AFTER = 5.0
MAX_CALL = 1024 * 1024
MAX_ANSWER = 64 * 1024 * 1024  # all hosts of a large inventory
MAX_CALLS = 256  # at once

T = TypeVar("T")
log = get("boot")


class _Script(msgspec.Struct, frozen=True, kw_only=True):
    mac: str
    uuid: str
    serial: str
    source: str


class _Keys(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    source: str


class _Hello(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    hello: Hello
    source: str


class _Grant(msgspec.Struct, frozen=True, kw_only=True):
    digest: str
    ticket: str
    source: str


class _Hosts(msgspec.Struct, frozen=True, kw_only=True):
    pass


class _Seen(msgspec.Struct, frozen=True, kw_only=True):
    sightings: list[Sighting]


class _Error(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    what: str = ""
    why: str = ""
    remedy: str = ""
    where: str = ""
    retry_after: float | None = None
    retryable: bool = False


def encode_error(error: FleetError) -> bytes:
    """The error as it travels."""
    return msgspec.json.encode(
        _Error(
            code=error.code,
            what=error.what,
            why=error.why,
            remedy=error.remedy,
            where=error.where,
            retry_after=error.retry_after if isinstance(error, Temporary) else None,
            retryable=error.retryable,
        )
    )


def decode_error(body: bytes) -> FleetError:
    """The same class as was encoded; one that this version does not know becomes Temporary or Permanent."""
    try:
        said = msgspec.json.decode(body, type=_Error)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Garbled("the daemon's error cannot be read", why=str(error)[:200])
    kind = {cls.code: cls for cls in every_error()}.get(said.code)
    if kind is None:
        kind = Temporary if said.retryable else Permanent
    if issubclass(kind, Temporary):
        return kind(said.what, why=said.why, remedy=said.remedy, where=said.where, retry_after=said.retry_after)
    return kind(said.what, why=said.why, remedy=said.remedy, where=said.where)


# --- the daemon's side --------------------------------------------------------------------------------------------------


def admitted(sock: Any, group: str) -> bool:
    """Whether the process at the other end may ask: root, our own user, or a member of `group`."""
    peer = peer_of(sock)
    if peer is None:
        return False
    if peer.uid in (0, os.geteuid()):
        return True
    try:
        return bool(group) and grp.getgrnam(group).gr_gid in peer.gids
    except KeyError:
        return False


class DeskServer:
    """Answers the boot service.

    Args:
        desk: who decides.
        sock: bound and listening, 0660; closed with the server.
        group: whose members may ask besides root and our own user; empty for none.
    """

    def __init__(self, desk: BootDesk, sock: socket.socket, group: str = "") -> None:
        self._desk, self._sock, self._group = desk, sock, group
        self._runner: web.AppRunner | None = None
        self._calls: dict[str, Callable[[bytes], Awaitable[Any]]] = {
            "script": self._script,
            "authorized_keys": self._authorized_keys,
            "hello": self._hello,
            "grant": self._grant,
            "hosts": self._hosts,
            "seen": self._seen,
        }

    async def start(self) -> None:
        """Answer calls."""
        app = web.Application(client_max_size=MAX_CALL)
        app.router.add_post("/desk/{call}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=5.0)
        await self._runner.setup()
        await web.SockSite(self._runner, self._sock).start()

    async def stop(self) -> None:
        """Finish what runs; safe to call twice."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        self._sock.close()

    async def _answer(self, request: web.Request) -> web.Response:
        name = request.match_info["call"]
        peer = request.transport.get_extra_info("socket") if request.transport is not None else None
        try:
            if not admitted(peer, self._group):
                raise Denied(
                    "this user may not ask the boot desk", remedy="run `fleetd boot` in the group boot.desk_group"
                )
            call = self._calls.get(name)
            if call is None:
                raise Invalid(
                    f"the boot desk has no call {name[:40]!r}", remedy="run the same version of both services"
                )
            async with asyncio.timeout(CALL_SECONDS):
                found = await call(await request.read())
            return web.Response(body=msgspec.json.encode(found), content_type="application/json")
        except FleetError as error:
            return _failed(error)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _failed(Invalid(f"the call {name} cannot be read", why=str(error)[:200]))
        except TimeoutError:
            return _failed(DeadlineExceeded(f"the boot desk did not answer {name} in time", retry_after=RETRY_AFTER))
        except web.HTTPException:
            raise
        except Exception:  # a slip of ours: told to the log, and to the caller as a code
            log.exception("boot.desk", call=name)
            return _failed(FleetError("the boot desk failed"))

    async def _script(self, body: bytes) -> BootScript:
        call = msgspec.json.decode(body, type=_Script)
        return await self._desk.script(call.mac, uuid=call.uuid, serial=call.serial, source=call.source)

    async def _authorized_keys(self, body: bytes) -> str:
        call = msgspec.json.decode(body, type=_Keys)
        return await self._desk.authorized_keys(call.token, source=call.source)

    async def _hello(self, body: bytes) -> None:
        call = msgspec.json.decode(body, type=_Hello)
        await self._desk.hello(call.token, call.hello, source=call.source)

    async def _grant(self, body: bytes) -> ImageGrant:
        call = msgspec.json.decode(body, type=_Grant)
        return await self._desk.grant(call.digest, call.ticket, source=call.source)

    async def _hosts(self, body: bytes) -> list[BootHost]:
        msgspec.json.decode(body, type=_Hosts)
        return await self._desk.hosts()

    async def _seen(self, body: bytes) -> None:
        await self._desk.seen(msgspec.json.decode(body, type=_Seen).sightings)


def _failed(error: FleetError) -> web.Response:
    return web.Response(body=encode_error(error), status=error.status, content_type="application/json")


# --- the boot service's side --------------------------------------------------------------------------------------------


class RemoteDesk:
    """A BootDesk whose decisions are made by the daemon behind the socket at `path`. Close it at the end."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._session: aiohttp.ClientSession | None = None
        self._gate = asyncio.Semaphore(MAX_CALLS)
        self.answers = False  # whether the last call got through, for the status line

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def script(self, mac: str, *, uuid: str, serial: str, source: str) -> BootScript:
        return await self._call("script", _Script(mac=mac, uuid=uuid, serial=serial, source=source), BootScript)

    async def authorized_keys(self, token: str, *, source: str) -> str:
        return await self._call("authorized_keys", _Keys(token=token, source=source), str)

    async def hello(self, token: str, hello: Hello, *, source: str) -> None:
        await self._call("hello", _Hello(token=token, hello=hello, source=source), object)

    async def grant(self, digest: str, ticket: str, *, source: str) -> ImageGrant:
        return await self._call("grant", _Grant(digest=digest, ticket=ticket, source=source), ImageGrant)

    async def hosts(self) -> list[BootHost]:
        return await self._call("hosts", _Hosts(), list[BootHost])

    async def seen(self, sightings: list[Sighting]) -> None:
        await self._call("seen", _Seen(sightings=sightings), object)

    async def _call(self, name: str, arguments: msgspec.Struct, kind: type[T]) -> T:
        """Ask once.

        Raises:
            Unreachable: the daemon is not there, or cut the call off.
            DeadlineExceeded: it did not answer in time.
            FleetError: what the desk itself raised.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(self._path, limit=MAX_CALLS),
                timeout=aiohttp.ClientTimeout(total=CALL_SECONDS, sock_connect=CONNECT_SECONDS),
            )
        try:
            async with (
                self._gate,
                self._session.post(f"http://desk/desk/{name}", data=msgspec.json.encode(arguments)) as answer,
            ):
                body = await _bounded(answer)
                status = answer.status
        except TimeoutError as error:
            self.answers = False
            raise DeadlineExceeded("the daemon does not answer", why=name, retry_after=RETRY_AFTER) from error
        except (aiohttp.ClientError, OSError) as error:
            self.answers = False
            raise Unreachable(
                "the daemon is not there",
                why=f"{self._path}: {error}",
                remedy="systemctl status fleetd; `boot.desk` in fleetd.yaml and `desk` in boot.yaml name the same socket",
                retry_after=RETRY_AFTER,
            ) from error
        self.answers = True
        if status != 200:
            raise decode_error(body)
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Garbled(f"the daemon's answer to {name} cannot be read", why=str(error)[:200]) from error


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in answer.content.iter_chunked(64 * 1024):
        body += piece
        if len(body) > MAX_ANSWER:
            raise Garbled("the daemon's answer is too large")
    return bytes(body)
