"""The HTTP that booting hosts speak, over a desk that decides. Whoever reaches this port may be anybody.

Answers tell nothing but what was asked for: an error is a code and a title, never a reason that names a host. The address
of the caller is the socket's; headers that claim another are not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from fleetd.drivers.boot.admission import Admission
from fleetd.drivers.boot.capabilities import BootDesk, Hello
from fleetd.drivers.boot.files import SERVED, Files
from fleetd.drivers.boot.images import Images
from fleetd.drivers.boot.scripts import MAC, START, TOKEN, is_rom, read_mac, replace_text, script_text, start_text
from fleetd.drivers.boot.sightings import Sightings
from fleetd.drivers.boot.transfer import send
from fleetd.kit.clock import Clock, SystemClock
from fleetd.kit.errors import Busy, Conflict, DeadlineExceeded, Denied, FleetError, Invalid, NotFound, Temporary
from fleetd.kit.logs import get
from fleetd.kit.rate import Meter

MAX_BODY = 64 * 1024
DESK_SECONDS = 15.0
BODY_SECONDS = 10.0
IDLE_SECONDS = 15.0  # a connection that sends nothing, or headers without end
UNREAD_SECONDS = 60.0  # an answer that is not taken: the kernel ends the connection
MAX_CONNECTIONS = 4096
MAX_OF_A_SOURCE = 256  # connections of one address, when there are too many in all
MAX_FILES = 1024  # transfers of kernel, initrd and ISO at once: these know no host, so they know no queue
MAX_FILES_A_SOURCE = 64  # of one address; a BMC reads an ISO over several connections
FILE_RATE = 16 * 1024  # bytes a second below which a client of these counts as dead
RETRY_AFTER = 5.0  # seconds; iPXE (measured) and the deploy environment come again by themselves
REPLACED_SECONDS, REPLACED_TIMES = 180.0, 2  # then a ROM is used as it is: what we gave it did not help
WARNINGS, WARNINGS_SECONDS = 10, 60.0  # lines in the log of one kind
REFUSALS = 3  # of one address in that time, so that none hides the others
_PLAIN = re.compile(r"[ -~]{0,128}")
_KEY = re.compile(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) [A-Za-z0-9+/]{40,2000}={0,2}( [ -~]{0,200})?")

log = get("boot")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def read_hello(body: bytes) -> Hello:
    """Raises Invalid naming the field."""
    try:
        hello = msgspec.json.decode(body, type=Hello)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Invalid("the hello cannot be read", why=str(error)[:200]) from error
    for name in ("serial", "uuid", "boot_id"):
        value = getattr(hello, name)
        if not value or not _PLAIN.fullmatch(value):
            raise Invalid("the hello has an unusable field", where=name)
    if not MAC.fullmatch(hello.mac):
        raise Invalid("the hello has an unusable field", where="mac")
    if not _KEY.fullmatch(hello.host_key):
        raise Invalid("the hello has an unusable field", where="host_key")
    if not 0 < hello.ssh_port < 65536:
        raise Invalid("the hello has an unusable field", where="ssh_port")
    return msgspec.structs.replace(hello, mac=read_mac(hello.mac))


def _token(request: web.Request) -> str:
    """The bearer token. Raises Denied."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not TOKEN.fullmatch(token.strip()):
        raise Denied("no bearer token")
    return token.strip()


def _source(request: web.Request) -> str:
    return _peer(request.transport)


def _peer(transport: asyncio.Transport | None) -> str:
    peer = transport.get_extra_info("peername") if transport is not None else None
    return str(peer[0]) if peer else ""


def _give_up_on(transport: asyncio.Transport | None) -> None:
    """Let the kernel end the connection of a client that takes no answer: no deadline of ours runs while aiohttp writes."""
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is not None:
        with contextlib.suppress(OSError):  # closed under us
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_SECONDS * 1000))


def _query(request: web.Request, name: str) -> str:
    value = request.query.get(name, "")
    if not _PLAIN.fullmatch(value):
        raise Invalid("the query has an unusable field", where=name)
    return value


