"""Leases: all or none, no host twice, hand-over, end, grace, usage; and a refusal that says why."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from fleetd.kit.clock import SystemClock, parse_rfc3339, rfc3339
from fleetd.kit.errors import Conflict, FleetError, Invalid, Refused
from fleetd.lifecycle.brakes import Limits
from fleetd.lifecycle.dark import darken
from fleetd.model.check import Finding
from fleetd.model.host import Alert, Classification, State
from fleetd.model.lease import Lease, LeaseState
from fleetd.model.power import PowerVerb
from fleetd.model.run import RunHostState, RunState
from fleetd.store import hosts as host_rows
from fleetd.store import runs as run_rows
from fleetd.store.database import open_database
from tests.lifecycle.fleet import GB200, SAME_DOMAIN, SAME_RACK, WHO, Fleet, inventory, ledger


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with ledger() as db:
        fleet = Fleet(db)
        await fleet.fill(inventory({"lou-a01": 4, "lou-a02": 6, "lou-a03": 2}))
        yield fleet


def racks_of(lease: Lease, names: dict[str, str]) -> list[str]:
    return sorted({names[host] for host in lease.hosts})


async def by_rack(fleet: Fleet) -> dict[str, str]:
    return {host.id: host.spec.rack for host in await host_rows.every(fleet.db)}


async def test_a_claim_writes_everything_in_one_commit(fleet: Fleet) -> None:
    lease = await fleet.claim(3, user_data="#cloud-config")
    assert lease.state is LeaseState.DELIVERING
    assert lease.request.image == "ubuntu-24.04-gpu"
    assert fleet.woken == [lease.run]
    run = await run_rows.get(fleet.db, lease.run or "")
    assert (run.playbook, run.lease, run.state) == ("handover", lease.id, RunState.RUNNING)
    assert {place.host for place in await run_rows.hosts(fleet.db, run.id)} == set(lease.hosts)
    for host_id in lease.hosts:
        host = await host_rows.get(fleet.db, host_id)
        assert (host.state, host.tenant_data, host.lease, host.run) == (State.DELIVERING, "possible", lease.id, run.id)
        assert host.deadline is not None
        assert host.deadline > fleet.clock.wall()
        assert fleet.hosts.reasons(host, fleet.clock.wall())
    assert len(await fleet.said("lease.claimed")) == 1


async def test_all_or_none_when_one_host_is_taken_between(fleet: Fleet) -> None:
    request = fleet.asks(12)
    chosen = await fleet.leases._choose(request)
    await fleet.put(chosen[7], state=State.QUARANTINED)
    with pytest.raises(Conflict):
        await fleet.leases._claim(request, chosen, fleet.clock.wall() + 60, WHO)
    assert await fleet.leases.every() == []
    assert set((await fleet.states()).values()) == {"available", "quarantined"}
    assert await run_rows.active(fleet.db) == []


async def test_the_refusal_counts_and_says_why(fleet: Fleet) -> None:
    bad = [await fleet.named(f"lou-a02-0{i}") for i in (1, 2, 3)]
    for host, code in zip(bad, ("gpu.count", "nvlink.links", "nvlink.links"), strict=True):
        finding = Finding(code=code, message="wrong", remedy="reseat")
        await fleet.put(host, state=State.QUARANTINED, findings=(finding,))
    await fleet.hand_over(await fleet.claim(4, placement=SAME_RACK))
    with pytest.raises(Conflict) as refused:
        await fleet.claim(20, site="louisiana")
    assert refused.value.what == "5 of dell.xe9680-h100-8 are leaseable in louisiana, 20 asked"
    assert refused.value.why == "not leaseable: 4 leased, 3 quarantined (gpu.count 1, nvlink.links 2)"
    assert "ask for 5 or fewer" in refused.value.remedy
    with pytest.raises(Conflict) as refused:
        await fleet.claim(9, site="louisiana")
    assert "or wait: by 2027-01-16T08:00:00.000Z" in refused.value.remedy


async def test_the_refusal_names_the_largest_domain() -> None:
    async with ledger() as db:
        fleet = Fleet(db)
        await fleet.fill(inventory({"lou-n01": 18, "lou-n02": 18}, sku=GB200, domain=True))
        for i in (3, 4):
            await fleet.put(await fleet.named(f"lou-n01-0{i}"), state=State.MAINTENANCE)
        await fleet.put(await fleet.named("lou-n02-09"), expires=-1)
        with pytest.raises(Conflict) as refused:
            await fleet.claim(18, sku=GB200, placement=SAME_DOMAIN)
        assert refused.value.what == "33 of nvidia.gb200-nvl72-tray are leaseable, 18 asked same-nvlink-domain"
        assert refused.value.why == (
            "the largest NVLink domain has 17 free (lou-n02-nvl); not leaseable: 2 maintenance, 1 certificate expired"
        )
        assert "placement any" in refused.value.remedy
        lease = await fleet.claim(16, sku=GB200, placement=SAME_DOMAIN)
        assert racks_of(lease, await by_rack(fleet)) == ["lou-n01"], "the domain that fits tightest"


async def test_placement_fits_tightest(fleet: Fleet) -> None:
    names = await by_rack(fleet)
    assert racks_of(await fleet.claim(2), names) == ["lou-a03"]
    assert racks_of(await fleet.claim(3), names) == ["lou-a01"]
    assert racks_of(await fleet.claim(6, placement=SAME_RACK), names) == ["lou-a02"]
    with pytest.raises(Conflict):
        await fleet.claim(2)


async def test_any_prefers_few_racks_and_one_site(fleet: Fleet) -> None:
    await fleet.fill(inventory({"oh-b01": 3, "oh-b02": 3}, site="ohio"))
    names = await by_rack(fleet)
    assert racks_of(await fleet.claim(5, site="ohio"), names) == ["oh-b01", "oh-b02"]
    assert racks_of(await fleet.claim(8), names) == ["lou-a02", "lou-a03"], "six, then the rack where two fit tightest"
    assert len((await fleet.claim(5)).hosts) == 5, "over both sites, when none can hold it"


async def test_an_hgx_host_is_a_domain_of_its_own(fleet: Fleet) -> None:
    assert len((await fleet.claim(1, placement=SAME_DOMAIN)).hosts) == 1
    with pytest.raises(Conflict, match="11 of"):
        await fleet.claim(2, placement=SAME_DOMAIN)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"state": State.VALIDATING}, "it is validating"),
        ({"certificate": None}, "no certificate"),
        ({"expires": 0.0}, "expired"),
        ({"tenant_data": "possible"}, "tenant's data"),
        (
            {
                "alerts": (
                    Alert(
                        id="bmc-deaf", target="bmc", since=0, message="m", remedy="r",
                        classifications=(Classification.PREVENTS_LEASE,),
                    ),
                )
            },
            "alert bmc-deaf",
        ),
    ],
)  # fmt: skip
async def test_what_is_not_leaseable_is_not_claimed(fleet: Fleet, change: dict[str, object], reason: str) -> None:
    for host in await host_rows.every(fleet.db):
        if host.name != "lou-a02-02":
            await fleet.put(host, state=State.MAINTENANCE)
    only = await fleet.named("lou-a02-02")
    assert fleet.hosts.reasons(only, fleet.clock.wall()) == []
    only = await fleet.put(only, **change)  # type: ignore[arg-type]
    assert reason in "; ".join(fleet.hosts.reasons(only, fleet.clock.wall()))
    with pytest.raises(Conflict, match="0 of"):
        await fleet.claim(1)
    # The ledger refuses it by itself too, whatever a desk thinks.
    stale = msgspec.structs.replace(only, state=State.AVAILABLE)
    with pytest.raises(Conflict):
        await fleet.leases._claim(fleet.asks(1), [stale], fleet.clock.wall() + 60, WHO)


async def test_a_frozen_rack_is_not_leased_from(fleet: Fleet) -> None:
    await fleet.brakes.freeze("rack:lou-a02", "smoke", who=WHO)
    with pytest.raises(Conflict) as refused:
        await fleet.claim(7)
    assert "6 frozen" in refused.value.why
    await fleet.brakes.thaw("rack:lou-a02", who=WHO)
    assert len((await fleet.claim(7)).hosts) == 7


async def test_an_expired_proof_does_not_come_back_with_a_clock_that_fell_back(fleet: Fleet) -> None:
    await fleet.clock_brake.tick()
    fleet.clock.go(31 * 86_400)
    await fleet.clock_brake.tick()
    fleet.clock.jump(-20 * 86_400)
    await fleet.clock_brake.tick()
    assert fleet.clock_brake.suspended is not None
    with pytest.raises(Conflict, match="0 of"):
        await fleet.claim(1)


@pytest.mark.slow
async def test_64_concurrent_claims_none_double(tmp_path: Path) -> None:
    """Two daemons' worth of desks on one ledger on disk, 64 tenants, 40 hosts."""
    db = await open_database(f"sqlite:///{tmp_path}/ledger.db")
    await db.migrate()
    desks = [Fleet(db, SystemClock()) for _ in range(4)]
    await desks[0].fill(inventory({f"lou-a{i:02d}": 10 for i in range(4)}))
    for desk in desks:
        await desk.clock_brake.tick()

    async def ask(i: int) -> Lease | FleetError:
        try:
            return await desks[i % 4].claim(1, tenant=f"t{i}")
        except FleetError as error:
            return error

    results = await asyncio.gather(*(ask(i) for i in range(64)))
    got = [r for r in results if isinstance(r, Lease)]
    held = [host for lease in got for host in lease.hosts]
    assert len(held) == len(set(held))
    assert len(got) == 40, [str(r) for r in results if not isinstance(r, Lease)][:3]
    assert all(isinstance(r, Conflict) and "0 of" in r.what for r in results if not isinstance(r, Lease))
    assert {h.lease for h in await host_rows.every(db)} == {lease.id for lease in got}
    await db.close()


