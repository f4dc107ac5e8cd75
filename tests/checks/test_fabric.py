"""NVLink within a host and across the trays of a rack, PCIe beside it."""

from __future__ import annotations

from typing import Any

import pytest

from fleetd.checks import run_domain
from fleetd.model.check import Action, Outcome
from fleetd.model.report import Report


def fabric(bench: Any, index: int) -> dict[str, Any]:
    told: dict[str, Any] = bench.gpu(index)["fabric"]["v"]
    return told


class TestLinks:
    def test_one_link_down(self, h100: Any) -> None:
        h100.gpu(2)["links"]["v"][7]["active"] = {"v": False}
        verdicts = h100("nvlink.links", "nvlink.speed")
        assert verdicts["nvlink.links"].parts == ("GPU 2 link 7",)
        assert verdicts["nvlink.links"].action is Action.RESET
        assert verdicts["nvlink.speed"].outcome is Outcome.NOT_RUN

    def test_all_links_of_one_gpu_down_names_the_gpu(self, h100: Any) -> None:
        for link in h100.gpu(2)["links"]["v"]:
            link["active"] = {"v": False}
        verdict = h100("nvlink.links")["nvlink.links"]
        assert (verdict.parts, verdict.action) == (("GPU 2",), Action.POWER_CYCLE)

    def test_a_link_missing_from_the_report_does_not_pass(self, h100: Any) -> None:
        h100.gpu(2)["links"]["v"].pop()
        for verdict in h100("nvlink.links", "nvlink.speed").values():
            assert verdict.outcome is Outcome.NOT_RUN

    def test_the_same_link_told_twice_does_not_count_twice(self, h100: Any) -> None:
        links = h100.gpu(2)["links"]["v"]
        links[7] = dict(links[6])
        assert not h100("nvlink.links")["nvlink.links"].passed
        assert not h100("nvlink.speed")["nvlink.speed"].passed

    def test_a_slow_link(self, h100: Any) -> None:
        h100.gpu(4)["links"]["v"][0]["mb_per_s"] = {"v": 13281}
        verdict = h100("nvlink.speed")["nvlink.speed"]
        assert (verdict.outcome, verdict.parts) == (Outcome.FAIL, ("GPU 4 link 0",))

    def test_an_old_link_version(self, h100: Any) -> None:
        h100.gpu(4)["links"]["v"][0]["version"] = {"v": 3}
        assert h100("nvlink.speed")["nvlink.speed"].parts == ("GPU 4 link 0",)

    def test_a_switch_is_missing(self, h100: Any) -> None:
        h100.raw["pci"]["v"] = [d for d in h100.raw["pci"]["v"] if d["address"] != "0000:c2:00.0"]
        verdict = h100("nvlink.switches")["nvlink.switches"]
        assert verdict.outcome is Outcome.FAIL
        assert "3 of 4" in verdict.measured


class TestTopology:
    def test_one_gpu_apart_is_blamed_alone(self, b200: Any) -> None:
        """The field failure: GPU2 at NODE/SYS to all others, the rest NV18."""
        matrix = b200.raw["nvml"]["topology"]["v"]
        for i in range(8):
            if i != 2:
                matrix[i][2] = matrix[2][i] = "NODE" if i < 4 else "SYS"
        verdict = b200("nvlink.topology")["nvlink.topology"]
        assert (verdict.outcome, verdict.parts) == (Outcome.FAIL, ("GPU 2",))
        assert "NODE, SYS to GPU 0" in verdict.measured

    @pytest.mark.parametrize("shape", [[], [["X"]], [["X"] * 8] * 7, [["X"] * 7] * 8])
    def test_a_matrix_of_another_shape_does_not_pass(self, h100: Any, shape: list[list[str]]) -> None:
        h100.raw["nvml"]["topology"] = {"v": shape}
        assert not h100("nvlink.topology")["nvlink.topology"].passed


