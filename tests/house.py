"""A whole daemon's front: real ledger, real desks, real server on a unix socket and on loopback, in a thread of its own.

Tests of api, client and cli talk to it from outside, as programs do. There is no engine: tests move the hosts.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prometheus_client import CollectorRegistry

from fleetd.api import server
from fleetd.api.app import build_app
from fleetd.api.auth import new_token, token_hash
from fleetd.api.peers import SocketPolicy
from fleetd.drivers.bmc.capabilities import Bmc
from fleetd.drivers.image.files import ImageFiles
from fleetd.kit.clock import SystemClock, rfc3339
from fleetd.kit.errors import Conflict, Unreachable
from fleetd.lifecycle.boots import Boots
from fleetd.lifecycle.certificates import ProofDesk
from fleetd.lifecycle.images import ImageDesk
from fleetd.lifecycle.services import Services
from fleetd.model import proof
from fleetd.model.access import Role, Token
from fleetd.model.host import Host, State
from fleetd.model.image import key_id
from fleetd.store import access
from fleetd.store import hosts as host_rows
from fleetd.store.database import open_database
from fleetd.store.secrets import Sealer
from tests.lifecycle.fleet import Fleet, inventory
from tests.redfish_rig import Rig, rig

T = TypeVar("T")
ROLES = {
    "viewer": (Role.VIEWER, None),
    "technician": (Role.TECHNICIAN, None),
    "operator": (Role.OPERATOR, None),
    "acme": (Role.TENANT, "acme"),
    "globex": (Role.TENANT, "globex"),
}


class House:
    """The daemon, and ways to speak to it. Made by `house()`."""

    def __init__(self, folder: Path, heartbeat: float, policy: SocketPolicy) -> None:
        self.folder, self.socket = folder, folder / "fleetd.sock"
        self.port = 0
        self.tokens: dict[str, str] = {}
        self.fleet: Fleet
        self.rig: Rig
        self.boots: Boots
        self.image_key = proof.new_key()  # signs images that the daemon trusts
        self.engine_age: float | None = 0.5
        self.app: Any = None
        self._heartbeat, self._policy = heartbeat, policy
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        self._error: BaseException | None = None
        self._clients: dict[str | None, httpx.Client] = {}

    # --- from outside -----------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, *, token: str | None = None, **rest: Any) -> httpx.Response:
        """One request: over the unix socket as this process's user, or over TCP with a role's token."""
        client = self._clients.get(token)
        if client is None:
            if token is None:
                transport = httpx.HTTPTransport(uds=str(self.socket))
                client = httpx.Client(transport=transport, base_url="http://fleetd", trust_env=False)
            else:
                headers = {"Authorization": f"Bearer {self.tokens.get(token, token)}"}
                client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, trust_env=False)
            self._clients[token] = client
        return client.request(method, path, **rest)

    def get(self, path: str, **rest: Any) -> httpx.Response:
        return self.call("GET", path, **rest)

    def post(self, path: str, body: Any = None, **rest: Any) -> httpx.Response:
        return self.call("POST", path, json=body, **rest)

    def token_file(self, role: str) -> Path:
        path = self.folder / f"{role}.token"
        path.write_text(self.tokens[role] + "\n")
        return path

    # --- from inside ------------------------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, T], timeout: float = 10.0) -> T:
        """Await it on the daemon's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def host(self, name: str) -> Host:
        return self.run(self.fleet.named(name))

    def put(self, name: str, **changes: Any) -> Host:
        return self.run(self.fleet.put(self.host(name), **changes))

    # --- its life ---------------------------------------------------------------------------------------------------

    async def live(self, fill: Callable[[House], Awaitable[None]], ready: Callable[[], None]) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        db = await open_database(f"sqlite:///{self.folder}/ledger.db")
        try:
            await db.migrate()
            async with rig("dell", "supermicro") as self.rig:
                self.fleet = fleet = Fleet(db, SystemClock(), open_bmc=self._open_bmc)
                for name, (role, tenant) in ROLES.items():
                    text = self.tokens[name] = new_token()
                    token = Token(
                        id=f"token-{name}", name=name, role=role, hash=token_hash(text), created=1.0, tenant=tenant
                    )
                    with contextlib.suppress(Conflict):  # it lived before, on the same ledger
                        await db.commit([access.insert_token(token)])
                await fill(self)
                key = proof.new_key()
                self.boots = Boots(db, fleet.clock, Sealer(bytes(32)), "http://10.77.0.1:8680")
                services = Services(
                    db=db,
                    clock=fleet.clock,
                    inventory=fleet.inventory,
                    hosts=fleet.hosts,
                    runs=fleet.runs,
                    leases=fleet.leases,
                    proofs=ProofDesk(db, fleet.clock, key, "louisiana"),
                    brakes=fleet.brakes,
                    images=ImageDesk(
                        db,
                        fleet.clock,
                        ImageFiles(self.folder / "images", reserve=0),
                        trusted={key_id(self.image_key.public_key()): self.image_key.public_key()},
                        signer=key,
                    ),
                    boots=self.boots,
                )
                self.app = build_app(
                    services,
                    engine_age=lambda: self.engine_age,
                    clock_status=fleet.clock_brake.status,
                    socket_policy=self._policy,
                    registry=CollectorRegistry(),
                    heartbeat=self._heartbeat,
                )
                tcp = server.bind_tcp("127.0.0.1", 0)
                self.port = tcp.getsockname()[1]
                listeners = [server.Listener(sock=server.bind_unix(self.socket)), server.Listener(sock=tcp)]
                await server.serve(self.app, listeners, stopping=self._stopping, ready=ready, grace=2)
        finally:
            await db.close()

    @contextlib.asynccontextmanager
    async def _open_bmc(self, host: Host) -> AsyncIterator[Bmc]:
        """The BMCs of the first two hosts are the simulated ones; nobody answers for the rest."""
        number = int(host.name[-2:]) - 1
        if host.spec.rack != "lou-a01" or number >= len(self.rig.hosts):
            raise Unreachable(f"BMC of {host.name} does not answer")
        bmc = await self.rig.open(self.rig.hosts[number])
        try:
            yield bmc
        finally:
            await bmc.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)


