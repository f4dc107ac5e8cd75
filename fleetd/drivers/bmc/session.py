"""One login at one BMC, kept: session token, Basic where the table is full, one new login when the token died.

Every exchange of a public call goes through `Session.send` with the `Call` that bounds it.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from fleetd.drivers.bmc.redfish_answers import (
    ALWAYS_BUSY,
    Document,
    decode,
    error_of,
    etag_of,
    is_busy,
    link,
    retry_after,
)
from fleetd.drivers.bmc.redfish_http import Answer, Http, Peer, checked_path
from fleetd.kit.clock import Clock
from fleetd.kit.errors import DeadlineExceeded, FleetError, Garbled, Unreachable
from fleetd.kit.retry import backoff
from fleetd.model.bmc import Login

T = TypeVar("T")

ROOT = "/redfish/v1/"
_SESSIONS = "/redfish/v1/SessionService/Sessions"  # DSP0266 fixes it for services that do not name theirs
_LAST_ANSWER = 0.05  # seconds kept for the try after a pause: a shorter rest of the time is not worth it
_LOGOUT_PATIENCE = 3.0  # seconds
_LOGOUT_HOPE = 0.2  # seconds, at a BMC that did not answer last time


class Call:
    """The budget of one public call; `answered` tells a slow BMC from a deaf one when the time is over."""

    def __init__(self, clock: Clock, timeout: float) -> None:
        self.clock = clock
        self.timeout = timeout
        self.end = clock.steady() + timeout
        self.answered = False

    def left(self) -> float:
        return self.end - self.clock.steady()


async def within(clock: Clock, timeout: float, what: str, where: str, work: Callable[[Call], Awaitable[T]]) -> T:
    """Run one public call inside its time.

    Raises:
        Unreachable: the time is over and not one answer came. DeadlineExceeded: some came, it did not finish.
    """
    call = Call(clock, timeout)
    try:
        async with asyncio.timeout(timeout):
            return await work(call)
    except TimeoutError:
        if call.answered:
            raise DeadlineExceeded(what, why=f"not finished within {timeout:g} s", where=where) from None
        raise Unreachable(what, why=f"no answer within {timeout:g} s", where=where) from None


class Session:
    """The logged-in wire to one BMC. Calls may overlap; the login is renewed once for all of them."""

    def __init__(self, http: Http, peer: Peer, login: Login, clock: Clock) -> None:
        self.peer = peer
        self.login = login
        self.root: Document = {}
        self.busy_ids: tuple[str, ...] = ALWAYS_BUSY
        self._http = http
        self._clock = clock
        self._credentials: dict[str, str] | None = None
        self._slot = ""  # path of our session resource, for the logout
        self._renewing = asyncio.Lock()
        self._closed = False
        self._heard = False

    # --- requests --------------------------------------------------------------------------------------------------

    async def send(
        self, call: Call, method: str, path: str, body: Any = None, *, etag: str = "", patient: bool = True
    ) -> Answer:
        """Any status but 401-once and (if `patient`) busy, which are handled here.

        Raises:
            Busy: still busy when the call's time is nearly over. And what `Http.exchange` raises.
        """
        if self._closed:
            raise Unreachable("this BMC session was closed", where=self.peer.name)
        data = None if body is None else msgspec.json.encode(body)
        renewed, tries = False, 0
        while True:
            credentials = self._credentials
            answer = await self._exchange(call, method, path, credentials, data, etag)
            if answer.status == 401 and not renewed and self._slot_token(credentials):
                renewed = True
                await self._renew(call, credentials)
            elif patient and is_busy(answer, self.busy_ids):
                tries += 1
                await self._wait_busy(call, answer, tries)
            else:
                return answer

    async def get(self, call: Call, path: str) -> Document:
        """A resource. Raises the typed error of any other status than 200."""
        return (await self.get_with_etag(call, path))[0]

    async def get_with_etag(self, call: Call, path: str) -> tuple[Document, str]:
        """A resource and its ETag, empty if it has none."""
        answer = await self.send(call, "GET", path)
        if answer.status != 200:
            raise self.error(answer, f"reading {path[:120]}")
        document = decode(answer.body, self.peer.name)
        return document, etag_of(answer, document)

    async def patch(self, call: Call, path: str, body: Document, etag: str) -> Answer:
        """PATCH with the If-Match dance: as told, then the strong form, then without; 428 reads a fresh ETag first.

        Some BMCs insist on If-Match, others refuse weak tags with 412 (sushy connector.py, the same order).
        """
        forms = [etag, etag.removeprefix("W/"), ""] if etag else [""]
        answer = await self.send(call, "PATCH", path, body, etag=forms[0])
        for form in dict.fromkeys(forms[1:]):
            if answer.status != 412:
                break
            answer = await self.send(call, "PATCH", path, body, etag=form)
        if answer.status in (412, 428):
            _, fresh = await self.get_with_etag(call, path)
            if fresh and fresh != etag:
                answer = await self.send(call, "PATCH", path, body, etag=fresh)
        return answer

    def error(self, answer: Answer, what: str, *, secret: str = "") -> FleetError:
        """The typed error of an answer; neither our password nor `secret` can stand in it."""
        error = error_of(answer, what, self.peer.name, secret=secret, busy_ids=self.busy_ids)
        error.why = error.why.replace(self.login.password, "***") if self.login.password else error.why
        return error

    def also_busy(self, ids: Iterable[str]) -> None:
        """Message ids that mean "not now" at this vendor."""
        self.busy_ids = (*self.busy_ids, *ids)

    async def _exchange(
        self, call: Call, method: str, path: str, credentials: dict[str, str] | None, data: bytes | None, etag: str
    ) -> Answer:
        headers = credentials
        if data is not None or etag:
            headers = dict(credentials or {})
            if data is not None:
                headers["Content-Type"] = "application/json"
            if etag:
                headers["If-Match"] = etag
        self._heard = False  # stays so if the deadline strikes or the wire breaks
        answer = await self._http.exchange(self.peer, method, path, headers=headers, body=data)
        self._heard = call.answered = True
        return answer

    async def _wait_busy(self, call: Call, answer: Answer, tries: int) -> None:
        told = retry_after(answer, now=self._clock.wall())
        if told is None:
            pause = backoff(tries, first=0.5, cap=10.0)
        else:
            pause = told or backoff(tries, first=0.02, cap=1.0)  # Retry-After: 0 is no invitation to hammer
        if pause + _LAST_ANSWER >= call.left():
            raise self.error(answer, "waiting for the BMC")
        await self._clock.sleep(pause)

    # --- login -----------------------------------------------------------------------------------------------------

    async def log_in(self, call: Call) -> None:
        """Read the root (no login needed), then log in.

        Raises:
            AuthFailed, PinMismatch, Unreachable, Busy, Garbled.
        """
        answer = await self.send(call, "GET", ROOT)
        if answer.status != 200:
            raise self.error(answer, "reading the service root")
        self.root = decode(answer.body, self.peer.name)
        async with self._renewing:
            await self._log_in(call)

    async def _log_in(self, call: Call) -> None:
        self._credentials, self._slot = None, ""
        path = link(self.root, "Links", "Sessions") or _SESSIONS
        body = msgspec.json.encode({"UserName": self.login.username, "Password": self.login.password})
        tries = 0
        while True:
            answer = await self._exchange(call, "POST", path, None, body, "")
            if answer.ok and "x-auth-token" in answer.headers:
                self._take(answer)
                return
            if answer.status in (401, 403) and self._sessions_told():
                raise self.error(answer, "logging in")
            # 400 and 503 are a full session table, 404/405/501 a service without sessions: Basic is in the standard.
            # A service that tells of no sessions may say 401 for that too: it asks for a login before it looks (sushy-tools).
            probe = await self._try_basic(call)
            if probe.ok:
                return
            if not is_busy(probe, self.busy_ids):
                raise self.error(probe, "logging in")
            tries += 1
            await self._wait_busy(call, probe, tries)

    def _sessions_told(self) -> bool:
        return bool(link(self.root, "SessionService") or link(self.root, "Links", "Sessions"))

    def _take(self, answer: Answer) -> None:
        token = answer.headers["x-auth-token"]
        if not 0 < len(token) <= 1024 or not token.isprintable():
            raise Garbled("the BMC's session token is unusable", where=self.peer.name)
        self._credentials = {"X-Auth-Token": token}
        place = answer.headers.get("location", "")
        try:
            self._slot = checked_path(urlsplit(place).path) if place else ""
            if not self._slot and answer.body:
                self._slot = checked_path(decode(answer.body, self.peer.name).get("@odata.id", ""))
        except (Garbled, ValueError):
            self._slot = ""  # without its place we cannot log out; the login itself is good

    async def _try_basic(self, call: Call) -> Answer:
        pair = f"{self.login.username}:{self.login.password}".encode()
        credentials = {"Authorization": "Basic " + base64.b64encode(pair).decode()}
        answer = await self._exchange(
            call, "GET", link(self.root, "Systems") or "/redfish/v1/Systems", credentials, None, ""
        )
        if answer.ok:
            self._credentials = credentials
        return answer

    @staticmethod
    def _slot_token(credentials: dict[str, str] | None) -> bool:
        return credentials is not None and "X-Auth-Token" in credentials

    async def _renew(self, call: Call, stale: dict[str, str] | None) -> None:
        async with self._renewing:
            if self._credentials is stale:  # else another call renewed it meanwhile
                await self._log_in(call)

    async def log_out(self) -> None:
        """Free our slot. Never raises: a BMC that is gone forgets the session by itself."""
        if self._closed:
            return
        self._closed = True
        credentials, slot = self._credentials, self._slot
        self._credentials, self._slot = None, ""
        if not slot:
            return
        try:
            async with asyncio.timeout(_LOGOUT_PATIENCE if self._heard else _LOGOUT_HOPE):
                await self._http.exchange(self.peer, "DELETE", slot, headers=credentials)
        except (FleetError, TimeoutError):
            return

    def password_changed(self, password: str) -> None:
        """Later logins of this session use the new one."""
        self.login = Login(self.login.username, password)
        if self._credentials is not None and "Authorization" in self._credentials:
            pair = f"{self.login.username}:{password}".encode()
            self._credentials = {"Authorization": "Basic " + base64.b64encode(pair).decode()}