class TestFabric:
    def test_in_progress_is_not_yet(self, h100: Any) -> None:
        fabric(h100, 1)["state"] = 2
        verdict = h100("nvlink.fabric")["nvlink.fabric"]
        assert verdict.outcome is Outcome.NOT_RUN
        assert "wait" in verdict.remedy
        assert verdict.action is Action.RETEST

    @pytest.mark.parametrize(("state", "status"), [(0, 0), (1, 0), (7, 0), (3, 999)])
    def test_not_completed_fails(self, h100: Any, state: int, status: int) -> None:
        fabric(h100, 1).update(state=state, status=status)
        verdict = h100("nvlink.fabric")["nvlink.fabric"]
        assert (verdict.outcome, verdict.parts, verdict.action) == (Outcome.FAIL, ("GPU 1",), Action.CHECK_FABRIC)

    def test_a_gpu_of_a_tray_in_another_cluster(self, gb200: Any) -> None:
        fabric(gb200, 3)["cluster_uuid"] = "cd" * 16
        verdict = gb200("nvlink.fabric")["nvlink.fabric"]
        assert (verdict.outcome, verdict.parts) == (Outcome.FAIL, ("GPU 3",))

    def test_a_gpu_of_a_tray_in_another_clique(self, gb200: Any) -> None:
        fabric(gb200, 3)["clique_id"] = 4
        assert gb200("nvlink.fabric")["nvlink.fabric"].parts == ("GPU 3",)

    def test_half_and_half_blames_all(self, gb200: Any) -> None:
        for i in (0, 1):
            fabric(gb200, i)["cluster_uuid"] = "cd" * 16
        assert len(gb200("nvlink.fabric")["nvlink.fabric"].parts) == 4

    @pytest.mark.parametrize("zero", ["", "0" * 32, "00000000-0000-0000-0000-000000000000"])
    def test_a_tray_without_a_cluster(self, gb200: Any, zero: str) -> None:
        for i in range(4):
            fabric(gb200, i)["cluster_uuid"] = zero
        assert gb200("nvlink.fabric")["nvlink.fabric"].outcome is Outcome.FAIL

    @pytest.mark.parametrize(
        ("mask", "word"),
        [(0x51A9, "degraded bandwidth"), (0x52AA, "incorrect configuration"), (0x91AA, "not connected")],
    )
    def test_the_health_mask_is_read_bit_by_bit(self, gb200: Any, mask: int, word: str) -> None:
        fabric(gb200, 0)["health_mask"] = mask
        verdict = gb200("nvlink.fabric")["nvlink.fabric"]
        assert verdict.outcome is Outcome.FAIL
        assert word in verdict.measured

    def test_a_fabric_without_health_does_not_pass_where_it_is_required(self, gb200: Any) -> None:
        fabric(gb200, 0)["health_mask"] = 0
        assert gb200("nvlink.fabric")["nvlink.fabric"].outcome is Outcome.NOT_RUN


