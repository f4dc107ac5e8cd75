"""The desk for single hosts: found by any handle, left alone where a run or a tenant is, and never stuck without a word."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from fleetd.drivers.bmc.capabilities import Bmc
from fleetd.drivers.bmc.redfish import RedfishBmc
from fleetd.kit.errors import Ambiguous, Conflict, Invalid, NotFound, Refused, Unreachable
from fleetd.kit.ids import new_id
from fleetd.lifecycle.blockers import Blocker, tally
from fleetd.lifecycle.dark import darken
from fleetd.model.boot import Boot
from fleetd.model.check import Finding
from fleetd.model.host import Host, State
from fleetd.model.power import BootDevice, PowerState, PowerVerb
from fleetd.model.run import Run, RunHostState
from fleetd.store import boots as boot_rows
from fleetd.store import certificates as certificate_rows
from fleetd.store import hosts as host_rows
from fleetd.store import runs as run_rows
from tests.lifecycle.fleet import WHO, Fleet, inventory, ledger
from tests.lifecycle.proofs import certify
from tests.redfish_rig import Rig, rig
from tests.store.samples import a_boot

A01 = "lou-a01"


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with ledger() as db:
        fleet = Fleet(db)
        await fleet.fill(inventory({A01: 4, "lou-a02": 2}))
        yield fleet


async def wired(fleet: Fleet, bmc: Rig) -> Fleet:
    """The same fleet, its BMCs answered by the simulator over the real driver."""

    @contextlib.asynccontextmanager
    async def session(host: Host) -> AsyncIterator[Bmc]:
        opened = await bmc.open()
        try:
            yield opened
        finally:
            await opened.close()

    return Fleet(fleet.db, fleet.clock, open_bmc=session)


async def runs_on(fleet: Fleet, name: str, playbook: str = "validate") -> Run:
    run = await fleet.runs.start(playbook, name, who=WHO)
    assert isinstance(run, Run)
    return run


async def test_a_host_is_found_by_id_name_and_serial(fleet: Fleet) -> None:
    host = await fleet.named(f"{A01}-02")
    for ref in (host.id, host.name, host.spec.serial):
        assert (await fleet.hosts.get(ref)).id == host.id
    with pytest.raises(NotFound):
        await fleet.hosts.get("lou-z99-01")
    with pytest.raises(NotFound):
        await fleet.hosts.get("")


async def test_retired_hosts_answer_only_when_no_living_one_does(fleet: Fleet) -> None:
    old = [await fleet.named(f"{A01}-0{i}") for i in (1, 2)]
    for host in old:
        await fleet.put(host, state=State.RETIRED, spec=msgspec.structs.replace(host.spec, name="twin"))
    with pytest.raises(Ambiguous) as several:
        await fleet.hosts.get("twin")
    assert all(host.id in several.value.why for host in old)
    alive = await fleet.named(f"{A01}-03")
    await fleet.put(alive, spec=msgspec.structs.replace(alive.spec, name="twin"))
    assert (await fleet.hosts.get("twin")).id == alive.id
    assert (await fleet.hosts.get(old[0].id)).state is State.RETIRED


async def test_select_names_hosts_or_is_not_found(fleet: Fleet) -> None:
    assert [h.name for h in await fleet.hosts.select(f"{A01}-[01-02]")] == [f"{A01}-01", f"{A01}-02"]
    assert len(await fleet.hosts.select("rack=lou-a02")) == 2
    for nothing in ("lou-z99", "state=leased"):
        with pytest.raises(NotFound):
            await fleet.hosts.select(nothing)
    with pytest.raises(Invalid):
        await fleet.hosts.select("colour=red")
    await fleet.put(await fleet.named(f"{A01}-01"), state=State.RETIRED)
    assert len(await fleet.hosts.select("all")) == 5
    assert len(await fleet.hosts.select("state=retired")) == 1


async def test_power_is_read_and_ordered_over_the_wire(fleet: Fleet) -> None:
    async with rig("dell") as bmc:
        fleet = await wired(fleet, bmc)
        name = f"{A01}-01"
        assert await fleet.hosts.power(name, None, who=WHO) is PowerState.OFF
        assert await fleet.hosts.power(name, PowerVerb.ON, who=WHO) is PowerState.ON
        assert bmc.host.power_state is PowerState.ON
        assert (await fleet.named(name)).status.power is PowerState.ON
        await fleet.hosts.boot(name, BootDevice.NETWORK, who=WHO)
        await fleet.hosts.identify(name, True, who=WHO)
        assert bmc.host.identify_led
        orders = [e.kind for e in await fleet.hosts.history(name) if e.principal == "ada"]
        assert orders[:3] == ["host.identify", "host.boot", "host.power"]
        assert await fleet.hosts.power(name, PowerVerb.OFF, who=WHO) is PowerState.OFF


async def up_in(fleet: Fleet, host: Host, environment: Any = "deploy", **changed: Any) -> Boot:
    """A boot of the host that came up, as the ledger has it."""
    now = fleet.clock.wall()
    fields = {"armed": now, "expires": now + 900, "met": now, "source": "10.0.0.1"} | changed
    boot = a_boot(new_id("b", now), host, environment=environment, **fields)
    await fleet.db.commit(boot_rows.insert(boot))
    return boot


@pytest.mark.parametrize("verb", [PowerVerb.OFF, PowerVerb.SOFT, PowerVerb.CYCLE, PowerVerb.RESET, PowerVerb.ON])
@pytest.mark.parametrize("state", [State.AVAILABLE, State.QUARANTINED])
async def test_an_order_that_stops_a_host_ends_its_boot(fleet: Fleet, verb: PowerVerb, state: State) -> None:
    """Else its keys and image tickets open doors for hours, and the doctor says that it is up."""
    async with rig("dell") as bmc:
        fleet = await wired(fleet, bmc)
        host = await fleet.put(await fleet.named(f"{A01}-01"), state=state)
        other = await up_in(fleet, await fleet.named(f"{A01}-02"))
        bmc.host.power_state = PowerState.ON
        boot = await up_in(fleet, host)
        await fleet.hosts.power(host.id, verb, who=WHO)
        ended = await boot_rows.get(fleet.db, boot.id)
        if verb is PowerVerb.ON:
            assert ended == boot, "it was on, and nothing stopped"
        else:
            assert ended.closed == fleet.clock.wall()
            assert ended.private_key == ""
        assert await boot_rows.get(fleet.db, other.id) == other


async def test_an_order_that_a_bmc_did_not_follow_ends_no_boot(fleet: Fleet) -> None:
    host = await fleet.named(f"{A01}-01")
    boot = await up_in(fleet, host)
    with pytest.raises(Unreachable):  # nobody answers
        await fleet.hosts.power(host.id, PowerVerb.OFF, who=WHO)
    assert await boot_rows.get(fleet.db, boot.id) == boot


async def test_a_look_that_finds_a_host_off_ends_its_boot_unless_a_run_works_in_it(fleet: Fleet) -> None:
    """One wrong answer of a BMC must not take the boot from under a write; the run finds out by itself when it is true."""
    async with rig("dell") as bmc:
        fleet = await wired(fleet, bmc)
        idle, busy = await fleet.named(f"{A01}-01"), await fleet.named(f"{A01}-02")
        boots = [await up_in(fleet, host) for host in (idle, busy)]
        bmc.host.power_state = PowerState.ON
        assert await fleet.hosts.power(idle.id, None, who=WHO) is PowerState.ON
        assert await boot_rows.get(fleet.db, boots[0].id) == boots[0]
        await runs_on(fleet, busy.name)
        bmc.host.power_state = PowerState.OFF
        for host in (idle, busy):
            assert await fleet.hosts.power(host.id, None, who=WHO) is PowerState.OFF
        ended, kept = [await boot_rows.get(fleet.db, boot.id) for boot in boots]
        assert ended.closed is not None
        assert kept == boots[1]


async def test_a_host_known_to_be_off_still_loses_its_boot_at_the_next_look(fleet: Fleet) -> None:
    async with rig("dell") as bmc:
        fleet = await wired(fleet, bmc)
        host = await fleet.put(await fleet.named(f"{A01}-01"), power=PowerState.OFF)
        boot = await up_in(fleet, host)
        assert await fleet.hosts.power(host.id, None, who=WHO) is PowerState.OFF
        assert (await boot_rows.get(fleet.db, boot.id)).closed is not None


async def test_a_boot_that_a_run_armed_meanwhile_is_not_ended_by_a_late_answer(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order may take minutes on the wire; what was armed after it left is another boot."""
    async with rig("dell") as bmc:
        fleet = await wired(fleet, bmc)
        host = await fleet.named(f"{A01}-01")
        before = await up_in(fleet, host)
        fresh: list[Boot] = []
        switch = RedfishBmc.power

        async def slow(self: Any, verb: PowerVerb, *, timeout: float) -> PowerState:
            done = await switch(self, verb, timeout=timeout)
            fresh.append(await up_in(fleet, host, met=None, armed=fleet.clock.go(1)))
            return done

        monkeypatch.setattr(RedfishBmc, "power", slow)
        await fleet.hosts.power(host.id, PowerVerb.OFF, who=WHO)
        assert (await boot_rows.get(fleet.db, before.id)).closed is not None
        assert await boot_rows.get(fleet.db, fresh[0].id) == fresh[0]


