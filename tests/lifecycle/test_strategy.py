"""Waves, budgets and width."""

from hypothesis import given
from hypothesis import strategies as st

from fleetd.lifecycle.strategy import budget, spent, startable, units, wave_done, waves
from fleetd.model.bmc import BmcSpec
from fleetd.model.host import Host, HostSpec
from fleetd.model.run import Run, RunHost, RunHostState, Strategy


def host(number: int, rack: str = "r1", domain: str | None = None) -> Host:
    spec = HostSpec(
        name=f"h{number:03}",
        position=number % 60 + 1,
        sku="s",
        serial=f"S{number}",
        bmc=BmcSpec(protocol="redfish", address=f"10.0.0.{number}", credentials="c"),
        boot_mac="04:3f:72:aa:00:01",
        site="louisiana",
        rack=rack,
        nvlink_domain=domain,
    )
    return Host(id=f"host-{number}", spec=spec, state_since=0.0)


def run(strategy: Strategy = Strategy(), wave: int = 0) -> Run:
    return Run(id="run-1", playbook="p", steps=(), strategy=strategy, selector="all", created=0.0, wave=wave, waves=3)


@given(
    st.lists(st.sampled_from([None, None, "d1", "d2"]), min_size=1, max_size=80),
    st.sampled_from([("1", "25%", "100%"), ("100%",), ("5", "10", "100%"), ("50%",)]),
)
def test_waves_hold_every_host_once_and_keep_domains_together(domains, entries):
    hosts = [host(i, rack=f"r{i % 3}", domain=d) for i, d in enumerate(domains)]
    made = waves(hosts, Strategy(waves=entries))
    assert sorted(h.id for wave in made for h in wave) == sorted(h.id for h in hosts)
    assert all(wave for wave in made)
    for domain in ("d1", "d2"):
        assert sum(any(h.spec.nvlink_domain == domain for h in wave) for wave in made) <= 1
    if entries[0] == "1":
        assert len(units(made[0])) == 1


@given(st.integers(1, 5000), st.integers(1, 100))
def test_the_budget_is_rounded_up_and_at_least_one(total, percent):
    allowed = budget(Strategy(max_failures=f"{percent}%"), total)
    assert allowed >= 1
    assert allowed * 100 >= percent * total
    assert (allowed - 1) * 100 < percent * total or allowed == 1


def places(*states: RunHostState, wave: int = 0) -> list[RunHost]:
    return [RunHost(run="run-1", host=f"host-{i}", wave=wave, state=s) for i, s in enumerate(states)]


F, P, A, D = RunHostState.FAILED, RunHostState.PENDING, RunHostState.ACTIVE, RunHostState.PASSED


def test_one_failure_more_than_the_budget_stops():
    ten = Strategy(max_failures="20%")
    assert not spent(run(ten), places(F, F, *[D] * 8))
    assert spent(run(ten), places(F, F, F, *[D] * 7))


def test_width_and_rack_limit_who_starts():
    racks = {f"host-{i}": "r1" if i < 4 else "r2" for i in range(8)}
    four = places(A, A, P, P, P, P, P, P)
    limited = run(Strategy(width=5, per_rack=3))
    assert [p.host for p in startable(limited, four, racks)] == ["host-2", "host-4", "host-5"]


def test_a_later_wave_does_not_start_early():
    later = places(P, P, wave=1)
    assert startable(run(), later, {"host-0": "r", "host-1": "r"}) == []
    assert wave_done(run(), later)
    assert not wave_done(run(wave=1), later)