class TestDomain:
    def judge(self, gb200: Any, clusters: dict[str, str], members: tuple[str, ...] = ()) -> dict[str, Any]:
        context = type(gb200.context)(domain_members=members)
        reports = {host: self.tray(gb200, host, uuid) for host, uuid in clusters.items()}
        told = run_domain(["nvlink.domain"], "rack-1", reports, gb200.sku, context)
        return {host: verdicts[0] for host, verdicts in told.items()}

    def tray(self, gb200: Any, host: str, uuid: str) -> Report:
        import msgspec

        for i in range(4):
            fabric(gb200, i)["cluster_uuid"] = uuid
        return msgspec.convert({**gb200.raw, "host": host}, Report)

    def rack(self, number: int, uuid: str = "ab" * 16) -> dict[str, str]:
        return {f"tray-{i:02d}": uuid for i in range(number)}

    def test_all_trays_in_one_fabric(self, gb200: Any) -> None:
        verdicts = self.judge(gb200, self.rack(18))
        assert len(verdicts) == 18
        assert all(v.passed and v.subject == "rack-1" for v in verdicts.values())

    def test_the_tray_in_another_fabric_is_the_one_that_fails(self, gb200: Any) -> None:
        verdicts = self.judge(gb200, {**self.rack(18), "tray-05": "cd" * 16})
        assert [host for host, v in verdicts.items() if v.outcome is Outcome.FAIL] == ["tray-05"]
        assert sum(v.passed for v in verdicts.values()) == 17
        assert verdicts["tray-05"].action is Action.CHECK_FABRIC

    def test_a_tray_without_a_fabric_fails_alone(self, gb200: Any) -> None:
        verdicts = self.judge(gb200, {**self.rack(17), "tray-17": "0" * 32})
        assert [host for host, v in verdicts.items() if not v.passed] == ["tray-17"]

    def test_too_few_trays_are_no_domain(self, gb200: Any) -> None:
        verdicts = self.judge(gb200, self.rack(15))
        assert {v.outcome for v in verdicts.values()} == {Outcome.NOT_RUN}

    def test_all_reported_and_too_few_in_one_fabric_fails_all(self, gb200: Any) -> None:
        odd = {f"tray-{i:02d}": f"{i:02d}" * 16 for i in range(10, 18)}
        verdicts = self.judge(gb200, {**self.rack(10), **odd})
        assert {v.outcome for v in verdicts.values()} == {Outcome.FAIL}

    def test_a_tie_fails_all(self, gb200: Any) -> None:
        verdicts = self.judge(gb200, {**self.rack(18), **{f"tray-{i:02d}": "cd" * 16 for i in range(9)}})
        assert {v.outcome for v in verdicts.values()} == {Outcome.FAIL}

    def test_a_tray_that_has_not_reported_waits_and_does_not_hold_the_others(self, gb200: Any) -> None:
        members = tuple(f"tray-{i:02d}" for i in range(18))
        verdicts = self.judge(gb200, self.rack(17), members)
        assert verdicts["tray-17"].outcome is Outcome.NOT_RUN
        assert sum(v.passed for v in verdicts.values()) == 17

    def test_more_trays_than_a_domain_has(self, gb200: Any) -> None:
        verdicts = self.judge(gb200, self.rack(19))
        assert not any(v.passed for v in verdicts.values())

    def test_nothing_reported_is_nothing_passed(self, gb200: Any) -> None:
        verdicts = self.judge(gb200, {}, ("tray-00",))
        assert verdicts["tray-00"].outcome is Outcome.NOT_RUN

    def test_a_host_check_is_no_domain_check(self, gb200: Any) -> None:
        told = run_domain(["gpu.count", "nonsense"], "rack-1", {"a": gb200.facts}, gb200.sku, gb200.context)
        assert [v.outcome for v in told["a"]] == [Outcome.NOT_RUN, Outcome.NOT_RUN]
        assert run_domain([], "rack-1", {"a": gb200.facts}, gb200.sku, gb200.context)["a"][0].outcome is Outcome.NOT_RUN

    def test_a_tray_alone_does_not_pass(self, gb200: Any) -> None:
        gb200.context = type(gb200.context)(domain="rack-1")
        assert gb200("nvlink.domain")["nvlink.domain"].outcome is Outcome.NOT_RUN

    def test_its_own_report_counts_once(self, gb200: Any) -> None:
        """Peers keyed by name, the subject by id: the same tray must not vote twice."""
        sixteen = {f"tray-{i:02d}": self.tray(gb200, f"tray-{i:02d}", "ab" * 16) for i in range(14)}
        sixteen["my-name"] = gb200.facts
        gb200.context = type(gb200.context)(domain="rack-1", domain_reports=sixteen)
        assert not gb200("nvlink.domain")["nvlink.domain"].passed

    def test_a_domain_check_on_a_sku_without_domain(self, h100: Any) -> None:
        assert h100("nvlink.domain")["nvlink.domain"].outcome is Outcome.NOT_RUN


class TestPcieChain:
    def test_a_nic_at_half_its_lanes(self, h100: Any) -> None:
        device = next(d for d in h100.raw["pci"]["v"] if d["address"] == "0000:2a:00.0")
        device["width"] = 8
        verdict = h100("pcie.chain")["pcie.chain"]
        assert (verdict.outcome, verdict.parts) == (Outcome.FAIL, ("mlx5_1",))

    def test_a_width_that_sysfs_does_not_tell(self, gb200: Any) -> None:
        gb200.raw["pci"]["v"][0]["width"] = 0
        assert gb200("pcie.chain")["pcie.chain"].outcome is Outcome.NOT_RUN
