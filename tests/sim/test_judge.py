"""A good demo is judged good, and a doctored one is caught: one test a rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleetd.sim.demo import DemoPlan, build_demo
from fleetd.sim.judge import SEEDED, judge
from fleetd.sim.record import Entry, Record, read_record


class Finished:
    """A finished demo as it should be; tests doctor it and judge again."""

    def __init__(self, plan: DemoPlan, record: Record) -> None:
        self.plan, self.record = plan, record
        self.started = plan.bad_hosts[:3]
        self.hosts: dict[str, dict[str, Any]] = {}
        for host, spec in plan.faults.items():
            self.add(
                host, SEEDED, kind=spec.kind, **{k: v for k, v in spec.params.items() if k not in ("count", "mode")}
            )
        for name in plan.hosts:
            self.hosts[name] = {
                "id": f"host-{name}",
                "name": name,
                "site": "louisiana",
                "state": "available",
                "leaseable": True,
                "reasons": [],
                "findings": [],
                "alerts": [],
            }
        for name in plan.good:
            self.round(name, "1")
        for name in (*plan.faulty, *self.started):
            self.caught(name, plan.expected[plan.faults[name].kind][0])
            self.add(name, "power.off")
        for name in plan.bad_hosts:
            if name not in self.started:
                self.hosts[name] |= {"state": "registered", "leaseable": False, "reasons": ["registered"]}

    def add(self, host: str, what: str, **data: object) -> None:
        self.record.add(float(len(self.record.entries)), host, what, **data)

    def round(self, host: str, intent: str) -> None:
        self.add(host, "account.password", username="root")
        self.add(host, "boot.deploy", source="network")
        self.add(host, "wipe.begin", intent=f"wipe-{host}-{intent}")
        self.add(host, "drive.erase", intent=f"wipe-{host}-{intent}", drive="S1", firmware="ok")
        self.add(host, "drive.erase", intent=f"wipe-{host}-{intent}", drive="S2", firmware="ok")
        self.add(host, "wipe.done", intent=f"wipe-{host}-{intent}", ok=True, kept=[])
        self.add(host, "image.write", intent=f"image-{host}-{intent}")
        self.add(host, "boot.disk", source="disk")

    def caught(self, host: str, code: str) -> None:
        finding = {
            "code": code,
            "message": "found",
            "remedy": "mend",
            "action": "rma",
            "parts": [],
            "at": None,
            "step": "validate",
        }
        self.hosts[host] |= {
            "state": "quarantined",
            "leaseable": False,
            "reasons": ["quarantined"],
            "findings": [finding],
        }

    def problems(self, **more: Any) -> list[str]:
        return judge(self.plan, self.record.entries, self.hosts.values(), **more)

    def of_kind(self, kind: str) -> str:
        return next(host for host in self.plan.faulty if self.plan.faults[host].kind == kind)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> DemoPlan:
    return build_demo(tmp_path_factory.mktemp("demo"), 5)


@pytest.fixture
def done(plan: DemoPlan) -> Finished:
    return Finished(plan, Record())


def test_a_good_demo_has_no_problem(done: Finished) -> None:
    assert done.problems() == []


def test_it_judges_the_file_as_well_as_the_memory(plan: DemoPlan, tmp_path: Path) -> None:
    record = Record(tmp_path / "record.jsonl")
    done = Finished(plan, record)
    record.close()
    assert judge(plan, read_record(tmp_path / "record.jsonl"), done.hosts.values()) == []


def test_a_leased_host_is_good_when_its_lease_is_known(done: Finished) -> None:
    name = done.plan.good[0]
    done.hosts[name] |= {"state": "leased", "leaseable": False}
    done.add(name, "tenant.begin", lease="lease-1")
    assert done.problems(leased={name}) == []
    assert f"{name} is sound and should be available, but is leased." in done.problems()


def test_a_lease_that_came_and_went_is_good(done: Finished) -> None:
    name = done.plan.good[0]
    done.add(name, "boot.deploy", source="network")
    done.add(name, "image.write", intent="image-tenant")
    done.add(name, "boot.disk", source="disk")
    done.add(name, "tenant.begin", lease="lease-1")
    done.add(name, "tenant.end", lease="lease-1")
    done.round(name, "2")
    assert done.problems() == []


def good(done: Finished) -> str:
    return done.plan.good[3]


def _quarantined_good(d: Finished) -> str:
    d.caught(good(d), "gpu.ecc")
    return f"{good(d)} is sound and should be available, but is quarantined (gpu.ecc)"


def _findings_on_available(d: Finished) -> str:
    d.hosts[good(d)]["findings"] = [{"code": "gpu.ecc"}]
    return f"{good(d)} is sound, but fleetd found gpu.ecc"


def _not_leaseable(d: Finished) -> str:
    d.hosts[good(d)] |= {"leaseable": False, "reasons": ["BMC silent"]}
    return f"{good(d)} is available but not leaseable: BMC silent"


def _moving(d: Finished) -> str:
    d.hosts[good(d)]["state"] = "validating"
    return "but is validating"


def _escaped(d: Finished) -> str:
    name = d.of_kind("gpu-off-bus")
    d.hosts[name] |= {"state": "available", "leaseable": True, "findings": []}
    return f"{name} has gpu-off-bus, but is available"


def _wrong_finding(d: Finished) -> str:
    name = d.of_kind("nvlink-down")
    d.caught(name, "network.nics")
    return f"{name} has nvlink-down: fleetd should have found nvlink.links, it found network.nics"


def _no_finding(d: Finished) -> str:
    name = d.of_kind("deaf-bmc")
    d.hosts[name] |= {"findings": []}
    return "it found nothing"


def _missing_host(d: Finished) -> str:
    del d.hosts[good(d)]
    return f"{good(d)} is in the plan and not in the host list"


def _stranger(d: Finished) -> str:
    d.hosts["stranger"] = d.hosts[good(d)] | {"name": "stranger"}
    return "stranger is in the host list and not in the plan"


def _twice(d: Finished) -> str:
    d.hosts["again"] = d.hosts[good(d)]
    return f"{good(d)} stands twice in the host list"


def _two_wipes(d: Finished) -> str:
    d.add(good(d), "wipe.begin", intent=f"wipe-{good(d)}-1")
    return f"{good(d)} saw wipe.begin 2 times on one intent"


def _two_erasures(d: Finished) -> str:
    d.add(good(d), "drive.erase", intent=f"wipe-{good(d)}-1", drive="S2")
    return f"{good(d)} saw drive.erase of S2 2 times on one intent"


def _image_on_a_kept_drive(d: Finished) -> str:
    name = d.of_kind("disk-no-erase")
    d.add(name, "wipe.done", intent="w", ok=False, kept=["S2"])
    d.add(name, "image.write", intent="i", drive="S1")
    return f"{name} got an image on a drive set that was not erased"


def _failed_wipe_published(d: Finished) -> str:
    entries = d.record.entries
    entries[:] = [
        msgspec.structs.replace(e, data=e.data | {"ok": False}) if (e.host, e.what) == (good(d), "wipe.done") else e
        for e in entries
    ]
    return f"{good(d)} was published, but the record shows no wipe.done"


def _two_images(d: Finished) -> str:
    d.add(good(d), "image.write", intent=f"image-{good(d)}-1")
    d.add(good(d), "boot.disk")
    return f"{good(d)} saw image.write 2 times on one intent"


def _wipe_of_a_lease(d: Finished) -> str:
    d.add(good(d), "tenant.begin", lease="lease-7")
    d.add(good(d), "wipe.begin", intent="other")
    return f"{good(d)} saw wipe.begin while leased (lease-7)"


def _image_over_a_lease(d: Finished) -> str:
    d.add(good(d), "tenant.begin", lease="lease-7")
    d.add(good(d), "image.write", intent="other")
    return f"{good(d)} saw image.write while leased (lease-7)"


def _no_intent(d: Finished) -> str:
    d.add(good(d), "wipe.begin")
    return f"{good(d)} saw wipe.begin without an intent"


def _wiped_a_stranger(d: Finished) -> str:
    name = d.of_kind("wrong-serial")
    d.add(name, "wipe.begin", intent="x")
    return f"{name} has another serial than the inventory, and saw wipe.begin all the same"


def _never_wiped(d: Finished) -> str:
    d.record.entries[:] = [e for e in d.record.entries if not (e.host == good(d) and e.what.startswith("wipe."))]
    return f"{good(d)} was published, but the record shows no wipe.done"


def _stale_round(d: Finished) -> str:
    d.add(good(d), "wipe.done", intent="later")
    return f"{good(d)} was published, but its last wipe.done, image.write, boot.disk are out of order"


def _no_brake(d: Finished) -> str:
    for name in d.plan.bad_hosts:
        d.add(name, "power.off")
        d.caught(name, "gpu.count")
    return f"All {len(d.plan.bad_hosts)} hosts of the bad rack {d.plan.bad_rack} were started"


def _bad_rack_untouched(d: Finished) -> str:
    d.record.entries[:] = [e for e in d.record.entries if e.host not in d.plan.bad_hosts or e.what == SEEDED]
    return f"No host of the bad rack {d.plan.bad_rack} was started"


def _bad_host_published(d: Finished) -> str:
    name = d.started[0]
    d.hosts[name]["state"] = "available"
    return f"{name} of the bad rack has {d.plan.faults[name].kind}, but is available"


def _held_host_moved(d: Finished) -> str:
    name = d.plan.bad_hosts[-1]
    d.hosts[name]["state"] = "manageable"
    return f"{name} of the bad rack was never started, but is manageable"


def _unplanned_fault(d: Finished) -> str:
    d.add(good(d), SEEDED, kind="xid", gpu=1)
    return f"The record shows xid on {good(d)}, which was not planned"


@pytest.mark.parametrize(
    "doctor",
    [
        _quarantined_good,
        _findings_on_available,
        _not_leaseable,
        _moving,
        _escaped,
        _wrong_finding,
        _no_finding,
        _missing_host,
        _stranger,
        _twice,
        _two_wipes,
        _two_images,
        _two_erasures,
        _image_on_a_kept_drive,
        _failed_wipe_published,
        _wipe_of_a_lease,
        _image_over_a_lease,
        _no_intent,
        _wiped_a_stranger,
        _never_wiped,
        _stale_round,
        _no_brake,
        _bad_rack_untouched,
        _bad_host_published,
        _held_host_moved,
        _unplanned_fault,
    ],
)
def test_a_doctored_demo_is_caught(done: Finished, doctor: Callable[[Finished], str]) -> None:
    says = doctor(done)
    problems = done.problems()
    assert any(says in problem for problem in problems), problems
    assert len(problems) <= 2, problems  # it names the one thing, it does not cry over everything


def test_a_record_of_another_demo_is_caught(done: Finished) -> None:
    record = [entry for entry in done.record.entries if entry.what != SEEDED]
    problems = judge(done.plan, record, done.hosts.values())
    assert len(problems) == len(done.plan.faults)
    assert all("does not show the planned fault" in problem for problem in problems)


def test_a_bad_rack_that_was_not_brought_up_must_be_untouched(done: Finished) -> None:
    problems = done.problems(bad_rack_run=False)
    assert problems == [f"{name} of the bad rack was touched, though it was not brought up." for name in done.started]


def test_a_lease_of_a_broken_host_is_caught(done: Finished) -> None:
    name = done.of_kind("gpu-off-bus")
    assert f"{name} was leased, but is no sound host of the fleet." in done.problems(leased={name})


def test_a_code_in_an_alert_or_a_reason_counts(done: Finished) -> None:
    name = done.of_kind("deaf-bmc")
    done.hosts[name] |= {"state": "registered", "findings": [], "reasons": ["FLT-1001: no answer on the wire"]}
    assert done.problems() == []


def test_entries_of_the_whole_site_are_nobodys(done: Finished) -> None:
    done.record.entries.insert(0, Entry(n=0, at=0.0, host="-", what="site.start"))
    assert done.problems() == []
