"""What the plan expects of each fault is what the real checks say of it, and sound hosts pass all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleetd.checks import registry
from fleetd.checks.context import Context, Expected
from fleetd.model.check import Verdict
from fleetd.model.firmware import Baseline
from fleetd.model.report import Report, read_report
from fleetd.probe.report.__main__ import gather
from fleetd.probe.report.files import Table
from fleetd.sim.demo import BAD, EXPECTED, EXTRA, build_demo
from fleetd.sim.demo_inventory import B200, GB200, H100, Ports
from fleetd.sim.hardware import describe
from fleetd.sim.host import SimHost
from fleetd.sim.nvml import loaded
from fleetd.sim.site import SimSite
from fleetd.sim.sitefile import load_site

HARDWARE = sorted({*BAD, *EXTRA, "gpu-off-bus", "nvlink-down", "remap-pending", "pcie-width"} - {"probe-garbage"})
PARAMS: dict[str, dict[str, int | str | float]] = {"pcie-width": {"gpu": 3, "width": 8}, "xid": {"gpu": 2, "code": 74}}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[SimSite]:
    """The small demo without its faults."""
    build_demo(tmp_path, 2, size="small")
    path = tmp_path / "site.yaml"
    path.write_text(path.read_text().partition("faults:\n")[0])
    async with SimSite(load_site(path), ports=Ports(redfish=0, ipmi=0, ssh=0)) as running:
        yield running


def probe(host: SimHost) -> Report:
    hardware = describe(host)
    return read_report(
        gather(Table(hardware.contents, hardware.links), loaded(hardware.nvml), nonce="n", host=host.name)
    )


def verdicts(site: SimSite, name: str) -> list[Verdict]:
    """The acceptance suite on one host, with all trays of its domain."""
    host = site.hosts[name]
    spec = site.site.inventory.hosts[name]
    trays = [
        n
        for n, other in site.site.inventory.hosts.items()
        if spec.nvlink_domain and other.nvlink_domain == spec.nvlink_domain
    ]
    context = Context(
        expected=Expected(serial=spec.serial, uuid=host.uuid, boot_mac=spec.boot_mac),
        duplicates={},
        baseline=Baseline(sku=spec.sku, components={"bios": (host.bios_version,), "bmc": (host.bmc_version,)}),
        versions={"bios": host.bios_version, "bmc": host.bmc_version},
        domain=spec.nvlink_domain or "",
        domain_members=tuple(trays),
        domain_reports={tray: probe(site.hosts[tray]) for tray in trays},
    )
    return registry.run_suite(host.sku.acceptance, name, probe(host), host.sku, context)


@pytest.mark.parametrize("sku", [H100, B200, GB200])
async def test_sound_hosts_pass_everything(site: SimSite, sku: str) -> None:
    name = next(n for n, spec in site.site.inventory.hosts.items() if spec.sku == sku)
    assert [v for v in verdicts(site, name) if not v.passed] == []


@pytest.mark.parametrize("kind", HARDWARE)
@pytest.mark.parametrize("name", ["lou-a01-01", "lou-b01-01"])
async def test_the_headline_is_the_expected_code(site: SimSite, name: str, kind: str) -> None:
    site.break_host(name, kind, PARAMS.get(kind))
    finding = registry.headline(verdicts(site, name))
    assert finding is not None
    assert finding.code in EXPECTED[kind]
    site.repair(name)
    assert registry.headline(verdicts(site, name)) is None


async def test_one_foreign_tray_is_found_and_leaves_the_domain_whole(site: SimSite) -> None:
    site.break_host("lou-n01-02", "wrong-domain")
    finding = registry.headline(verdicts(site, "lou-n01-02"))
    assert finding is not None
    assert finding.code in EXPECTED["wrong-domain"]
    for name in ("lou-n01-01", "lou-n01-03", "lou-n01-04"):
        assert registry.headline(verdicts(site, name)) is None


async def test_a_wrong_serial_is_found_by_the_suite_too(site: SimSite) -> None:
    site.break_host("lou-a01-01", "wrong-serial")
    finding = registry.headline(verdicts(site, "lou-a01-01"))
    assert finding is not None
    assert finding.code in EXPECTED["wrong-serial"]
