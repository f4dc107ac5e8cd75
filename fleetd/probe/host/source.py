"""The image's bytes, from the first URL that delivers them: a fleet's network is cut, full, slow and sometimes lying.

A `Source` gives exactly the bytes the order names, or fails with a reason. It follows no redirect, believes no server
about the length, resumes where a stream was cut, waits while a server says it is full, and gives up by progress and
not by total time. What the bytes are is for the checksum: `write.py`.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

CHUNK = 1 << 20
CONNECT = 15.0  # seconds
HEADERS = 60.0  # seconds from the request to the end of the answer's headers
STALL, STALL_BYTES = 120.0, 1 << 20  # at least so many bytes (or the rest) in each such span, or it is cut
# Seconds without one new byte while servers answer that they are full: 1,000 hosts of 2 GB over 10 Gb/s are 27 minutes.
ADMISSION = 3000.0
OUTAGE = 300.0  # seconds without one new byte while no server answers
LONGEST_PAUSE = 30.0
MAX_RETRY_AFTER = 300.0


class SourceFailed(Exception):
    """No URL delivers the image. The text says of each URL why, without its query: tickets are secrets."""


class Source(Protocol):
    """Where the compressed bytes come from."""

    url: str  # the last that delivered, without its query
    used: set[str]  # all that delivered something, without their queries
    resumed: int  # how often it went on after a cut

    def chunks(self) -> Iterator[bytes]:
        """All bytes in order, the promised number exactly. Raises SourceFailed."""

    def close(self) -> None:
        """From any thread: end what is under way; `chunks` fails soon."""


class Dead(Exception):
    """This URL will not get better."""


class Full(Exception):
    """Answered 503 or 429: come again after so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__("the server is full")
        self.seconds = seconds


class Target:
    """One URL with what is known of it."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not an http or https URL")
        self.tls, self.host, self.port = parts.scheme == "https", parts.hostname, parts.port
        self.path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.url, self.shown = url, url.partition("?")[0]
        self.etag = ""
        self.reason = ""
        self.dead = False
        self.tries = 0  # without one new byte
        self.not_before = 0.0


class Route:
    """Whom to ask next, what answers are good, and when to give up: without a wire, so that any client may follow it.

    Args:
        urls: tried in order; one that fails for good is not asked again.
        length: bytes, as the order says.
        clock: monotonic seconds.
    """

    def __init__(self, urls: Sequence[str], length: int, clock: Callable[[], float]) -> None:
        self.length, self.at = length, 0  # bytes: in all, and had
        self.url, self.resumed = "", 0
        self.used: set[str] = set()
        self._targets = [Target(url) for url in urls]
        self._clock = clock
        self._last_byte = self._last_answer = clock()
        self._asked_at = 0  # where the last request began

    @property
    def left(self) -> int:
        return self.length - self.at

    def turn(self) -> tuple[Target, float]:
        """Whom to ask, and after how many seconds. Raises SourceFailed."""
        now = self._clock()
        if now - self._last_byte > ADMISSION or now - max(self._last_byte, self._last_answer) > OUTAGE:
            raise SourceFailed(f"no progress for {now - self._last_byte:.0f} s: {self._reasons()}")
        alive = [target for target in self._targets if not target.dead]
        if not alive:
            raise SourceFailed(self._reasons() or "the order names no URL")
        target = min(alive, key=lambda target: max(target.not_before, now))
        self._asked_at = self.at
        return target, max(0.0, target.not_before - now)

    def headers(self, target: Target) -> dict[str, str]:
        """Of the request for what is left."""
        said = {"User-Agent": "fleetd-host", "Connection": "close", "Accept-Encoding": "identity"}
        if self.at:
            said["Range"] = f"bytes={self.at}-{self.length - 1}"
            if target.etag:
                said["If-Match"] = target.etag
        return said

    def judge(self, target: Target, status: int, header: Callable[[str, str], str]) -> int:
        """How many bytes at the start of the body are had already. Raises Dead, Full, OSError."""
        if status in (429, 503):
            raise Full(_retry_after(header("Retry-After", "")))
        if 300 <= status < 400:
            raise Dead(f"it redirects ({status}); redirects are never followed")
        if status >= 500 or status == 408:
            raise OSError(f"HTTP {status}")
        if status not in (200, 206):
            raise Dead(f"HTTP {status}")
        for name in ("Transfer-Encoding", "Content-Encoding"):
            if header(name, "identity").strip().lower() != "identity":
                raise Dead(f"it sends `{name}`; the length must be known")
        start = self.at if status == 206 else 0
        if status == 206 and not self.at:
            raise Dead("it sends a part that was not asked for")
        said, wanted = header("Content-Length", "").strip(), self.length - start
        if said != str(wanted):
            raise Dead(f"it offers {said[:20] or 'an unknown number of'} bytes, not {wanted}")
        if status == 206:
            span = header("Content-Range", "").strip()
            if span != f"bytes {start}-{self.length - 1}/{self.length}":
                raise Dead(f"it sends another part than asked for: {span[:60]!r}")
        etag = header("ETag", "").strip()
        if etag.startswith('"') and etag.endswith('"') and 2 < len(etag) < 256 and etag.isprintable():
            target.etag = etag
        return self.at - start

    def took(self, target: Target, count: int) -> None:
        """So many new bytes came from there."""
        if self.at == self._asked_at:
            self.resumed += self.at > 0
            self.url = target.shown
            self.used.add(target.shown)
        self.at += count
        target.tries = 0
        self.alive()

    def alive(self) -> None:
        """Time that passed until now is nobody's fault."""
        self._last_byte = self._clock()

    def failed(self, target: Target, error: Exception) -> None:
        """This request ended before the end."""
        now = self._clock()
        if isinstance(error, Dead):
            target.dead, target.reason = True, str(error)
        elif isinstance(error, Full):
            self._last_answer = now
            target.reason, target.not_before = "answers that it is full", now + error.seconds
        else:
            target.reason = _short(error)
            pause = 0.0 if self.at > self._asked_at else min(LONGEST_PAUSE, 0.5 * 2.0**target.tries)
            target.tries = min(target.tries + 1, 16)
            target.not_before = now + pause

    def _reasons(self) -> str:
        return "; ".join(f"{t.shown}: {t.reason or 'not asked'}" for t in self._targets)[:400]


