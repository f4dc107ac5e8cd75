"""The conformance suite over RMCP+, real sockets, suites 17 and 3."""

from __future__ import annotations

import pytest

from fleetd.drivers.bmc.capabilities import Bmc
from fleetd.drivers.bmc.ipmi import IpmiDriver
from fleetd.sim.bmc_ipmi import IpmiServer
from tests.conformance import bmc_cases
from tests.ipmi_hosts import make_hosts, target


@pytest.mark.parametrize("suites", [(3, 17), (3,)], ids=["suite17", "suite3"])
@pytest.mark.parametrize("case", bmc_cases.ALL, ids=lambda case: case.__name__)
async def test_ipmi_keeps_the_contract(case: bmc_cases.Case, suites: tuple[int, ...]) -> None:
    hosts = make_hosts(1)
    (host,) = hosts.values()
    server = IpmiServer(hosts.get, bind=host.bmc_address, suites=suites)
    driver = IpmiDriver()

    async def reopen(password: str) -> Bmc:
        return await driver.open(target(host, port=server.port, password=password), timeout=5)

    try:
        bmc = await driver.open(target(host, port=server.port), timeout=5)
        await case(bmc, host, reopen)
        await bmc.close()
        host.faults.clear()
    finally:
        await driver.close()
        server.close()
        host.close()
