"""The Redfish driver against the simulator's three vendors: verbs, read-backs, logins, faults."""

from __future__ import annotations

import asyncio
import base64

import msgspec
import pytest
from aiohttp import web

from fleetd.drivers.bmc.capabilities import Bmc, BmcTarget
from fleetd.drivers.bmc.redfish import RedfishDriver
from fleetd.kit.errors import AuthFailed, Busy, Lied, PinMismatch, Unreachable, Unsupported
from fleetd.model.bmc import Login
from fleetd.model.power import BootDevice, PowerState, PowerVerb
from fleetd.sim.redfish_profiles import PROFILES
from tests.redfish_rig import PASSWORD, USER, fault, rig, served, sim_host

BEHAVIOURS = ("dell", "supermicro", "openbmc")


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
async def test_system_is_the_host_and_not_the_baseboard(behaviour):
    async with rig(behaviour) as r:
        bmc: Bmc = await r.open()
        info = await bmc.system(timeout=2)
        assert (info.serial, info.uuid, info.model) == (r.host.serial, r.host.uuid, "M1")
        assert (info.bios_version, info.bmc_version) == ("2.3.5", "7.10.30.05")
        assert info.power is PowerState.OFF


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
async def test_power_verbs_report_the_read_back(behaviour):
    async with rig(behaviour) as r:
        bmc = await r.open()
        assert await bmc.power(PowerVerb.ON, timeout=2) is PowerState.ON
        assert r.host.power_state is PowerState.ON
        assert await bmc.power(PowerVerb.ON, timeout=2) is PowerState.ON
        assert r.did("power.on") == ["power.on"], "on of a running host sends nothing"
        assert await bmc.power(PowerVerb.RESET, timeout=2) is PowerState.ON
        assert await bmc.power(PowerVerb.CYCLE, timeout=2) is PowerState.ON
        assert r.did("power.") == ["power.on", "power.reset", "power.off", "power.on"]
        assert await bmc.power(PowerVerb.SOFT, timeout=2) is PowerState.OFF
        assert await bmc.power(PowerVerb.OFF, timeout=2) is PowerState.OFF
        assert await bmc.power(PowerVerb.RESET, timeout=2) is PowerState.OFF, "a warm reset does not start a host"


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
async def test_boot_once_sticks_also_when_repeated(behaviour):
    async with rig(behaviour) as r:
        bmc = await r.open()
        for device in (BootDevice.NETWORK, BootDevice.NETWORK, BootDevice.CD, BootDevice.BIOS_SETUP, BootDevice.DISK):
            await bmc.set_boot_once(device, timeout=2)
            assert r.host.boot_once is device


async def test_boot_goes_to_the_settings_resource_where_the_system_is_read_only():
    profile = msgspec.structs.replace(PROFILES["dell"], boot_in_settings=True)
    async with rig("dell", profiles={"dell": profile}) as r:
        bmc = await r.open()
        await bmc.set_boot_once(BootDevice.NETWORK, timeout=2)
        assert r.host.boot_once is BootDevice.NETWORK


async def test_boot_device_that_is_not_offered_is_unsupported():
    profile = msgspec.structs.replace(PROFILES["openbmc"], boot_targets=("None", "Hdd"))
    async with rig("openbmc", profiles={"openbmc": profile}) as r:
        bmc = await r.open()
        with pytest.raises(Unsupported, match="network"):
            await bmc.set_boot_once(BootDevice.NETWORK, timeout=2)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
async def test_identify_and_password(behaviour):
    async with rig(behaviour) as r:
        bmc = await r.open()
        await bmc.identify(True, timeout=2)
        assert r.host.identify_led
        await bmc.identify(False, timeout=2)
        assert not r.host.identify_led
        await bmc.set_password("s3cond-passw0rd", timeout=2)
        assert r.host.accounts["root"] == "s3cond-passw0rd"
        await bmc.close()
        with pytest.raises(AuthFailed):
            await r.driver.open(r.target(password=PASSWORD), timeout=2)
        again = await r.driver.open(r.target(password="s3cond-passw0rd"), timeout=2)
        assert await again.power_state(timeout=1) is PowerState.OFF


