"""One RMCP+ session: the login, and one request at a time after it.

RAKP messages are never resent: a BMC may draw a new random number for each copy, and the keys would differ. A silent
step restarts the login at Open Session under a new session id. Inside the session a resend carries the same rqSeq
under a new session sequence number, so that a BMC neither drops it as a replay nor takes it for another request.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final, TypeVar

from fleetd.drivers.bmc.ipmi_mux import Address, Mux
from fleetd.kit.errors import AuthFailed, Busy, FleetError, Garbled, Unreachable, Unsupported
from fleetd.wire import ipmi, rmcp
from fleetd.wire.rakp import NAME_ONLY, SUITES, Exchange, Keys, Suite, Window, same

R = TypeVar("R", rmcp.OpenResponse, rmcp.Rakp2, rmcp.Rakp4)

FIRST_PATIENCE: Final = 1.0  # seconds before the first resend or restart
LOGIN_ATTEMPTS: Final = 6  # at 5 % loss each way one in four fails
LOGIN_GROWTH: Final = 1.5  # of the patience from attempt to attempt
REQUEST_TRIES: Final = 3
REQUEST_GROWTH: Final = 2.0
_SLOTS_FREE_AFTER: Final = 15.0  # seconds: what to tell a caller whose BMC has no session slot left

ROLE: Final = NAME_ONLY | ipmi.ADMINISTRATOR


class _OtherSuite(Exception):
    """The BMC refused our algorithms."""


class _Restart(Exception):
    """A step stayed silent (no `error`), or failed in a way that a fresh login may not."""

    def __init__(self, error: FleetError | None = None) -> None:
        super().__init__()
        self.error = error


class Session:
    """Logged in. `heard` is the loop's time of the last proven answer, `silent` that the last request got none,
    `privilege` what this session may do now."""

    __slots__ = (
        "_answer",
        "_expected",
        "_keys",
        "_mux",
        "_remote",
        "_rq",
        "_sequence",
        "_window",
        "address",
        "guid",
        "heard",
        "privilege",
        "session_id",
        "silent",
        "suite",
    )

    def __init__(self, mux: Mux, address: Address, exchange: Exchange, keys: Keys) -> None:
        self._mux, self.address = mux, address
        self.session_id, self._remote = exchange.console, exchange.bmc
        self.suite, self.guid, self._keys = exchange.suite.id, exchange.guid, keys
        self._window = Window()
        self._sequence = self._rq = 0
        self._answer: asyncio.Future[bytes | None] | None = None
        self._expected = (0, 0, 0)
        self.heard = mux.loop.time()
        self.silent = False
        self.privilege = ipmi.USER  # what every session begins with (IPMI 22.18)
        mux.sessions[self.session_id] = self

    def sealed(self, data: bytes) -> None:
        """From the mux: a datagram that carries our id. Forged, replayed, stale and malformed ones change nothing."""
        try:
            sequence, payload = self._keys.unseal(data)
            if not self._window.accept(sequence):
                return
            reply = rmcp.message(payload)
        except Garbled:
            self._mux.dropped += 1
            return
        answer = self._answer
        if answer is None or answer.done() or self._expected != (reply.network_function, reply.command, reply.sequence):
            return
        self.heard, self.silent = self._mux.loop.time(), False
        answer.set_result(reply.data)

    async def request(
        self, network_function: int, command: int, data: bytes, *, end: float, tries: int = REQUEST_TRIES
    ) -> bytes:
        """Ask, and ask again on silence, until `end` (loop time). Returns completion code and data.

        The caller sees to it that one request is in flight at a time.

        Raises:
            Unreachable: no answer to any of the tries.
        """
        mux, loop = self._mux, self._mux.loop
        self._rq = self._rq + 1 & 0x3F
        self._expected = (network_function | 1, command, self._rq)
        message = rmcp.request(network_function, command, data, self._rq)
        patience = FIRST_PATIENCE
        try:
            for turn in range(tries):
                pause = min(patience, end - loop.time())
                if pause <= 0:
                    break
                self._sequence += 1
                answer: asyncio.Future[bytes | None] = loop.create_future()
                self._answer = answer
                mux.send(self._keys.seal(self._remote, self._sequence, message), self.address)
                mux.resent += turn > 0
                timer = loop.call_later(pause, _silence, answer)
                try:
                    reply = await answer
                finally:
                    timer.cancel()
                if reply is not None:
                    return reply
                patience *= REQUEST_GROWTH
        finally:
            self._answer = None
        self.silent = True
        raise Unreachable(f"the BMC {self.address[0]} does not answer in its session")

    def forget(self) -> None:
        """Hear nothing more; sends nothing."""
        self._mux.sessions.pop(self.session_id, None)

    def farewell(self) -> None:
        """Ask the BMC to free the slot without waiting: for a session that it has probably forgotten itself."""
        self._sequence += 1
        message = rmcp.request(ipmi.APP, ipmi.CLOSE_SESSION, self._remote, self._rq + 1 & 0x3F)
        self._mux.send(self._keys.seal(self._remote, self._sequence, message), self.address)
        self.forget()

    async def close(self, *, end: float) -> None:
        """Log out politely. Never raises: a BMC that does not answer drops the session by itself (IPMI 6.12.15)."""
        try:
            await self.request(ipmi.APP, ipmi.CLOSE_SESSION, self._remote, end=end, tries=2)
        except Unreachable:
            pass  # nothing is left to free
        finally:
            self.forget()


def _silence(answer: asyncio.Future[bytes | None]) -> None:
    if not answer.done():
        answer.set_result(None)


async def login(
    mux: Mux, address: Address, name: bytes, key: bytes, *, end: float, suite_id: int | None = None
) -> Session:
    """Open a session until `end` (loop time): suite 17, falling back to 3 where the BMC has no SHA-256.

    Args:
        suite_id: what this BMC spoke last time; spares it a refusal.

    Raises:
        Unreachable: silence. Busy: no session slot free. AuthFailed: name, password or role refused.
        Unsupported: no suite in common, or IPMI 1.5 only. Garbled: answers outside the protocol.
    """
    suites = [SUITES[suite_id]] if suite_id in SUITES else []
    suites += [suite for suite in (SUITES[17], SUITES[3]) if suite not in suites]
    patience, enquired = FIRST_PATIENCE, False
    error: FleetError | None = None
    attempt = 0
    while attempt < LOGIN_ATTEMPTS and end > mux.loop.time():
        try:
            return await _attempt(mux, address, suites[0], name, key, end, patience)
        except _OtherSuite as refusal:
            suites.pop(0)
            if not suites:
                raise Unsupported(
                    f"the BMC {address[0]} speaks neither cipher suite 17 nor 3",
                    why=str(refusal),
                    remedy="enable cipher suite 17 or 3 for LAN in the BMC's IPMI settings",
                ) from None
            continue
        except _Restart as restart:
            error = restart.error
        attempt += 1
        patience *= LOGIN_GROWTH
        mux.resent += 1
        if not enquired and error is None and end > mux.loop.time():
            # Some BMCs drop proposals they do not know instead of refusing them: ask what they speak.
            enquired = True
            offered = await enquire(mux, address, end=end)
            suites = [suite for suite in suites if suite.id in offered] or suites
    raise error or Unreachable(
        f"no IPMI answer from {address[0]} port {address[1]}", why=f"{attempt} logins begun, none came to an end"
    )


async def enquire(mux: Mux, address: Address, *, end: float) -> frozenset[int]:
    """Cipher suites that the BMC names without a login; empty if it does not say (IPMI 22.13, 22.15).

    Raises:
        Unsupported: it says that it speaks IPMI 1.5 only.
    """
    asked = bytes((0x80 | ipmi.THIS_CHANNEL, ipmi.ADMINISTRATOR))
    answer = await _plain(mux, address, ipmi.CHANNEL_CAPABILITIES, asked, end)
    if answer is None:
        return frozenset()
    if len(answer) >= 5 and answer[0] == ipmi.OK and not (answer[2] & 0x80 and answer[4] & 0x02):
        raise Unsupported(
            f"the BMC {address[0]} speaks IPMI 1.5 only",
            why="its channel capabilities name no IPMI 2.0",
            remedy="update the BMC's firmware, or use Redfish for this host",
        )
    records = b""
    for index in range(64):  # the list index has six bits
        answer = await _plain(mux, address, ipmi.CIPHER_SUITES, bytes((ipmi.THIS_CHANNEL, 0, 0x80 | index)), end)
        if answer is None or answer[0] != ipmi.OK:
            break
        records += answer[2:18]
        if len(answer) < 18:
            break
    return ipmi.read_cipher_suites(records)


async def _plain(mux: Mux, address: Address, command: int, data: bytes, end: float) -> bytes | None:
    """One request outside any session, one try; completion code and data, or None for silence and nonsense."""
    patience = min(FIRST_PATIENCE, end - mux.loop.time())
    if patience <= 0:
        return None
    datagram = await mux.ask_plain(address, lambda sequence: rmcp.request(ipmi.APP, command, data, sequence), patience)
    if datagram is None:
        return None
    try:
        reply = rmcp.message(rmcp.plain_payload(datagram))
    except Garbled:
        return None
    return reply.data if (reply.network_function, reply.command) == (ipmi.APP | 1, command) else None


async def _attempt(
    mux: Mux, address: Address, suite: Suite, name: bytes, key: bytes, end: float, patience: float
) -> Session:
    """One login from Open Session on, each message sent once. Raises _OtherSuite, _Restart and what `login` raises."""
    console = mux.new_session_id()

    async def step(kind: int, build: Callable[[int], bytes], read: Callable[[bytes], R]) -> R:
        wait = min(patience, end - mux.loop.time())
        if wait <= 0:
            raise _Restart
        datagram = await mux.ask_setup(address, kind, build, wait)
        if datagram is None:
            raise _Restart
        reply = read(rmcp.setup_payload(datagram))
        # An error may come without our id; an agreement must carry it. A bad session id means that the BMC dropped
        # the half-open session: both begin again.
        if reply.status == ipmi.STATUS_BAD_SESSION or (reply.status == ipmi.STATUS_OK and reply.console != console):
            raise _Restart
        return reply

    opened = await step(
        rmcp.OPEN_REQUEST,
        lambda tag: rmcp.open_request(tag, ipmi.ADMINISTRATOR, console, suite),
        rmcp.read_open_response,
    )
    if opened.status in ipmi.STATUSES_OTHER_SUITE:
        raise _OtherSuite(ipmi.status_text(opened.status))
    if opened.status:
        raise _refused(address, opened.status)
    if (opened.authentication, opened.integrity, opened.confidentiality) != suite[1:4]:
        raise Garbled(f"the BMC {address[0]} chose algorithms that were not proposed")
    random = os.urandom(16)
    second = await step(rmcp.RAKP1, lambda tag: rmcp.rakp1(tag, opened.bmc, random, ROLE, name), rmcp.read_rakp2)
    if second.status:
        raise _refused(address, second.status)
    exchange = Exchange(suite, console, opened.bmc, random, second.random, second.guid, ROLE, name)
    if not same(exchange.rakp2_code(key), second.code):
        # Tell it why, so that it frees the slot at once (IPMI 13.22); there is no answer to this.
        mux.send(rmcp.setup(rmcp.RAKP3, rmcp.rakp3(0, ipmi.STATUS_BAD_CODE, opened.bmc)), address)
        raise AuthFailed(
            f"the BMC {address[0]} does not know this password", why="RAKP message 2 was made with another"
        )
    code = exchange.rakp3_code(key)
    fourth = await step(rmcp.RAKP3, lambda tag: rmcp.rakp3(tag, 0, opened.bmc, code), rmcp.read_rakp4)
    if fourth.status == ipmi.STATUS_BAD_CODE:
        # RAKP 2 proved that we hold the same password: the network doubled RAKP 1, and it drew new random numbers.
        raise _Restart(_refused(address, fourth.status))
    if fourth.status:
        raise _refused(address, fourth.status)
    session_key = exchange.session_key(key)
    if not same(exchange.rakp4_code(session_key), fourth.code):
        raise AuthFailed(f"the BMC {address[0]} could not prove that it knows our password")
    return Session(mux, address, exchange, Keys(suite, session_key))


def _refused(address: Address, status: int) -> FleetError:
    """A status code of the login as a typed error (IPMI 13.24)."""
    what, why = f"the BMC {address[0]} refused the login", ipmi.status_text(status)
    if status in (ipmi.STATUS_NO_RESOURCES, ipmi.STATUS_NO_RESOURCES_AT_ROLE):
        return Busy(what, why=why, retry_after=_SLOTS_FREE_AFTER)
    if status in (ipmi.STATUS_NO_PRIVILEGE, ipmi.STATUS_BAD_ROLE):
        return AuthFailed(what, why=why, remedy="give the account ADMINISTRATOR privilege on the LAN channel")
    if 0x0C <= status <= ipmi.STATUS_BAD_CODE:
        return AuthFailed(what, why=why)
    return Garbled(what, why=why)
