"""The Redfish wire of the simulator: one HTTPS server for all hosts, told apart by the local address of a connection.

Cheap on purpose: a host costs nothing until somebody talks to it; then a certificate, a small object, connections.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from fleetd.model.power import PowerState
from fleetd.sim.faults import Fault
from fleetd.sim.host import SimHost
from fleetd.sim.redfish_profiles import PROFILES, Profile
from fleetd.sim.redfish_tls import Certificates
from fleetd.sim.redfish_tree import V1, Document, SimBmc

_MAX_REQUEST = 64 * 1024  # bytes
_OPEN = frozenset({V1, "/redfish"})  # readable without a login (DSP0266)


class Refusal(Exception):
    """An answer that is no success, with its ExtendedInfo."""

    def __init__(self, status: int, message_id: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message_id, self.message, self.headers = status, message_id, message, dict(headers or {})


class RedfishServer:
    """Serves `lookup(local address)`'s machines.

    Args:
        lookup: the host behind a local address, or None.
        reset_seconds: how long a BMC answers 503 after Manager.Reset.
        profiles: vendors' ways by `SimHost.behaviour`; others than the three are for tests.
    """

    def __init__(
        self,
        lookup: Callable[[str], SimHost | None],
        *,
        reset_seconds: float = 0.3,
        profiles: Mapping[str, Profile] = PROFILES,
        seed: str = "fleetd-sim",
    ) -> None:
        self._lookup = lookup
        self._reset_seconds = reset_seconds
        self._profiles = profiles
        self._certificates = Certificates(seed)
        self._bmcs: dict[str, SimBmc] = {}
        self._server: web.Server | None = None
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: set[socket.socket] = set()

    # --- life -----------------------------------------------------------------------------------------------------

    async def start(self, addresses: Sequence[str], port: int = 0, *, backlog: int = 1024) -> int:
        """Listen on each address at one port; 0 takes a free one. Returns the port.

        `["0.0.0.0"]` is the one wildcard listener for many hosts; a client that reached no known host is dropped.
        """
        self._server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        for address in addresses:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind((address, port))
            listener.listen(backlog)
            port = listener.getsockname()[1]
        for listener in self._listeners:
            self._spawn(self._accept(listener))
        return port

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sock in (*self._listeners, *self._held):
            sock.close()
        self._listeners.clear()
        self._held.clear()
        if self._server is not None:
            await self._server.shutdown(0.1)
            self._server = None

    def pin(self, host: SimHost) -> str:
        """sha256 hex of the certificate that this host shows now."""
        return self._certificates.pin(host.name, host.bmc_address)

    def rotate_certificate(self, host: SimHost) -> None:
        """The host shows another certificate from the next connection on; its kept connections are dropped."""
        self._certificates.rotate(host.name)
        for protocol in list(self._server.connections) if self._server is not None else []:
            transport = protocol.transport
            if transport is not None and transport.get_extra_info("sockname")[0] == host.bmc_address:
                transport.abort()

    def bmc(self, host: SimHost) -> SimBmc:
        """The BMC's own state, for tests: sessions, restarts."""
        known = self._bmcs.get(host.name)
        if known is None or known.host is not host:
            known = self._bmcs[host.name] = SimBmc(host, self._profiles[host.behaviour])
        return known

    # --- connections ----------------------------------------------------------------------------------------------

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError:  # out of descriptors, or the peer is gone already
                await asyncio.sleep(0.01)
                continue
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        address = sock.getsockname()[0]
        host = self._lookup(address)
        if host is None or host.behaviour not in self._profiles:
            _reset(sock)
            return
        deaf = host.fault("deaf-bmc")
        if deaf is not None:
            if deaf.params.get("mode") == "refuse":
                _reset(sock)
            else:
                self._held.add(sock)  # connected, and never a word
                self._spawn(self._hold(sock))
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._spawn(self._connect(sock, host, address))

    async def _hold(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while await loop.sock_recv(sock, 4096):
                pass
        self._held.discard(sock)
        sock.close()

    async def _connect(self, sock: socket.socket, host: SimHost, address: str) -> None:
        server = self._server
        if server is None:
            sock.close()
            return
        context = self._certificates.context(host.name, address)
        with contextlib.suppress(OSError, TimeoutError):  # a client that hangs up in the handshake (a pin that differs)
            await asyncio.get_running_loop().connect_accepted_socket(server, sock, ssl=context)

    # --- requests -------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        host = self._lookup(transport.get_extra_info("sockname")[0]) if transport is not None else None
        if host is None:
            return web.Response(status=404)
        bmc = self.bmc(host)
        try:
            await _faults(host, transport)
            down = bmc.down_until - asyncio.get_running_loop().time()
            if down > 0:
                headers = {"Retry-After": str(int(down))}
                raise Refusal(503, "Base.1.15.ServiceTemporarilyUnavailable", "The BMC restarts.", headers)
            return await self._route(request, bmc)
        except Refusal as refusal:
            info = {"MessageId": refusal.message_id, "Message": refusal.message}
            body = {"error": {"code": refusal.message_id, "message": refusal.message, "@Message.ExtendedInfo": [info]}}
            return _reply(refusal.status, body, refusal.headers)

    async def _route(self, request: web.BaseRequest, bmc: SimBmc) -> web.StreamResponse:
        path = request.path.rstrip("/") or "/"
        body = await _body(request) if request.method in ("POST", "PATCH") else {}
        if request.method == "POST" and path == f"{V1}/SessionService/Sessions":
            return _log_in(bmc, body)
        if path not in _OPEN:
            _authenticate(request, bmc)
        if request.method in ("GET", "HEAD"):
            return _get(bmc, path)
        if request.method == "POST":
            return self._act(bmc, path, body)
        if request.method == "PATCH":
            return _patch(request, bmc, path, body)
        if request.method == "DELETE" and path.startswith(f"{V1}/SessionService/Sessions/"):
            for token, (number, _) in list(bmc.sessions.items()):
                if number == path.rpartition("/")[2]:
                    del bmc.sessions[token]
                    return web.Response(status=204)
            raise _missing(path)
        raise Refusal(405, "Base.1.15.OperationNotAllowed", f"{request.method} is not allowed here.")

    def _act(self, bmc: SimBmc, path: str, body: Document) -> web.StreamResponse:
        if path == f"{bmc.system_path}/Actions/ComputerSystem.Reset":
            self._power(bmc, str(body.get("ResetType", "")))
            return web.Response(status=204)
        if path == f"{bmc.manager_path}/Actions/Manager.Reset":
            types, kind = bmc.profile.manager_reset_types, body.get("ResetType")
            if kind not in types if types else kind is not None:
                raise _bad_value("ResetType", kind)
            bmc.host.log("bmc.reset")
            bmc.down_until = asyncio.get_running_loop().time() + self._reset_seconds
            bmc.sessions.clear()
            return web.Response(status=204)
        if path.startswith(f"{bmc.media_path}/"):
            return _media(bmc, path, body)
        raise _missing(path)

    def _power(self, bmc: SimBmc, kind: str) -> None:
        host, now = bmc.host, asyncio.get_running_loop().time()
        if kind not in bmc.profile.reset_types:
            raise _bad_value("ResetType", kind)
        on = host.power_state is PowerState.ON
        if bmc.profile.on_conflict and kind == "On" and (on or now < bmc.off_since + 2 * host.timings.power):
            raise Refusal(
                409,
                "Base.1.15.ActionParameterValueConflict",
                "On conflicts with the present power state of the host.",
            )
        if host.fault("lying-bmc") is not None:
            host.log("power.ignored", type=kind)
            return
        if kind == "PushPowerButton":
            kind = "GracefulShutdown" if on else "On"
        if kind in ("On", "ForceOn"):
            if not on:
                bmc.heads_for(PowerState.ON)
            host.power_on()
        elif kind in ("ForceOff", "GracefulShutdown"):
            bmc.heads_for(PowerState.OFF)
            host.power_off()
        elif kind in ("ForceRestart", "GracefulRestart"):
            host.reset()
        elif kind == "PowerCycle" and on:
            bmc.heads_for(PowerState.OFF)
            host.power_off()
            self._spawn(self._back_on(bmc))
        else:
            host.log("power.nothing", type=kind)

    async def _back_on(self, bmc: SimBmc) -> None:
        await asyncio.sleep(bmc.host.timings.power * 1.5)
        bmc.heads_for(PowerState.ON)
        bmc.host.power_on()


# --- helpers: each one rule of the wire -------------------------------------------------------------------------


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def _faults(host: SimHost, transport: asyncio.BaseTransport | None) -> None:
    """deaf, slow and busy, in this order; each counts a firing."""
    if not host.faults:
        return
    deaf = host.fault("deaf-bmc")
    if deaf is not None:
        if deaf.params.get("mode") == "refuse" and isinstance(transport, asyncio.WriteTransport):
            transport.abort()
        await asyncio.get_running_loop().create_future()  # until the client gives up
    slow = host.fault("slow-bmc")
    if slow is not None:
        await asyncio.sleep(float(slow.params.get("seconds", 1)))
    busy: Fault | None = host.fault("busy-bmc")
    if busy is not None:
        raise Refusal(
            503, "Base.1.15.ServiceTemporarilyUnavailable", "Try again later.",
            {"Retry-After": str(busy.number("retry_after"))},
        )  # fmt: skip


async def _body(request: web.BaseRequest) -> Document:
    if request.content_length is not None and request.content_length > _MAX_REQUEST:
        raise Refusal(413, "Base.1.15.GeneralError", "The request is too large.")
    data = await request.content.read(_MAX_REQUEST)
    try:
        value = msgspec.json.decode(data) if data else {}
    except (msgspec.MsgspecError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refusal(400, "Base.1.15.MalformedJSON", "The request body is not a JSON object.")
    return value


def _reply(status: int, document: Document, headers: Mapping[str, str] | None = None) -> web.Response:
    data = msgspec.json.encode(document)
    return web.Response(status=status, body=data, content_type="application/json", headers=headers)


def _missing(path: str) -> Refusal:
    return Refusal(404, "Base.1.15.ResourceMissingAtURI", f"The resource at {path[:200]} was not found.")


def _bad_value(name: str, value: object) -> Refusal:
    return Refusal(
        400, "Base.1.15.ActionParameterNotSupported", f"The value {str(value)[:40]!r} for {name} is not in the list."
    )


def _good(host: SimHost, username: object, password: object) -> bool:
    known = host.accounts.get(username) if isinstance(username, str) and host.may_log_in(username) else None
    return known is not None and isinstance(password, str) and hmac.compare_digest(known.encode(), password.encode())


def _denied() -> Refusal:
    return Refusal(401, "Base.1.15.NoValidSession", "There is no valid session or login.")


def _log_in(bmc: SimBmc, body: Document) -> web.Response:
    username = body.get("UserName")
    good = _good(bmc.host, username, body.get("Password"))
    bmc.host.log("bmc.login", wire="redfish", username=str(username)[:64], ok=good)
    if not good:
        raise _denied()
    opened = bmc.open_session(str(username))
    if opened is None:
        raise Refusal(bmc.profile.full_status, "Base.1.15.SessionLimitExceeded", "Every session is taken.")
    token, number = opened
    place = f"{V1}/SessionService/Sessions/{number}"
    document = {"@odata.id": place, "@odata.type": "#Session.v1_5_0.Session", "Id": number, "UserName": username}
    return _reply(201, document, {"X-Auth-Token": token, "Location": place})


def _authenticate(request: web.BaseRequest, bmc: SimBmc) -> None:
    token = request.headers.get("X-Auth-Token")
    if token is not None:
        if token not in bmc.sessions:
            raise _denied()
        return
    kind, _, pair = request.headers.get("Authorization", "").partition(" ")
    if kind != "Basic":
        raise _denied()
    try:
        username, _, password = base64.b64decode(pair, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise _denied() from None
    good = _good(bmc.host, username, password)
    bmc.host.log("bmc.login", wire="redfish-basic", username=username[:64], ok=good)
    if not good:
        raise _denied()


def _get(bmc: SimBmc, path: str) -> web.Response:
    if path == "/redfish":
        return _reply(200, {"v1": f"{V1}/"})
    document = bmc.resource(path)
    if document is None:
        raise _missing(path)
    etag = bmc.etag(document)
    return _reply(200, document, {"ETag": etag} if etag else None)


def _match(request: web.BaseRequest, bmc: SimBmc, document: Document) -> None:
    """If-Match as this vendor reads it."""
    given, rule = request.headers.get("If-Match"), bmc.profile.etag
    if rule == "required" and given is None:
        raise Refusal(428, "Base.1.15.PreconditionRequired", "If-Match is required.")
    if given is None or given == "*":
        return
    now = bmc.etag(document).removeprefix("W/")
    if given != now:  # a weak form never equals: If-Match compares strongly (RFC 9110)
        raise Refusal(412, "Base.1.15.PreconditionFailed", "The ETag does not match.")


def _patch(request: web.BaseRequest, bmc: SimBmc, path: str, body: Document) -> web.StreamResponse:
    document = bmc.resource(path)
    if document is None:
        raise _missing(path)
    _match(request, bmc, document)
    parent, _, last = path.rpartition("/")
    if parent == f"{V1}/AccountService/Accounts" and isinstance(body.get("Password"), str):
        username = bmc.account_ids()[last]
        if not username or not 0 < len(body["Password"]) <= bmc.profile.password_max:
            raise Refusal(400, "Base.1.15.PropertyValueFormatError", "The value for the property Password is refused.")
        bmc.host.set_password(username, body["Password"])
        return web.Response(status=204)
    if parent == bmc.media_path and bmc.profile.media_way == "patch":
        _media_set(bmc, last, body.get("Image"))
        return web.Response(status=204)
    boot_path = f"{bmc.system_path}/Settings" if bmc.profile.boot_in_settings else bmc.system_path
    if path == boot_path and isinstance(body.get("Boot"), dict):
        _boot(bmc, body["Boot"])
        return web.Response(status=204)
    if path == bmc.system_path:
        lit = body.get("LocationIndicatorActive")
        if bmc.profile.led == "IndicatorLED":
            lit = {"Blinking": True, "Lit": True, "Off": False}.get(str(body.get("IndicatorLED")))
        if isinstance(lit, bool):
            bmc.host.set_identify(lit)
            return web.Response(status=204)
    raise Refusal(400, "Base.1.15.PropertyNotWritable", "None of these properties can be written here.")


_MEDIA_FIELDS = {
    "full": frozenset({"Image", "Inserted", "WriteProtected", "TransferMethod", "TransferProtocolType"}),
    "image-only": frozenset({"Image"}),
    "protocol": frozenset({"Image", "TransferProtocolType"}),
}


def _media(bmc: SimBmc, path: str, body: Document) -> web.StreamResponse:
    """The two actions of a virtual media slot, as particular about their body as the vendor is."""
    slot, _, action = path.removeprefix(f"{bmc.media_path}/").partition("/Actions/VirtualMedia.")
    shown = bmc.resource(f"{bmc.media_path}/{slot}")
    if shown is None or f"#VirtualMedia.{action}" not in shown.get("Actions", {}):
        raise _missing(path)
    if bmc.media_busy > 0:
        bmc.media_busy -= 1
        raise Refusal(500, "Base.1.15.InternalError", "The media service is not ready.")
    if action == "EjectMedia":
        if slot not in bmc.host.media:
            raise Refusal(400, "Base.1.15.NoValidImage", "There is nothing to eject.")
        _media_set(bmc, slot, None)
        bmc.media_busy = bmc.profile.media_eject_busy
        return web.Response(status=204)
    way = bmc.profile.media_way
    wanted = {"Image", "TransferProtocolType"} if way == "protocol" else {"Image"}
    if not wanted <= body.keys() <= _MEDIA_FIELDS[way]:
        raise Refusal(400, "Base.1.15.ActionParameterUnknown", f"This slot takes {', '.join(sorted(wanted))}.")
    if slot in bmc.host.media:
        raise Refusal(400, "Base.1.15.ResourceInUse", "There is an image in this slot already.")
    _media_set(bmc, slot, body["Image"])
    return web.Response(status=204)


def _media_set(bmc: SimBmc, slot: str, image: object) -> None:
    if image is not None and (not isinstance(image, str) or not image.startswith(("http://", "https://"))):
        raise Refusal(400, "Base.1.15.PropertyValueFormatError", "The image is no URL.")
    if bmc.host.fault("lying-bmc") is not None:
        bmc.host.log("media.ignored", slot=slot)
    else:
        bmc.host.set_media(slot, image)


def _boot(bmc: SimBmc, wanted: Document) -> None:
    profile, now = bmc.profile, bmc.boot()
    target, enabled = "BootSourceOverrideTarget", "BootSourceOverrideEnabled"
    if profile.boot_all_fields and not {target, enabled, "BootSourceOverrideMode"} <= wanted.keys():
        raise Refusal(400, "Base.1.15.PropertyMissing", "Target, Enabled and Mode are required together.")
    if profile.boot_enabled_unchanged_refused and enabled in wanted and wanted[enabled] == now[enabled]:
        raise Refusal(400, "IDRAC.2.8.SYS428", "BootSourceOverrideEnabled has this value already.")
    if not profile.boot_mode and "BootSourceOverrideMode" in wanted:
        raise Refusal(400, "Base.1.15.PropertyUnknown", "There is no BootSourceOverrideMode.")
    name = wanted.get(target, now[target])
    if name not in profile.boot_targets or wanted.get(enabled, now[enabled]) not in (
        "Once",
        "Disabled",
        "Continuous",
    ):
        raise _bad_value(target, name)
    if bmc.host.fault("lying-bmc") is not None:
        bmc.host.log("boot.ignored", target=name)
        return
    device = bmc.device_of(name)
    if name == "None" or wanted.get(enabled) == "Disabled":
        bmc.host.log("boot.once", device="none")
        bmc.host.boot_once = None
    elif device is None:
        raise _bad_value(target, name)
    else:
        bmc.host.set_boot_once(device)
