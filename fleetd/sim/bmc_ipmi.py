"""The IPMI wire of simulated hosts: one socket, as many BMCs as there are addresses, real RMCP+ with real keys.

`IpmiResponder` is the protocol without a socket (virtual time uses it as it is), `IpmiServer` puts it on UDP. A BMC
here does what metal does: its session slots are few, sessions idle out, a copy of a RAKP message draws new random
numbers, replayed packets are dropped, and a repeated request is answered again without being done again.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from fleetd.kit.errors import Garbled, Unsupported
from fleetd.sim.bmc_ipmi_commands import Controller, answer
from fleetd.sim.host import SimHost
from fleetd.wire import ipmi, rmcp
from fleetd.wire.rakp import Exchange, Keys, Suite, Window, password_bytes, same, suite_of

Lookup = Callable[[str], SimHost | None]  # local address -> the host whose BMC has it
Send = Callable[[bytes, str, tuple[Any, ...]], None]  # datagram, from which local address, to whom

SLOTS: Final = 8  # sessions a BMC; real ones have 4 to 16
IDLE: Final = 60.0  # seconds until a silent session is dropped (IPMI 6.12.15)
HALF_OPEN: Final = 16  # logins under way a BMC; the oldest gives way
_REPEAT_WITHIN: Final = 5.0  # seconds in which the same request under the same rqSeq is a resend


class _Login:
    """A half-open session, between Open Session and RAKP 3."""

    __slots__ = ("asked", "bmc", "exchange", "key", "limit", "suite", "user")

    def __init__(self, asked: rmcp.OpenRequest, suite: Suite, bmc: bytes) -> None:
        self.asked, self.suite, self.bmc = asked, suite, bmc
        self.exchange: Exchange | None = None
        self.key, self.user, self.limit = b"", "", 0


class _Session:
    """One console, logged in."""

    __slots__ = ("console", "heard", "keys", "last", "limit", "privilege", "sequence", "user", "window")

    def __init__(self, login: _Login, keys: Keys, now: float) -> None:
        self.console, self.keys, self.user = login.asked.console, keys, login.user
        self.limit, self.privilege = login.limit, ipmi.USER
        self.window, self.sequence, self.heard = Window(), 0, now
        self.last: tuple[bytes, bytes, float] = (b"", b"", 0.0)  # request, answer, when


class _Station:
    """The BMC of one host."""

    __slots__ = ("controller", "logins", "sessions")

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.logins: dict[bytes, _Login] = {}
        self.sessions: dict[bytes, _Session] = {}

    def new_id(self) -> bytes:
        while True:
            session_id = os.urandom(4)
            if session_id != bytes(4) and session_id not in self.sessions and session_id not in self.logins:
                return session_id


class IpmiResponder:
    """Answers datagrams. Use it in one loop.

    Args:
        lookup: which host's BMC has a local address; None is silence, as at an address where nothing listens.
        slots: sessions per BMC. reset_seconds: how long a BMC is deaf after a cold reset.
        suites: cipher suite ids offered; (3,) makes an old BMC.
    """

    def __init__(
        self,
        lookup: Lookup,
        send: Send,
        *,
        slots: int = SLOTS,
        reset_seconds: float = 1.0,
        suites: tuple[int, ...] = (3, 17),
    ) -> None:
        self._lookup, self._send = lookup, send
        self._slots, self._reset_seconds, self._suites = slots, reset_seconds, suites
        self._loop = asyncio.get_running_loop()
        self._stations: dict[SimHost, _Station] = {}
        self._timers: set[asyncio.TimerHandle] = set()

    def sessions(self, host: SimHost) -> int:
        """How many sessions its BMC holds now."""
        station = self._stations.get(host)
        return len(station.sessions) if station else 0

    def close(self) -> None:
        """Answer nothing more."""
        for timer in self._timers:
            timer.cancel()
        for station in self._stations.values():
            station.controller.close()
        self._stations.clear()

    def datagram(self, data: bytes, local: str, peer: tuple[Any, ...]) -> None:
        """One datagram that reached `local`. Garbage is dropped, as BMCs do."""
        host = self._lookup(local)
        if host is None:
            return
        station = self._stations.get(host)
        if station is None:
            station = self._stations[host] = _Station(Controller(host, self._suites))
        if self._loop.time() < station.controller.deaf_until or host.fault("deaf-bmc") is not None:
            return
        try:
            reply = self._reply(station, rmcp.read(data))
        except Garbled:
            return
        if reply is None:
            return
        slow = host.fault("slow-bmc")
        if slow is None:
            self._send(reply, local, peer)
        else:
            self._later(float(slow.params.get("seconds", 1.0)), reply, local, peer)

    def _later(self, seconds: float, reply: bytes, local: str, peer: tuple[Any, ...]) -> None:
        def fire() -> None:
            self._timers.discard(timer)
            self._send(reply, local, peer)

        timer = self._loop.call_later(seconds, fire)
        self._timers.add(timer)

    def _reply(self, station: _Station, got: rmcp.Datagram) -> bytes | None:
        if got.kind == rmcp.SEALED:
            return self._sealed(station, got)
        if got.kind in (rmcp.PLAIN, rmcp.PLAIN_V2):
            asked = rmcp.message(got.payload)
            code, data = answer(station.controller, asked, None)
            reply = rmcp.response(asked, code, data)
            return rmcp.plain(reply) if got.kind == rmcp.PLAIN else rmcp.setup(rmcp.IPMI_MESSAGE, reply)
        if got.kind == rmcp.PING:
            return rmcp.pong(got.payload[0])
        if got.payload_type == rmcp.OPEN_REQUEST:
            return rmcp.setup(rmcp.OPEN_RESPONSE, self._open(station, rmcp.read_open_request(got.payload)))
        if got.payload_type == rmcp.RAKP1:
            first = self._rakp1(station, rmcp.read_rakp1(got.payload))
            return first and rmcp.setup(rmcp.RAKP2, first)
        if got.payload_type == rmcp.RAKP3:
            third = self._rakp3(station, rmcp.read_rakp3(got.payload))
            return third and rmcp.setup(rmcp.RAKP4, third)
        return None

    # --- login (IPMI 13.17 to 13.24) --------------------------------------------------------------------------------

    def _open(self, station: _Station, asked: rmcp.OpenRequest) -> bytes:
        suite = suite_of(asked.authentication, asked.integrity, asked.confidentiality)
        if suite is None or suite.id not in self._suites:
            return rmcp.open_response(asked, ipmi.STATUS_BAD_AUTHENTICATION)
        now = self._loop.time()
        for session_id, session in list(station.sessions.items()):
            if now - session.heard > IDLE:
                del station.sessions[session_id]
        if len(station.sessions) >= self._slots:
            return rmcp.open_response(asked, ipmi.STATUS_NO_RESOURCES)
        while len(station.logins) >= HALF_OPEN:
            del station.logins[next(iter(station.logins))]
        login = _Login(asked, suite, station.new_id())
        station.logins[login.bmc] = login
        return rmcp.open_response(asked, ipmi.STATUS_OK, login.bmc)

    def _rakp1(self, station: _Station, first: rmcp.Rakp1) -> bytes | None:
        login = station.logins.get(first.bmc)
        if login is None:
            return rmcp.rakp2(first.tag, ipmi.STATUS_BAD_SESSION, bytes(4))
        console = login.asked.console
        controller = station.controller
        name = first.name.decode("latin-1")
        level = first.role & 0x0F
        if not ipmi.USER <= level <= ipmi.ADMINISTRATOR:
            return rmcp.rakp2(first.tag, ipmi.STATUS_BAD_ROLE, console)
        try:
            key = password_bytes(controller.host.accounts[name]) if controller.host.may_log_in(name) else None
        except (KeyError, Unsupported):  # no such account, or a password that IPMI cannot carry
            key = None
        if key is None:
            return rmcp.rakp2(first.tag, ipmi.STATUS_BAD_NAME, console)
        limit = controller.limit(name)
        if level > limit:
            return rmcp.rakp2(first.tag, ipmi.STATUS_NO_PRIVILEGE, console)
        guid = ipmi.guid_bytes(controller.host.uuid)
        exchange = Exchange(login.suite, console, login.bmc, first.random, os.urandom(16), guid, first.role, first.name)
        login.exchange, login.key, login.user, login.limit = exchange, key, name, min(level, limit)
        return rmcp.rakp2(first.tag, 0, console, exchange.bmc_random, guid, exchange.rakp2_code(key))

    def _rakp3(self, station: _Station, third: rmcp.Rakp3) -> bytes | None:
        login = station.logins.get(third.bmc)
        if login is None or login.exchange is None:
            return rmcp.rakp4(third.tag, ipmi.STATUS_BAD_SESSION, bytes(4))
        del station.logins[third.bmc]
        console = login.asked.console
        if third.status:
            return None  # the console gave up and only tells why
        if not same(login.exchange.rakp3_code(login.key), third.code):
            station.controller.host.log("bmc.login-refused", username=login.user)
            return rmcp.rakp4(third.tag, ipmi.STATUS_BAD_CODE, console)
        if len(station.sessions) >= self._slots:
            return rmcp.rakp4(third.tag, ipmi.STATUS_NO_RESOURCES, console)
        session_key = login.exchange.session_key(login.key)
        station.sessions[third.bmc] = _Session(login, Keys(login.suite, session_key), self._loop.time())
        return rmcp.rakp4(third.tag, 0, console, login.exchange.rakp4_code(session_key))

    # --- inside a session -------------------------------------------------------------------------------------------

    def _sealed(self, station: _Station, got: rmcp.Datagram) -> bytes | None:
        session = station.sessions.get(got.session)
        now = self._loop.time()
        if session is None:
            return None
        if now - session.heard > IDLE:
            del station.sessions[got.session]
            return None
        sequence, payload = session.keys.unseal(got.payload)
        if not session.window.accept(sequence):
            return None
        session.heard = now
        request, reply, when = session.last
        if payload != request or now - when > _REPEAT_WITHIN:
            reply = self._command(station, session, got.session, payload)
            session.last = (payload, reply, now)
        session.sequence += 1
        return session.keys.seal(session.console, session.sequence, reply)

    def _command(self, station: _Station, session: _Session, session_id: bytes, payload: bytes) -> bytes:
        asked = rmcp.message(payload)
        controller = station.controller
        where = (asked.network_function, asked.command)
        if where == (ipmi.APP, ipmi.CLOSE_SESSION):
            if asked.data[:4] != session_id:
                return rmcp.response(asked, 0x87)  # no such session id (IPMI 22.19)
            del station.sessions[session_id]
            return rmcp.response(asked, ipmi.OK)
        if controller.host.fault("busy-bmc") is not None:
            return rmcp.response(asked, ipmi.NODE_BUSY)
        if where == (ipmi.APP, ipmi.SET_PRIVILEGE):
            level = asked.data[0] & 0x0F if asked.data else 0
            if level > session.limit:
                return rmcp.response(asked, 0x81)  # above what the user may have (IPMI 22.18)
            if level == 1 or level > ipmi.ADMINISTRATOR:
                return rmcp.response(asked, ipmi.INVALID_FIELD)
            session.privilege = level or session.privilege
            return rmcp.response(asked, ipmi.OK, bytes((session.privilege,)))
        code, data = answer(controller, asked, session.privilege)
        if where == (ipmi.APP, ipmi.COLD_RESET) and code == ipmi.OK:
            controller.deaf_until = self._loop.time() + self._reset_seconds
            station.sessions.clear()
            station.logins.clear()
        return rmcp.response(asked, code, data)


_IP_PKTINFO: Final = 8  # linux/in.h; not in the socket module
_PKTINFO: Final = struct.Struct("=I4s4s")  # interface, local address, address in the header
_ROOM: Final = socket.CMSG_SPACE(_PKTINFO.size)
_BATCH: Final = 128  # datagrams read before the loop may serve others


class IpmiServer:
    """`IpmiResponder` on a UDP socket that answers from the very address that was asked."""

    def __init__(
        self,
        lookup: Lookup,
        *,
        bind: str = "127.0.0.1",
        port: int = 0,
        slots: int = SLOTS,
        reset_seconds: float = 1.0,
        suites: tuple[int, ...] = (3, 17),
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 20)
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        try:
            self._socket.bind((bind, port))
        except OSError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        self.responder = IpmiResponder(lookup, self._send, slots=slots, reset_seconds=reset_seconds, suites=suites)
        self._loop.add_reader(self._socket.fileno(), self._drain)

    def _drain(self) -> None:
        for _ in range(_BATCH):
            try:
                data, ancillary, _, peer = self._socket.recvmsg(rmcp.MAX_DATAGRAM + 1, _ROOM)
            except OSError:  # drained, or an ICMP error of some console
                return
            for level, kind, value in ancillary:
                if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(value) >= _PKTINFO.size:
                    local = socket.inet_ntoa(_PKTINFO.unpack_from(value)[2])
                    self.responder.datagram(data, local, peer)

    def _send(self, data: bytes, local: str, peer: tuple[Any, ...]) -> None:
        source = _PKTINFO.pack(0, socket.inet_aton(local), bytes(4))
        try:
            self._socket.sendmsg([data], [(socket.IPPROTO_IP, _IP_PKTINFO, source)], 0, peer)
        except OSError:  # a full buffer or a console that is gone: the datagram is lost, as on any wire
            return

    def close(self) -> None:
        """Stop listening."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self.responder.close()
