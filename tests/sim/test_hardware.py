"""The simulated hardware through the real probe: a healthy host shows its SKU's numbers, each fault shows as itself."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from fleetd.model.report import Report, fingerprint_parts, read_report
from fleetd.probe.build import build
from fleetd.probe.report.__main__ import gather
from fleetd.probe.report.files import Table, Tree
from fleetd.sim.faults import Fault
from fleetd.sim.hardware import describe, scenario_file
from fleetd.sim.host import SimHost
from fleetd.sim.nvml import FakeNvml, loaded
from tests.host_rig import B200, CLUSTER, GB200, H100, ROOT, SKUS, fault, sim_host


def report_of(host: SimHost, **scenario: object) -> Report:
    hardware = describe(host)
    nvml = loaded({**hardware.nvml, **scenario})
    return read_report(gather(Table(hardware.contents, hardware.links), nvml, nonce="n", host="h"))


def absences(value: object, path: str = "") -> list[str]:
    """Every reading that is absent, by path."""
    import msgspec

    found: list[str] = []
    if isinstance(value, dict):
        if "absent" in value:
            return [path]
        for key, inner in value.items():
            found += absences(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            found += absences(inner, f"{path}.{i}")
    elif isinstance(value, msgspec.Struct):
        return absences(msgspec.to_builtins(value), path)
    return found


@pytest.mark.parametrize("name", SKUS)
async def test_a_healthy_host_shows_its_skus_numbers(name):
    host = sim_host(profile=name)
    sku, report = host.sku, report_of(host)
    assert report.format == "fleetd.report/1"
    assert [d.vendor + d.device for d in report.pci.v].count("10de" + sku.gpu.pci_id) == sku.gpu.count
    assert report.nvml.count.v == sku.gpu.count == len(report.nvml.gpus)
    for gpu in report.nvml.gpus:
        assert (gpu.name.v, gpu.memory_mib.v, gpu.power_limit_w.v) == (
            sku.gpu.name,
            sku.gpu.memory_mib,
            sku.gpu.power_limit_w,
        )
        assert gpu.vbios.v in sku.gpu.vbios
        assert (gpu.pcie_generation.v, gpu.pcie_width.v) == (sku.gpu.pcie.generation, sku.gpu.pcie.width)
        assert len(gpu.links.v) == sku.gpu.nvlink.links
        assert {(e.active.v, e.mb_per_s.v, e.version.v) for e in gpu.links.v} == {
            (True, sku.gpu.nvlink.mb_per_s, sku.gpu.nvlink.version)
        }
        assert (gpu.fabric.v.state, gpu.fabric.v.status) == (3, 0)
        assert gpu.throttle.v & sku.gpu.forbidden_throttle == 0
        assert gpu.pci.v in {d.address for d in report.pci.v}
    cells = {cell for i, row in enumerate(report.nvml.topology.v) for j, cell in enumerate(row) if i != j}
    assert cells == {sku.gpu.nvlink.topology}
    assert report.nvml.driver.v in sku.gpu.driver
    assert len(report.nics.v) == sku.network.count
    assert {p.rate_gbps.v for n in report.nics.v for p in n.ports} == {float(sku.network.rate_gbps)}
    assert [d.serial.v for d in report.nvme.v] == [d.serial for d in host.drives]
    assert [d.bytes.v // 10**9 for d in report.nvme.v] == [d.bytes // 10**9 for d in host.drives]
    assert (report.system.sockets.v, report.system.cores.v) == (sku.cpu.sockets, sku.cpu.cores)
    assert abs(report.system.memory_kib.v / 2**20 / sku.cpu.memory_gib - 1) < sku.cpu.memory_tolerance
    if sku.cpu.dimms:
        assert len(report.system.dimms.v) == sku.cpu.dimms
    assert report.xids.v == []
    assert (report.identity.serial.v, report.identity.uuid.v) == (host.serial, host.uuid)
    assert report.identity.macs.v == [host.mac]


async def test_only_what_a_board_does_not_have_is_absent():
    assert set(absences(report_of(sim_host(profile=GB200)))) == set()
    assert {p.rpartition(".")[2] for p in absences(report_of(sim_host(profile=H100)))} == {"platform"}


async def test_hopper_links_spread_over_four_switches():
    report = report_of(sim_host())
    switches = [d.address for d in report.pci.v if d.device == "22a3"]
    remotes = [link.remote.v for link in report.nvml.gpus[0].links.v]
    assert [remotes.count(s) for s in switches] == [4, 5, 5, 4]


async def test_blackwell_shows_the_virtual_switch():
    report = report_of(sim_host(profile=B200))
    assert {link.remote.v for link in report.nvml.gpus[0].links.v} == {"ffffffff:ff:ff.0"}


async def test_a_tray_knows_its_fabric_and_place():
    report = report_of(sim_host(profile=GB200, name="lou-n01-07"))
    assert {g.fabric.v.cluster_uuid for g in report.nvml.gpus} == {CLUSTER}
    assert [g.platform.v.module_id for g in report.nvml.gpus] == [1, 2, 3, 4]
    assert {(g.platform.v.slot, g.platform.v.tray) for g in report.nvml.gpus} == {(7, 6)}


async def test_parts_are_unique_to_the_host_and_the_same_each_time():
    one, again = fingerprint_parts(report_of(sim_host())), fingerprint_parts(report_of(sim_host()))
    other = fingerprint_parts(report_of(sim_host(name="lou-a01-02")))
    assert one == again
    assert [len(set(one[k])) for k in ("gpu", "gpu-serial", "nic", "nvme")] == [8, 8, 8, 8]
    for kind, parts in one.items():
        if kind != "board":
            assert not set(parts) & set(other[kind])


async def test_a_lost_gpu_costs_its_own_facts_only():
    report = report_of(sim_host(fault("gpu-off-bus", gpu=3)))
    lost = report.nvml.gpus[3]
    assert lost.handle.absent == "GpuIsLost"
    assert not lost.uuid.known
    assert report.nvml.count.v == 8
    assert sum(g.handle.known for g in report.nvml.gpus) == 7
    assert [x.code for x in report.xids.v] == [79]
    assert report.xids.v[0].pci == "0000:5d:00.0"
    assert report.nvml.topology.v[3][0] == report.nvml.topology.v[0][3] == "GpuIsLost"
    assert report.nvml.topology.v[0][1] == "NV18"


async def test_a_gpu_gone_from_pci_is_gone_from_both():
    report = report_of(sim_host(fault("gpu-off-bus", gpu=3, mode="pci")))
    assert report.nvml.count.v == 7
    assert sum(d.device == "2330" for d in report.pci.v) == 7


async def test_one_link_down():
    report = report_of(sim_host(fault("nvlink-down", gpu=2, link=7)))
    down = [(g.index, link.link) for g in report.nvml.gpus for link in g.links.v if link.active.v is False]
    assert down == [(2, 7)]
    assert report.nvml.topology.v[2][0] == "NV17"


async def test_the_other_gpu_faults():
    faults = (
        fault("remap-pending", gpu=1),
        fault("pcie-width", gpu=5, width=8),
        Fault(kind="ecc-uncorrectable", params={"gpu": 6, "count": 3}),
        fault("throttled", gpu=7),
        fault("xid", gpu=0, code=94),
        fault("nvlink-down", gpu=4, link=0),
        fault("nvlink-down", gpu=4, link=1),
    )
    report = report_of(sim_host(*faults))
    gpus = report.nvml.gpus
    assert [g.remapped.v.pending for g in gpus] == [i == 1 for i in range(8)]
    assert gpus[1].recovery_action.v == 1
    assert [g.pcie_width.v for g in gpus] == [16, 16, 16, 16, 16, 8, 16, 16]
    assert next(d.width for d in report.pci.v if d.address == gpus[5].pci.v) == 8
    assert [g.dram_uncorrectable_volatile.v for g in gpus] == [0, 0, 0, 0, 0, 0, 3, 0]
    assert gpus[7].throttle.v & 0x8
    assert [(x.code, x.pci) for x in report.xids.v] == [(94, gpus[0].pci.v)]
    assert sum(link.active.v is False for link in gpus[4].links.v) == 2


async def test_faults_beside_the_gpus():
    report = report_of(sim_host(fault("nic-down", nic=2), fault("dimm-gone")))
    states = [n.ports[0].state.v for n in report.nics.v]
    assert states.count("4: ACTIVE") == 7
    assert states[2] == "1: DOWN"
    assert len(report.system.dimms.v) == 31
    wrong = report_of(sim_host(fault("wrong-domain"), profile=GB200))
    assert {g.fabric.v.cluster_uuid for g in wrong.nvml.gpus} & {CLUSTER, "0" * 32} == set()
    assert report_of(sim_host(fault("wrong-serial", serial="OTHER1"))).identity.serial.v == "OTHER1"


async def test_a_fault_with_a_count_is_used_up_and_recorded():
    host = sim_host(fault("gpu-off-bus", gpu=1, count=1))
    assert not report_of(host).nvml.gpus[1].handle.known
    assert report_of(host).nvml.gpus[1].handle.known
    assert [e.data["kind"] for e in host.record.of(host.name, "fault.fired")] == ["gpu-off-bus"]


async def test_an_old_driver_lacks_functions_and_a_board_lacks_features():
    hidden = ["nvmlDeviceGetPlatformInfo", "nvmlDeviceGetTemperatureV"]
    returns = {"nvmlDeviceGetModuleId": 3, "nvmlDeviceGetSerial": 4}
    gpu = report_of(sim_host(), hidden=hidden, returns=returns).nvml.gpus[0]
    assert gpu.platform.absent == "FunctionNotFound"
    assert gpu.temperature_c.v == 29
    assert gpu.module_id.absent == "NotSupported"
    assert gpu.serial.absent == "NoPermission"


async def test_the_fabric_structure_steps_down_by_version(monkeypatch):
    monkeypatch.setattr("fleetd.sim.nvml._FABRIC_VERSIONS", {0x02000024: 36})
    gpu = report_of(sim_host(profile=GB200)).nvml.gpus[0]
    assert gpu.fabric.v.cluster_uuid == CLUSTER
    gpu = report_of(sim_host(profile=GB200), hidden=["nvmlDeviceGetGpuFabricInfoV"]).nvml.gpus[0]
    assert (gpu.fabric.v.cluster_uuid, gpu.fabric.v.health_mask) == (CLUSTER, 0)
    both = ["nvmlDeviceGetGpuFabricInfoV", "nvmlDeviceGetGpuFabricInfo"]
    assert report_of(sim_host(), hidden=both).nvml.gpus[0].fabric.absent == "FunctionNotFound"


@pytest.mark.parametrize(("code", "reason"), [(9, "DriverNotLoaded"), (18, "LibRmVersionMismatch"), (999, "Unknown")])
async def test_a_driver_that_does_not_start_is_said(code, reason):
    report = report_of(sim_host(), init=code)
    assert report.nvml.init.absent == reason
    assert report.nvml.gpus == []
    assert len(report.nics.v) == 8


async def test_a_symbol_nvml_never_had_is_not_there():
    with pytest.raises(AttributeError):
        FakeNvml(describe(sim_host()).nvml).nvmlMakeCoffee  # noqa: B018


async def test_the_tree_on_disk_says_the_same_as_the_table(tmp_path):
    host = sim_host(fault("xid", code=63))
    hardware = describe(host)
    hardware.write(tmp_path)
    hardware.write(tmp_path)
    one = read_report(gather(Table(hardware.contents, hardware.links), loaded(hardware.nvml), nonce="n", host="h"))
    two = read_report(gather(Tree(str(tmp_path)), loaded(hardware.nvml), nonce="n", host="h"))
    blank = {"seconds": 0.0}
    import msgspec

    assert msgspec.structs.replace(one, **blank) == msgspec.structs.replace(two, **blank)


@pytest.mark.slow
async def test_the_real_zipapp_as_a_process_on_the_simulated_library(tmp_path):
    host = sim_host(fault("gpu-off-bus", gpu=5), profile=B200)
    hardware = describe(host)
    hardware.write(tmp_path / "root")
    scenario_file(hardware, tmp_path / "scenario.json")
    (tmp_path / "report.pyz").write_bytes(build("report").data)
    arguments = ["--nonce", "n", "--host", "h", "--root", str(tmp_path / "root"), "--suite", "quick"]
    done = await asyncio.to_thread(
        subprocess.run,
        [
            sys.executable,
            "-S",
            "-m",
            "fleetd.sim.nvml_runner",
            str(tmp_path / "scenario.json"),
            str(tmp_path / "report.pyz"),
            *arguments,
        ],
        capture_output=True,
        check=True,
        cwd=ROOT,
        timeout=60,
    )
    report = read_report(done.stdout)
    assert report.nvml.gpus[5].handle.absent == "GpuIsLost"
    assert report.nvml.gpus[0].memory_mib.v == 183359
    assert report.nvml.gpus[0].links.v[17].mb_per_s.v == 53125
