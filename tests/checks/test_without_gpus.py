"""A SKU without GPUs: its own checks, none of the others', and a suite that does not fit is refused with its line."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fleetd.checks import Context, Expected, misfit, registry, run_suite
from fleetd.kit.errors import Invalid
from fleetd.kit.yamlfile import parse
from fleetd.model.check import Action, CheckInfo, Outcome
from fleetd.model.inventory import read_inventory
from fleetd.model.report import Report
from fleetd.model.sku import read_sku
from tests.checks.conftest import Bench, load_sku, read

PLAIN = """\
sku: acme.plain
vendor: Acme
model: Plain 1
image: debian-12
network: {count: 0}
storage: {nvme_count: 1, nvme_min_gb: 4, system_min_gb: 4}
cpu: {sockets: 1, cores: 2, memory_gib: 2, memory_tolerance: 0.1}
acceptance:
  - system.identity
  - fleet.duplicates
  - system.cpu-memory
  - storage.nvme
  - gpu.absent
quick: [system.identity, gpu.absent]
"""
SKU = read_sku(parse(PLAIN, "acme.plain.yaml"))
CONTEXT = Context(expected=Expected(serial="Q1", uuid="6f1c53c4-9d5e-4d0b-a39e-7ad2a1f5d1aa"), duplicates={})


def report(**changes: object) -> Report:
    """What the probe reads in a small virtual machine: no SMBIOS DIMM speed, no EDAC, no InfiniBand, no NVML."""
    raw: dict[str, object] = {
        "format": "fleetd.report/1",
        "probe": "1",
        "nonce": "n",
        "host": "h",
        "boot_id": {"v": "b"},
        "identity": {"serial": {"v": "Q1"}, "uuid": {"v": "6f1c53c4-9d5e-4d0b-a39e-7ad2a1f5d1aa"}},
        "system": {
            "sockets": {"v": 1},
            "cores": {"v": 2},
            "memory_kib": {"v": 2_020_000},
            "edac_uncorrected": {"absent": "no memory controller reports errors"},
        },
        "pci": {
            "v": [{"address": "0000:00:03.0", "vendor": "1b36", "device": "0010", "class_id": "010802"}],
        },
        "nvml": {"init": {"absent": "NVML Shared Library Not Found"}},
        "nics": {"absent": "no such file"},
        "nvme": {
            "v": [
                {
                    "name": "nvme0",
                    "serial": {"v": "DISK-1"},
                    "model": {"v": "QEMU NVMe Ctrl"},
                    "bytes": {"v": 4 * 2**30},
                    "state": {"v": "live"},
                    "critical_warning": {"v": 0},
                    "percentage_used": {"v": 0},
                    "available_spare": {"v": 0},
                    "available_spare_threshold": {"v": 0},
                    "media_errors": {"v": 0},
                }
            ]
        },
        "xids": {"v": []},
        **changes,
    }
    return msgspec.convert(raw, Report)


def test_a_plain_host_passes_its_closed_suite() -> None:
    verdicts = run_suite(SKU.acceptance, "h", report(), SKU, CONTEXT)
    assert [(v.check, v.outcome, v.measured) for v in verdicts if not v.passed] == []
    assert [v.check for v in verdicts] == list(SKU.acceptance)


def test_a_gpu_in_it_is_a_finding_and_no_listing_is_no_proof() -> None:
    gpu = {"address": "0000:17:00.0", "vendor": "10de", "device": "2330", "class_id": "030200"}
    shown = run_suite(["gpu.absent"], "h", report(pci={"v": [gpu]}), SKU, CONTEXT)[0]
    assert (shown.outcome, shown.action, shown.parts) == (Outcome.FAIL, Action.FIX_INVENTORY, ("GPU at 0000:17:00.0",))
    assert (
        run_suite(["gpu.absent"], "h", report(pci={"absent": "no such file"}), SKU, CONTEXT)[0].outcome
        is Outcome.NOT_RUN
    )
    assert not run_suite(["gpu.absent"], "h", report(pci={"v": []}), SKU, CONTEXT)[0].passed


def test_too_little_memory_is_told_in_hundredths() -> None:
    spoilt = report(system={"sockets": {"v": 1}, "cores": {"v": 2}, "memory_kib": {"v": 1_800_000}})
    verdict = run_suite(["system.cpu-memory"], "h", spoilt, SKU, CONTEXT)[0]
    assert not verdict.passed
    assert "1.72 GiB" in verdict.measured


@pytest.mark.parametrize("check", registry.every(), ids=lambda check: check.id)
def test_no_check_passes_for_a_sku_it_does_not_fit(check: CheckInfo, h100: Bench) -> None:
    """Also when a suite of an older daemon, or a caller past the inventory's door, still names it."""
    sku = SKU if check.needs not in ("", "no-gpu") else load_sku("dell.xe9680-h100-8")
    if not check.needs or (check.needs == "domain" and sku.domain is not None):
        return
    facts = report() if sku is SKU else read(h100.raw)
    verdict = run_suite([check.id], "h", facts, sku, CONTEXT)[0]
    assert verdict.outcome is Outcome.NOT_RUN
    assert "the SKU" in verdict.measured


