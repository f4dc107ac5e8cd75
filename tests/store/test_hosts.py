"""Hosts: guarded by version, unique while not retired, found by every name they have; and what was seen on them."""

from __future__ import annotations

import msgspec
import pytest

from fleetd.kit.errors import Conflict, Garbled, Invalid, NotFound
from fleetd.model.bmc import BmcSpec
from fleetd.model.host import Alert, Classification, Host, HostStatus, State
from fleetd.model.run import RunHostState
from fleetd.store import evidence, hosts, leases, runs
from fleetd.store.database import Database
from tests.store.samples import NOW, a_host, a_lease, a_run, a_spec, in_run, ready

replace = msgspec.structs.replace


async def test_insert_get_save(db: Database) -> None:
    host = a_host(1)
    await db.commit([hosts.insert(host)])
    assert await hosts.get(db, host.id) == host
    moved = replace(host, state=State.MANAGEABLE, state_since=NOW + 1, deadline=NOW + 9, tenant_data="possible")
    await db.commit([hosts.save(moved)])
    assert await hosts.get(db, host.id) == replace(moved, version=2)
    with pytest.raises(Conflict, match="changed since"):
        await db.commit([hosts.save(moved)])
    renamed = replace(moved, spec=a_spec(1, name="new", labels={"b": "2"}), spec_version=2, version=2)
    await db.commit([hosts.save(renamed)])
    assert await hosts.by_name(db, "new") == replace(renamed, version=3)
    with pytest.raises(NotFound):
        await hosts.by_name(db, host.name)


@pytest.mark.parametrize(
    ("same", "column"),
    [
        ({"name": "lou-a00-02"}, "hosts.name"),
        ({"serial": "7XK00001"}, "hosts.serial"),
        ({"position": 2}, "hosts.position"),
        ({"bmc": BmcSpec("redfish", "10.0.0.1:443", "x")}, "hosts.bmc_address"),
        ({"boot_mac": "04:3f:72:00:00:01"}, "hosts.boot_mac"),
    ],
)
async def test_unique_while_not_retired(db: Database, same: dict[str, object], column: str) -> None:
    first, second = a_host(1), a_host(2, spec=a_spec(2, **same))
    await db.commit([hosts.insert(first)])
    with pytest.raises(Conflict) as caught:
        await db.commit([hosts.insert(second)])
    assert column in caught.value.why
    await db.commit([hosts.insert(a_host(2))])
    with pytest.raises(Conflict) as caught:
        await db.commit([hosts.save(second)])
    assert column in caught.value.why
    await db.commit([hosts.save(replace(first, state=State.RETIRED))])
    await db.commit([hosts.save(second)])
    with pytest.raises(Conflict):  # the retired one cannot come back beside it
        await db.commit([hosts.save(replace(first, version=2))])


async def test_retired_hosts_are_found_last(db: Database) -> None:
    gone = a_host(1, id="host-gone", state=State.RETIRED)
    await db.commit([hosts.insert(gone)])
    assert (await hosts.by_name(db, "lou-a00-02")).id == "host-gone"
    assert await hosts.by_mac(db, gone.spec.boot_mac) is None
    await db.commit([hosts.insert(a_host(1))])
    assert (await hosts.by_name(db, "lou-a00-02")).id == "host-00001"
    found = await hosts.by_mac(db, gone.spec.boot_mac)
    assert found is not None
    assert found.id == "host-00001"


async def test_two_hosts_swap_places_in_one_unit(db: Database) -> None:
    one, two = a_host(1), a_host(2)
    await db.commit([hosts.insert(one), hosts.insert(two)])
    one_there = replace(one, spec=replace(one.spec, position=two.spec.position, bmc=two.spec.bmc), spec_version=2)
    two_there = replace(two, spec=replace(two.spec, position=one.spec.position, bmc=one.spec.bmc), spec_version=2)
    with pytest.raises(Conflict):
        await db.commit([hosts.save(one_there), hosts.save(two_there)])
    await db.commit([hosts.vacate([one.id, two.id]), hosts.save(one_there), hosts.save(two_there)])
    assert await hosts.every(db) == [replace(two_there, version=2), replace(one_there, version=2)]
    # Left where it was, a vacated host still gets all of its columns back.
    await db.commit([hosts.vacate([one.id]), hosts.save(replace(one_there, version=2))])
    with pytest.raises(Conflict):
        await db.commit([hosts.insert(a_host(9, spec=a_spec(9, serial=one.spec.serial)))])


