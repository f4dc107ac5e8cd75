"""Virtual media in the trees of recorded machines, and the ways in that the three simulated vendors do not have."""

from __future__ import annotations

import json

import msgspec
import pytest
from aiohttp import web

from fleetd.drivers.bmc import redfish_media
from fleetd.kit.errors import Busy, Lied, Unsupported
from fleetd.sim.redfish_profiles import PROFILES
from tests.redfish_rig import recorded, rig, served, tree

ISO = "http://10.0.0.1:8680/deploy/deploy.iso"
SLOTS = {
    "Dell_R750_iDRAC9": "/redfish/v1/Managers/iDRAC.Embedded.1/VirtualMedia/CD",
    "HPE_DL380aGen11_iLO6_simulated": "/redfish/v1/Managers/1/VirtualMedia/2",
    "Lenovo_SR670V2_XCC-1.40": "/redfish/v1/Managers/1/VirtualMedia/EXT1",  # no action: PATCH
    "NVIDIA_GH200": "/redfish/v1/Managers/BMC_0/VirtualMedia/USB2",
    "Supermicro_GB300": "/redfish/v1/Managers/BMC_0/VirtualMedia/USB2",
    "Supermicro_HGX-8GPU": "/redfish/v1/Managers/1/VirtualMedia/VirtualMedia1",
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redfish_media, "_SETTLE", 0.1)
    monkeypatch.setattr(redfish_media, "_TRY_PAUSE", 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOTS)
async def test_the_right_slot_of_a_recorded_tree(name: str) -> None:
    documents = recorded(name)
    used: list[str] = []

    async def act(request: web.BaseRequest) -> web.Response:
        body = json.loads(await request.read())
        path, _, action = request.path.partition("/Actions/VirtualMedia.")
        if "/RDOC" in path:  # Lenovo: local storage of the BMC, no remote image
            return web.Response(status=400)
        out = action == "EjectMedia" or (request.method == "PATCH" and body["Image"] is None)
        used.append(f"{'out' if out else 'in'} {path}")
        documents[path] |= {"Image": None if out else body["Image"], "Inserted": not out}
        return web.Response(status=204)

    async with served(tree(documents, also=act)) as (driver, target):
        bmc = await driver.open(target, timeout=5)
        await bmc.insert_media(ISO, timeout=5)
        await bmc.eject_media(timeout=5)
        await bmc.close()
    assert used == [f"in {SLOTS[name]}", f"out {SLOTS[name]}"]


@pytest.mark.slow
async def test_a_tree_without_a_slot_says_the_way_around() -> None:
    async with served(tree(recorded("NVIDIA_DGX-H100"))) as (driver, target):
        bmc = await driver.open(target, timeout=5)
        with pytest.raises(Unsupported) as caught:
            await bmc.insert_media(ISO, timeout=5)
        assert "boot_via: network" in caught.value.remedy
        await bmc.close()


@pytest.mark.parametrize("place", ["manager", "system"])
async def test_a_slot_without_actions_is_patched(place: str) -> None:
    profile = msgspec.structs.replace(PROFILES["supermicro"], media_way="patch", media_in=place)
    async with rig("supermicro", profiles={"supermicro": profile}) as r:
        bmc = await r.open()
        await bmc.insert_media(ISO, timeout=5)
        assert list(r.host.media.values()) == [ISO]
        await bmc.eject_media(timeout=5)
        assert r.host.media == {}
        await bmc.close()


async def test_a_slot_that_stays_busy_is_temporary_and_nothing_is_in() -> None:
    async with rig("dell") as r:
        bmc = await r.open()
        r.server.bmc(r.host).media_busy = 100
        with pytest.raises(Busy):
            await bmc.insert_media(ISO, timeout=5)
        assert r.host.media == {}
        await bmc.close()


async def test_another_image_than_ours_is_a_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig("dell") as r:
        bmc = await r.open()
        put = r.host.set_media
        monkeypatch.setattr(r.host, "set_media", lambda slot, url: put(slot, url and "http://10.0.0.9/other.iso"))
        with pytest.raises(Lied, match=r"other\.iso"):
            await bmc.insert_media(ISO, timeout=5)
        await bmc.close()
