"""The HTTP that booting hosts speak, over a desk that decides. Whoever reaches this port may be anybody.

Answers tell nothing but what was asked for: an error is a code and a title, never a reason that names a host. The address
of the caller is the socket's; headers that claim another are not read.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from fleetd.drivers.boot.capabilities import BootDesk, BootScript, Hello
from fleetd.kit.errors import Busy, Conflict, DeadlineExceeded, Denied, FleetError, Invalid, NotFound
from fleetd.kit.logs import get

MAX_BODY = 64 * 1024
DESK_SECONDS = 15.0
BODY_SECONDS = 10.0
IDLE_SECONDS = 15.0  # a connection that sends nothing, or headers without end
MAX_CONNECTIONS = 4096
_MAC = re.compile(r"[0-9a-fA-F]{2}([:-])[0-9a-fA-F]{2}(?:\1[0-9a-fA-F]{2}){4}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,256}")
_PLAIN = re.compile(r"[ -~]{0,128}")
_KEY = re.compile(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) [A-Za-z0-9+/]{40,2000}={0,2}( [ -~]{0,200})?")
_LOCAL = "#!ipxe\nexit 1\n"

log = get("boot")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def script_text(script: BootScript, mac: str, base_url: str) -> str:
    """What iPXE executes. Raises Invalid for a token that could be more than a word."""
    if script.token is None:
        return _LOCAL
    if not _TOKEN.fullmatch(script.token):
        raise Invalid("the boot token is not one plain word")
    return (
        "#!ipxe\n"
        f"kernel {base_url}/deploy/vmlinuz initrd=initrd console=tty0 console=ttyS0 BOOTIF=01-{mac.replace(':', '-')}"
        f" fleetd.url={base_url} fleetd.token={script.token}\n"
        f"initrd --name initrd {base_url}/deploy/initrd\n"
        "boot\n"
    )


def read_mac(text: str) -> str:
    """Lower case with colons. Raises NotFound: what is no MAC is no host."""
    if not _MAC.fullmatch(text):
        raise NotFound("not a MAC address")
    return text.lower().replace("-", ":")


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
    if not _MAC.fullmatch(hello.mac):
        raise Invalid("the hello has an unusable field", where="mac")
    if not _KEY.fullmatch(hello.host_key):
        raise Invalid("the hello has an unusable field", where="host_key")
    if not 0 < hello.ssh_port < 65536:
        raise Invalid("the hello has an unusable field", where="ssh_port")
    return msgspec.structs.replace(hello, mac=read_mac(hello.mac))


def _token(request: web.Request) -> str:
    """The bearer token. Raises Denied."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not _TOKEN.fullmatch(token.strip()):
        raise Denied("no bearer token")
    return token.strip()


def _source(request: web.Request) -> str:
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(peer[0]) if peer else ""


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
    """

    def __init__(self, desk: BootDesk, host: str, port: int, base_url: str = "") -> None:
        self._desk = desk
        self._host, self.port = host, port
        self._base_url = base_url.rstrip("/")
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        return self._base_url or f"http://{self._host}:{self.port}"

    async def start(self) -> None:
        """Listen. Raises Conflict when the address cannot be had."""

        @web.middleware
        async def bound(request: web.Request, handler: Handler) -> web.StreamResponse:
            """Who comes when too many are connected is sent away."""
            server = self._runner.server if self._runner is not None else None
            if server is not None and len(server.connections) > MAX_CONNECTIONS:
                return _problem(503, Busy.code, Busy.title, close=True)
            return await handler(request)

        app = web.Application(client_max_size=MAX_BODY, middlewares=[_guard, bound])
        app.router.add_get("/boot/{mac}.ipxe", self._script)
        app.router.add_get("/deploy/authorized_keys", self._authorized_keys)
        app.router.add_post("/deploy/hello", self._hello)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=0,
            shutdown_timeout=5.0,
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
                remedy="see who holds it (`ss -ltnp`), or change boot.listen in fleetd.yaml",
            ) from error
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening; safe to call twice."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _script(self, request: web.Request) -> web.Response:
        mac = read_mac(request.match_info["mac"])
        script = await self._desk.script(
            mac, uuid=_query(request, "uuid"), serial=_query(request, "serial"), source=_source(request)
        )
        return _secret(script_text(script, mac, self.base_url))

    async def _authorized_keys(self, request: web.Request) -> web.Response:
        line = await self._desk.authorized_keys(_token(request), source=_source(request))
        return _secret(line.strip() + "\n")

    async def _hello(self, request: web.Request) -> web.Response:
        token = _token(request)  # before the body: who has none is not read
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
        await self._desk.hello(token, read_hello(body), source=_source(request))
        return web.Response(status=204)


def _secret(text: str) -> web.Response:
    return web.Response(text=text, content_type="text/plain", headers={"Cache-Control": "no-store"})


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A deadline for every request, and errors as a code and a title."""
    try:
        async with asyncio.timeout(DESK_SECONDS):
            return await handler(request)
    except web.HTTPException as error:
        return _problem(error.status, "", error.reason, close=error.status == 413)
    except FleetError as error:
        if error.status >= 500:
            log.warning("boot.request", path=request.path, source=_source(request), error=str(error))
        return _problem(error.status, error.code, error.title)
    except TimeoutError:
        return _problem(503, DeadlineExceeded.code, DeadlineExceeded.title, close=True)
    except Exception:  # a slip of ours: told to the log, not to the network
        log.exception("boot.request", path=request.path, source=_source(request))
        return _problem(500, FleetError.code, FleetError.title, close=True)


def _problem(status: int, code: str, title: str, *, close: bool = False) -> web.Response:
    response = web.json_response({"status": status, "code": code, "title": title}, status=status)
    if close:
        response.force_close()
    return response