@pytest.mark.slow
async def test_a_thousand_hosts_in_one_transaction(tmp_path: Path) -> None:
    db = await open_database(f"sqlite:///{tmp_path}/ledger.db")
    await db.migrate()
    fleet = Fleet(db, SystemClock())
    await fleet.fill(inventory({f"lou-n{i:02d}": 18 for i in range(56)}, sku=GB200, domain=True))
    began = time.perf_counter()
    lease = await fleet.claim(1000, sku=GB200)
    assert len(set(lease.hosts)) == 1000
    assert time.perf_counter() - began < 1.0
    await db.close()


async def test_handed_over_when_all_are(fleet: Fleet) -> None:
    lease = await fleet.claim(3)
    first = lease.hosts[0]
    run = lease.run or ""
    await fleet.run_ends(run, RunHostState.PASSED, lambda h: {"state": State.LEASED}, only=first)
    assert (await fleet.leases.get(lease.id)).state is LeaseState.DELIVERING
    lease = await fleet.hand_over(lease)
    assert (lease.state, lease.activated) == (LeaseState.ACTIVE, fleet.clock.wall())
    assert len(await fleet.said("lease.active")) == 1


async def test_a_crash_before_the_last_word_is_mended_by_the_next_look(fleet: Fleet) -> None:
    lease = await fleet.claim(2)
    for place in await run_rows.hosts(fleet.db, lease.run or ""):
        await fleet.db.commit([run_rows.save_host(msgspec.structs.replace(place, state=RunHostState.PASSED))])
        await fleet.put(await host_rows.get(fleet.db, place.host), state=State.LEASED, deadline=None)
    await fleet.leases.tick(fleet.clock.go(10))
    assert (await fleet.leases.get(lease.id)).state is LeaseState.ACTIVE


