"""One HTTP connection to a daemon, over its unix socket or TCP with a token; problems come back as our own errors.

Standard library only: `fleetctl` must start faster than a person notices. A POST carries an Idempotency-Key, so an answer
that was lost on the way is asked for again without doing anything twice.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

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

MAX_ANSWER = 256 * 1024 * 1024
CONNECT_SECONDS = 10.0
UPLOAD_PIECE = 256 * 1024
_BY_CODE = {cls.code: cls for cls in every_error()}


class Endpoint(NamedTuple):
    """Where a daemon is: a unix socket, or a URL with a token. `name` is what people call it."""

    socket: str | None = None
    url: str | None = None
    token: str | None = None
    ca: str | None = None  # file of certificates to trust for https
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.url or self.socket or "nowhere"

    def __repr__(self) -> str:
        return f"Endpoint({self}, token={'***' if self.token else None})"


class Reply(NamedTuple):
    """An answer: `data` is the decoded JSON, None for an empty body."""

    status: int
    headers: Mapping[str, str]
    data: Any


class _Unix(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(self.timeout)
        try:
            sock.connect(self._path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


class Http:
    """A connection that is made on need and kept.

    Args:
        timeout: seconds for one answer.
    """

    def __init__(self, endpoint: Endpoint, *, timeout: float = 60.0) -> None:
        self.endpoint = endpoint
        self._timeout = timeout
        self._kept: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Drop the connection."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        version: int | None = None,
        timeout: float | None = None,
    ) -> Reply:
        """Ask and wait for the answer.

        Args:
            query: None values are left out; true and false as JSON writes them.
            version: sent as If-Match.
            timeout: seconds for this answer instead of the usual.

        Raises:
            Unreachable: nobody listens there. DeadlineExceeded: no answer in time.
            FleetError: whatever the API's problem says, as the class of its code.
        """
        headers = self._headers()
        if version is not None:
            headers["If-Match"] = f'"{version}"'
        if method == "POST":
            headers["Idempotency-Key"] = os.urandom(16).hex()
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        target = path + _query(query)
        for last in (False, True):
            fresh = self._kept is None
            connection = self._connection(timeout)
            try:
                connection.request(method, target, payload, headers)
                response = connection.getresponse()
                data = response.read(MAX_ANSWER + 1)
            except TimeoutError as error:
                self.close()
                raise DeadlineExceeded(
                    f"{self.endpoint} gave no answer in time", why=f"{method} {path}", remedy="fleetctl doctor"
                ) from error
            except (http.client.HTTPException, OSError) as error:
                self.close()
                # A kept connection may be dead of age. Sending twice is safe: a POST has its key, PUT and DELETE are idempotent.
                if last or (fresh and not isinstance(error, http.client.RemoteDisconnected | ConnectionResetError)):
                    raise self._unreachable(error) from error
                continue
            if response.will_close:
                self.close()
            if len(data) > MAX_ANSWER:
                raise Garbled("the answer is too large", why=f"{method} {path}")
            return self._reply(response, data)
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def stream(
        self, path: str, *, query: Mapping[str, Any], last: int | None, silence: float
    ) -> Iterator[Iterator[bytes]]:
        """Lines of a server-sent stream on a connection of its own. Raises as `request`, and DeadlineExceeded after
        `silence` seconds without a byte."""
        connection = self._connect(silence)
        headers = self._headers() | {"Accept": "text/event-stream"}
        if last is not None:
            headers["Last-Event-ID"] = str(last)
        try:
            try:
                connection.request("GET", path + _query(query), headers=headers)
                response = connection.getresponse()
            except TimeoutError as error:
                raise DeadlineExceeded(f"{self.endpoint} gave no answer in time", why=f"GET {path}") from error
            except (http.client.HTTPException, OSError) as error:
                raise self._unreachable(error) from error
            if response.status != 200:
                self._reply(response, response.read(MAX_ANSWER))
            yield self._lines(response)
        finally:
            connection.close()

    def upload(
        self,
        path: str,
        file: IO[bytes],
        size: int,
        *,
        headers: Mapping[str, str],
        timeout: float,
        sent: Callable[[int], None],
    ) -> Reply:
        """PUT a file on a connection of its own, never read into memory.

        Args:
            size: bytes of the file from where it stands. headers: beside the usual ones.
            timeout: seconds for one piece to leave, and for the answer to come once all is sent.
            sent: told how many bytes are out.

        Raises: as `request`. An answer that comes before the end (a refusal) is taken.
        """
        connection = self._connect(timeout)
        try:
            try:
                connection.putrequest("PUT", path)
                own = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
                for name, value in (self._headers() | own | dict(headers)).items():
                    connection.putheader(name, value)
                connection.endheaders()
                # It may refuse in the middle and hang up: what it says then still counts.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self._pour(connection, file, size, sent)
                response = connection.getresponse()
                data = response.read(MAX_ANSWER)
            except TimeoutError as error:
                raise DeadlineExceeded(
                    f"{self.endpoint} gave no answer in time", why=f"PUT {path}", remedy="fleetctl doctor"
                ) from error
            except (http.client.HTTPException, OSError) as error:
                raise self._unreachable(error) from error
            return self._reply(response, data)
        finally:
            connection.close()

    @staticmethod
    def _pour(connection: http.client.HTTPConnection, file: IO[bytes], size: int, sent: Callable[[int], None]) -> None:
        done = 0
        while done < size:
            piece = file.read(min(UPLOAD_PIECE, size - done))
            if not piece:
                raise Invalid("the file became shorter while it was sent", why=f"{done} of {size} bytes")
            connection.send(piece)
            done += len(piece)
            sent(done)

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        while True:
            try:
                line = response.readline(1024 * 1024)
            except TimeoutError as error:
                raise DeadlineExceeded("the event stream went silent") from error
            except (http.client.HTTPException, OSError) as error:
                raise self._unreachable(error) from error
            if not line:
                return
            yield line.rstrip(b"\r\n")

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        if self.endpoint.token:
            headers["Authorization"] = f"Bearer {self.endpoint.token}"
        return headers

    def _connection(self, timeout: float | None) -> http.client.HTTPConnection:
        if self._kept is None:
            self._kept = self._connect(self._timeout)
        seconds = timeout or self._timeout
        self._kept.timeout = seconds
        if self._kept.sock is not None:
            self._kept.sock.settimeout(seconds)
        return self._kept

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        connection = self._make(timeout)
        connection.timeout = min(CONNECT_SECONDS, timeout)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise self._unreachable(error) from error
        connection.timeout = timeout
        connection.sock.settimeout(timeout)
        return connection

    def _make(self, timeout: float) -> http.client.HTTPConnection:
        if self.endpoint.url is None:
            if self.endpoint.socket is None:
                raise Invalid("no daemon was named", remedy="give --socket PATH or --url URL")
            return _Unix(self.endpoint.socket, timeout)
        parts = urlsplit(self.endpoint.url)
        try:
            port = parts.port
        except ValueError as error:
            raise Invalid(f"{self.endpoint.url!r} is no URL", why=str(error)) from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise Invalid(
                f"{self.endpoint.url!r} is no URL of a daemon", remedy="write https://fleetd.example.net:8443"
            )
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=self.endpoint.ca)
            return http.client.HTTPSConnection(parts.hostname, port, timeout=timeout, context=context)
        if self.endpoint.token and not _loopback(parts.hostname):
            raise Denied(
                "a token is not sent in clear",
                why=f"{self.endpoint.url} has no TLS",
                remedy="use https, or an SSH tunnel to loopback",
            )
        return http.client.HTTPConnection(parts.hostname, port, timeout=timeout)

    def _unreachable(self, error: BaseException) -> FleetError:
        if isinstance(error, ssl.SSLCertVerificationError):
            return Denied(
                f"{self.endpoint} is not who it should be",
                why=error.verify_message,
                remedy="give its CA: `ca:` in the context",
            )
        if isinstance(error, PermissionError):
            return Denied(
                f"{self.endpoint} may not be opened by you",
                why=str(error),
                remedy="join the group that owns it (`ls -l` tells), or give --url and --token-file",
            )
        if isinstance(error, FileNotFoundError):
            why = "there is no such socket"
        else:
            why = str(error) or type(error).__name__
        return Unreachable(
            f"no fleetd answers at {self.endpoint}",
            why=why,
            remedy="systemctl status fleetd; or name another: --socket, --url, --context",
        )

    def _reply(self, response: http.client.HTTPResponse, data: bytes) -> Reply:
        headers = {name.lower(): value for name, value in response.getheaders()}
        decoded = None
        if data and "json" in headers.get("content-type", ""):
            try:
                decoded = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise Garbled(f"{self.endpoint} answers what is not JSON") from error
        elif data:
            decoded = data.decode(errors="replace")
        if response.status >= 400 and not (isinstance(decoded, dict) and "problems" in decoded):
            raise error_of(response.status, decoded)
        return Reply(response.status, headers, decoded)


def error_of(status: int, body: Any) -> FleetError:
    """The error an answer means: the class of its code, else Temporary for 502 to 504, Permanent for the rest."""
    said: dict[str, Any] = body if isinstance(body, dict) else {}
    kind = _BY_CODE.get(str(said.get("code")), Temporary if status in (429, 502, 503, 504) else Permanent)
    what = str(said.get("what") or said.get("title") or f"HTTP {status}")
    return kind(
        what, why=str(said.get("why") or ""), remedy=str(said.get("remedy") or ""), where=str(said.get("where") or "")
    )


def segment(text: str) -> str:
    """A name as one segment of a path."""
    return quote(text, safe=":")


def _query(query: Mapping[str, Any] | None) -> str:
    pairs = {k: json.dumps(v) if isinstance(v, bool) else v for k, v in (query or {}).items() if v is not None}
    return "?" + urlencode(pairs) if pairs else ""


def _loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