class BootListener:
    """The listener. `start` binds, `stop` waits for requests in flight.

    Args:
        desk: who may boot what.
        host, port: where to listen; port 0 takes a free one, see `port`.
        base_url: how hosts reach this listener, without a trailing slash; empty: by the bound address.
        files: kernel, initrd and the like; images: read-only files named by their sha256. None: none are served.
        admission: how many images at once.
        tftp: where a BIOS NIC's own iPXE finds ours, `tftp://10.77.0.1`; empty: it is used as it is.
        drain: seconds that `stop` waits for what flows.
    """

    def __init__(
        self,
        desk: BootDesk,
        host: str,
        port: int,
        base_url: str = "",
        *,
        files: Files | None = None,
        images: Path | None = None,
        admission: Admission | None = None,
        clock: Clock | None = None,
        tftp: str = "",
        drain: float = 5.0,
    ) -> None:
        self._desk = desk
        self._host, self.port = host, port
        self._base_url = base_url.rstrip("/")
        self._clock = clock or SystemClock()
        self.files = files or Files(None)
        self.admission = admission or Admission()
        self.sightings = Sightings(desk, self._clock)
        self.images = Images(desk, self.admission, self.sightings, self._clock, images)
        self.tftp = tftp
        self._drain = drain
        self._meter = Meter(WARNINGS, WARNINGS_SECONDS)
        self._refusals = Meter(REFUSALS, WARNINGS_SECONDS)
        self._flowing: dict[str, int] = {}  # source -> transfers of files
        self._replaced: OrderedDict[str, tuple[float, int]] = OrderedDict()  # MAC -> steady second, times
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        return self._base_url or f"http://{self._host}:{self.port}"

    @property
    def flowing(self) -> int:
        """Transfers of kernel, initrd and ISO that run now."""
        return sum(self._flowing.values())

    async def start(self) -> None:
        """Listen. Raises Conflict when the address cannot be had."""

        @web.middleware
        async def bound(request: web.Request, handler: Handler) -> web.StreamResponse:
            """Who comes when too many are connected is sent away, unless one address makes up the crowd."""
            _give_up_on(request.transport)
            if self._is_crowded(request):
                return _problem(503, Busy.code, Busy.title, close=True)
            return await handler(request)

        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._guard, bound])
        app.router.add_get(START, self._start)
        app.router.add_get("/boot/{mac}.ipxe", _short(self._script))
        app.router.add_get("/deploy/authorized_keys", _short(self._authorized_keys))
        app.router.add_post("/deploy/hello", _short(self._hello))
        app.router.add_get("/images/{digest}", self._image)
        for path in SERVED:
            app.router.add_get(path, self._file)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_logger(self._aiohttp),
            handle_signals=False,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=0,
            shutdown_timeout=self._drain,
            max_line_size=4096,
            max_field_size=4096,
            auto_decompress=False,  # a small body that unpacks to a large one is not taken
        )
        await self._runner.setup()
        try:
            site = web.TCPSite(self._runner, self._host, self.port, backlog=1024)
            await site.start()
        except OSError as error:
            await self.stop()
            raise Conflict(
                f"the boot listener cannot listen on {self._host}:{self.port}",
                why=error.strerror or str(error),
                remedy="see who holds it (`ss -ltnp`), or change boot.listen in fleetd.yaml, listen in boot.yaml",
            ) from error
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening, send away who waits, let flow what flows for `drain` seconds; safe to call twice."""
        runner, self._runner = self._runner, None
        if runner is not None:
            self.admission.close()
            await runner.cleanup()
            await self.sightings.close()

    def _is_crowded(self, request: web.Request) -> bool:
        """Whether there is no room for this caller. The address with by far the most connections loses them first."""
        server = self._runner.server if self._runner is not None else None
        if server is None or len(server.connections) <= MAX_CONNECTIONS:
            return False
        held = [(_peer(one.transport), one.transport) for one in server.connections]
        source, count = Counter(address for address, _ in held).most_common(1)[0]
        if count <= MAX_OF_A_SOURCE or source == _source(request):
            return True
        self._warn("crowd", "boot.crowd", source=source, connections=str(count))
        for address, transport in held:
            if address == source and transport is not None:
                transport.abort()
        return False

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors as a code and a title; what is not now says when."""
        try:
            return await handler(request)
        except web.HTTPException as error:
            self._refused(request, error.status)
            return _problem(error.status, "", error.reason, close=error.status == 413)
        except FleetError as error:
            if error.status >= 500 and not isinstance(error, Busy):
                self._warn(error.code, "boot.request", path=request.path, source=_source(request), error=str(error))
            elif isinstance(error, NotFound | Invalid):
                self._refused(request, error.status)
            if isinstance(error, Temporary):
                return _problem(503, error.code, error.title, retry_after=error.retry_after or RETRY_AFTER)
            return _problem(error.status, error.code, error.title)
        except TimeoutError:
            return _problem(503, DeadlineExceeded.code, DeadlineExceeded.title, close=True, retry_after=RETRY_AFTER)
        except ConnectionError:
            raise  # the client went: aiohttp closes what is left
        except Exception as error:  # noqa: BLE001 - a slip of ours: told to the log, not to the network
            self._slipped(error, path=request.path, source=_source(request))
            return _problem(500, FleetError.code, FleetError.title, close=True)

    def _refused(self, request: web.Request, status: int) -> None:
        """Who asks for what is not here, or in a way that no firmware does, is written down. (The desk audits the rest.)"""
        source = _source(request)
        if self._refusals.take(source, self._clock.steady()) is not None:
            # without its query, which may hold a ticket
            self._warn("refused", "boot.refused", source=source, path=ascii(request.path[:200]), status=str(status))

    def _warn(self, key: str, event: str, **fields: str) -> None:
        """Whoever calls often fills no log."""
        held = self._meter.take(key, self._clock.steady())
        if held is not None:
            log.warning(event, held_back=held, **fields)

    def _slipped(self, error: BaseException, **fields: str) -> None:
        """With its traceback, as often as any other line."""
        held = self._meter.take("slip", self._clock.steady())
        if held is not None:
            log.error("boot.request", exc_info=error, held_back=held, **fields)

    def _aiohttp(self, record: logging.LogRecord) -> None:
        """What aiohttp would log by itself: a traceback for each broken request, with the line that was sent in it."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            self._warn("http", "boot.http", error=type(error).__name__)
        elif error is None:
            self._warn("aiohttp", "boot.http", error=record.getMessage()[:200])
        elif not isinstance(error, ConnectionError):  # a client that went is no news
            self._slipped(error, path="")

    async def _start(self, _: web.Request) -> web.Response:
        return _secret(start_text(self.base_url))

    async def _script(self, request: web.Request) -> web.Response:
        mac = read_mac(request.match_info["mac"])
        # iPXE tells the fields of SMBIOS as they stand, and vendors pad them; BMC and deploy environment tell them without.
        uuid, serial = _query(request, "uuid").strip(), _query(request, "serial").strip()
        if self.tftp and self._is_replaced(request, mac):
            return _secret(replace_text(self.tftp))
        script = await self._desk.script(mac, uuid=uuid, serial=serial, source=_source(request))
        return _secret(script_text(script, mac, self.base_url))

    def _is_replaced(self, request: web.Request, mac: str) -> bool:
        """Whether this is the iPXE of a NIC's ROM, to be replaced by ours. Never more than twice in a row."""
        chip, version = _query(request, "chip"), _query(request, "ver")
        if not is_rom(_query(request, "plat"), chip):
            self._replaced.pop(mac, None)
            return False
        now = self._clock.steady()
        at, times = self._replaced.pop(mac, (now, 0))
        if now - at > REPLACED_SECONDS:
            at, times = now, 0
        self._replaced[mac] = (at, times + 1)
        if len(self._replaced) > MAX_CONNECTIONS:
            self._replaced.popitem(last=False)
        replace = times < REPLACED_TIMES
        what = "is replaced by ours" if replace else "comes back after it was replaced, and is used as it is"
        detail = f"iPXE {version[:40]} in the ROM of the NIC ({chip[:20]}) {what}"
        self.sightings.add("rom", mac=mac, source=_source(request), detail=detail)
        return replace

    async def _authorized_keys(self, request: web.Request) -> web.Response:
        line = await self._desk.authorized_keys(_token(request), source=_source(request))
        return _secret(line.strip() + "\n")

    async def _hello(self, request: web.Request) -> web.Response:
        token = _token(request)  # before the body: who has none is not read
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
        await self._desk.hello(token, read_hello(body), source=_source(request))
        return web.Response(status=204)

    async def _image(self, request: web.Request) -> web.StreamResponse:
        source = _source(request)
        try:
            return await self.images.handle(request, source)
        except NotFound as error:
            if error.why:  # a host was sent here for it: somebody must know why it gets nothing
                self._warn("image", "boot.image.missing", source=source, error=error.why, remedy=error.remedy)
            raise

    async def _file(self, request: web.Request) -> web.StreamResponse:
        served, source = self.files.served(request), _source(request)
        path = self.files.path(served)
        if path is None or not await asyncio.get_running_loop().run_in_executor(None, path.is_file):
            self._warn(served.name, "boot.file.missing", name=served.name, source=source)
            raise NotFound("no such file")
        mine = self._flowing.get(source, 0)
        if mine >= MAX_FILES_A_SOURCE or len(self._flowing) > MAX_FILES or self.flowing >= MAX_FILES:
            raise Busy("too many transfers", retry_after=RETRY_AFTER)
        detail = "HEAD" if request.method == "HEAD" else ""
        self.sightings.add(served.stage, source=source, detail=f"{served.name} {detail}".strip())
        self._flowing[source] = mine + 1
        try:
            return await send(request, path, min_rate=FILE_RATE, headers={})
        finally:
            self._flowing[source] -= 1
            if not self._flowing[source]:
                del self._flowing[source]


def _logger(told: Callable[[logging.LogRecord], None]) -> logging.Logger:
    """A logger of the standard kind that tells `told` alone, and no one above."""

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told(record)

    made = logging.Logger("boot.http", logging.WARNING)
    made.addHandler(Teller())
    return made


def _secret(text: str) -> web.Response:
    return web.Response(text=text, content_type="text/plain", headers={"Cache-Control": "no-store"})


def _short(handler: Handler) -> Handler:
    """With a deadline for the whole request; transfers have their own rule."""

    async def bounded(request: web.Request) -> web.StreamResponse:
        async with asyncio.timeout(DESK_SECONDS):
            return await handler(request)

    return bounded


def _problem(
    status: int, code: str, title: str, *, close: bool = False, retry_after: float | None = None
) -> web.Response:
    response = web.json_response({"status": status, "code": code, "title": title}, status=status)
    if retry_after is not None:
        response.headers["Retry-After"] = str(max(1, round(retry_after)))
    if close:
        response.force_close()
    return response