async def test_one_failed_hand_over_takes_all_back(fleet: Fleet) -> None:
    lease = await fleet.claim(3)
    run = lease.run or ""
    await fleet.run_ends(run, RunHostState.PASSED, lambda h: {"state": State.LEASED}, only=lease.hosts[0])
    places = {p.host: p for p in await run_rows.hosts(fleet.db, run)}
    broken = msgspec.structs.replace(
        places[lease.hosts[1]],
        state=RunHostState.FAILED,
        finding=Finding(code="gpu.count", message="7 of 8", remedy="reseat GPU 3"),
    )
    await fleet.db.commit([run_rows.save_host(broken)])
    await fleet.put(await host_rows.get(fleet.db, broken.host), state=State.RECLAIMING)
    await fleet.leases.follow(await run_rows.get(fleet.db, run), broken)

    failed = await fleet.leases.get(lease.id)
    assert failed.state is LeaseState.FAILED
    assert "gpu.count: 7 of 8" in failed.reason
    assert (await run_rows.get(fleet.db, run)).state is RunState.CANCELLED
    # The engine holds the third host, which never started; then one reclaim run takes all three.
    assert (await host_rows.get(fleet.db, lease.hosts[0])).state is State.LEASED
    held = msgspec.structs.replace(places[lease.hosts[2]], state=RunHostState.HELD)
    await fleet.db.commit([run_rows.save_host(held)])
    await fleet.leases.look(fleet.clock.go(5))
    reclaim = await run_rows.get(fleet.db, (await fleet.leases.get(lease.id)).run or "")
    assert (reclaim.playbook, reclaim.lease) == ("reclaim", lease.id)
    assert {p.host for p in await run_rows.hosts(fleet.db, reclaim.id)} == set(lease.hosts)
    assert {(await host_rows.get(fleet.db, h)).state for h in lease.hosts} == {State.RECLAIMING}
    assert await fleet.said("usage") == [], "who was never given the hosts pays nothing"
    after = await fleet.reclaim(failed)
    assert (after.state, after.ended) == (LeaseState.FAILED, fleet.clock.wall())