async def test_every_filters_and_orders(db: Database) -> None:
    fleet = [a_host(n, state=State.AVAILABLE if n % 2 else State.REGISTERED) for n in (45, 3, 41, 2)]
    fleet.append(a_host(5, spec=a_spec(5, site="ohio", rack="ohi-b01", nvlink_domain="d1", sku="gb200")))
    await db.commit([hosts.insert(host) for host in fleet])
    assert [h.id[-2:] for h in await hosts.every(db)] == ["02", "03", "41", "45", "05"]
    assert [h.id[-2:] for h in await hosts.every(db, state=State.AVAILABLE)] == ["03", "41", "45"]
    assert [h.id[-2:] for h in await hosts.every(db, rack="lou-a01", site="louisiana")] == ["41", "45"]
    assert [h.id[-2:] for h in await hosts.every(db, domain="d1", sku="gb200")] == ["05"]
    assert await hosts.every(db, site="utah") == []


async def test_lease_and_run_are_derived(db: Database) -> None:
    host, run = ready(1, lease="never written", run="neither"), a_run("1")
    lease = a_lease("1", [host])
    await db.commit([hosts.insert(host), runs.insert(run), runs.insert_host(in_run(run, host))])
    assert (await hosts.get(db, host.id)).run == run.id
    assert (await hosts.get(db, host.id)).lease is None
    await db.commit(leases.claim(lease, [host], NOW))
    assert (await hosts.get(db, host.id)).lease == lease.id
    await db.commit([leases.release_binding(lease.id, host.id, NOW)])
    place = in_run(run, host, state=RunHostState.PASSED)
    await db.commit([runs.save_host(place)])
    free = await hosts.get(db, host.id)
    assert (free.lease, free.run) == (None, None)


async def test_alerts_that_prevent_a_lease_are_a_column(db: Database, sql: object) -> None:
    assert callable(sql)
    alert = Alert(
        id="a", target="bmc", since=NOW, message="m", remedy="r", classifications=(Classification.PREVENTS_LEASE,)
    )
    mild = replace(alert, classifications=(Classification.SUPPRESS_NOTIFY,))
    for number, alerts in enumerate([(), (mild,), (mild, alert)]):
        await db.commit([hosts.insert(a_host(number, status=HostStatus(alerts=alerts)))])
    blocked = sql("SELECT CASE WHEN lease_blocked THEN 'yes' ELSE 'no' END FROM hosts ORDER BY id").split()
    assert blocked == ["no", "no", "yes"]
    third = await hosts.get(db, "host-00002")
    await db.commit([hosts.save(replace(third, status=HostStatus()))])
    assert "yes" not in sql("SELECT CASE WHEN lease_blocked THEN 'yes' ELSE 'no' END FROM hosts")


# Seen on a host ------------------------------------------------------------------------------------------------------