async def test_a_deaf_bmc_is_told_and_changes_nothing(fleet: Fleet) -> None:
    before = await fleet.named(f"{A01}-01")
    with pytest.raises(Unreachable):
        await fleet.hosts.power(before.name, PowerVerb.ON, who=WHO)
    assert await fleet.named(before.name) == before


async def test_a_host_in_a_run_is_left_alone(fleet: Fleet) -> None:
    name = f"{A01}-01"
    run = await runs_on(fleet, name)
    for order in (
        fleet.hosts.power(name, PowerVerb.OFF, who=WHO),
        fleet.hosts.boot(name, BootDevice.DISK, who=WHO),
        fleet.hosts.quarantine(name, "noise", who=WHO),
        fleet.hosts.retire(name, who=WHO),
    ):
        with pytest.raises(Refused, match=run.id):
            await order
    assert f"run {run.id} has it" in fleet.hosts.reasons(await fleet.named(name), fleet.clock.wall())


async def test_a_leased_host_takes_power_verbs_and_nothing_else(fleet: Fleet) -> None:
    async with rig("dell") as bmc:
        fleet = await wired(fleet, bmc)
        lease = await fleet.hand_over(await fleet.claim(1))
        host = lease.hosts[0]
        assert await fleet.hosts.power(host, PowerVerb.ON, who=WHO) is PowerState.ON
        with pytest.raises(Refused, match="boot device"):
            await fleet.hosts.boot(host, BootDevice.NETWORK, who=WHO)
        with pytest.raises(Conflict, match="cannot go from leased"):
            await fleet.hosts.quarantine(host, "noise", who=WHO)
        with pytest.raises(Conflict):
            await fleet.hosts.release(host, who=WHO)


