"""The drivers alone against the lab's BMCs: power of a real machine, one-time boot, identity, a password of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleetd.drivers.bmc.capabilities import BmcTarget
from fleetd.drivers.bmc.ipmi import IpmiDriver
from fleetd.drivers.bmc.redfish import RedfishDriver
from fleetd.kit.errors import AuthFailed
from fleetd.model.bmc import Login
from fleetd.model.power import BootDevice, PowerState, PowerVerb
from tests.e2e import bmc
from tests.e2e.lab import Lab, lab
from tests.e2e.machine import Machine, Spec

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

UUID = "5f3a1c70-8d42-4b6e-9a17-c0ffee00a001"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab(tmp_path) as made:
        yield made


async def prove(driver: IpmiDriver | RedfishDriver, target: BmcTarget, machine: Machine) -> None:
    """What both must do, and that the machine really did it."""
    spec = machine.spec
    found = await driver.open(target, timeout=20)
    info = await found.system(timeout=20)
    assert (info.serial, info.uuid, info.power) == (spec.serial, spec.uuid, PowerState.OFF)
    await found.set_boot_once(BootDevice.NETWORK, timeout=20)
    assert machine.boot == "network"
    assert await found.power(PowerVerb.ON, timeout=30) is PowerState.ON
    assert (machine.power, machine.starts, machine.boot) == (True, ["network"], "none")
    await machine.reboot()  # the choice of the boot device held once
    async with asyncio.timeout(30):
        while machine.starts != ["network", "none"]:
            await asyncio.sleep(0.05)
    assert await found.power_state(timeout=20) is PowerState.ON
    await found.set_boot_once(BootDevice.DISK, timeout=20)
    assert await found.power(PowerVerb.RESET, timeout=30) is PowerState.ON
    assert machine.starts == ["network", "none", "disk"]
    assert await found.power(PowerVerb.OFF, timeout=30) is PowerState.OFF
    assert not machine.power
    await found.set_password("a-new-password.1", timeout=20)
    await found.close()
    with pytest.raises(AuthFailed):
        await driver.open(target, timeout=20)


async def test_ipmi_sim_holds_a_machine(here: Lab) -> None:
    spec = Spec(name="a", firmware="bios", mac="52:54:00:e2:00:01", serial="SNA0001", uuid=UUID)
    machine = Machine(here, spec)
    await machine.open()
    process = await bmc.ipmi(here, machine, "10.77.0.11", "root", "calvin")
    driver = IpmiDriver()
    with here.inside():
        target = BmcTarget(protocol="ipmi", host="10.77.0.11", port=623, login=Login("root", "calvin"))
        await prove(driver, target, machine)
        async with asyncio.timeout(20):  # it writes its users down a moment after it confirmed
            while not list((machine.folder / "ipmi").rglob("users.mc20")):
                await asyncio.sleep(0.05)
        await process.stop()
        await bmc.ipmi(here, machine, "10.77.0.11", "root", "calvin")  # a BMC that was restarted knows its password
        new = BmcTarget(protocol="ipmi", host="10.77.0.11", port=623, login=Login("root", "a-new-password.1"))
        await (await driver.open(new, timeout=20)).close()
        await driver.close()
    await machine.close()


async def test_sushy_holds_a_machine(here: Lab) -> None:
    spec = Spec(name="b", firmware="bios", mac="52:54:00:e2:00:02", serial="SNB0001", uuid=UUID)
    machine = Machine(here, spec)
    await machine.open()
    _, pin = await bmc.redfish(here, machine, "10.77.0.12", "admin", "factory-password")
    driver = RedfishDriver()
    login = Login("admin", "factory-password")
    with here.inside():
        target = BmcTarget(protocol="redfish", host="10.77.0.12", port=443, login=login, tls_pin=pin)
        assert await driver.read_pin(target, timeout=20) == pin
        await prove(driver, target, machine)
        login = Login("admin", "a-new-password.1")
        new = BmcTarget(protocol="redfish", host="10.77.0.12", port=443, login=login, tls_pin=pin)
        await (await driver.open(new, timeout=20)).close()
        await driver.close()
    await machine.close()
