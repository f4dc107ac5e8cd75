"""The driver over real sockets: many BMCs on one of ours, on the stdlib's loop and on uvloop."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from fleetd.drivers.bmc.ipmi import IpmiBmc, IpmiDriver
from fleetd.kit.tasks import gather_bounded
from fleetd.model.power import PowerState, PowerVerb
from fleetd.sim.bmc_ipmi import IpmiServer
from fleetd.sim.host import SimHost
from tests.ipmi_hosts import make_hosts, target


async def sweep(count: int) -> None:
    hosts = make_hosts(count)
    server = IpmiServer(hosts.get, bind="0.0.0.0")
    driver = IpmiDriver()

    async def one(host: SimHost) -> PowerState:
        bmc: IpmiBmc = await driver.open(target(host, port=server.port), timeout=10)
        assert await bmc.power_state(timeout=10) is PowerState.OFF
        state = await bmc.power(PowerVerb.ON, timeout=10)
        assert (await bmc.system(timeout=10)).serial == host.serial
        await bmc.close()
        return state

    try:
        found = await gather_bounded([lambda host=host: one(host) for host in hosts.values()], width=count)
        assert found == [PowerState.ON] * count
        assert all(host.power_state is PowerState.ON for host in hosts.values())
        assert [server.responder.sessions(host) for host in hosts.values()] == [0] * count
        assert driver.traffic["dropped"] == 0
    finally:
        await driver.close()
        server.close()
        for host in hosts.values():
            host.close()


@pytest.mark.slow
async def test_64_bmcs_at_once() -> None:
    await sweep(64)


@pytest.mark.slow
def test_64_bmcs_at_once_on_uvloop() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(sweep(64))


async def test_a_port_where_nothing_listens_is_unreachable_by_the_deadline() -> None:
    driver = IpmiDriver()
    host = make_hosts(1)["127.17.0.1"]
    loop = asyncio.get_running_loop()
    begin = loop.time()
    with pytest.raises(Exception, match="no IPMI answer"):
        await driver.open(target(host, port=9), timeout=0.15)
    assert loop.time() - begin < 1
    await driver.close()


async def test_ipv6_has_its_own_socket() -> None:
    driver = IpmiDriver()
    host = make_hosts(1)["127.17.0.1"]
    spec = target(host, port=9)
    with pytest.raises(Exception, match="no IPMI answer"):
        await driver.open(type(spec)(protocol="ipmi", host="::1", port=9, login=spec.login), timeout=0.1)
    await driver.close()