async def test_the_hosts_of_an_ended_lease_are_powered_off(fleet: Fleet) -> None:
    async with rig("dell") as bmc:
        fleet = await wired(fleet, bmc)
        await fleet.clock_brake.tick()
        lease = await fleet.hand_over(await fleet.claim(1, days=1))
        await fleet.hosts.power(lease.hosts[0], PowerVerb.ON, who=WHO)
        await fleet.leases.look(fleet.clock.go(86_401))
        assert await darken(fleet.db, fleet.hosts) == 1
        assert bmc.host.power_state is PowerState.OFF
        assert await darken(fleet.db, fleet.hosts) == 0
        with pytest.raises(Refused):
            await fleet.hosts.power(lease.hosts[0], PowerVerb.CYCLE, who=WHO)


async def test_quarantine_by_hand_voids_the_proof_and_names_the_way_back(fleet: Fleet) -> None:
    host = await certify(fleet, await fleet.named(f"{A01}-01"))
    out = await fleet.hosts.quarantine(host.name, "  burnt\n smell ", who=WHO)
    assert (out.state, out.resume_state, out.certificate) == (State.QUARANTINED, State.VALIDATING, None)
    (finding,) = out.status.findings
    assert finding.message == "ada: burnt smell"
    assert f"fleetctl host release {host.name}" in finding.remedy
    (stored,) = await certificate_rows.of_host(fleet.db, host.id)
    assert stored.revoked == fleet.clock.wall()
    run = await fleet.hosts.release(host.name, who=WHO)
    assert fleet.resumed == [host.name]
    assert [p.host for p in await run_rows.hosts(fleet.db, run.id)] == [host.id]