async def test_refused_password_stands_in_no_error():
    async with rig("supermicro") as r:
        bmc = await r.open()
        long = "a-password-longer-than-twenty"
        with pytest.raises(Unsupported) as caught:
            await bmc.set_password(long, timeout=2)
        assert long not in f"{caught.value} {caught.value.why} {caught.value!r}"
        assert r.host.accounts["root"] == PASSWORD


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
async def test_reset_bmc_keeps_the_host_running_and_the_session_comes_back(behaviour):
    async with rig(behaviour) as r:
        bmc = await r.open()
        await bmc.power(PowerVerb.ON, timeout=2)
        await bmc.reset_bmc(timeout=2)
        assert await bmc.power_state(timeout=3) is PowerState.ON
        assert r.did("bmc.reset") == ["bmc.reset"]
        assert len(r.did("bmc.login")) == 2, "the restart forgot our session: one new login"


async def test_one_connection_a_bmc_kept_over_sessions(monkeypatch):
    async with rig("dell") as r:
        connected = []
        admit = r.server._admit
        monkeypatch.setattr(r.server, "_admit", lambda sock: (connected.append(1), admit(sock)))
        first, second = await r.open(), await r.open()
        async with asyncio.TaskGroup() as group:
            for bmc in (first, second, first, second):
                group.create_task(bmc.power_state(timeout=2))
        await first.close()
        await second.close()
        assert connected == [1]


# --- logins ------------------------------------------------------------------------------------------


async def test_pin_mismatch_sends_no_byte_of_the_login():
    async with rig("dell") as r:
        target = r.target()
        r.server.rotate_certificate(r.host)
        with pytest.raises(PinMismatch):
            await r.driver.open(target, timeout=2)
        assert r.did("bmc.login") == []
        fresh = await r.driver.read_pin(target, timeout=2)
        assert fresh == r.server.pin(r.host) != target.tls_pin
        assert r.did("bmc.login") == [], "reading a pin logs in nowhere"


async def test_certificate_changed_under_a_kept_session_stops_it():
    async with rig("openbmc") as r:
        bmc = await r.open()
        await bmc.power_state(timeout=2)
        r.server.rotate_certificate(r.host)
        with pytest.raises(PinMismatch):
            await bmc.power(PowerVerb.ON, timeout=2)
        await bmc.close()
        assert r.host.power_state is PowerState.OFF
        assert len(r.did("bmc.login")) == 1


async def test_without_a_pin_any_certificate_is_taken_for_enrolment():
    async with rig("dell") as r:
        bmc = await r.driver.open(r.target(pin=""), timeout=2)
        assert await bmc.power_state(timeout=2) is PowerState.OFF


async def test_wrong_password():
    async with rig(*BEHAVIOURS) as r:
        for host in r.hosts:
            with pytest.raises(AuthFailed) as caught:
                await r.driver.open(r.target(host, password="wr0ng-secret"), timeout=2)
            assert "wr0ng-secret" not in repr(caught.value) + caught.value.why
        assert all("wr0ng" not in str(entry) and PASSWORD not in str(entry) for entry in r.record.entries)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
async def test_a_full_session_table_falls_back_to_basic(behaviour):
    async with rig(behaviour) as r:
        state = r.server.bmc(r.host)
        while state.open_session("somebody") is not None:
            pass
        bmc = await r.open()
        assert await bmc.power(PowerVerb.ON, timeout=2) is PowerState.ON
        await bmc.set_password("s3cond-passw0rd", timeout=2)
        assert await bmc.power_state(timeout=2) is PowerState.ON, "Basic goes on with the new password"
        await bmc.close()
        assert len(state.sessions) == state.profile.sessions


async def test_a_service_without_sessions_that_asks_for_the_login_first():
    """As sushy-emulator: no SessionService, and 401 to whoever asks for one without a password."""
    right = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.path.rstrip("/") == "/redfish/v1":
            return web.json_response({"Systems": {"@odata.id": "/redfish/v1/Systems"}})
        good = request.headers.get("Authorization") == right
        return web.json_response({"Members": []}, status=200 if good else 401)

    async with served(handle) as (driver, target):
        await (await driver.open(target, timeout=5)).close()
        with pytest.raises(AuthFailed):
            await driver.open(msgspec.structs.replace(target, login=Login(USER, "wrong")), timeout=5)


async def test_a_lost_token_is_renewed_once_for_all_calls():
    async with rig("dell") as r:
        bmc = await r.open()
        await bmc.power_state(timeout=2)
        r.server.bmc(r.host).sessions.clear()
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(bmc.power_state(timeout=2))
        assert len(r.did("bmc.login")) == 2