async def test_facts_are_versioned(db: Database) -> None:
    await db.commit([hosts.insert(a_host(1)), hosts.insert(a_host(2))])
    key = "host-00001"
    await db.commit(hosts.record_facts(key, {"bios": "1.0", "serial": "A"}, NOW))
    await db.commit(hosts.record_facts(key, {"bios": "1.0", "serial": "A"}, NOW + 1))
    await db.commit(hosts.record_facts(key, {"bios": "1.1"}, NOW + 2))
    await db.commit(hosts.record_facts(key, {"bios": "1.2", "nul": "a\0b"}, NOW + 2))
    await db.commit(hosts.record_facts("host-00002", {"bios": "9"}, NOW))
    told = {(f.fact, f.value, f.since, f.until) for f in await hosts.facts(db, key)}
    assert told == {
        ("bios", "1.0", NOW, NOW + 2),
        ("bios", "1.1", NOW + 2, NOW + 2),
        ("bios", "1.2", NOW + 2, None),
        ("serial", "A", NOW, None),
        ("nul", "a\N{REPLACEMENT CHARACTER}b", NOW + 2, None),
    }
    await db.commit(hosts.record_facts(key, {}, NOW + 3))
    assert len(await hosts.facts(db, key)) == 5


async def test_parts_seen_on_two_hosts(db: Database) -> None:
    await db.commit([hosts.insert(a_host(n)) for n in (1, 2)])
    mine = {"gpu": ("GPU-1", "GPU-2"), "nvme": ("S1",)}
    await db.commit(hosts.replace_parts("host-00001", "louisiana", mine, NOW))
    assert await hosts.parts_elsewhere(db, "host-00001", mine) == {}
    asked = {"gpu": ("GPU-2", "GPU-9"), "nic": ("S1",)}
    assert await hosts.parts_elsewhere(db, "host-00002", asked) == {"GPU-2": "lou-a00-02"}
    await db.commit(hosts.replace_parts("host-00001", "louisiana", {"gpu": ("GPU-1", "GPU-1")}, NOW + 1))
    assert await hosts.parts_elsewhere(db, "host-00002", asked) == {}
    await db.commit(hosts.replace_parts("host-00002", "louisiana", {"gpu": ("GPU-1",)}, NOW + 1))
    assert await hosts.parts_elsewhere(db, "host-00001", {"gpu": ("GPU-1",)}) == {"GPU-1": "lou-a00-03"}
    await db.commit([hosts.save(a_host(2, state=State.RETIRED))])
    assert await hosts.parts_elsewhere(db, "host-00001", {"gpu": ("GPU-1",)}) == {}


async def test_reports(db: Database, sql: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(sql)
    run = a_run("1")
    await db.commit([hosts.insert(a_host(1)), hosts.insert(a_host(2)), runs.insert(run)])
    assert await hosts.latest_report(db, "host-00001") is None
    data = b'{"gpus": [' + b"1," * 50_000 + b"1]}"
    await db.commit([hosts.save_report("host-00001", None, "quick", NOW, "boot-1", "d0", b"{}")])
    await db.commit([hosts.save_report("host-00001", run.id, "acceptance", NOW + 1, "boot-1", "d1", data)])
    await db.commit([hosts.save_report("host-00002", run.id, "acceptance", NOW + 1, "boot-2", "d2", b"{}")])
    await db.commit([hosts.save_report("host-00001", run.id, "acceptance", NOW + 1, "boot-1", "d3", data)])
    latest = await hosts.latest_report(db, "host-00001")
    assert latest is not None
    assert (latest.digest, latest.data, latest.run, latest.suite) == ("d3", data, run.id, "acceptance")
    assert {key: r.digest for key, r in (await hosts.reports_of_run(db, run.id)).items()} == {
        "host-00001": "d3",
        "host-00002": "d2",
    }
    assert int(sql("SELECT max(length(data)) FROM reports")) < 2000
    await db.commit([evidence.prune_reports(NOW + 9)])
    assert sql("SELECT digest FROM reports ORDER BY digest").split() == ["d2", "d3"]
    monkeypatch.setattr(evidence, "MAX_REPORT", 1000)
    with pytest.raises(Garbled):
        await hosts.latest_report(db, "host-00001")
    with pytest.raises(Invalid):
        hosts.save_report("host-00001", None, "quick", NOW, "b", "d", data)


def test_a_host_is_a_struct_and_stays_as_it_was() -> None:
    host = a_host(1)
    hosts.save(host)
    hosts.insert(host)
    assert host == a_host(1)
    assert isinstance(host, Host)
