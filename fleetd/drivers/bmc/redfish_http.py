"""One HTTPS exchange with one BMC: pinned, kept alive, bounded. Nothing above this module sees aiohttp.

Measured: a kept aiohttp poll costs 0.33 ms CPU, a new TLS connection 2 to 3 ms, building an SSL context that loads
the system's CA file 58 ms: so one connector, one context, one connection a BMC.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
from collections.abc import Mapping
from typing import NamedTuple

import aiohttp
from yarl import URL

from fleetd.kit.errors import Garbled, PinMismatch, Unreachable

MAX_BODY = 1 << 20  # bytes; the largest resource of the recorded trees (a BIOS registry) is far below
MAX_PATH = 1024  # characters
_PATH = re.compile(r"/redfish(?:/[A-Za-z0-9._~%!$&'()*+,;=:@-]*)*(?:\?[A-Za-z0-9._~%!$&'()*+,;=:@/?-]*)?(?:#\S*)?")
_IDLE = 120.0  # seconds a connection is kept without use; most BMCs close theirs earlier
_BASE_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "OData-Version": "4.0"}


class Answer(NamedTuple):
    """What came back. Header names are lower case; only those the session layer reads are kept."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


_KEPT_HEADERS = ("etag", "x-auth-token", "location", "retry-after")


class Peer:
    """One BMC's address with the certificate it must show. An empty pin accepts any: only while enrolling."""

    def __init__(self, host: str, port: int, pin: str) -> None:
        self.name = f"{host}:{port}"
        self.turn = asyncio.Lock()  # first come, first served: aiohttp's own limit lets a busy poller starve a verb
        self.ssl: aiohttp.Fingerprint | bool = False
        if pin:
            try:
                self.ssl = aiohttp.Fingerprint(bytes.fromhex(pin))
            except ValueError as error:
                raise PinMismatch("the stored TLS pin is not a sha256", why=str(error), where=self.name) from None
        self._base = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        self._urls: dict[str, URL] = {}

    def url(self, path: str) -> URL:
        """The URL on this very BMC. Raises Garbled for anything that is not a plain Redfish path.

        BMCs hand out paths (@odata.id, targets, nextLink); none may lead to another host or carry control characters.
        """
        known = self._urls.get(path)
        if known is None:
            known = URL(self._base + checked_path(path), encoded=True)
            if len(self._urls) < 64:
                self._urls[path] = known
        return known


def checked_path(path: object) -> str:
    """The path itself if it is one of Redfish's, without fragment; else Garbled."""
    if not isinstance(path, str) or len(path) > MAX_PATH or not _PATH.fullmatch(path):
        raise Garbled("the BMC pointed outside its own Redfish tree", why=repr(path)[:120])
    return path.partition("#")[0]


class Http:
    """The connector that all Redfish sessions of one driver share. Make it inside the running loop."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._peers: dict[tuple[str, int, str], Peer] = {}

    def peer(self, host: str, port: int, pin: str) -> Peer:
        """The one object of this BMC and pin: sessions share its connection and take turns on it. Raises PinMismatch."""
        key = (host, port, pin)
        if key not in self._peers:
            self._peers[key] = Peer(host, port, pin)
        return self._peers[key]

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, limit_per_host=1, keepalive_timeout=_IDLE),
                cookie_jar=aiohttp.DummyCookieJar(),  # a cookie of one BMC must not reach another on the same address
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # callers bound every call
                headers=_BASE_HEADERS,
                skip_auto_headers=("User-Agent",),
                auto_decompress=False,  # we ask for identity; a compressed body could grow without bound
                trust_env=False,
            )
        return self._session

    async def exchange(
        self,
        peer: Peer,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """Send one request, read the whole bounded answer. The caller sets the deadline.

        Raises:
            PinMismatch: the peer shows another certificate; not a byte of the request was sent.
            Unreachable: no connection, or it broke.
            Garbled: not HTTP, truncated, larger than MAX_BODY, or a path outside the tree.
        """
        url = peer.url(path)
        try:
            async with (
                peer.turn,
                self._client().request(
                    method, url, headers=headers, data=body, ssl=peer.ssl, allow_redirects=False
                ) as response,
            ):
                length = response.content_length
                if length is not None and length > MAX_BODY:
                    response.close()
                    raise _too_large(peer, path)
                data = await _read(response, peer, path)
                kept = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
                return Answer(response.status, kept, data)
        except aiohttp.ServerFingerprintMismatch as error:
            raise PinMismatch(
                "the BMC shows another TLS certificate than the pinned one",
                why=f"sha256 is {error.got.hex()}, pinned {error.expected.hex()}; nothing was sent",
                where=peer.name,
            ) from None
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError, aiohttp.InvalidURL) as error:
            raise Garbled("the BMC's answer is not sound HTTP", why=str(error)[:200], where=peer.name) from None
        except (aiohttp.ClientError, OSError) as error:
            raise unreachable(peer.name, error) from None
        except ValueError as error:  # aiohttp's parser on some malformed headers
            raise Garbled("the BMC's answer is not sound HTTP", why=str(error)[:200], where=peer.name) from None

    async def close(self) -> None:
        """Close every kept connection. Safe to call twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


async def _read(response: aiohttp.ClientResponse, peer: Peer, path: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_BODY:
            response.close()
            raise _too_large(peer, path)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(peer: Peer, path: str) -> Garbled:
    return Garbled("the BMC's answer is too large", why=f"{path[:120]}: more than {MAX_BODY} bytes", where=peer.name)


def unreachable(name: str, error: BaseException) -> Unreachable:
    """One sentence a technician can act on, whatever the stack below says."""
    return Unreachable("the BMC did not answer", why=str(error)[:200] or type(error).__name__, where=name)


_bare_context: ssl.SSLContext | None = None


def _unverified_context() -> ssl.SSLContext:
    global _bare_context
    if _bare_context is None:  # once per process: a context per BMC costs, one that loads CA files costs 58 ms
        _bare_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _bare_context.check_hostname = False
        _bare_context.verify_mode = ssl.CERT_NONE
    return _bare_context


async def read_certificate_pin(host: str, port: int, *, timeout: float) -> str:
    """sha256 hex of the certificate (DER) that the peer shows now; a TLS handshake and nothing more.

    Raises:
        Unreachable: nobody there, no TLS, or not within `timeout` seconds.
    """
    name = f"{host}:{port}"
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            transport, _ = await loop.create_connection(asyncio.Protocol, host, port, ssl=_unverified_context())
    except TimeoutError:
        raise Unreachable("the BMC did not answer", why=f"no TLS handshake within {timeout:g} s", where=name) from None
    except OSError as error:  # ssl.SSLError is one
        raise unreachable(name, error) from None
    try:
        shown = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        transport.abort()
    return hashlib.sha256(shown).hexdigest()
