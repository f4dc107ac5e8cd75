"""The conformance suite over Redfish: TLS, real sockets, the simulator's three vendors."""

from __future__ import annotations

import pytest

from fleetd.drivers.bmc import redfish_boot, redfish_media
from fleetd.drivers.bmc.capabilities import Bmc
from fleetd.sim.host import Behaviour
from tests.conformance import bmc_cases
from tests.redfish_rig import rig


@pytest.mark.parametrize("behaviour", ["dell", "supermicro", "openbmc"])
@pytest.mark.parametrize("case", bmc_cases.ALL, ids=lambda case: case.__name__)
async def test_redfish_keeps_the_contract(
    case: bmc_cases.Case, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redfish_boot, "_SETTLE", 0.1)  # a lie about boot shows after this long, not after seconds
    monkeypatch.setattr(redfish_media, "_SETTLE", 0.1)
    monkeypatch.setattr(redfish_media, "_TRY_PAUSE", 0.01)
    async with rig(behaviour) as r:

        async def reopen(password: str) -> Bmc:
            return await r.driver.open(r.target(password=password), timeout=5)

        bmc = await r.open()
        await case(bmc, r.host, reopen)
        await bmc.close()
