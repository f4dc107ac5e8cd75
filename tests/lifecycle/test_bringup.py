"""The vertical: one simulated host from registered to available through the real drivers, and what stops it."""

import pytest

from fleetd.model.host import State
from fleetd.model.run import RunState
from tests.world import GB200, Plan, world

pytestmark = pytest.mark.slow


async def test_a_good_host_becomes_leaseable(tmp_path):
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        run = await w.run("rack-bringup")
        host = await w.host()
        assert (run.state, host.state) == (RunState.PASSED, State.AVAILABLE), host.status.findings
        assert w.leaseable(host) == []
        assert host.tenant_data == "erased"
        assert [e.what for e in w.sim.record.of(host.name, "wipe.done")] == ["wipe.done"]


async def test_an_ipmi_only_host_becomes_leaseable(tmp_path):
    async with world(tmp_path, Plan(ipmi=True)) as w:
        await w.apply()
        await w.run("rack-bringup")
        host = await w.host()
        assert host.state is State.AVAILABLE, host.status.findings


@pytest.mark.parametrize(
    ("kind", "params", "code"),
    [
        ("gpu-off-bus", {"gpu": 3}, "gpu.count"),
        ("nvlink-down", {"gpu": 2, "link": 7}, "nvlink.links"),
        ("remap-pending", {"gpu": 1}, "gpu.row-remap"),
        ("pcie-width", {"gpu": 5, "width": 8}, "pcie.link"),
        ("wrong-serial", {}, "identity.serial"),
        ("deaf-bmc", {}, "FLT-1001"),
        ("lying-bmc", {}, "FLT-2004"),
        ("disk-no-erase", {"drive": 2}, "storage.erase"),
        ("erase-lies", {"drive": 1}, "storage.erase"),
        ("probe-garbage", {"mode": "truncated"}, "probe.garbled"),
        ("probe-garbage", {"mode": "other-boot"}, "probe.foreign"),
        ("probe-garbage", {"mode": "other-host"}, "probe.foreign"),
        ("probe-garbage", {"mode": "huge"}, "probe.garbled"),
        ("probe-garbage", {"mode": "text"}, "probe.garbled"),
    ],
)
async def test_a_broken_host_is_out_with_its_finding(tmp_path, kind, params, code):
    async with world(tmp_path, Plan(faults={1: [(kind, params)]})) as w:
        await w.apply()
        await w.run("rack-bringup")
        host = await w.host()
        assert host.state is State.QUARANTINED
        assert [f.code for f in host.status.findings] == [code]
        assert host.status.findings[0].remedy
        assert w.leaseable(host) != []
        assert host.certificate is None


async def test_a_tray_of_another_domain_is_out_and_the_others_pass(tmp_path):
    plan = Plan(sku=GB200, count=18, domain="lou-nvl-1", faults={4: [("wrong-domain", {})]})
    async with world(tmp_path, plan) as w:
        await w.apply()
        await w.run("rack-bringup")
        hosts = await w.services.hosts.select("all")
        out = {h.name: [f.code for f in h.status.findings] for h in hosts if h.state is not State.AVAILABLE}
        assert out == {"lou-t01-04": ["nvlink.domain"]}