@pytest.mark.parametrize("reason", ["", "   ", "x" * 501])
async def test_a_reason_is_needed(fleet: Fleet, reason: str) -> None:
    with pytest.raises(Invalid, match="reason"):
        await fleet.hosts.quarantine(f"{A01}-01", reason, who=WHO)
    with pytest.raises(Invalid, match="reason"):
        await fleet.hosts.maintenance(f"{A01}-01", reason=reason, until=fleet.clock.wall() + 9, who=WHO)


async def test_maintenance_takes_effect_when_nobody_has_the_host(fleet: Fleet) -> None:
    until = fleet.clock.wall() + 3600
    free = await fleet.hosts.maintenance(f"{A01}-01", reason="fan", until=until, who=WHO)
    assert (free.state, free.certificate) == (State.MAINTENANCE, None)
    longer = await fleet.hosts.maintenance(f"{A01}-01", reason="fan, still", until=until + 60, who=WHO)
    assert longer.status.maintenance is not None
    assert (longer.state, longer.status.maintenance.until) == (State.MAINTENANCE, until + 60)

    lease = await fleet.hand_over(await fleet.claim(1))
    leased = await fleet.hosts.maintenance(lease.hosts[0], reason="fan", until=until, who=WHO)
    assert leased.state is State.LEASED
    assert leased.status.pending_maintenance is not None
    await runs_on(fleet, f"{A01}-03")
    busy = await fleet.hosts.maintenance(f"{A01}-03", reason="fan", until=until, who=WHO)
    assert (busy.state, busy.status.maintenance) == (State.AVAILABLE, None)
    assert "maintenance is pending" in "; ".join(fleet.hosts.reasons(busy, fleet.clock.wall()))
    for wrong in (fleet.clock.wall() - 1, float("inf"), float("nan")):
        with pytest.raises(Invalid):
            await fleet.hosts.maintenance(f"{A01}-02", reason="fan", until=wrong, who=WHO)


async def test_pending_maintenance_takes_effect_when_the_host_is_free(fleet: Fleet) -> None:
    lease = await fleet.hand_over(await fleet.claim(1))
    host = lease.hosts[0]
    await fleet.hosts.maintenance(host, reason="fan", until=fleet.clock.wall() + 9e5, who=WHO)
    assert (await fleet.hosts.settle_maintenance(host)).state is State.LEASED
    lease = await fleet.leases.release(lease.id, who=WHO)
    await fleet.reclaim(lease)
    settled = await host_rows.get(fleet.db, host)
    assert (settled.state, settled.status.pending_maintenance) == (State.MAINTENANCE, None)
    assert settled.status.maintenance is not None
    assert settled.status.maintenance.reason == "fan"


async def test_maintenance_whose_moment_was_missed_takes_effect_at_the_next_start(fleet: Fleet) -> None:
    run = await runs_on(fleet, f"{A01}-03")
    await fleet.hosts.maintenance(f"{A01}-03", reason="fan", until=fleet.clock.wall() + 60, who=WHO)
    (place,) = await run_rows.hosts(fleet.db, run.id)
    await fleet.db.commit([run_rows.save_host(msgspec.structs.replace(place, state=RunHostState.PASSED))])
    await Fleet(fleet.db, fleet.clock).leases.look(fleet.clock.wall())
    assert (await fleet.named(f"{A01}-03")).state is State.MAINTENANCE


async def test_retire_needs_clean_disks_or_a_person(fleet: Fleet) -> None:
    host = await fleet.named(f"{A01}-01")
    await fleet.put(host, state=State.QUARANTINED, resume_state=State.RECLAIMING, tenant_data="possible")
    with pytest.raises(Refused, match="tenant's data"):
        await fleet.hosts.retire(host.name, who=WHO)
    await fleet.hosts.maintenance(host.name, reason="drives out", until=fleet.clock.wall() + 60, who=WHO)
    assert (await fleet.hosts.retire(host.name, who=WHO)).state is State.RETIRED
    with pytest.raises(Refused, match="is retired"):
        await fleet.hosts.retire(host.id, who=WHO)
    with pytest.raises(Conflict):
        await fleet.hosts.maintenance(host.id, reason="x", until=fleet.clock.wall() + 60, who=WHO)
    with pytest.raises(Conflict, match="cannot go from available"):
        await fleet.hosts.retire(f"{A01}-02", who=WHO)


