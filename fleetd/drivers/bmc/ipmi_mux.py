"""One UDP socket for any number of BMCs: a descriptor and a thread each would not carry a site.

A reply belongs to a session only if the console session id *and* the source address are the session's; what belongs
to nobody is counted and dropped. During a login the message tag (or rqSeq, outside sessions) stands for the session
id, which is then compared inside the message.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

from fleetd.kit.errors import Busy
from fleetd.wire import rmcp

Address = tuple[Any, ...]  # a socket address of the family, as recvfrom returns it
Deliver = Callable[[bytes, Address], None]

_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h; not in the socket module
_RECEIVE_BUFFER: Final = 32 << 20  # bytes: a sweep's answers arrive while we still send
_BATCH: Final = 256  # datagrams read before the loop may serve others


class Datagrams(Protocol):
    """What carries datagrams: a socket, or a simulator's memory."""

    def send(self, data: bytes, address: Address) -> None:
        """Never blocks, never raises for a lost datagram."""

    def close(self) -> None:
        """Deliver nothing more."""


OpenDatagrams = Callable[[int, Deliver], Datagrams]  # (address family, where arrivals go)


class UdpDatagrams:
    """A real socket: unconnected, read in a drain loop by `add_reader`, so that it works on uvloop too."""

    def __init__(self, family: int, deliver: Deliver) -> None:
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        except OSError:  # needs CAP_NET_ADMIN; the kernel then caps what we ask for
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self._socket.bind(("", 0))
        self._loop.add_reader(self._socket.fileno(), self._drain)

    def _drain(self) -> None:
        receive, deliver = self._socket.recvfrom, self._deliver
        for _ in range(_BATCH):
            try:
                data, address = receive(rmcp.MAX_DATAGRAM + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # an ICMP error of one BMC; its request times out by itself
                continue
            deliver(data, address)

    def send(self, data: bytes, address: Address) -> None:
        try:
            self._socket.sendto(data, address)
        except OSError:  # a full buffer or no route is a lost datagram: the resend timer covers both
            return

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()


class Hears(Protocol):
    """A session, as the mux sees it."""

    @property
    def address(self) -> Address: ...

    def sealed(self, data: bytes) -> None:
        """A datagram with our session id from our address; not yet proven."""


class Mux:
    """Sorts what arrives. Counters are for metrics: `dropped` counts datagrams that belonged to nobody."""

    __slots__ = ("_asking", "_datagrams", "_tag", "dropped", "loop", "received", "resent", "sent", "sessions")

    def __init__(self, family: int, open_datagrams: OpenDatagrams = UdpDatagrams) -> None:
        self.loop = asyncio.get_running_loop()
        self.sessions: dict[bytes, Hears] = {}
        self.sent = self.received = self.resent = self.dropped = 0
        self._asking: dict[tuple[Address, int], asyncio.Future[bytes | None]] = {}
        self._tag = int.from_bytes(os.urandom(1), "little")
        self._datagrams = open_datagrams(family, self.deliver)

    def deliver(self, data: bytes, address: Address) -> None:
        """One datagram from the network."""
        self.received += 1
        kind, session_id, number = rmcp.peek(data)
        if kind == rmcp.SEALED:
            session = self.sessions.get(session_id)
            if session is not None and session.address == address:
                session.sealed(data)
                return
        elif kind != rmcp.OTHER:
            answer = self._asking.get((address, number))
            if answer is not None and not answer.done():
                answer.set_result(data)
                return
        self.dropped += 1

    def send(self, data: bytes, address: Address) -> None:
        self.sent += 1
        self._datagrams.send(data, address)

    def new_session_id(self) -> bytes:
        """Four random bytes that no live session has and that are not zero (IPMI 13.17)."""
        while True:
            session_id = os.urandom(4)
            if session_id != b"\0\0\0\0" and session_id not in self.sessions:
                return session_id

    async def ask_setup(
        self, address: Address, payload_type: int, build: Callable[[int], bytes], patience: float
    ) -> bytes | None:
        """Send one set-up message under a fresh tag, once.

        Args:
            build: the payload for a tag.

        Returns:
            The datagram of the next payload type that came back under that tag, or None after `patience` seconds.
        """
        return await self._ask(
            address, payload_type + 1 << 8, 256, lambda tag: rmcp.setup(payload_type, build(tag)), patience
        )

    async def ask_plain(self, address: Address, build: Callable[[int], bytes], patience: float) -> bytes | None:
        """The same for a message outside any session, under a fresh rqSeq; `build` makes the message."""
        return await self._ask(address, 0, 64, lambda sequence: rmcp.plain(build(sequence)), patience)

    async def _ask(
        self, address: Address, base: int, room: int, build: Callable[[int], bytes], patience: float
    ) -> bytes | None:
        for _ in range(room):
            self._tag = self._tag + 1 & 0xFF
            key = (address, base + self._tag % room)
            if key not in self._asking:
                break
        else:
            raise Busy(f"{room} logins to {address[0]} are under way", why="one BMC has far fewer session slots")
        answer: asyncio.Future[bytes | None] = self.loop.create_future()
        self._asking[key] = answer
        timer = self.loop.call_later(patience, _give_up, answer)
        try:
            self.send(build(key[1] - base), address)
            return await answer
        finally:
            timer.cancel()
            del self._asking[key]

    def close(self) -> None:
        """Drop every session and stop listening; whoever still waits runs into its patience."""
        self.sessions.clear()
        self._datagrams.close()


def _give_up(answer: asyncio.Future[bytes | None]) -> None:
    if not answer.done():
        answer.set_result(None)