@pytest.mark.parametrize(
    ("suite", "named", "line"),
    [
        ("acceptance", "gpu.count", 14),
        ("acceptance", "nvlink.links", 14),
        ("acceptance", "network.nics", 14),
        ("acceptance", "pcie.chain", 14),
    ],
)
def test_a_suite_that_does_not_fit_is_refused_with_its_line(suite: str, named: str, line: int) -> None:
    text = PLAIN.replace("  - gpu.absent\n", f"  - gpu.absent\n  - {named}\n")
    with pytest.raises(Invalid) as caught:
        read_inventory({"skus/acme.plain.yaml": text}, misfit)
    assert caught.value.where == f"skus/acme.plain.yaml:{line}"
    assert named in caught.value.what
    assert caught.value.remedy


def test_gpu_absent_is_refused_where_there_are_gpus_and_the_shipped_skus_fit() -> None:
    folder = Path(__file__).parents[2] / "inventory/skus"
    texts = {f"skus/{p.name}": p.read_text() for p in folder.glob("*.yaml")}
    read_inventory(texts, misfit)
    name = "skus/dell.xe9680-h100-8.yaml"
    broken = texts[name].replace("  - gpu.count\n", "  - gpu.count\n  - gpu.absent\n", 1)
    with pytest.raises(Invalid, match=r"gpu\.absent"):
        read_inventory({name: broken}, misfit)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("network: {count: 0}", "network: {count: 2}", "rate_gbps"),
        ("network: {count: 0}", "network: {count: -1}", "0 compute ports"),
        ("image: debian-12", "image: debian-12\nboot_via: floppy", "floppy"),
        ("image: debian-12", "image: debian-12\nboot_patience: soon", "soon"),
        ("image: debian-12", "image: debian-12\nboot_patience: 29s", "30 s to 20 minutes"),
        ("image: debian-12", "image: debian-12\nboot_patience: 21m", "30 s to 20 minutes"),
        ("image: debian-12", "image: debian-12\ndomain: {trays: 2, min_trays: 1}", "GPUs"),
        ("nvme_count: 1", "nvme_count: 0", "drive"),
        ("memory_gib: 2", "memory_gib: 0", "memory"),
        ("memory_tolerance: 0.1", "memory_tolerance: 1", "tolerance"),
    ],
)
def test_a_sku_that_makes_no_sense_is_refused(before: str, after: str, message: str) -> None:
    assert before in PLAIN
    with pytest.raises(Invalid) as caught:
        read_sku(parse(PLAIN.replace(before, after), "x.yaml"))
    assert message in str(caught.value)
    assert caught.value.where.startswith("x.yaml:")
