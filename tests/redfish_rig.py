"""Simulated Redfish BMCs, hand-made hostile ones, and the real driver in front of them, for the tests of several rooms."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fleetd.drivers.bmc.capabilities import BmcTarget
from fleetd.drivers.bmc.redfish import RedfishBmc, RedfishDriver
from fleetd.model.bmc import Login
from fleetd.model.sku import (
    CpuProfile,
    GpuProfile,
    NetworkProfile,
    NvlinkProfile,
    PcieProfile,
    Sku,
    StorageProfile,
)
from fleetd.sim.bmc_redfish import RedfishServer
from fleetd.sim.faults import Fault
from fleetd.sim.host import Behaviour, SimHost, Timings
from fleetd.sim.record import Record
from fleetd.sim.redfish_profiles import PROFILES, Profile
from fleetd.sim.redfish_tls import Certificates

USER, PASSWORD = "root", "calvin-9f31c"
SAMPLES = Path(os.environ.get("FLEETD_SAMPLES", Path(__file__).parents[1] / ".." / "shared" / "samples"))

SKU = Sku(
    sku="acme.m1",
    vendor="Acme",
    model="M1",
    image="ubuntu",
    gpu=GpuProfile(
        count=8,
        name="H100",
        pci_id="2330",
        memory_mib=81559,
        vbios=(),
        driver=(),
        power_limit_w=700,
        pcie=PcieProfile(generation=5, width=16),
        nvlink=NvlinkProfile(links=18, mb_per_s=26562, version=4),
    ),
    network=NetworkProfile(count=8, rate_gbps=400),
    storage=StorageProfile(nvme_count=2, nvme_min_gb=100),
    cpu=CpuProfile(sockets=2, cores=64, memory_gib=1024),
    acceptance=("gpu.count",),
    quick=("gpu.count",),
)


def skip_or_fail(reason: str) -> None:
    """Absent material skips on a desk and fails in CI."""
    if os.environ.get("CI") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


class Rig:
    """Hosts by behaviour, the server, the driver."""

    def __init__(self, server: RedfishServer, port: int, driver: RedfishDriver, hosts: list[SimHost], record: Record):
        self.server, self.port, self.driver, self.hosts, self.record = server, port, driver, hosts, record
        self.host = hosts[0]

    def target(self, host: SimHost | None = None, *, password: str | None = None, pin: str | None = None) -> BmcTarget:
        host = host or self.host
        return BmcTarget(
            protocol="redfish",
            host=host.bmc_address,
            port=self.port,
            login=Login(USER, host.accounts[USER] if password is None else password),
            tls_pin=self.server.pin(host) if pin is None else pin,
        )

    async def open(self, host: SimHost | None = None) -> RedfishBmc:
        return await self.driver.open(self.target(host), timeout=2.0)

    def did(self, what: str) -> list[str]:
        return [entry.what for entry in self.record.of(what=what)]


def sim_host(number: int, behaviour: Behaviour, record: Record, *, power: float = 0.01) -> SimHost:
    return SimHost(
        name=f"{behaviour}-{number}",
        site="lou",
        serial=f"7XK21B{number}",
        mac=f"02:00:00:00:00:{number:02x}",
        sku=SKU,
        behaviour=behaviour,
        bmc_address=f"127.41.{number >> 8}.{(number & 255) or 255}",
        os_address=f"127.42.{number >> 8}.{(number & 255) or 255}",
        username=USER,
        password=PASSWORD,
        record=record,
        timings=Timings(power=power, post=0.01, boot=0.01),
        faults=[],
    )


@contextlib.asynccontextmanager
async def rig(
    *behaviours: Behaviour, power: float = 0.01, profiles: Mapping[str, Profile] = PROFILES, reset_seconds: float = 0.05
) -> AsyncIterator[Rig]:
    """One simulated host for each behaviour, served and ready."""
    record = Record()
    hosts = [sim_host(n, b, record, power=power) for n, b in enumerate(behaviours or ("dell",), 1)]
    by_address = {host.bmc_address: host for host in hosts}
    server = RedfishServer(by_address.get, profiles=profiles, reset_seconds=reset_seconds)
    port = await server.start(list(by_address))
    driver = RedfishDriver()
    try:
        yield Rig(server, port, driver, hosts, record)
    finally:
        await driver.close()
        await server.close()
        for host in hosts:
            host.close()


def fault(kind: str, count: int | None = None, **params: Any) -> Fault:
    return Fault(kind=kind, params=params, count=count)


# --- hand-made BMCs ------------------------------------------------------------------------------------------

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[tuple[RedfishDriver, BmcTarget]]:
    """A BMC that answers what the test says, and a driver; the login is whatever the handler makes of it."""
    context = Certificates("hostile").context("hostile", "127.0.0.1")
    server = web.Server(handler, handler_cancellation=True)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0, ssl=context)
    driver = RedfishDriver()
    try:
        yield driver, target_of(listener.sockets[0])
    finally:
        await driver.close()
        listener.close()
        await server.shutdown(0.1)


@contextlib.asynccontextmanager
async def raw(answer: bytes) -> AsyncIterator[tuple[RedfishDriver, BmcTarget]]:
    """A TLS peer that answers these bytes to whatever comes first, then hangs up."""
    context = Certificates("hostile").context("hostile", "127.0.0.1")
    writers: list[asyncio.StreamWriter] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError):
            await reader.read(4096)
            writer.write(answer)
            await writer.drain()
            writer.transport.abort()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
    driver = RedfishDriver()
    try:
        yield driver, target_of(listener.sockets[0])
    finally:
        await driver.close()
        listener.close()
        for writer in writers:
            writer.transport.abort()


def target_of(sock: socket.socket) -> BmcTarget:
    port = sock.getsockname()[1]
    pin = Certificates("hostile").pin("hostile", "127.0.0.1")
    return BmcTarget(protocol="redfish", host="127.0.0.1", port=port, login=Login(USER, PASSWORD), tls_pin=pin)


def tree(documents: Mapping[str, Any], *, also: Handler | None = None, all_gets: bool = False) -> Handler:
    """A BMC that shows these resources; POST Sessions gives a token, other writes go to `also` (reads too if `all_gets`)."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        path = request.path_qs.rstrip("/")
        if request.method == "POST" and path.endswith("/Sessions"):
            return web.json_response({}, status=201, headers={"X-Auth-Token": "t", "Location": f"{path}/1"})
        if request.method == "GET" and path in documents:
            body = documents[path]
            return body() if callable(body) else web.json_response(body)
        if request.method == "DELETE":
            return web.Response(status=204)
        if also is None or (request.method == "GET" and not all_gets):
            return web.Response(status=404)
        return await also(request)

    return handle


def recorded(name: str) -> dict[str, Any]:
    """Resources of one recorded tree by path without trailing slash."""
    path = SAMPLES / "redfish" / name / "tree.jsonl"
    if not path.exists():
        skip_or_fail(f"no recorded tree at {path}; set FLEETD_SAMPLES")
    with path.open() as file:
        return {line["uri"].rstrip("/"): line["body"] for line in map(json.loads, file) if "/redfish/v1" in line["uri"]}
