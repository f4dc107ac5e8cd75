"""The demo's promises hold for every seed: who is broken, how many, and that both sides can read what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetd.kit.errors import NotFound
from fleetd.kit.yamlfile import parse
from fleetd.model.inventory import read_inventory
from fleetd.model.run import Strategy
from fleetd.model.units import share
from fleetd.sim import demo
from fleetd.sim.demo import ALWAYS, EXPECTED, REPOSITORY_SKUS, DemoPlan, build_demo, read_plan
from fleetd.sim.demo_inventory import GB200, H100, SMALL_DOMAIN, Ports, lay_out, small_sku
from fleetd.sim.faults import KINDS
from fleetd.sim.sitefile import inventory_texts, load_site

SEEDS = st.integers(min_value=0, max_value=2**31)
SKU_TEXTS = {f"skus/{p.name}": p.read_text() for p in sorted(REPOSITORY_SKUS.glob("*.yaml")) if p.stem in demo.SKUS}


def faults_of(seed: int, size: demo.Size) -> tuple[list[demo.DemoRack], list[demo.FaultSpec]]:
    texts = {name: small_sku(text) if size == "small" else text for name, text in SKU_TEXTS.items()}
    inventory = read_inventory(texts)
    racks = lay_out(seed, size, inventory.skus, Ports())
    return racks, demo.choose_faults(racks, inventory, seed, size)


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_every_seed_breaks_the_promised_kinds_on_few_hosts(seed: int) -> None:
    racks, faults = faults_of(seed, "demo")
    bad = {host.name for rack in racks if rack.bad for host in rack.hosts}
    fleet = [host.name for rack in racks if not rack.bad for host in rack.hosts]
    victims = [spec for spec in faults if spec.host not in bad]
    kinds = {spec.kind for spec in victims}
    assert len(fleet) >= 60
    assert set(ALWAYS) <= kinds
    assert len(kinds) == len(victims) >= 8  # every victim has another kind
    assert len(victims) < 0.15 * len(fleet)
    assert len({spec.host for spec in faults}) == len(faults)
    assert {spec.host for spec in faults} <= {*fleet, *bad}
    assert kinds <= EXPECTED.keys() & KINDS.keys()
    rack_of = {host.name: rack.name for rack in racks for host in rack.hosts}
    assert len({rack_of[spec.host] for spec in victims}) == len(victims)


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_every_fault_fits_its_host(seed: int) -> None:
    racks, faults = faults_of(seed, "demo")
    hosts = {host.name: host for rack in racks for host in rack.hosts}
    for spec in faults:
        assert (spec.kind == "wrong-domain") == (hosts[spec.host].sku == GB200)
        if spec.kind in demo.REDFISH_ONLY:
            assert hosts[spec.host].wire == "redfish"


@given(SEEDS, st.sampled_from(["demo", "small"]))
@settings(max_examples=40, deadline=None)
def test_the_bad_rack_spends_the_usual_budget_before_its_last_wave(seed: int, size: demo.Size) -> None:
    racks, faults = faults_of(seed, size)
    (rack,) = [rack for rack in racks if rack.bad]
    broken = {spec.host for spec in faults}
    strategy, names = Strategy(), [host.name for host in rack.hosts]
    allowed = max(1, share(strategy.max_failures, len(names)))
    before_last = names[: share(strategy.waves[-2], len(names))]
    assert sum(name in broken for name in before_last) > allowed
    assert broken.issuperset(names) is False


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_small_leaves_sound_hosts_in_every_rack(seed: int) -> None:
    racks, faults = faults_of(seed, "small")
    broken = {spec.host for spec in faults}
    assert 14 <= sum(len(rack.hosts) for rack in racks) <= 18
    assert {"wrong-domain"} < {spec.kind for spec in faults}
    for rack in racks:
        assert not {host.name for host in rack.hosts} <= broken
        if rack.domain:
            assert len(rack.hosts) == SMALL_DOMAIN[0]


@given(SEEDS, st.sampled_from(["demo", "small"]))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_sides_read_what_was_written(tmp_path_factory: pytest.TempPathFactory, seed: int, size: demo.Size) -> None:
    folder = tmp_path_factory.mktemp("demo")
    plan = build_demo(folder, seed, size=size)
    inventory = read_inventory(inventory_texts(folder / "inventory"))
    assert set(inventory.hosts) == set(plan.hosts)
    assert set(inventory.sites) == {"louisiana", "ohio"}
    site = load_site(folder / "site.yaml")
    assert {spec.host: spec for spec in site.file.faults}.keys() == plan.faults.keys()
    for spec in site.file.faults:
        planned = plan.faults[spec.host].fault()
        assert (spec.fault().kind, spec.fault().params) == (planned.kind, planned.params)
    assert {site.behaviour(h) for h in inventory.hosts.values()} == {"dell", "supermicro", "openbmc", "ipmi"}
    assert read_plan(folder / "plan.json") == plan
    assert set(plan.good) | set(plan.faulty) | set(plan.bad_hosts) == set(plan.hosts)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_seed_is_reproducible_and_another_has_other_victims(tmp_path: Path) -> None:
    plans: list[DemoPlan] = [build_demo(tmp_path / str(i), seed) for i, seed in enumerate((7, 7, 8))]
    assert tree(tmp_path / "0") == tree(tmp_path / "1")
    assert plans[0] == plans[1]
    assert plans[0].faults.keys() != plans[2].faults.keys()


def test_the_nvl72_rack_is_one_domain_of_18_trays_and_9_switch_trays(tmp_path: Path) -> None:
    build_demo(tmp_path, 0)
    inventory = read_inventory(inventory_texts(tmp_path / "inventory"))
    (rack,) = [rack for rack in inventory.racks.values() if rack.nvlink_domain]
    trays = [host for host in inventory.hosts.values() if host.rack == rack.rack]
    assert len(trays) == 18
    assert len(rack.switch_trays) == 9
    assert sum(inventory.skus[host.sku].gpu.count for host in trays) == 72
    assert {host.nvlink_domain for host in trays} == {rack.nvlink_domain}


def test_the_small_sku_differs_only_in_its_domain() -> None:
    text = SKU_TEXTS[f"skus/{GB200}.yaml"]
    before, after = parse(text, "a").value, parse(small_sku(text), "b").value
    assert before.pop("domain") != after["domain"]
    assert tuple(int(n) for n in after.pop("domain").values()) == SMALL_DOMAIN
    assert before == after
    assert small_sku(SKU_TEXTS[f"skus/{H100}.yaml"]) == SKU_TEXTS[f"skus/{H100}.yaml"]


def test_the_repositorys_inventory_is_the_demo_of_seed_0(tmp_path: Path) -> None:
    build_demo(tmp_path, 0)
    committed = REPOSITORY_SKUS.parent
    wanted = {name: data for name, data in tree(tmp_path / "inventory").items() if not name.startswith("skus/")}
    found = {name: data for name, data in tree(committed).items() if name.startswith(("sites/", "racks/"))}
    assert found == wanted, "write them anew: python -m fleetd.sim.demo inventory"


def test_without_sku_files_the_demo_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=H100):
        build_demo(tmp_path, 0, skus=tmp_path)
    with pytest.raises(NotFound):
        read_plan(tmp_path / "plan.json")
