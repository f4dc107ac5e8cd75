"""The driver reads the recorded trees of real machines: the right host system, its serial, its reset types."""

from __future__ import annotations

import pytest
from aiohttp import web

from fleetd.drivers.bmc.session import Call
from fleetd.kit.clock import SystemClock
from fleetd.kit.errors import Unsupported
from fleetd.model.power import BootDevice, PowerState, PowerVerb
from tests.redfish_rig import recorded, served, tree

TREES = {
    # tree: system, serial, uuid, BIOS, BMC firmware, quirks
    "Dell_R750_iDRAC9": ("System.Embedded.1", "F54P1G3", "4c4c4544-0035-3410-8050-c6c04f314733", "1.8.2", "6.00.30.00"),
    "NVIDIA_DGX-H100": ("DGX", "1662923610124", "b11dd4f2-bfde-1000-02bc-5cff35fbe6e9", "1.1.3", "23.11.20"),
    "NVIDIA_GH200": ("System_0", "", "1e90aa6e-6d05-9589-2253-ce7672d02d26", "", "GH200-24.05-2"),
    "Supermicro_GB300": ("System_0", "S964512X5913271", "5f1cf000-643d-11f0-8000-7cc25590513a", "", "70.01.00.09"),
    "Supermicro_HGX-8GPU": ("1", "S889914X3710910", "00000000-0000-0000-0000-7cc25550a8ff", "1.4", "11.01.01"),
    "HPE_DL380aGen11_iLO6_simulated": (
        "1", "2M2D2J00L4", "39343550-3330-4d32-3244-324a30304c34", "U58 v2.44 (01/17/2025)", "iLO 6 v1.66",
    ),
    "Lenovo_SR670V2_XCC-1.40": (
        "1", "J101RZ43", "bc20d65a-1a53-11ec-8c43-7e8ae1d5a277", "U8E112A", "TGBT20E 1.40 2021-05-17",
    ),
    "DMTF_rackmount1": (
        "437XR1138R2", "437XR1138R2", "38947555-7742-3448-3784-823347823834", "P79 v1.45 (12/06/2017)", "1.45.455b66-rev4",
    ),
}  # fmt: skip

QUIRKS = {
    "Dell_R750_iDRAC9": {"dell-poweron-conflict-409", "dell-serial-is-service-tag", "dell-skip-unchanged-boot-enabled"},
    "NVIDIA_DGX-H100": {"ami-boot-all-fields"},
    "Supermicro_HGX-8GPU": {"supermicro-boot-all-fields"},
    "Supermicro_GB300": {"supermicro-boot-all-fields"},
    "HPE_DL380aGen11_iLO6_simulated": {"hpe-busy-during-post"},
}

TYPES = {
    "Dell_R750_iDRAC9": {"On", "ForceOff", "ForceRestart", "PushPowerButton", "PowerCycle"},
    "NVIDIA_DGX-H100": {"On", "ForceOff", "ForceRestart"},
    "NVIDIA_GH200": {"On", "ForceOff", "ForceOn", "PowerCycle"},
    "Supermicro_HGX-8GPU": {"On", "ForceOff", "ForceOn", "PowerCycle"},
    "HPE_DL380aGen11_iLO6_simulated": {"On", "ForceOff", "PushPowerButton"},
    "Lenovo_SR670V2_XCC-1.40": {"On", "ForceOff", "ForceOn"},
    "DMTF_rackmount1": {"On", "ForceOff", "ForceOn", "PushPowerButton"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
async def test_recorded_tree(name):
    documents = recorded(name)
    posted: list[tuple[str, bytes]] = []

    async def act(request: web.BaseRequest) -> web.Response:
        posted.append((request.path, await request.read()))
        system = documents[request.path.partition("/Actions/")[0]]
        system["PowerState"] = "Off"
        return web.Response(status=204)

    system, serial, uuid, bios, firmware = TREES[name]
    async with served(tree(documents, also=act)) as (driver, target):
        bmc = await driver.open(target, timeout=5)
        info = await bmc.system(timeout=5)
        assert (info.serial, info.uuid, info.bios_version, info.bmc_version) == (serial, uuid, bios, firmware)
        assert info.power is PowerState.ON
        assert {quirk.name for quirk in bmc.quirks} == QUIRKS.get(name, set())
        if name in TYPES:
            _, allowed = await bmc.reset_action(Call(SystemClock(), 5))
            assert TYPES[name] <= set(allowed or ())
        assert await bmc.power(PowerVerb.OFF, timeout=5) is PowerState.OFF
        assert posted == [(f"/redfish/v1/Systems/{system}/Actions/ComputerSystem.Reset", b'{"ResetType":"ForceOff"}')]
        await bmc.close()


@pytest.mark.slow
async def test_dgx_boot_goes_to_its_settings_resource_with_its_etag():
    documents = recorded("NVIDIA_DGX-H100")
    patched: list[tuple[str, str | None, bytes]] = []

    async def act(request: web.BaseRequest) -> web.Response:
        body = await request.read()
        patched.append((request.path, request.headers.get("If-Match"), body))
        if request.path != "/redfish/v1/Systems/DGX/SD":
            return web.Response(status=405)
        documents[request.path]["Boot"] |= {"BootSourceOverrideTarget": "Pxe", "BootSourceOverrideEnabled": "Once"}
        return web.Response(status=204)

    async with served(tree(documents, also=act)) as (driver, target):
        bmc = await driver.open(target, timeout=5)
        await bmc.set_boot_once(BootDevice.NETWORK, timeout=5)
        path, etag, body = patched[-1]
        assert (path, etag) == ("/redfish/v1/Systems/DGX/SD", '"1720574208"')
        assert b'"BootSourceOverrideMode":"UEFI"' in body


async def test_an_hgx_board_alone_is_no_host_that_can_be_switched():
    """The GB300 fixture without its System_0: what is left has no reset action."""
    documents = recorded("NVIDIA_GB300_partial")
    documents["/redfish/v1/Systems"]["Members"] = [{"@odata.id": "/redfish/v1/Systems/HGX_Baseboard_0"}]
    async with served(tree(documents)) as (driver, target):
        bmc = await driver.open(target, timeout=5)
        with pytest.raises(Unsupported):
            await bmc.power(PowerVerb.OFF, timeout=5)