class _Timed(io.RawIOBase):
    """A socket that is read until a deadline, however the bytes trickle. Raises TimeoutError."""

    def __init__(self, sock: socket.socket, clock: Callable[[], float]) -> None:
        self._sock, self._clock = sock, clock
        self.deadline = clock() + HEADERS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        left = self.deadline - self._clock()
        if left <= 0:
            raise TimeoutError("the server is too slow")
        self._sock.settimeout(left)
        return self._sock.recv_into(buffer)


class _Stream(NamedTuple):
    connection: http.client.HTTPConnection
    answer: http.client.HTTPResponse
    timed: _Timed
    skip: int  # bytes at its start that we have already


class HttpSource:
    """See `Source`. `urls`, `length` and `clock` as for Route.

    Args:
        address: the local address to fetch from; empty: any.
        wait: sleeps for so many seconds unless `close` ends it; a test brings its own.
    """

    def __init__(
        self,
        urls: Sequence[str],
        length: int,
        *,
        address: str = "",
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._route = Route(urls, length, clock)
        self._address, self._clock = address, clock
        self._closed = threading.Event()
        self._wait = wait or self._closed.wait
        self._connection: http.client.HTTPConnection | None = None
        self.used = self._route.used
        self.url, self.resumed = "", 0

    def close(self) -> None:
        self._closed.set()
        connection = self._connection
        sock = connection.sock if connection is not None else None
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it is closed already

    def chunks(self) -> Iterator[bytes]:
        route = self._route
        while route.left:
            if self._closed.is_set():
                raise SourceFailed("the fetch was ended")
            target, pause = route.turn()
            if pause:
                self._wait(pause)
                continue
            try:
                for chunk in self._stream(target):
                    route.took(target, len(chunk))
                    self.url, self.resumed = route.url, route.resumed
                    yield chunk
                    route.alive()  # a slow drive is not the server's fault
            except (OSError, http.client.HTTPException, ValueError, Dead, Full) as error:
                route.failed(target, error)

    # --- one request -----------------------------------------------------------------------------------------------------

    def _stream(self, target: Target) -> Iterator[bytes]:
        """What this URL gives from where we are to the end. Raises OSError or HTTPException when it is cut."""
        stream = self._ask(target)
        try:
            skip, left, wanted = stream.skip, self._route.left + stream.skip, 0
            while left:
                if wanted <= 0:
                    wanted = min(STALL_BYTES, left)
                    stream.timed.deadline = self._clock() + STALL
                chunk = stream.answer.read1(CHUNK)
                if not chunk:
                    raise OSError("the stream was cut")
                left -= len(chunk)
                wanted -= len(chunk)
                if skip:
                    chunk, skip = chunk[skip:], max(0, skip - len(chunk))
                if chunk:
                    paused = self._clock()
                    yield chunk
                    stream.timed.deadline += self._clock() - paused  # a slow drive is not the server's fault
        finally:
            self._connection = None
            stream.connection.close()

    def _ask(self, target: Target) -> _Stream:
        connection = self._connect(target)
        try:
            connection.request("GET", target.path, headers=self._route.headers(target))
            timed = _Timed(connection.sock, self._clock)
            answer = http.client.HTTPResponse(connection.sock, method="GET")
            answer.fp.close()
            answer.fp = io.BufferedReader(timed, 65536)
            answer.begin()
            return _Stream(connection, answer, timed, self._route.judge(target, answer.status, answer.getheader))
        except BaseException:
            self._connection = None
            connection.close()
            raise

    def _connect(self, target: Target) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if target.tls else http.client.HTTPConnection
        local = (self._address, 0) if self._address else None
        connection = kind(target.host, target.port, timeout=CONNECT, source_address=local)
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            raise Dead(f"its certificate is not trusted: {error.verify_message}"[:200]) from error
        self._connection = connection
        if self._closed.is_set():
            connection.close()
            raise OSError("the fetch was ended")
        return connection


def _retry_after(text: str) -> float:
    """Seconds. A date, or nonsense, counts as five."""
    return min(MAX_RETRY_AFTER, max(0.2, float(text))) if text.strip().isdecimal() else 5.0


def _short(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:120]