async def test_release_wipes_at_once_and_usage_is_recorded(fleet: Fleet) -> None:
    lease = await fleet.hand_over(await fleet.claim(2))
    fleet.clock.go(3600)
    lease = await fleet.leases.release(lease.id, who=WHO)
    assert lease.state is LeaseState.ENDING
    assert (await run_rows.get(fleet.db, lease.run or "")).playbook == "reclaim"
    used = await fleet.said("usage")
    assert [e.data["gpu_seconds"] for e in used] == [8 * 3600.0] * 2
    assert {e.data["tenant"] for e in used} == {"acme"}
    with pytest.raises(Conflict, match=r"10 of"):
        await fleet.claim(11)
    done = await fleet.reclaim(lease)
    assert (done.state, done.ended) == (LeaseState.ENDED, fleet.clock.wall())
    assert len((await fleet.claim(12)).hosts) == 12
    assert len(await fleet.said("usage")) == 2
    with pytest.raises(Conflict, match="ended already"):
        await fleet.leases.release(lease.id, who=WHO)


async def test_expiry_powers_off_waits_the_grace_then_wipes(fleet: Fleet) -> None:
    lease = await fleet.hand_over(await fleet.claim(1, days=1))
    await fleet.leases.tick(fleet.clock.go(86_400 + 1))
    lease = await fleet.leases.get(lease.id)
    assert (lease.state, lease.reason) == (LeaseState.ENDING, "expired")
    assert lease.reclaim_at == fleet.clock.wall() + 86_400
    assert await darken(fleet.db, fleet.hosts) == 1, "its BMC is asked, and asked again while it does not answer"
    assert await darken(fleet.db, fleet.hosts) == 1
    with pytest.raises(Refused, match="power on refused"):
        await fleet.hosts.power(lease.hosts[0], PowerVerb.ON, who=WHO)
    assert (await host_rows.get(fleet.db, lease.hosts[0])).state is State.LEASED
    await fleet.leases.tick(fleet.clock.go(86_400))
    assert (await host_rows.get(fleet.db, lease.hosts[0])).state is State.RECLAIMING
    (used,) = await fleet.said("usage")
    assert used.data["to"] == rfc3339(parse_rfc3339(lease.request.ends_at)), "the grace is not billed"
    assert (await fleet.reclaim(lease)).state is LeaseState.ENDED


async def test_an_expired_lease_is_revived_before_the_wipe_and_not_after(fleet: Fleet) -> None:
    lease = await fleet.hand_over(await fleet.claim(1, days=1))
    await fleet.leases.tick(fleet.clock.go(86_400 + 1))
    back = await fleet.leases.extend(lease.id, fleet.clock.wall() + 3600, who=WHO)
    assert (back.state, back.reclaim_at, back.released) == (LeaseState.ACTIVE, None, None)
    await fleet.leases.tick(fleet.clock.go(3601))
    await fleet.leases.tick(fleet.clock.go(86_400))
    with pytest.raises(Conflict, match="is ending"):
        await fleet.leases.extend(lease.id, fleet.clock.wall() + 3600, who=WHO)


async def test_extend_only_lengthens(fleet: Fleet) -> None:
    lease = await fleet.claim(1)
    longer = await fleet.leases.extend(lease.id, lease.ends + 60, who=WHO)
    assert longer.ends == lease.ends + 60
    with pytest.raises(Conflict, match="already lasts"):
        await fleet.leases.extend(lease.id, lease.ends, who=WHO)
    with pytest.raises(Invalid, match="not in the future"):
        await fleet.leases.extend(lease.id, fleet.clock.wall() - 1, who=WHO)
    with pytest.raises(Invalid):
        await fleet.leases.extend(lease.id, float("nan"), who=WHO)


