"""The closed, fail-closed suite: what must hold for every check that exists or will be added."""

from __future__ import annotations

from typing import Any

import pytest

from fleetd.checks import Context, Past, every, headline, registry, run_domain, run_suite
from fleetd.checks.judge import Judge, clean
from fleetd.checks.registry import Cause
from fleetd.model.check import Action, Outcome


def test_a_healthy_host_passes_its_whole_suite(bench: Any) -> None:
    verdicts = bench()
    assert list(verdicts) == list(bench.sku.acceptance)
    assert [v for v in verdicts.values() if not v.passed] == []
    assert headline(verdicts.values()) is None
    for verdict in verdicts.values():
        assert verdict.measured
        assert verdict.expected
        assert verdict.action is None


def test_the_quick_suite_passes_too(bench: Any) -> None:
    assert all(v.passed for v in bench(*bench.sku.quick).values())


def test_every_sku_names_only_checks_that_exist(bench: Any) -> None:
    known = {info.id for info in every()}
    assert set(bench.sku.acceptance) <= known
    assert set(bench.sku.quick) <= set(bench.sku.acceptance)


def test_every_check_stands_in_some_suite(benches: Any) -> None:
    from_files = {i for name in ("dell.xe9680-h100-8", "nvidia.gb200-nvl72-tray") for i in benches(name).sku.acceptance}
    # `gpu.absent` is for SKUs without GPUs (tests/checks/test_without_gpus.py); none of those is shipped.
    assert {info.id for info in every()} == from_files | {"gpu.absent"}


def test_metadata_is_complete() -> None:
    infos = every()
    assert [i.id for i in infos] == sorted(i.id for i in infos)
    for info in infos:
        found = registry.find(info.id)
        assert found is not None
        assert info.title
        assert info.source
        assert info.why
        assert found.remedy
        assert (found.host is None) == (info.subject == "domain")


def test_an_unknown_id_does_not_pass(h100: Any) -> None:
    verdict = h100("gpu.cuont")["gpu.cuont"]
    assert verdict.outcome is Outcome.NOT_RUN
    assert "no such check" in verdict.measured
    assert verdict.remedy


def test_zero_checks_do_not_pass(h100: Any) -> None:
    verdicts = run_suite((), "host-1", h100.facts, h100.sku, h100.context)
    assert [v.outcome for v in verdicts] == [Outcome.NOT_RUN]
    finding = headline([])
    assert finding is not None
    assert finding.code == "suite.empty"


def test_one_verdict_for_an_id_that_stands_twice(h100: Any) -> None:
    assert len(run_suite(("gpu.count", "gpu.count"), "host-1", h100.facts, h100.sku, h100.context)) == 1


