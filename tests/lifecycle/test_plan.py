"""Inventory files against the ledger: what is planned, what is refused, and that applying twice changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetd.kit.errors import Conflict, Invalid
from fleetd.lifecycle.plan import Plan
from fleetd.model.host import State
from fleetd.model.inventory import read_inventory
from fleetd.store import certificates as certificate_rows
from fleetd.store import hosts as host_rows
from fleetd.store import inventory as inventory_rows
from fleetd.store import runs as run_rows
from tests.lifecycle.fleet import GB200, SKUS, WHO, Fleet, host_entry, inventory, ledger, rack_file
from tests.lifecycle.proofs import certify

SITE = {"sites/louisiana.yaml": "site: louisiana\nhalls: [h1]\n"}
A01, A02 = "lou-a01", "lou-a02"


def files(*racks: tuple[str, list[dict[str, str]]], domain: str | None = None) -> dict[str, str]:
    return dict(SKUS) | SITE | dict(rack_file("louisiana", rack, hosts, domain=domain) for rack, hosts in racks)


def three() -> list[dict[str, str]]:
    return [host_entry(i, f"{A01}-0{i}", 1 + 10 * i) for i in (1, 2, 3)]


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    """Three available hosts in lou-a01, and the empty rack lou-a02."""
    async with ledger() as db:
        fleet = Fleet(db)
        await fleet.fill(files((A01, three()), (A02, [])))
        yield fleet


def told(plan: Plan) -> list[tuple[str, str, str, str, str]]:
    return [(c.action, c.name, c.field, c.before, c.after) for c in plan.changes if c.kind == "host"]


async def test_new_hosts_are_registered_and_again_is_nothing() -> None:
    async with ledger() as db:
        fleet = Fleet(db)
        wanted = files((A01, three()))
        plan = await fleet.inventory.plan(wanted)
        assert [(c.action, c.kind) for c in plan.changes if c.kind != "sku"] == [
            ("add", "site"),
            ("add", "rack"),
            *[("add", "host")] * 3,
        ]
        assert await host_rows.every(db) == []
        done = await fleet.inventory.apply(wanted, who=WHO, expect=plan.digest)
        assert (done.applied, done.digest) == (True, plan.digest)
        assert set((await fleet.states()).values()) == {"registered"}
        host = await fleet.named(f"{A01}-01")
        assert {fact.fact: fact.value for fact in await host_rows.facts(db, host.id)}["serial"] == "SN00001"
        assert len(await fleet.said("host.registered")) == 3
        assert len(await fleet.said("inventory.applied")) == 1

        again = await fleet.inventory.plan(wanted)
        assert again.changes == ()
        assert (await fleet.inventory.apply(wanted, who=WHO)).applied
        assert len(await fleet.said("inventory.applied")) == 1


async def test_a_stale_plan_is_refused(fleet: Fleet) -> None:
    hosts = three()
    hosts[0]["labels"] = "{row: a}"
    plan = await fleet.inventory.plan(files((A01, hosts)))
    await fleet.put(await fleet.named(f"{A01}-01"), state=State.MAINTENANCE)
    with pytest.raises(Conflict, match="stale"):
        await fleet.inventory.apply(files((A01, hosts)), who=WHO, expect=plan.digest)
    hosts[0]["labels"] = "{row: b}"
    other = await fleet.inventory.plan(files((A01, hosts)))
    assert other.digest != plan.digest


async def test_labels_change_nothing_else(fleet: Fleet) -> None:
    hosts = three()
    hosts[0]["labels"] = "{row: b}"
    before = await fleet.named(f"{A01}-01")
    await fleet.inventory.apply(files((A01, hosts)), who=WHO)
    after = await fleet.named(f"{A01}-01")
    assert (after.state, after.certificate, after.spec_version) == (State.AVAILABLE, before.certificate, 2)
    assert after.spec.labels == {"row": "b"}


async def test_another_rack_is_a_move_of_the_same_host(fleet: Fleet) -> None:
    before = await fleet.named(f"{A01}-03")
    moved = host_entry(3, f"{A02}-09", 7)
    wanted = files((A01, three()[:2]), (A02, [moved]))
    plan = await fleet.inventory.plan(wanted)
    assert sorted(told(plan)) == [
        ("move", f"{A01}-03", "name", f"{A01}-03", f"{A02}-09"),
        ("move", f"{A01}-03", "position", "31", "7"),
        ("move", f"{A01}-03", "rack", A01, A02),
    ]
    await fleet.inventory.apply(wanted, who=WHO)
    after = await host_rows.get(fleet.db, before.id)
    assert (after.name, after.spec.rack, after.state) == (f"{A02}-09", A02, State.AVAILABLE)
    (event,) = await fleet.said("host.moved")
    assert event.data["fields"]["rack"] == [A01, A02]
    facts = [f.value for f in await host_rows.facts(fleet.db, before.id) if f.fact == "rack"]
    assert facts == [A01, A02], "a fact is closed and kept"


async def test_two_hosts_change_places(fleet: Fleet) -> None:
    one, two = await fleet.named(f"{A01}-01"), await fleet.named(f"{A01}-02")
    swapped = [host_entry(2, f"{A01}-01", 11), host_entry(1, f"{A01}-02", 21), three()[2]]
    await fleet.inventory.apply(files((A01, swapped)), who=WHO)
    assert (await host_rows.get(fleet.db, one.id)).name == f"{A01}-02"
    assert (await host_rows.get(fleet.db, two.id)).name == f"{A01}-01"
    assert (await fleet.inventory.plan(files((A01, swapped)))).changes == ()


async def test_a_host_that_vanished_goes_to_maintenance_and_comes_back(fleet: Fleet) -> None:
    wanted = files((A01, three()[:2]))
    plan = await fleet.inventory.plan(wanted)
    (change,) = plan.changes
    assert (change.action, change.name, change.why) == ("maintenance", f"{A01}-03", "vanished from the inventory")
    await fleet.inventory.apply(wanted, who=WHO)
    gone = await fleet.named(f"{A01}-03")
    assert (gone.state, gone.certificate) == (State.MAINTENANCE, None)
    assert gone.status.maintenance is not None
    assert gone.status.maintenance.owner == "ada"
    assert (await fleet.inventory.plan(wanted)).changes == ()
    exported = await fleet.inventory.export()
    assert f"{A01}-03" not in exported[f"racks/louisiana/{A01}.yaml"]
    assert (await fleet.inventory.plan(exported)).changes == ()

    await fleet.inventory.apply(files((A01, three())), who=WHO)
    back = await fleet.named(f"{A01}-03")
    assert back.state is State.MAINTENANCE, "what came back is enrolled and proven again, when a person releases it"
    assert back.status.maintenance is not None
    assert back.status.maintenance.reason == "is back in the inventory"
    assert f"{A01}-03" in (await fleet.inventory.export())[f"racks/louisiana/{A01}.yaml"]
    assert (await fleet.inventory.plan(files((A01, three())))).changes == ()


async def test_a_leased_host_that_vanished_stays_the_tenants(fleet: Fleet) -> None:
    lease = await fleet.hand_over(await fleet.claim(1))
    host = await host_rows.get(fleet.db, lease.hosts[0])
    wanted = files((A01, [h for h in three() if h["name"] != host.name]))
    plan = await fleet.inventory.plan(wanted)
    assert [(c.action, c.name) for c in plan.changes] == [("maintenance", host.name)]
    assert "leased" in plan.changes[0].why
    await fleet.inventory.apply(wanted, who=WHO)
    after = await host_rows.get(fleet.db, host.id)
    assert (after.state, after.lease) == (State.LEASED, lease.id)
    assert after.status.pending_maintenance is not None
    assert (await fleet.inventory.plan(wanted)).changes == ()


async def test_a_site_that_is_not_in_the_files_is_left_alone(fleet: Fleet) -> None:
    await fleet.fill(inventory({"oh-b01": 2}, site="ohio"))
    assert set((await fleet.states()).values()) == {"available"}


async def test_a_forgotten_folder_does_not_empty_a_site() -> None:
    async with ledger() as db:
        fleet = Fleet(db)
        await fleet.fill(inventory({"lou-n01": 12}, sku=GB200, domain=True))
        with pytest.raises(Conflict, match="nothing was applied") as refused:
            await fleet.inventory.apply(dict(SKUS) | SITE, who=WHO)
        assert "12 of its 12 hosts vanished" in refused.value.why
        assert set((await fleet.states()).values()) == {"available"}


EDITS = [
    {"serial": "SN09999"},
    {"boot_mac": '"04:3f:72:aa:ff:ff"'},
    {"bmc": "{protocol: redfish, address: 10.9.9.9, credentials: factory}"},
    {"sku": "supermicro.as8125-b200-8"},
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: next(iter(edit)))
@pytest.mark.parametrize("state", [State.LEASED, State.DELIVERING, State.RECLAIMING])
async def test_what_a_lease_stands_on_is_not_edited(fleet: Fleet, edit: dict[str, str], state: State) -> None:
    lease = await fleet.claim(1)
    if state is not State.DELIVERING:
        lease = await fleet.hand_over(lease)
    if state is State.RECLAIMING:
        lease = await fleet.leases.release(lease.id, who=WHO)
    host = await host_rows.get(fleet.db, lease.hosts[0])
    assert host.state is state
    hosts = [entry | edit if entry["name"] == host.name else entry for entry in three()]
    hosts[2 if host.name != f"{A01}-03" else 0]["labels"] = "{row: c}"
    plan = await fleet.inventory.plan(files((A01, hosts)))
    (refused,) = [c for c in plan.changes if c.action == "refused"]
    assert (refused.name, refused.field) == (host.name, next(iter(edit)))
    assert lease.id in refused.why
    with pytest.raises(Conflict) as error:
        await fleet.inventory.apply(files((A01, hosts)), who=WHO)
    assert host.name in error.value.why
    assert all(not h.spec.labels for h in await host_rows.every(fleet.db)), "nothing of it was applied"


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: next(iter(edit)))
async def test_an_available_host_that_is_another_one_now_loses_its_proof(fleet: Fleet, edit: dict[str, str]) -> None:
    host = await certify(fleet, await fleet.named(f"{A01}-01"))
    hosts = three()
    hosts[0] |= edit
    plan = await fleet.inventory.plan(files((A01, hosts)))
    field = next(iter(edit))
    assert [(c.action, c.field) for c in plan.changes] == [("edit", field), ("maintenance", "")]
    await fleet.inventory.apply(files((A01, hosts)), who=WHO)
    after = await host_rows.get(fleet.db, host.id)
    assert (after.state, after.certificate, after.certificate_expires) == (State.MAINTENANCE, None, None)
    assert after.status.maintenance is not None
    assert after.status.maintenance.reason == f"inventory changed: {field}"
    (stored,) = await certificate_rows.of_host(fleet.db, host.id)
    assert stored.revoked is not None
    assert (await fleet.inventory.plan(files((A01, hosts)))).changes == ()


async def test_a_corrected_serial_lets_a_host_enroll_again(fleet: Fleet) -> None:
    host = await fleet.named(f"{A01}-01")
    await fleet.put(host, state=State.QUARANTINED, resume_state=State.ENROLLING, certificate=None)
    hosts = three()
    hosts[0]["serial"] = "SN77777"
    await fleet.inventory.apply(files((A01, hosts)), who=WHO)
    after = await host_rows.get(fleet.db, host.id)
    assert (after.state, after.resume_state, after.spec.serial) == (State.QUARANTINED, State.ENROLLING, "SN77777")
    # But one that failed later would go on without meeting its BMC again: a person has it first.
    await fleet.put(host, resume_state=State.VALIDATING)
    hosts[0]["serial"] = "SN77778"
    await fleet.inventory.apply(files((A01, hosts)), who=WHO)
    assert (await host_rows.get(fleet.db, host.id)).state is State.MAINTENANCE


async def test_a_host_in_a_run_keeps_its_identity(fleet: Fleet) -> None:
    host = await fleet.named(f"{A01}-01")
    run = await fleet.runs.start("validate", host.name, who=WHO)
    hosts = three()
    hosts[0]["serial"] = "SN77777"
    plan = await fleet.inventory.plan(files((A01, hosts)))
    assert [c.action for c in plan.changes] == ["refused"]
    assert "run run-" in plan.changes[0].why
    for place in await run_rows.hosts(fleet.db, getattr(run, "id", "")):
        assert place.host == host.id


async def test_a_new_machine_in_the_place_of_a_vanished_one_names_who_is_in_the_way(fleet: Fleet) -> None:
    hosts = [*three()[:2], host_entry(50, f"{A01}-03b", 31)]
    with pytest.raises(Conflict) as refused:
        await fleet.inventory.apply(files((A01, hosts)), who=WHO)
    assert f"{A01}-03 (serial SN00003, available) has it: fleetctl host retire {A01}-03" in refused.value.why
    await fleet.hosts.maintenance(f"{A01}-03", reason="scrapped", until=fleet.clock.wall() + 60, who=WHO)
    await fleet.hosts.retire(f"{A01}-03", who=WHO)
    await fleet.inventory.apply(files((A01, hosts)), who=WHO)
    assert (await fleet.named(f"{A01}-03b")).state is State.REGISTERED


async def test_a_sku_edit_shows_and_empties_nothing(fleet: Fleet) -> None:
    wanted = files((A01, three()))
    name = "skus/dell.xe9680-h100-8.yaml"
    wanted[name] = wanted[name].replace("power_limit_w: 700", "power_limit_w: 650")
    plan = await fleet.inventory.plan(wanted)
    assert [(c.kind, c.field) for c in plan.changes] == [("sku", "gpu"), ("sku", "digest")]
    await fleet.inventory.apply(wanted, who=WHO)
    assert (await inventory_rows.sku(fleet.db, "dell.xe9680-h100-8")).gpu.power_limit_w == 650
    assert set((await fleet.states()).values()) == {"available"}


async def test_a_wrong_file_is_refused_with_its_line(fleet: Fleet) -> None:
    with pytest.raises(Invalid) as wrong:
        await fleet.inventory.plan(files((A01, [three()[0] | {"sku": "acme.toaster"}])))
    assert wrong.value.where.startswith(f"racks/louisiana/{A01}.yaml:")


async def test_export_is_what_was_applied(fleet: Fleet) -> None:
    await fleet.fill(inventory({"lou-n01": 3}, sku=GB200, domain=True) | files((A01, three()), (A02, [])))
    exported = await fleet.inventory.export()
    assert set(exported) >= {f"racks/louisiana/{A01}.yaml", "sites/louisiana.yaml", "skus/nvidia.gb200-nvl72-tray.yaml"}
    assert (await fleet.inventory.plan(exported)).changes == ()
    assert read_inventory(exported).hosts["lou-n01-02"].nvlink_domain == "lou-n01-nvl"


async def test_a_change_between_plan_and_commit_is_read_again(fleet: Fleet) -> None:
    """The guard is on every host's version: what the engine wrote meanwhile is not overwritten."""
    hosts = three()
    hosts[0]["labels"] = "{row: d}"
    commit, raced = fleet.db.commit, []

    async def slow(ops: list[object]) -> int:
        if not raced:
            raced.append(True)
            await fleet.hosts.quarantine(f"{A01}-01", "raced", who=WHO)
        return await commit(ops)  # type: ignore[arg-type]

    fleet.db.commit = slow  # type: ignore[method-assign,assignment]
    await fleet.inventory.apply(files((A01, hosts)), who=WHO)
    after = await fleet.named(f"{A01}-01")
    assert (after.state, after.spec.labels) == (State.QUARANTINED, {"row": "d"})


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, str]:
    """Any placing of up to five machines under any of six names in two racks."""
    machines = draw(st.lists(st.integers(1, 6), max_size=5, unique=True))
    names = draw(st.permutations([f"h{i}" for i in range(6)]))
    racks: dict[str, list[dict[str, str]]] = {A01: [], A02: []}
    for place, (machine, name) in enumerate(zip(machines, names, strict=False)):
        rack = draw(st.sampled_from([A01, A02]))
        racks[rack].append(host_entry(machine, name, 1 + 6 * place))
    return files(*racks.items())


@settings(max_examples=40, deadline=None)
@given(st.lists(layouts(), min_size=2, max_size=4))
@pytest.mark.slow
def test_any_sequence_of_inventories_applies_or_is_refused_whole(sequence: list[dict[str, str]]) -> None:
    asyncio.run(_apply_all(sequence))


async def _apply_all(sequence: list[dict[str, str]]) -> None:
    async with ledger() as db:
        fleet = Fleet(db)
        for wanted in sequence:
            before = await host_rows.every(db)
            try:
                await fleet.inventory.apply(wanted, who=WHO)
            except Conflict:
                assert await host_rows.every(db) == before
                continue
            after = await host_rows.every(db)
            assert {h.id for h in after} >= {h.id for h in before}, "never deleted"
            assert (await fleet.inventory.plan(wanted)).changes == ()
            assert {name: h.serial for name, h in read_inventory(wanted).hosts.items()} == {
                h.name: h.spec.serial for h in after if h.name in read_inventory(wanted).hosts
            }