async def test_release_during_hand_over_waits_for_the_step_at_work(fleet: Fleet) -> None:
    lease = await fleet.claim(2)
    run = lease.run or ""
    at_work, waiting = await run_rows.hosts(fleet.db, run)
    await fleet.db.commit([run_rows.save_host(msgspec.structs.replace(at_work, state=RunHostState.ACTIVE))])
    lease = await fleet.leases.release(lease.id, who=WHO)
    assert (lease.state, lease.run) == (LeaseState.ENDING, run)
    assert (await run_rows.get(fleet.db, run)).state is RunState.CANCELLED
    await fleet.db.commit([run_rows.save_host(msgspec.structs.replace(waiting, state=RunHostState.HELD))])
    await fleet.leases.look(fleet.clock.go(5))
    assert (await fleet.leases.get(lease.id)).run == run
    await fleet.run_ends(run, RunHostState.FAILED, lambda h: {"state": State.RECLAIMING}, only=at_work.host)
    reclaim = (await fleet.leases.get(lease.id)).run or ""
    assert {p.host for p in await run_rows.hosts(fleet.db, reclaim)} == set(lease.hosts)


async def test_a_reclaim_that_stopped_is_not_started_again_by_itself(fleet: Fleet) -> None:
    lease = await fleet.leases.release((await fleet.hand_over(await fleet.claim(1))).id, who=WHO)
    await fleet.run_ends(lease.run or "", RunHostState.HELD, lambda h: {})
    await fleet.leases.look(fleet.clock.go(5))
    assert (await fleet.leases.get(lease.id)).run == lease.run
    # Quarantined with the data still on it, the host stays bound; wiped and validating, it is let go.
    host = await host_rows.get(fleet.db, lease.hosts[0])
    await fleet.put(host, state=State.QUARANTINED, resume_state=State.RECLAIMING)
    await fleet.leases.look(fleet.clock.go(5))
    assert (await fleet.leases.get(lease.id)).state is LeaseState.ENDING
    await fleet.put(host, state=State.VALIDATING, tenant_data="erased")
    await fleet.leases.look(fleet.clock.go(5))
    assert (await fleet.leases.get(lease.id)).state is LeaseState.ENDED
    assert (await host_rows.get(fleet.db, host.id)).lease is None


async def test_nothing_expires_while_the_clock_is_not_believed(fleet: Fleet) -> None:
    lease = await fleet.hand_over(await fleet.claim(1, days=1))
    await fleet.clock_brake.tick()
    fleet.clock.jump(2 * 86_400)
    await fleet.clock_brake.tick()
    await fleet.leases.tick(fleet.clock.wall())
    assert (await fleet.leases.get(lease.id)).state is LeaseState.ACTIVE
    await fleet.clock_brake.clear(who=WHO)
    await fleet.leases.tick(fleet.clock.go(10))
    assert (await fleet.leases.get(lease.id)).state is LeaseState.ENDING


async def test_too_many_at_once_expire_not_at_all() -> None:
    async with ledger() as db:
        fleet = Fleet(db, limits=Limits(max_ending=3))
        await fleet.fill(inventory({"lou-a01": 6}))
        leases = [await fleet.hand_over(await fleet.claim(1, days=1 + i / 1e6)) for i in range(5)]
        await fleet.leases.look(fleet.clock.go(86_400 + 10))
        assert {(await fleet.leases.get(lease.id)).state for lease in leases} == {LeaseState.ACTIVE}
        assert "5 leases would end" in (await fleet.brakes.holds())["lease-expiry"]
        await fleet.leases.look(fleet.clock.go(10))
        assert len(await fleet.said("brake.hold")) == 1, "said once"
        await fleet.brakes.lift("lease-expiry", who=WHO)
        await fleet.leases.look(fleet.clock.go(10))
        assert {(await fleet.leases.get(lease.id)).state for lease in leases} == {LeaseState.ENDING}


async def test_reminders_come_once(fleet: Fleet) -> None:
    lease = await fleet.hand_over(await fleet.claim(1, days=2))
    await fleet.leases.look(fleet.clock.wall())
    for hours in (10, 15, 1, 21, 0.5):
        await fleet.leases.look(fleet.clock.go(hours * 3600))
    again = Fleet(fleet.db, fleet.clock)
    await again.clock_brake.tick()
    await again.leases.look(fleet.clock.go(60))
    reminders = await fleet.said("lease.reminder")
    assert [e.lease for e in reminders] == [lease.id] * 2