async def test_a_password_changed_by_others_is_auth_failed():
    async with rig("dell") as r:
        bmc = await r.open()
        r.host.accounts["root"] = "changed-by-hand"
        r.server.bmc(r.host).sessions.clear()
        with pytest.raises(AuthFailed):
            await bmc.power_state(timeout=2)


async def test_close_frees_the_slot_and_is_safe_twice():
    async with rig("dell") as r:
        bmc = await r.open()
        assert len(r.server.bmc(r.host).sessions) == 1
        await bmc.close()
        await bmc.close()
        assert not r.server.bmc(r.host).sessions
        with pytest.raises(Unreachable):
            await bmc.power_state(timeout=1)


# --- faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
async def test_lying_bmc(behaviour):
    async with rig(behaviour) as r:
        bmc = await r.open()
        await bmc.power_state(timeout=2)
        r.host.faults.append(fault("lying-bmc"))
        with pytest.raises(Lied):
            await bmc.power(PowerVerb.ON, timeout=0.6)
        with pytest.raises(Lied):
            await bmc.set_boot_once(BootDevice.BIOS_SETUP, timeout=0.6)
        assert r.host.power_state is PowerState.OFF


@pytest.mark.parametrize("mode", ["silent", "refuse"])
async def test_deaf_bmc(mode):
    async with rig("dell") as r:
        bmc = await r.open()
        r.host.faults.append(fault("deaf-bmc", mode=mode))
        with pytest.raises(Unreachable):
            await bmc.power_state(timeout=0.05)
        with pytest.raises(Unreachable):
            await r.driver.open(r.target(), timeout=0.05)
        with pytest.raises(Unreachable):
            await r.driver.read_pin(r.target(), timeout=0.05)
        r.host.faults.clear()
        assert await bmc.power_state(timeout=2) is PowerState.OFF, "it hears again, and so do we"


async def test_nobody_listens():
    async with rig("dell") as r:
        await r.server.close()
        with pytest.raises(Unreachable):
            await r.driver.open(r.target(), timeout=1)


async def test_busy_bmc_is_waited_for():
    async with rig("dell") as r:
        r.host.faults.append(fault("busy-bmc", count=3, retry_after=0))
        bmc = await r.open()
        assert await bmc.power_state(timeout=2) is PowerState.OFF
        assert r.host.faults[0].fired == 3


async def test_busy_for_longer_than_the_call_is_busy_with_its_retry_after():
    async with rig("dell") as r:
        bmc = await r.open()
        r.host.faults.append(fault("busy-bmc", retry_after=30))
        with pytest.raises(Busy) as caught:
            await bmc.power_state(timeout=1)
        assert caught.value.retry_after == 30


async def test_slow_bmc_within_and_past_the_deadline():
    async with rig("dell") as r:
        bmc = await r.open()
        await bmc.power_state(timeout=2)
        r.host.faults.append(fault("slow-bmc", seconds=0.03))
        assert await bmc.power_state(timeout=1) is PowerState.OFF
        with pytest.raises(Unreachable):
            await bmc.power_state(timeout=0.01)


async def test_transit_is_unknown_and_never_a_guess():
    async with rig("dell", power=0.05) as r:
        bmc = await r.open()
        async with asyncio.TaskGroup() as group:
            verb = group.create_task(bmc.power(PowerVerb.ON, timeout=2))
            seen = set()
            while not verb.done():
                seen.add(await bmc.power_state(timeout=1))
        assert seen >= {PowerState.UNKNOWN}
        assert await bmc.power_state(timeout=1) is PowerState.ON


async def test_a_bad_pin_in_the_ledger_is_a_typed_error():
    driver = RedfishDriver()
    target = BmcTarget(protocol="redfish", host="127.0.0.1", port=1, login=Login("a", "b"), tls_pin="nonsense")
    with pytest.raises(PinMismatch):
        await driver.open(target, timeout=1)
    await driver.close()


async def test_a_site_without_a_bmc_costs_nothing():
    """A thousand hosts exist before anybody talks to them: no certificate, no state."""
    from fleetd.sim.bmc_redfish import RedfishServer
    from fleetd.sim.record import Record

    record = Record()
    hosts = {h.bmc_address: h for h in (sim_host(n, "dell", record) for n in range(1, 1001))}
    server = RedfishServer(hosts.get)
    await server.start(["127.41.0.1"])
    assert not server._bmcs
    await server.close()
