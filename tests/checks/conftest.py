"""Healthy reports built from the SKU files themselves, so that a changed number in a SKU changes the expectation with it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleetd.checks import Context, Expected
from fleetd.kit.yamlfile import parse
from fleetd.model.firmware import read_baseline
from fleetd.model.report import Report
from fleetd.model.sku import Sku, read_sku

ROOT = Path(__file__).parents[2]
H100, B200, GB200 = "dell.xe9680-h100-8", "supermicro.as8125-b200-8", "nvidia.gb200-nvl72-tray"
WELL = 0x51AA  # health mask: bandwidth and routes fine, configuration none, partition assigned, manager connected


def known(value: Any) -> dict[str, Any]:
    return {"v": value}


def absent(why: str = "NotSupported") -> dict[str, Any]:
    return {"absent": why}


def load_sku(name: str) -> Sku:
    path = ROOT / "inventory" / "skus" / f"{name}.yaml"
    return read_sku(parse(path.read_text(), path.name))


def raw_report(sku: Sku, host: str = "host-1") -> dict[str, Any]:
    """A report of a host with nothing wrong, as plain values that a test may spoil."""

    def identity(what: str) -> str:
        return hashlib.sha256(f"{host}/{what}".encode()).hexdigest()

    profile = sku.gpu
    gpus, pci, nics = [], [], []
    for i in range(profile.count):
        address = f"0000:{0x19 + 16 * i:02x}:00.0"
        lanes = {"width": profile.pcie.width, "max_width": profile.pcie.width, "speed": 32.0, "max_speed": 32.0}
        pci.append(
            {"address": address, "vendor": "10de", "device": profile.pci_id, "class_id": "030200", "numa": 0, **lanes}
        )
        uuid = identity(f"gpu{i}")
        links = [
            {
                "link": n,
                "active": known(True),
                "mb_per_s": known(profile.nvlink.mb_per_s),
                "version": known(profile.nvlink.version),
                "remote": known(f"0000:{0xC0 + n % 4:02x}:00.0"),
            }
            for n in range(profile.nvlink.links)
        ]
        gpus.append(
            {
                "index": i,
                "handle": known(True),
                "uuid": known(f"GPU-{uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:32]}"),
                "serial": known(f"16{int(uuid[:10], 16):012d}"),
                "name": known(profile.name),
                "board_part": known("692-2G520-0200-000"),
                "pci": known(f"0000{address.upper()}"),
                "module_id": known(i + 1),
                "vbios": known(profile.vbios[0]),
                "inforom": known("G520.0200.00.05"),
                "inforom_valid": known(True),
                "gsp": known(profile.driver[0]),
                "memory_mib": known(profile.memory_mib),
                "ecc_current": known(True),
                "ecc_pending": known(True),
                "dram_uncorrectable_volatile": known(0),
                "sram_uncorrectable_aggregate": known(0),
                "remapped": known({"correctable": 0, "uncorrectable": 0, "pending": False, "failure": False}),
                "recovery_action": known(0),
                "pcie_generation": known(1),
                "pcie_generation_max": known(profile.pcie.generation),
                "pcie_width": known(profile.pcie.width),
                "pcie_width_max": known(profile.pcie.width),
                "pcie_replays": known(0),
                "throttle": known(1),
                "temperature_c": known(34),
                "power_limit_w": known(profile.power_limit_w),
                "power_limit_default_w": known(profile.power_limit_w),
                "persistence": known(True),
                "mig": known(False),
                "processes": known(0),
                "links": known(links),
                "fabric": known(
                    {
                        "state": 3,
                        "status": 0,
                        "cluster_uuid": "ab" * 16 if profile.fabric.cluster_uuid else "0" * 32,
                        "clique_id": 0,
                        "health_mask": WELL,
                    }
                ),
                "platform": absent(),
            }
        )
    for i in range(profile.nvlink.switches):
        switch = {"address": f"0000:{0xC0 + i:02x}:00.0", "vendor": "10de", "device": profile.nvlink.switch_pci_id}
        pci.append({**switch, "class_id": "068000"})
    for i in range(sku.network.count):
        address = f"0000:{0x1A + 16 * i:02x}:00.0"
        pci.append(
            {
                "address": address,
                "vendor": "15b3",
                "device": "1021",
                "class_id": "020700",
                "width": 16,
                "max_width": 16,
            }
        )
        port = {
            "port": 1,
            "state": known("4: ACTIVE"),
            "phys_state": known("5: LinkUp"),
            "rate_gbps": known(float(sku.network.rate_gbps)),
            "link_layer": known("InfiniBand"),
        }
        guid = identity(f"nic{i}")
        nics.append(
            {
                "name": f"mlx5_{i}",
                "pci": known(address),
                "guid": known(":".join(guid[n : n + 4] for n in range(0, 16, 4))),
                "board_id": known("MT_0000000838"),
                "firmware": known("28.41.1000"),
                "ports": [port],
            }
        )
    drives = [
        {
            "name": f"nvme{i}",
            "serial": known(f"S{identity(f'nvme{i}')[:11].upper()}"),
            "model": known("PM9A3"),
            "firmware": known("1"),
            "bytes": known((sku.storage.nvme_min_gb if i else sku.storage.system_min_gb) * 10**9),
            "state": known("live"),
            "critical_warning": known(0),
            "percentage_used": known(1),
            "available_spare": known(100),
            "available_spare_threshold": known(10),
            "media_errors": known(0),
        }
        for i in range(sku.storage.nvme_count)
    ]
    dimms = [{"slot": f"A{i + 1}", "mib": 65536, "mt_s": 4800} for i in range(sku.cpu.dimms or 0)]
    n = profile.count
    return {
        "format": "fleetd.report/1",
        "probe": "1.0.0",
        "nonce": "n",
        "host": host,
        "boot_id": known("b7e8"),
        "identity": {
            "serial": known(f"SN-{host}"),
            "uuid": known(f"4c4c4544-0000-1000-8000-{identity('board')[:12]}"),
            "macs": known(["04:3f:72:aa:00:01", "04:3f:72:aa:00:02"]),
        },
        "system": {
            "bios_version": known("2.3.5"),
            "sockets": known(sku.cpu.sockets),
            "cores": known(sku.cpu.cores),
            "memory_kib": known(int(sku.cpu.memory_gib * 1024 * 1024 * 0.99)),
            "dimms": known(dimms),
            "edac_uncorrected": known(0),
        },
        "pci": known(pci),
        "nvml": {
            "init": known(True),
            "driver": known(profile.driver[0]),
            "count": known(n),
            "gpus": gpus,
            "topology": known([["X" if i == j else profile.nvlink.topology for j in range(n)] for i in range(n)]),
        },
        "nics": known(nics),
        "nvme": known(drives),
        "xids": known([]),
        "seconds": 4.2,
    }


def read(raw: dict[str, Any]) -> Report:
    return msgspec.convert(raw, Report)


def context_of(raw: dict[str, Any], sku: Sku, **more: Any) -> Context:
    path = ROOT / "firmware" / "baselines" / f"{sku.sku}.yaml"
    identity = raw["identity"]
    given: dict[str, Any] = {
        "expected": Expected(
            serial=identity["serial"]["v"], uuid=identity["uuid"]["v"], boot_mac=identity["macs"]["v"][0]
        ),
        "duplicates": {},
        "baseline": read_baseline(parse(path.read_text(), path.name)),
        "versions": {"bios": "2.3.5", "bmc": "7.10.30.05"},
    }
    if sku.domain is not None:
        trays = [f"tray-{i:02d}" for i in range(1, sku.domain.trays)]
        given["domain"] = "rack-1"
        given["domain_reports"] = {tray: read(raw_report(sku, tray)) for tray in trays}
    return Context(**{**given, **more})


class Bench:
    """One SKU, a healthy raw report of it, and the context that belongs to it."""

    def __init__(self, name: str) -> None:
        self.sku = load_sku(name)
        self.raw = raw_report(self.sku)
        self.context = context_of(self.raw, self.sku)

    @property
    def facts(self) -> Report:
        return read(self.raw)

    def gpu(self, index: int) -> dict[str, Any]:
        gpu: dict[str, Any] = self.raw["nvml"]["gpus"][index]
        return gpu

    def lose(self, index: int) -> None:
        """What a GPU that fell off the bus leaves behind."""
        self.raw["nvml"]["gpus"][index] = {"index": index, "handle": absent("GpuIsLost")}
        for row in self.raw["nvml"]["topology"]["v"]:
            row[index] = "GpuIsLost"
        self.raw["nvml"]["topology"]["v"][index] = ["GpuIsLost"] * self.sku.gpu.count

    def __call__(self, *ids: str) -> dict[str, Any]:
        from fleetd.checks import run_suite

        wanted = ids or self.sku.acceptance
        return {v.check: v for v in run_suite(wanted, "host-1", self.facts, self.sku, self.context)}


@pytest.fixture
def h100() -> Bench:
    return Bench(H100)


@pytest.fixture
def b200() -> Bench:
    return Bench(B200)


@pytest.fixture
def gb200() -> Bench:
    return Bench(GB200)


@pytest.fixture(params=[H100, B200, GB200])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


@pytest.fixture(scope="session")
def benches() -> Callable[[str], Bench]:
    return Bench


@pytest.fixture(scope="session")
def samples() -> Path:
    """Recorded outputs of real machines; absent on a checkout without them, which CI must not accept."""
    path = Path(os.environ.get("FLEETD_SAMPLES", ROOT.parent / "shared" / "samples")) / "gpu"
    if not path.is_dir():
        message = f"no recorded samples at {path}; set FLEETD_SAMPLES"
        if os.environ.get("CI") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path
