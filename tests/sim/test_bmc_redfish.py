"""The simulator's Redfish wire by plain HTTP: what a client nobody here wrote would meet."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from fleetd.model.power import BootDevice, PowerState
from fleetd.sim.bmc_redfish import RedfishServer
from fleetd.sim.host import SimHost
from fleetd.sim.record import Record
from fleetd.sim.redfish_profiles import PROFILES
from fleetd.sim.redfish_tls import Certificates
from tests.redfish_rig import PASSWORD, USER, Rig, fault, rig, sim_host


class Client:
    """Basic auth, JSON, no checks of the certificate."""

    def __init__(self, http: aiohttp.ClientSession, base: str) -> None:
        self.http, self.base = http, base

    async def ask(self, method: str, path: str, body: Any = None, *, auth: bool = True, **headers: str):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if auth:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        async with self.http.request(method, self.base + path, json=body, headers=headers, ssl=False) as answer:
            data = await answer.read()
            return answer.status, (await answer.json() if data else {}), answer.headers


@contextlib.asynccontextmanager
async def client(r: Rig, host: SimHost | None = None) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as http:
        yield Client(http, f"https://{(host or r.host).bmc_address}:{r.port}/redfish/v1")


SYSTEMS = {"dell": "System.Embedded.1", "supermicro": "1", "openbmc": "system"}


@pytest.mark.parametrize("behaviour", SYSTEMS)
async def test_the_tree_hangs_together(behaviour):
    """Every link that the tree shows leads to a resource."""
    async with rig(behaviour) as r, client(r) as c:
        seen, todo = set(), ["/redfish/v1/"]
        while todo:
            path = todo.pop()
            seen.add(path)
            status, body, _ = await c.ask("GET", path.removeprefix("/redfish/v1"))
            assert status == 200, path
            assert body["@odata.id"] == path
            stack = [body]
            while stack:
                value = stack.pop()
                if isinstance(value, dict):
                    for key, inner in value.items():
                        if key in ("@odata.id", "@Redfish.ActionInfo") and inner not in seen and inner not in todo:
                            todo.append(inner)
                    stack += value.values()
                elif isinstance(value, list):
                    stack += value
        assert f"/redfish/v1/Systems/{SYSTEMS[behaviour]}" in seen
        assert ("/redfish/v1/Systems/HGX_Baseboard_0" in seen) == (behaviour == "openbmc")


async def test_root_is_open_and_nothing_else():
    async with rig("dell") as r, client(r) as c:
        assert (await c.ask("GET", "/", auth=False))[0] == 200
        assert (await c.ask("GET", "/Systems", auth=False))[0] == 401
        assert (await c.ask("GET", "/Systems", auth=False, X_Auth_Token="guess"))[0] == 401
        assert (await c.ask("POST", "/Systems/System.Embedded.1/Actions/ComputerSystem.Reset", {}, auth=False))[
            0
        ] == 401


@pytest.mark.parametrize(("behaviour", "status"), [("dell", 503), ("supermicro", 400), ("openbmc", 503)])
async def test_session_slots(behaviour, status):
    login = {"UserName": USER, "Password": PASSWORD}
    async with rig(behaviour) as r, client(r) as c:
        first = None
        for _ in range(PROFILES[behaviour].sessions):
            code, _, headers = await c.ask("POST", "/SessionService/Sessions", login, auth=False)
            assert code == 201
            first = first or headers
        assert (await c.ask("POST", "/SessionService/Sessions", login, auth=False))[0] == status
        place, token = first["Location"].removeprefix("/redfish/v1"), first["X-Auth-Token"]
        assert (await c.ask("DELETE", place, auth=False, X_Auth_Token=token))[0] == 204
        assert (await c.ask("GET", "/Systems", auth=False, X_Auth_Token=token))[0] == 401
        assert (await c.ask("POST", "/SessionService/Sessions", login, auth=False))[0] == 201
        bad = {"UserName": USER, "Password": "no"}
        assert (await c.ask("POST", "/SessionService/Sessions", bad, auth=False))[0] == 401
        assert all(PASSWORD not in str(entry) for entry in r.record.entries)


async def test_dell_ways():
    path = "/Systems/System.Embedded.1"
    async with rig("dell") as r, client(r) as c:
        act = f"{path}/Actions/ComputerSystem.Reset"
        assert (await c.ask("POST", act, {"ResetType": "ForceOn"}))[0] == 400
        assert (await c.ask("POST", act, {"ResetType": "On"}))[0] == 204
        assert (await c.ask("GET", path))[1]["PowerState"] == "PoweringOn"
        while (await c.ask("GET", path))[1]["PowerState"] != "On":
            pass
        assert r.host.power_state is PowerState.ON
        assert (await c.ask("POST", act, {"ResetType": "On"}))[0] == 409
        once = {"Boot": {"BootSourceOverrideTarget": "Pxe", "BootSourceOverrideEnabled": "Once"}}
        assert (await c.ask("PATCH", path, once))[0] == 204
        assert (await c.ask("PATCH", path, once))[0] == 400, "an unchanged Enabled is refused"
        assert (await c.ask("GET", path))[1]["SKU"] == r.host.serial


async def test_supermicro_ways():
    path = "/Systems/1"
    async with rig("supermicro") as r, client(r) as c:
        boot = {"BootSourceOverrideTarget": "UsbCd", "BootSourceOverrideEnabled": "Once"}
        status, _, headers = await c.ask("GET", path)
        etag = headers["ETag"]
        assert (await c.ask("PATCH", path, {"Boot": boot}))[0] == 428
        assert (await c.ask("PATCH", path, {"Boot": boot}, If_Match='"old"'))[0] == 412
        assert (await c.ask("PATCH", path, {"Boot": boot}, If_Match=etag))[0] == 400, "the mode is missing"
        boot["BootSourceOverrideMode"] = "UEFI"
        assert (await c.ask("PATCH", path, {"Boot": boot}, If_Match=etag))[0] == 204
        assert r.host.boot_once is BootDevice.CD
        reset = "/Managers/1/Actions/Manager.Reset"
        assert (await c.ask("POST", reset, {"ResetType": "GracefulRestart"}))[0] == 400
        assert (await c.ask("POST", reset, {}))[0] == 204
        status, _, headers = await c.ask("GET", path)
        assert (status, headers["Retry-After"]) == (503, "0")


async def test_openbmc_ways():
    path = "/Systems/system"
    async with rig("openbmc") as r, client(r) as c:
        etag = (await c.ask("GET", path))[2]["ETag"]
        assert etag.startswith("W/")
        body = {"LocationIndicatorActive": True}
        assert (await c.ask("PATCH", path, body, If_Match=etag))[0] == 412
        assert (await c.ask("PATCH", path, body, If_Match=etag.removeprefix("W/")))[0] == 204
        assert r.host.identify_led
        assert (await c.ask("PATCH", f"/AccountService/Accounts/{USER}", {"Password": "x" * 12}))[0] == 204
        assert r.host.accounts[USER] == "x" * 12


@pytest.mark.parametrize("behaviour", SYSTEMS)
async def test_nonsense_is_refused_and_changes_nothing(behaviour):
    path = f"/Systems/{SYSTEMS[behaviour]}"
    async with rig(behaviour) as r, client(r) as c:
        for body in ([], 5, {"ResetType": 7}, {"ResetType": {"a": 1}}, {}):
            assert (await c.ask("POST", f"{path}/Actions/ComputerSystem.Reset", body))[0] == 400
        assert (await c.ask("PATCH", path, {"Boot": {"BootSourceOverrideTarget": 5}}, If_Match="*"))[0] == 400
        assert (await c.ask("PATCH", path, {"Nothing": 1}, If_Match="*"))[0] == 400
        assert (await c.ask("PATCH", "/Nowhere", {}))[0] == 404
        assert (await c.ask("PUT", path, {}))[0] == 405
        assert (await c.ask("GET", "/AccountService/Accounts/99"))[0] == 404
        assert (await c.ask("DELETE", "/SessionService/Sessions/99"))[0] == 404
        assert r.host.power_state is PowerState.OFF
        assert r.did("power.") == []


async def test_faults_count():
    async with rig("dell") as r, client(r) as c:
        r.host.faults.append(fault("busy-bmc", count=2, retry_after=7))
        for _ in range(2):
            status, _, headers = await c.ask("GET", "/")
            assert (status, headers["Retry-After"]) == (503, "7")
        assert (await c.ask("GET", "/"))[0] == 200
        r.host.faults.append(fault("lying-bmc", count=1))
        act = "/Systems/System.Embedded.1/Actions/ComputerSystem.Reset"
        assert (await c.ask("POST", act, {"ResetType": "On"}))[0] == 204
        assert r.did("power.") == ["power.ignored"]
        assert (await c.ask("POST", act, {"ResetType": "On"}))[0] == 204
        assert r.did("power.") == ["power.ignored", "power.on"]


async def test_power_cycle_loses_power_and_comes_back():
    async with rig("openbmc") as r, client(r) as c:
        r.host.power_state = PowerState.ON
        act = "/Systems/system/Actions/ComputerSystem.Reset"
        assert (await c.ask("POST", act, {"ResetType": "PowerCycle"}))[0] == 204
        async with asyncio.timeout(2):
            while r.did("power.") != ["power.off", "power.on"]:
                await c.ask("GET", "/")


async def test_one_wildcard_listener_tells_hosts_apart():
    record = Record()
    hosts = {h.bmc_address: h for h in (sim_host(n, "openbmc", record) for n in range(1, 21))}
    server = RedfishServer(hosts.get)
    port = await server.start(["0.0.0.0"])
    try:
        async with aiohttp.ClientSession() as http:
            for address, host in hosts.items():
                async with http.get(f"https://{address}:{port}/redfish/v1/", ssl=False) as answer:
                    assert (await answer.json())["UUID"] == host.uuid
            with pytest.raises(aiohttp.ClientError):
                await http.get(f"https://127.99.0.1:{port}/redfish/v1/", ssl=False)
    finally:
        await server.close()


def test_certificates_differ_by_host_last_and_rotate():
    one, again = Certificates(), Certificates()
    pin = one.pin("a", "127.0.0.1")
    assert pin == one.pin("a", "127.0.0.1") != one.pin("b", "127.0.0.2")
    assert pin == again.pin("a", "127.0.0.1"), "the same after a restart of the simulator"
    one.rotate("a")
    assert one.pin("a", "127.0.0.1") != pin