def test_a_check_that_breaks_costs_its_verdict_only(h100: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("by a hostile report")

    found = registry.find("gpu.memory")
    assert found is not None
    monkeypatch.setitem(registry._CHECKS, "gpu.memory", found._replace(host=broken))
    verdicts = h100("gpu.count", "gpu.memory", "gpu.ecc")
    assert [v.outcome for v in verdicts.values()] == [Outcome.PASS, Outcome.NOT_RUN, Outcome.PASS]
    assert "ZeroDivisionError" in verdicts["gpu.memory"].measured


def test_a_domain_check_that_breaks_does_not_pass(gb200: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("tray")

    found = registry.find("nvlink.domain")
    assert found is not None
    monkeypatch.setitem(registry._CHECKS, "nvlink.domain", found._replace(domain=broken))
    assert gb200("nvlink.domain")["nvlink.domain"].outcome is Outcome.NOT_RUN
    told = run_domain(["nvlink.domain"], "rack-1", {"host-1": gb200.facts}, gb200.sku, gb200.context)
    assert told["host-1"][0].outcome is Outcome.NOT_RUN


def test_a_check_cannot_be_registered_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        registry.check(id="gpu.count", title="", cause=Cause.LINK, source="", why="", action=Action.RMA, remedy="")(
            lambda judge, facts, profile, context: None
        )


def test_a_check_that_compares_nothing_does_not_pass() -> None:
    assert Judge("x", "host-1", Action.RMA, "").verdict().outcome is Outcome.NOT_RUN


def test_an_empty_context_passes_nothing_that_needs_it(h100: Any) -> None:
    h100.context = Context()
    for id_ in ("system.identity", "fleet.duplicates", "firmware.baseline"):
        assert h100(id_)[id_].outcome is Outcome.NOT_RUN


def test_the_same_report_gives_the_same_verdicts(bench: Any) -> None:
    assert bench() == bench()


def test_text_of_a_hostile_host_is_defused(h100: Any) -> None:
    h100.gpu(2)["name"] = {"v": "\x1b[2J\x07evil\n" + "A" * 5000}
    verdict = h100("gpu.identity")["gpu.identity"]
    assert verdict.outcome is Outcome.FAIL
    for text in (verdict.measured, *verdict.evidence.values()):
        assert text.isprintable()
        assert len(text) < 1000


def test_clean_cuts_and_keeps_one_line() -> None:
    assert clean("a\tb") == "a?b"
    assert len(clean("x" * 10_000)) == 120


class TestHeadline:
    def test_a_lost_gpu_is_the_headline_of_all_that_follows(self, h100: Any) -> None:
        h100.lose(3)
        verdicts = h100()
        finding = headline(verdicts.values(), at=5.0)
        assert finding is not None
        assert (finding.code, finding.parts, finding.at) == ("gpu.count", ("GPU 3",), 5.0)
        assert finding.action is Action.POWER_CYCLE
        failed = {v.check for v in verdicts.values() if v.outcome is Outcome.FAIL}
        assert failed == {"gpu.count"}, "what cannot be read of a lost GPU must not shout"
        assert len(verdicts) == len(h100.sku.acceptance)

    def test_the_wrong_host_comes_before_a_missing_gpu(self, h100: Any) -> None:
        h100.lose(3)
        h100.raw["identity"]["serial"] = {"v": "OTHER"}
        finding = headline(h100().values())
        assert finding is not None
        assert finding.code == "system.identity"

    def test_the_link_comes_before_the_matrix_it_spoils(self, h100: Any) -> None:
        h100.gpu(2)["links"]["v"][7].update(
            active={"v": False}, mb_per_s={"absent": "inactive"}, version={"absent": "x"}
        )
        for i in range(8):
            if i != 2:
                h100.raw["nvml"]["topology"]["v"][i][2] = h100.raw["nvml"]["topology"]["v"][2][i] = "NV17"
        finding = headline(h100().values())
        assert finding is not None
        assert (finding.code, finding.parts) == ("nvlink.links", ("GPU 2 link 7",))

    def test_no_driver_is_told_as_no_driver(self, h100: Any) -> None:
        h100.raw["nvml"] = {"init": {"absent": "DriverNotLoaded"}}
        verdicts = h100()
        finding = headline(verdicts.values())
        assert finding is not None
        assert finding.code == "gpu.count"
        assert "DriverNotLoaded" in finding.message
        assert "reboot" in finding.remedy
        for id_ in h100.sku.acceptance:
            if id_.startswith(("gpu.", "nvlink.")) and id_ not in ("gpu.xid", "nvlink.switches"):
                assert verdicts[id_].outcome is Outcome.NOT_RUN


class TestEscalation:
    def ask(self, h100: Any, *past: Past) -> Any:
        h100.gpu(2)["remapped"]["v"]["pending"] = True
        h100.context = h100.context.__class__(
            **{**{f: getattr(h100.context, f) for f in h100.context.__struct_fields__}, "history": past}
        )
        return h100("gpu.row-remap")["gpu.row-remap"]

    def test_the_first_time_the_weakest_remedy(self, h100: Any) -> None:
        assert self.ask(h100).action is Action.RESET

    def test_a_reset_that_did_not_help_asks_for_a_power_cycle(self, h100: Any) -> None:
        verdict = self.ask(h100, Past(check="gpu.row-remap", action=Action.RESET, parts=("GPU 2",)))
        assert verdict.action is Action.POWER_CYCLE
        assert "reset 1x did not help" in verdict.remedy

    def test_the_ladder_ends_with_rma(self, h100: Any) -> None:
        tried = [Action.RESET] + [Action.POWER_CYCLE] * 2 + [Action.RESEAT]
        verdict = self.ask(h100, *(Past(check="gpu.row-remap", action=a) for a in tried))
        assert verdict.action is Action.RMA
        assert "GPU 2" in verdict.remedy

    @pytest.mark.parametrize("other", [{"check": "gpu.ecc"}, {"parts": ("GPU 5",)}])
    def test_the_history_of_another_part_or_check_does_not_count(self, h100: Any, other: dict[str, Any]) -> None:
        past = Past(**{"check": "gpu.row-remap", "action": Action.RESET, "parts": ("GPU 2",), **other})
        assert self.ask(h100, past).action is Action.RESET
