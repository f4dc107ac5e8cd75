"""Each GPU check against the fault it exists for: outcome, the part it names, what it asks a person to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fleetd.model.check import Action, Outcome

Spoil = Callable[[Any], None]


def gpu(index: int, **fields: Any) -> Spoil:
    return lambda bench: bench.gpu(index).update({name: {"v": value} for name, value in fields.items()})


def remap(**fields: Any) -> Spoil:
    return lambda bench: bench.gpu(2)["remapped"]["v"].update(fields)


def xids(*told: tuple[int, str]) -> Spoil:
    return lambda bench: bench.raw.update(xids={"v": [{"code": c, "pci": p, "seconds": 9.0} for c, p in told]})


FAULTS: list[tuple[str, Spoil, tuple[str, ...], Action]] = [
    ("gpu.identity", gpu(1, name="NVIDIA H100 PCIe"), ("GPU 1",), Action.FIX_INVENTORY),
    ("gpu.identity", gpu(1, uuid=""), ("GPU 1",), Action.RMA),
    ("gpu.identity", gpu(1, serial="0"), ("GPU 1",), Action.RMA),
    ("gpu.versions", gpu(4, vbios="96.00.00.00.00"), ("GPU 4",), Action.REFLASH),
    ("gpu.versions", gpu(4, gsp="535.0"), ("GPU 4",), Action.CONFIGURE),
    ("gpu.inforom", gpu(4, inforom_valid=False), ("GPU 4",), Action.RESET),
    ("gpu.memory", gpu(5, memory_mib=73000), ("GPU 5",), Action.RMA),
    ("gpu.ecc", gpu(0, ecc_current=False), ("GPU 0",), Action.CONFIGURE),
    ("gpu.ecc", gpu(0, ecc_pending=False), ("GPU 0",), Action.CONFIGURE),
    ("gpu.ecc", gpu(6, dram_uncorrectable_volatile=1), ("GPU 6",), Action.RESET),
    ("gpu.ecc", gpu(6, sram_uncorrectable_aggregate=1), ("GPU 6",), Action.RMA),
    ("gpu.row-remap", remap(pending=True), ("GPU 2",), Action.RESET),
    ("gpu.row-remap", remap(failure=True), ("GPU 2",), Action.RMA),
    ("gpu.row-remap", remap(uncorrectable=3), ("GPU 2",), Action.RMA),
    ("gpu.row-remap", remap(uncorrectable=-1), ("GPU 2",), Action.RMA),
    ("gpu.recovery-action", gpu(7, recovery_action=1), ("GPU 7",), Action.RESET),
    ("gpu.recovery-action", gpu(7, recovery_action=2), ("GPU 7",), Action.REBOOT),
    ("gpu.recovery-action", gpu(7, recovery_action=5), ("GPU 7",), Action.CHECK_FABRIC),
    ("gpu.recovery-action", gpu(7, recovery_action=99), ("GPU 7",), Action.RETEST),
    ("gpu.xid", xids((79, "0000:39:00")), ("GPU 2",), Action.POWER_CYCLE),
    ("gpu.xid", xids((64, "0000:39:00.0")), ("GPU 2",), Action.RMA),
    ("gpu.xid", xids((119, "0000:ff:00")), ("GPU at 0000:ff:00",), Action.RESET),
    ("gpu.xid", xids((999, "0000:39:00")), ("GPU 2",), Action.RETEST),
    ("gpu.throttle", gpu(3, throttle=0x40), ("GPU 3",), Action.RESEAT),
    ("gpu.temperature", gpu(3, temperature_c=91), ("GPU 3",), Action.RESEAT),
    ("gpu.power-limit", gpu(3, power_limit_w=500), ("GPU 3",), Action.CONFIGURE),
    ("gpu.idle", gpu(3, processes=1), ("GPU 3",), Action.CONFIGURE),
    ("gpu.idle", gpu(3, mig=True), ("GPU 3",), Action.CONFIGURE),
    ("pcie.link", gpu(3, pcie_width=8), ("GPU 3",), Action.RESEAT),
    ("pcie.link", gpu(3, pcie_generation_max=4), ("GPU 3",), Action.RESEAT),
]


@pytest.mark.parametrize(("check", "spoil", "parts", "action"), FAULTS)
def test_a_fault_is_named(h100: Any, check: str, spoil: Spoil, parts: tuple[str, ...], action: Action) -> None:
    spoil(h100)
    verdict = h100(check)[check]
    assert (verdict.outcome, verdict.parts, verdict.action) == (Outcome.FAIL, parts, action)
    assert parts[0] in verdict.measured
    assert verdict.remedy
    assert "PARTS" not in verdict.remedy


@pytest.mark.parametrize(
    "spoil",
    [
        gpu(3, pcie_generation=1),  # an idle link may drop
        gpu(3, throttle=0x1 | 0x4),
        xids((13, "0000:39:00"), (31, "0000:39:00")),  # an application's fault
        xids((121, "0000:39:00")),
        gpu(3, memory_mib=81400),
    ],
)
def test_what_is_no_fault_passes(h100: Any, spoil: Spoil) -> None:
    spoil(h100)
    assert all(v.passed for v in h100().values())


def test_application_xids_in_crowds_are_a_symptom(h100: Any) -> None:
    xids(*[(13, "0000:39:00")] * (h100.sku.gpu.app_xids_max + 1))(h100)
    assert h100("gpu.xid")["gpu.xid"].outcome is Outcome.FAIL


def test_xids_before_the_last_repair_are_history(h100: Any) -> None:
    xids((119, "0000:39:00"))(h100)
    h100.context = type(h100.context)(repaired_at=10.0)
    assert h100("gpu.xid")["gpu.xid"].passed


def test_a_brake_on_all_gpus_points_at_the_supply(h100: Any) -> None:
    for i in range(8):
        gpu(i, throttle=0x88)(h100)
    verdict = h100("gpu.throttle")["gpu.throttle"]
    assert len(verdict.parts) == 8
    assert "PDU" in verdict.remedy


def test_mixed_but_allowed_vbios_names_the_odd_one(h100: Any) -> None:
    gpu(5, vbios=h100.sku.gpu.vbios[1])(h100)
    verdict = h100("gpu.versions")["gpu.versions"]
    assert (verdict.outcome, verdict.parts) == (Outcome.FAIL, ("GPU 5",))


def test_a_driver_outside_the_list_asks_for_the_image(h100: Any) -> None:
    h100.raw["nvml"]["driver"] = {"v": "470.1"}
    verdict = h100("gpu.versions")["gpu.versions"]
    assert verdict.outcome is Outcome.FAIL
    assert h100.sku.image in verdict.remedy


@pytest.mark.parametrize("field", ["uuid", "serial"])
def test_an_identity_twice_in_one_host(h100: Any, field: str) -> None:
    h100.gpu(6)[field] = h100.gpu(1)[field]
    verdict = h100("gpu.identity")["gpu.identity"]
    assert (verdict.outcome, verdict.parts) == (Outcome.FAIL, ("GPU 6",))


def test_another_pci_id(h100: Any) -> None:
    h100.raw["pci"]["v"][3]["device"] = "2335"
    verdict = h100("gpu.identity")["gpu.identity"]
    assert (verdict.outcome, verdict.parts) == (Outcome.FAIL, ("GPU 3",))


class TestCount:
    def test_a_gpu_that_left_the_pci_bus_is_named_by_its_xid(self, h100: Any) -> None:
        del h100.raw["pci"]["v"][3]
        del h100.raw["nvml"]["gpus"][3]
        h100.raw["nvml"]["count"] = {"v": 7}
        xids((79, "0000:49:00.0"))(h100)
        verdict = h100("gpu.count")["gpu.count"]
        assert (verdict.outcome, verdict.parts) == (Outcome.FAIL, ("GPU at 0000:49:00.0",))
        assert verdict.action is Action.POWER_CYCLE

    def test_a_gpu_on_the_bus_that_nvml_does_not_show(self, h100: Any) -> None:
        del h100.raw["nvml"]["gpus"][3]
        h100.raw["nvml"]["count"] = {"v": 7}
        verdict = h100("gpu.count")["gpu.count"]
        assert verdict.outcome is Outcome.FAIL
        assert verdict.parts == ("GPU at 0000:49:00.0",)

    def test_a_count_that_lies_about_openable_handles(self, h100: Any) -> None:
        h100.raw["nvml"]["gpus"].pop()
        assert h100("gpu.count")["gpu.count"].outcome is Outcome.FAIL

    def test_more_gpus_than_the_sku_has(self, h100: Any) -> None:
        h100.raw["pci"]["v"].append({**h100.raw["pci"]["v"][0], "address": "0000:f9:00.0"})
        verdict = h100("gpu.count")["gpu.count"]
        assert verdict.outcome is Outcome.FAIL

    def test_one_gpu_told_twice_is_not_eight(self, h100: Any) -> None:
        h100.raw["nvml"]["gpus"][7] = h100.raw["nvml"]["gpus"][6]
        assert not h100("gpu.count")["gpu.count"].passed

    def test_seven_healthy_gpus_pass_no_check_of_eight(self, h100: Any) -> None:
        h100.raw["nvml"]["gpus"].pop()
        for id_, verdict in h100().items():
            if id_.startswith(("gpu.", "nvlink.")) and id_ not in ("gpu.xid", "nvlink.switches"):
                assert not verdict.passed, id_
