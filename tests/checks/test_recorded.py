"""Outputs of real machines, turned into report facts: the checks must say of them what their owners found."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleetd.model.check import Action, Outcome

THROTTLE = {
    "Idle": 0x1,
    "Applications Clocks Setting": 0x2,
    "SW Power Cap": 0x4,
    "HW Slowdown": 0x8,
    "Sync Boost": 0x10,
    "SW Thermal Slowdown": 0x20,
    "HW Thermal Slowdown": 0x40,
    "HW Power Brake Slowdown": 0x80,
}


def smi_gpus(text: str) -> list[dict[str, list[str]]]:
    """`nvidia-smi -q`, one dictionary a GPU: label -> all its values, in order."""
    gpus: list[dict[str, list[str]]] = []
    for line in text.splitlines():
        if re.match(r"GPU 0000", line):
            gpus.append({})
        elif gpus and " : " in line:
            label, _, value = line.partition(" : ")
            gpus[-1].setdefault(label.strip(), []).append(value.strip())
    return gpus


def number(text: str) -> int:
    return int(float(text.split()[0]))


def yes(text: str) -> bool:
    return text in ("Yes", "Enabled", "Active")


def smi_facts(told: dict[str, list[str]]) -> dict[str, Any]:
    def first(label: str, convert: Any = str) -> dict[str, Any]:
        found = told.get(label, [])
        return {"v": convert(found[0])} if found and found[0] != "N/A" else {"absent": "N/A"}

    return {
        "uuid": first("GPU UUID"),
        "serial": first("Serial Number"),
        "name": first("Product Name"),
        "pci": first("Bus Id"),
        "vbios": first("VBIOS Version"),
        "gsp": first("GSP Firmware Version"),
        "memory_mib": first("Total", number),
        "temperature_c": first("GPU Current Temp", number),
        "power_limit_w": first("Current Power Limit", number),
        "power_limit_default_w": first("Default Power Limit", number),
        "throttle": {"v": sum(bit for label, bit in THROTTLE.items() if told.get(label, [""])[0] == "Active")},
        "remapped": {
            "v": {
                "correctable": number(told["Correctable Error"][0]),
                "uncorrectable": number(told["Uncorrectable Error"][0]),
                "pending": yes(told["Pending"][-1]),
                "failure": yes(told["Remapping Failure Occurred"][0]),
            }
        },
    }


def overlay(bench: Any, gpus: list[dict[str, Any]]) -> None:
    for i, facts in enumerate(gpus):
        bench.gpu(i).update(facts)
        bench.raw["pci"]["v"][i]["address"] = facts["pci"]["v"].lower()[4:] if "v" in facts.get("pci", {}) else ""


def test_eight_h100_under_the_power_brake(h100: Any, samples: Path) -> None:
    text = (samples / "nvidia-smi-q.h100-8gpu.FAIL-hw-slowdown-power-brake.txt").read_text()
    gpus = [smi_facts(told) for told in smi_gpus(text)]
    assert len(gpus) == 8
    overlay(h100, gpus)
    driver = re.search(r"Driver Version +: (\S+)", text)
    assert driver is not None
    h100.raw["nvml"]["driver"] = {"v": driver.group(1)}
    h100.sku = msgspec.structs.replace(h100.sku, gpu=msgspec.structs.replace(h100.sku.gpu, driver=(driver.group(1),)))
    verdicts = h100("gpu.throttle", "gpu.identity", "gpu.versions", "gpu.memory", "gpu.power-limit", "gpu.row-remap")
    throttle = verdicts.pop("gpu.throttle")
    assert throttle.outcome is Outcome.FAIL
    assert len(throttle.parts) == 8
    assert "hardware power brake" in throttle.measured
    assert "power supplies" in throttle.remedy
    assert [v for v in verdicts.values() if not v.passed] == []


def test_a_row_remap_that_is_pending(h100: Any, samples: Path) -> None:
    text = (samples / "nvidia-smi-q.a100.FAIL-row-remap-pending.excerpt.txt").read_text()
    h100.gpu(0)["remapped"] = smi_facts(smi_gpus(text)[0])["remapped"]
    verdict = h100("gpu.row-remap")["gpu.row-remap"]
    assert (verdict.outcome, verdict.parts, verdict.action) == (Outcome.FAIL, ("GPU 0",), Action.RESET)


def test_the_matrix_of_a_real_hopper_host(h100: Any, samples: Path) -> None:
    lines = (samples / "nvidia-smi-topo-m.h200-8gpu-8nic.txt").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("\t")[1:9]] for line in lines if re.match(r"GPU\d", line)]
    h100.raw["nvml"]["topology"] = {"v": rows}
    verdict = h100("nvlink.topology")["nvlink.topology"]
    assert verdict.passed
    assert "56" in verdict.expected


def test_the_speed_of_real_hopper_links(h100: Any, samples: Path) -> None:
    text = (samples / "nvidia-smi-nvlink-s.nvidia-h100-80gb-hbm3-drv590.48.01.txt").read_text()
    speeds = [round(float(v) * 1000) for v in re.findall(r"Link \d+: ([\d.]+) GB/s", text)]
    assert len(speeds) == 18
    for link, speed in zip(h100.gpu(0)["links"]["v"], speeds, strict=True):
        link["mb_per_s"] = {"v": speed}
    assert h100("nvlink.speed")["nvlink.speed"].passed


def test_ampere_links_are_too_few_and_too_slow_for_hopper(h100: Any, samples: Path) -> None:
    text = (samples / "nvidia-smi-nvlink-s.a100-8gpu.txt").read_text()
    for i, block in enumerate(text.split("GPU ")[1:]):
        speeds = [round(float(v) * 1000) for v in re.findall(r"Link \d+: ([\d.]+) GB/s", block)]
        h100.gpu(i)["links"]["v"] = [
            {"link": n, "active": {"v": True}, "mb_per_s": {"v": s}, "version": {"v": 3}} for n, s in enumerate(speeds)
        ]
    assert h100("nvlink.speed")["nvlink.speed"].outcome is Outcome.FAIL
    assert not h100("nvlink.links")["nvlink.links"].passed


XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-f:.]+)\): (\d+),")


@pytest.mark.parametrize(
    ("name", "outcome", "action"),
    [
        ("dmesg-xid79-sxid.log", Outcome.FAIL, Action.POWER_CYCLE),
        ("dmesg-xid48-63-94-hbm-dbe.log", Outcome.FAIL, Action.RESET),
        ("dmesg-xid13.log", Outcome.FAIL, Action.RETEST),  # application faults, in a crowd
    ],
)
def test_real_kernel_logs(h100: Any, samples: Path, name: str, outcome: Outcome, action: Action) -> None:
    told = XID.findall((samples / name).read_text(errors="replace"))
    assert told
    h100.raw["xids"] = {"v": [{"code": int(code), "pci": pci, "seconds": 1.0} for pci, code in told]}
    verdict = h100("gpu.xid")["gpu.xid"]
    assert (verdict.outcome, verdict.action) == (outcome, action)


def ibstat(text: str) -> list[dict[str, Any]]:
    """`ibstat` in the words of sysfs."""
    nics: list[dict[str, Any]] = []
    for block in re.split(r"^CA '", text, flags=re.MULTILINE)[1:]:
        said = dict(re.findall(r"^\s+([A-Za-z ]+): (.+)$", block, re.MULTILINE))
        nics.append(
            {
                "name": block.partition("'")[0],
                "guid": {"v": said["Node GUID"]},
                "ports": [
                    {
                        "port": 1,
                        "state": {"v": f"4: {said['State'].upper()}"},
                        "phys_state": {"v": f"5: {said['Physical state']}"},
                        "rate_gbps": {"v": float(said["Rate"])},
                        "link_layer": {"v": said["Link layer"]},
                    }
                ],
            }
        )
    return nics


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("ibstat.h100.all-active.txt", True),
        ("ibstat.h100.FAIL-polling.txt", False),
        ("ibstat.h100.FAIL-some-down-0.txt", True),  # eight are up at 400; the three that are down are not cabled
    ],
)
def test_real_port_states(h100: Any, samples: Path, name: str, good: bool) -> None:
    h100.raw["nics"] = {"v": ibstat((samples / name).read_text())}
    verdict = h100("network.nics")["network.nics"]
    assert verdict.passed is good
    if not good:
        assert verdict.outcome is Outcome.FAIL
        assert all(part.startswith("mlx5_") for part in verdict.parts)


def test_the_infiniband_tree_of_a_real_host(h100: Any, samples: Path) -> None:
    """Three of its cards stand in the recording; the verdict must count exactly the ones that are up at 400."""
    lines = (samples / "sysfs" / "sys-class-infiniband.h100.flat.txt").read_text().splitlines()
    tree = dict(line.removeprefix("./").partition(": ")[::2] for line in lines)
    names = sorted({path.split("/")[0] for path in tree if path.startswith("mlx5_")})
    nics = []
    for name in names:
        at = f"{name}/ports/1"
        rate = re.match(r"\d+", tree[f"{at}/rate"])
        assert rate is not None
        nics.append(
            {
                "name": name,
                "ports": [
                    {
                        "port": 1,
                        "state": {"v": tree[f"{at}/state"]},
                        "phys_state": {"v": tree[f"{at}/phys_state"]},
                        "rate_gbps": {"v": float(rate.group())},
                    }
                ],
            }
        )
    up = sum(n["ports"][0]["rate_gbps"]["v"] >= 400 for n in nics if "ACTIVE" in n["ports"][0]["state"]["v"])
    assert up > 0
    h100.raw["nics"] = {"v": nics}
    network = msgspec.structs.replace(h100.sku.network, count=up)
    h100.sku = msgspec.structs.replace(h100.sku, network=network)
    assert h100("network.nics")["network.nics"].passed


def test_module_ids_of_real_hosts_are_not_in_pci_order(h100: Any, samples: Path) -> None:
    """Nothing may take an NVML index for a slot: parts are named by index, evidence keeps the PCI address."""
    text = (samples / "nvidia-smi-q.h200-8gpu.module-ids.txt").read_text()
    modules = [int(v) for v in re.findall(r"Module Id +: (\d+)", text)]
    buses = re.findall(r"Bus Id +: (\S+)", text)
    assert modules == [2, 4, 1, 3, 7, 5, 6, 8]
    for i, (module, bus) in enumerate(zip(modules, buses, strict=True)):
        h100.gpu(i).update(module_id={"v": module}, pci={"v": bus})
        h100.raw["pci"]["v"][i]["address"] = bus.lower()[4:]
    verdict = h100("gpu.identity")["gpu.identity"]
    assert verdict.passed
    assert verdict.evidence["GPU 2 PCI address"] == buses[2]
