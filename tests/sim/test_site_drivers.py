"""The real drivers meet a simulated site: every vendor's BMC tells who it is, in the versions of the repository's baselines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleetd.drivers.bmc.capabilities import BmcTarget
from fleetd.drivers.bmc.registry import Drivers
from fleetd.kit.errors import Lied, Unreachable
from fleetd.kit.yamlfile import parse
from fleetd.model.bmc import Login
from fleetd.model.firmware import compare, read_baseline
from fleetd.model.power import PowerState, PowerVerb
from fleetd.sim.demo import build_demo
from fleetd.sim.demo_inventory import Ports
from fleetd.sim.site import SimSite
from fleetd.sim.sitefile import load_site

BASELINES = Path(__file__).resolve().parents[2] / "firmware" / "baselines"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[SimSite]:
    """The small demo without its faults."""
    build_demo(tmp_path, 2, size="small")
    path = tmp_path / "site.yaml"
    path.write_text(path.read_text().partition("faults:\n")[0])
    async with SimSite(load_site(path), ports=Ports(redfish=0, ipmi=0, ssh=0)) as running:
        yield running


@pytest.fixture
async def drivers() -> AsyncIterator[Drivers]:
    made = Drivers()
    yield made
    await made.close()


def target(site: SimSite, name: str) -> BmcTarget:
    spec = site.site.inventory.hosts[name]
    login = site.site.file.credentials[spec.bmc.credentials]
    port = site.ports.redfish if spec.bmc.protocol == "redfish" else site.ports.ipmi
    return BmcTarget(
        protocol=spec.bmc.protocol, host=spec.bmc.host, port=port, login=Login(login.username, login.password)
    )


@pytest.mark.parametrize("name", ["lou-a01-01", "lou-b01-02", "lou-n01-03", "oh-c01-01"])
async def test_each_vendor_tells_identity_and_baseline(site: SimSite, drivers: Drivers, name: str) -> None:
    host, spec = site.hosts[name], site.site.inventory.hosts[name]
    bmc = await drivers.open(target(site, name), timeout=10)
    try:
        info = await bmc.system(timeout=10)
        assert (info.serial, info.uuid) == (spec.serial, host.uuid)
        baseline = read_baseline(parse((BASELINES / f"{spec.sku}.yaml").read_text(), spec.sku))
        assert compare(baseline, {"bios": info.bios_version, "bmc": info.bmc_version}) == []
        assert await bmc.power(PowerVerb.ON, timeout=10) is PowerState.ON
        assert host.power_state is PowerState.ON
    finally:
        await bmc.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lou-a01-01", "lou-b01-02", "lou-n01-03", "oh-c01-01"])
async def test_the_faults_of_the_wire_show_as_the_plan_expects(site: SimSite, drivers: Drivers, name: str) -> None:
    site.break_host(name, "lying-bmc")
    bmc = await drivers.open(target(site, name), timeout=10)
    with pytest.raises(Lied):
        await bmc.power(PowerVerb.ON, timeout=0.5)
    await bmc.close()
    site.repair(name)
    site.break_host(name, "deaf-bmc")
    with pytest.raises(Unreachable):
        await drivers.open(target(site, name), timeout=0.5)


@pytest.mark.parametrize("name", ["lou-a01-01", "lou-b01-02", "lou-n01-03", "oh-c01-01"])
async def test_a_wrong_serial_shows_on_every_wire(site: SimSite, drivers: Drivers, name: str) -> None:
    site.break_host(name, "wrong-serial")
    bmc = await drivers.open(target(site, name), timeout=10)
    info = await bmc.system(timeout=10)
    await bmc.close()
    assert info.serial == site.hosts[name].serial != site.site.inventory.hosts[name].serial
