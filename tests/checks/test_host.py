"""Checks of the host around the GPUs: network, storage, CPU and memory, identity, firmware, parts seen elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from fleetd.checks import Context, Expected
from fleetd.checks.storage import system_drive
from fleetd.model.check import Action, Outcome
from fleetd.model.report import Nvme, Reading


def port(bench: Any, nic: int) -> dict[str, Any]:
    told: dict[str, Any] = bench.raw["nics"]["v"][nic]["ports"][0]
    return told


class TestNetwork:
    def test_a_port_that_is_down(self, h100: Any) -> None:
        port(h100, 2).update(state={"v": "1: DOWN"}, phys_state={"v": "2: Polling"}, rate_gbps={"v": 10.0})
        verdict = h100("network.nics")["network.nics"]
        assert (verdict.outcome, verdict.parts, verdict.action) == (Outcome.FAIL, ("mlx5_2 port 1",), Action.RESEAT)
        assert "Polling" in verdict.measured

    def test_a_slow_storage_port_is_not_blamed_for_a_compute_port_that_is_down(self, h100: Any) -> None:
        slow = {**port(h100, 0), "rate_gbps": {"v": 100.0}}
        h100.raw["nics"]["v"].append({"name": "mlx5_9", "guid": {"v": "b83f:d203:002a:1a1c"}, "ports": [slow]})
        assert h100("network.nics")["network.nics"].passed
        port(h100, 2).update(state={"v": "1: DOWN"})
        assert h100("network.nics")["network.nics"].parts == ("mlx5_2 port 1",)

    def test_a_port_at_half_rate(self, h100: Any) -> None:
        port(h100, 5)["rate_gbps"] = {"v": 200.0}
        assert h100("network.nics")["network.nics"].parts == ("mlx5_5 port 1",)

    def test_a_card_that_is_gone(self, h100: Any) -> None:
        h100.raw["nics"]["v"].pop()
        verdict = h100("network.nics")["network.nics"]
        assert verdict.outcome is Outcome.FAIL
        assert "7 of 8" in verdict.measured

    def test_active_defer_is_not_active(self, h100: Any) -> None:
        port(h100, 5)["state"] = {"v": "5: ACTIVE_DEFER"}
        assert not h100("network.nics")["network.nics"].passed


class TestStorage:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("critical_warning", 4),
            ("media_errors", 1),
            ("percentage_used", 81),
            ("percentage_used", -1),
            ("available_spare", 3),
            ("state", "dead"),
            ("bytes", 10**12),
        ],
    )
    def test_a_sick_drive_is_named(self, h100: Any, field: str, value: Any) -> None:
        h100.raw["nvme"]["v"][3][field] = {"v": value}
        verdict = h100("storage.nvme")["storage.nvme"]
        assert verdict.outcome is Outcome.FAIL
        assert "nvme3" in verdict.parts

    @pytest.mark.parametrize("number", [7, 9])
    def test_another_number_of_drives(self, h100: Any, number: int) -> None:
        drives = h100.raw["nvme"]["v"]
        h100.raw["nvme"]["v"] = [*drives, {**drives[1], "name": "nvme8"}][:number]
        assert h100("storage.nvme")["storage.nvme"].outcome is Outcome.FAIL

    def test_the_system_drive_follows_the_rule(self) -> None:
        drives = [
            Nvme(
                name=f"nvme{i}",
                serial=Reading(v=f"S{i}"),
                model=Reading(v="BOSS" if i == 2 else "PM"),
                bytes=Reading(v=b),
            )
            for i, b in enumerate((4000, 960, 960))
        ]
        assert system_drive(drives, "smallest") is drives[1]
        assert system_drive(drives, "model:BOSS*") is drives[2]
        assert system_drive(drives, "serial:S0") is drives[0]
        assert system_drive(drives, "model:PM*") is None, "two drives answer: nobody may guess"
        assert system_drive([], "smallest") is None

    def test_a_rule_nothing_answers_does_not_pass(self, h100: Any) -> None:
        import msgspec

        storage = msgspec.structs.replace(h100.sku.storage, system_serial_rule="model:BOSS*")
        h100.sku = msgspec.structs.replace(h100.sku, storage=storage)
        assert not h100("storage.nvme")["storage.nvme"].passed


class TestSystem:
    @pytest.mark.parametrize(("field", "value"), [("sockets", 1), ("cores", 96), ("memory_kib", 1900 * 1024 * 1024)])
    def test_less_than_the_profile(self, h100: Any, field: str, value: int) -> None:
        h100.raw["system"][field] = {"v": value}
        assert h100("system.cpu-memory")["system.cpu-memory"].outcome is Outcome.FAIL

    def test_a_missing_dimm(self, h100: Any) -> None:
        h100.raw["system"]["dimms"]["v"].pop()
        verdict = h100("system.cpu-memory")["system.cpu-memory"]
        assert (verdict.parts, verdict.action) == (("DIMM",), Action.RESEAT)

    def test_a_slow_dimm(self, h100: Any) -> None:
        h100.raw["system"]["dimms"]["v"][4]["mt_s"] = 4400
        assert h100("system.cpu-memory")["system.cpu-memory"].parts == ("DIMM A5",)

    def test_an_uncorrected_memory_error(self, h100: Any) -> None:
        h100.raw["system"]["edac_uncorrected"] = {"v": 1}
        assert h100("system.cpu-memory")["system.cpu-memory"].action is Action.RMA

    def test_soldered_memory_needs_no_dimms(self, gb200: Any) -> None:
        gb200.raw["system"]["dimms"] = {"absent": "no such file"}
        assert gb200("system.cpu-memory")["system.cpu-memory"].passed


class TestIdentity:
    @pytest.mark.parametrize(
        ("field", "value"), [("serial", "OTHER"), ("uuid", "4c4c4544-0000-1000-8000-000000000001"), ("macs", [])]
    )
    def test_another_host(self, h100: Any, field: str, value: Any) -> None:
        h100.raw["identity"][field] = {"v": value}
        verdict = h100("system.identity")["system.identity"]
        assert (verdict.outcome, verdict.action) == (Outcome.FAIL, Action.FIX_INVENTORY)

    def test_case_of_a_uuid_does_not_matter(self, h100: Any) -> None:
        h100.raw["identity"]["uuid"]["v"] = h100.raw["identity"]["uuid"]["v"].upper()
        assert h100("system.identity")["system.identity"].passed

    def test_equal_placeholders_prove_nothing(self, h100: Any) -> None:
        h100.raw["identity"]["serial"] = {"v": "To be filled by O.E.M."}
        h100.context = Context(
            expected=Expected(serial="To be filled by O.E.M.", uuid=h100.raw["identity"]["uuid"]["v"])
        )
        assert not h100("system.identity")["system.identity"].passed

    def test_an_unknown_uuid_is_not_any_uuid(self, h100: Any) -> None:
        h100.context = Context(expected=Expected(serial="SN-host-1", uuid=""))
        assert not h100("system.identity")["system.identity"].passed


class TestFirmware:
    @pytest.mark.parametrize("versions", [{}, {"bmc": " "}])
    def test_a_version_nobody_told(self, h100: Any, versions: dict[str, str]) -> None:
        h100.context = Context(baseline=h100.context.baseline, versions=versions)
        assert h100("firmware.baseline")["firmware.baseline"].outcome is Outcome.NOT_RUN

    def test_a_drifted_bmc(self, h100: Any) -> None:
        h100.context = Context(baseline=h100.context.baseline, versions={"bios": "2.3.5", "bmc": "6.0"})
        verdict = h100("firmware.baseline")["firmware.baseline"]
        assert (verdict.outcome, verdict.parts, verdict.action) == (Outcome.FAIL, ("bmc",), Action.REFLASH)

    def test_smbios_and_bmc_disagree(self, h100: Any) -> None:
        h100.context = Context(baseline=h100.context.baseline, versions={"bios": "2.3.4", "bmc": "7.10.30.05"})
        assert h100("firmware.baseline")["firmware.baseline"].parts == ("bios",)

    def test_the_baseline_of_another_sku(self, h100: Any, gb200: Any) -> None:
        h100.context = Context(baseline=gb200.context.baseline, versions=gb200.context.versions)
        assert h100("firmware.baseline")["firmware.baseline"].outcome is Outcome.FAIL


class TestDuplicates:
    @pytest.mark.parametrize("kind", ["uuid", "serial"])
    def test_a_gpu_on_two_hosts(self, h100: Any, kind: str) -> None:
        h100.context = Context(duplicates={h100.gpu(3)[kind]["v"]: "lou-a01-07"})
        verdict = h100("fleet.duplicates")["fleet.duplicates"]
        assert (verdict.outcome, verdict.parts) == (Outcome.FAIL, ("GPU 3",))
        assert "lou-a01-07" in verdict.measured

    def test_a_nic_on_two_hosts(self, h100: Any) -> None:
        h100.context = Context(duplicates={h100.raw["nics"]["v"][5]["guid"]["v"]: "lou-a01-07"})
        assert h100("fleet.duplicates")["fleet.duplicates"].parts == ("mlx5_5",)