async def two_racks(house: House) -> None:
    """lou-a01 with four available hosts, lou-a02 with two that are only registered."""
    files = inventory({"lou-a01": 4, "lou-a02": 2})
    await house.fleet.fill(files, available=False)
    for host in await host_rows.every(house.fleet.db, rack="lou-a01"):
        await house.fleet.put(host, state=State.AVAILABLE, certificate=f"certificate-{host.name}", expires=30 * 86_400)


@contextlib.contextmanager
def house(
    folder: Path,
    fill: Callable[[House], Awaitable[None]] = two_racks,
    *,
    heartbeat: float = 0.05,
    policy: SocketPolicy = SocketPolicy(),
) -> Iterator[House]:
    """Serve it in a thread until the test is done."""
    made = House(folder, heartbeat, policy)
    ready = threading.Event()

    def live() -> None:
        try:
            asyncio.run(made.live(fill, ready.set))
        except BaseException as error:  # noqa: BLE001 -- handed to the test's thread
            made._error = error
        finally:
            ready.set()

    thread = threading.Thread(target=live, name="house")
    thread.start()
    try:
        assert ready.wait(20)
        if made._error is None:
            yield made
    finally:
        for client in made._clients.values():
            client.close()
        if made._error is None:
            made.stop()
        thread.join(20)
    if made._error is not None:
        raise made._error


def in_days(days: float) -> str:
    """RFC 3339, so many days from now."""
    text = rfc3339(SystemClock().wall() + days * 86_400)
    assert text is not None
    return text