async def test_why_tells_all_and_is_json(fleet: Fleet) -> None:
    name = f"{A01}-01"
    finding = Finding(code="gpu.count", message="7 of 8", remedy="reseat GPU 3", at=fleet.clock.wall())
    await fleet.put(
        await fleet.named(name), state=State.QUARANTINED, resume_state=State.VALIDATING, findings=(finding,)
    )
    said = json.loads(json.dumps(await fleet.hosts.why(name)))
    assert said["state"] == "quarantined"
    assert said["findings"][0]["remedy"] == "reseat GPU 3"
    assert said["reasons"][0] == "quarantined: gpu.count: 7 of 8"
    assert f"fleetctl host release {name}" in said["next"]

    run = await runs_on(fleet, f"{A01}-02")
    said = await fleet.hosts.why(f"{A01}-02")
    assert (said["run"]["id"], said["run"]["playbook"]) == (run.id, "validate")
    assert not said["leaseable"]
    for host in await host_rows.every(fleet.db):
        for state in State:
            put = await fleet.put(host, state=state)
            assert (await fleet.hosts.why(put.id))["next"]
        break


async def test_capacity_counts_every_host_once(fleet: Fleet) -> None:
    lease = await fleet.hand_over(await fleet.claim(2, days=2))
    await fleet.put(
        await fleet.named(f"{A01}-01"),
        state=State.QUARANTINED,
        findings=(Finding(code="gpu.count", message="7 of 8", remedy="r"),),
    )
    await fleet.put(await fleet.named(f"{A01}-02"), expires=0.0)
    await fleet.put(await fleet.named(f"{A01}-03"), state=State.RETIRED)
    (row,) = await fleet.hosts.capacity()
    assert (row.total, row.leaseable, row.free_at) == (5, 1, lease.ends)
    assert row.by_state == {"available": 2, "leased": 2, "quarantined": 1}
    assert row.reasons == {"certificate expired": 1, "leased": 2, "quarantined: gpu.count": 1}
    assert sum(row.reasons.values()) + row.leaseable == row.total
    by_rack = {r.rack: r for r in await fleet.hosts.capacity(by_rack=True)}
    assert (by_rack[A01].leaseable, by_rack["lou-a02"].leaseable) == (1, 0)
    await fleet.brakes.freeze("site:louisiana", "flood", who=WHO)
    (row,) = await fleet.hosts.capacity()
    assert (row.leaseable, row.reasons["frozen"]) == (0, 1)


async def test_a_racing_writer_does_not_lose_an_order(fleet: Fleet) -> None:
    commit, raced = fleet.db.commit, []

    async def slow(ops: list[object]) -> int:
        if not raced:
            raced.append(True)
            await fleet.put(await fleet.named(f"{A01}-01"), power=PowerState.ON)
        return await commit(ops)  # type: ignore[arg-type]

    fleet.db.commit = slow  # type: ignore[method-assign,assignment]
    out = await fleet.hosts.quarantine(f"{A01}-01", "noise", who=WHO)
    assert (out.state, out.status.power) == (State.QUARANTINED, PowerState.ON)


def test_a_tally_reads_like_a_sentence() -> None:
    blockers = [Blocker("quarantined", code, "") for code in ("gpu.count", "nvlink.links", "nvlink.links")]
    assert tally([*blockers, Blocker("frozen", "", "")]) == "3 quarantined (gpu.count 1, nvlink.links 2), 1 frozen"
    assert tally([]) == ""


async def test_places_of_a_finished_run_free_the_host(fleet: Fleet) -> None:
    run = await runs_on(fleet, f"{A01}-01")
    (place,) = await run_rows.hosts(fleet.db, run.id)
    await fleet.db.commit([run_rows.save_host(msgspec.structs.replace(place, state=RunHostState.PASSED))])
    assert (await fleet.hosts.quarantine(f"{A01}-01", "noise", who=WHO)).state is State.QUARANTINED
