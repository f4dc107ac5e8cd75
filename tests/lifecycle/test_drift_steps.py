"""The picture of a host before its lease, and what is made of a difference after it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.lifecycle import drift
from fleetd.lifecycle.outcome import Advance, Fail
from fleetd.lifecycle.steps import registry
from fleetd.model.bmc import BmcAccount
from fleetd.model.check import Action
from fleetd.model.host import Maintenance
from fleetd.store import hosts as host_rows
from tests.lifecycle.reports import SNAPSHOT, inspected
from tests.lifecycle.stepbench import bench


async def test_the_same_host_comes_back_and_keeps_one_row():
    async with bench() as b:
        for _ in range(3):
            taken, _ = await b.do(registry.get("snapshot"), inspected())
            assert isinstance(taken, Advance)
        moved = inspected(lambda s: s["efi"].update(boot_order=["0002"]))  # the boot order is reset, not compared
        outcome, _ = await b.do(registry.get("drift-check"), moved)
        assert isinstance(outcome, Advance)
        assert outcome.evidence["digest"] == taken.evidence["digest"]
        facts = [f for f in await host_rows.facts(b.fleet.db, b.host.id) if f.fact == drift.FACT]
        assert len(facts) == 1
        assert b.guarded == 0  # it only reads


@pytest.mark.parametrize(
    ("change", "part", "said", "action"),
    [
        (lambda s: s["bios"].update(version="9.9"), "BIOS version", "2.3.5 -> 9.9", Action.REFLASH),
        (lambda s: s["board"].update(serial="B2"), "board serial", "B1 -> B2", Action.FIX_INVENTORY),
        (lambda s: s["drives"].clear() or s["drives"].append(SNAPSHOT["drives"][0] | {"serial": "X"}), "drive S0", "-> nothing", Action.FIX_INVENTORY),
        (lambda s: s["drives"][0].update(firmware="2"), "drive S0", "firmware 1", Action.RESEAT),
        (lambda s: s["drives"][0].update(sector=4096), "drive S0", "4096", Action.RESEAT),
        (lambda s: s["nics"].append({"mac": "02:00:00:00:00:01"}), "NIC 02:00:00:00:00:01", "nothing -> present", Action.FIX_INVENTORY),
        (lambda s: s["pci"][0].update(id="10de:20b0"), "PCI device 0000:17:00.0", "10de:2330", Action.RESEAT),
        (lambda s: s["pci"].append({"address": "0000:99:00.0", "id": "1234:5678"}), "PCI device 0000:99:00.0", "nothing ->", Action.FIX_INVENTORY),
        (lambda s: s["efi"]["keys"].update(db="9" * 64), "Secure Boot key db", "333", Action.CONFIGURE),
        (lambda s: s["efi"]["keys"].pop("PK"), "Secure Boot key PK", "-> nothing", Action.REFLASH),
        (lambda s: s["efi"].update(secure_boot=False), "Secure Boot", "on -> off", Action.CONFIGURE),
        (lambda s: s["efi"].update(secure_boot=None), "Secure Boot", "on -> not known", Action.CONFIGURE),
        (lambda s: s["tpm"].update(present=False), "TPM", "-> absent", Action.RESEAT),
    ],
)  # fmt: skip
async def test_a_change_during_the_lease_is_named_before_and_after(change, part, said, action):
    async with bench() as b:
        await b.do(registry.get("snapshot"), inspected())
        outcome, _ = await b.do(registry.get("drift-check"), inspected(change))
        assert isinstance(outcome, Fail)
        assert outcome.finding.code == "drift.changed"
        assert part in outcome.finding.parts
        assert said in outcome.evidence["differences"][part]
        assert outcome.finding.action is action
        assert part in outcome.finding.remedy
        assert "maintenance" in outcome.finding.remedy


async def test_a_change_that_is_meant_goes_through_maintenance_and_is_told():
    async with bench() as b:
        await b.do(registry.get("snapshot"), inspected())
        changed = inspected(lambda s: s["bios"].update(version="9.9"))
        asked = Maintenance(owner="ada", reason="new BIOS", until=9.0, requested_at=1.0)
        status = msgspec.structs.replace(b.host.status, pending_maintenance=asked)
        b.host = msgspec.structs.replace(b.host, status=status)
        outcome, _ = await b.do(registry.get("drift-check"), changed)
        assert isinstance(outcome, Advance)
        assert outcome.evidence["accepted_by"] == "ada"
        assert "BIOS version" in outcome.evidence["differences"]


ROOT = BmcAccount(id="2", name="root", role="administrator", enabled=True)
GUEST = BmcAccount(id="5", name="guest", role="user", enabled=False)


@pytest.mark.parametrize(
    ("account", "said"),
    [
        (msgspec.structs.replace(GUEST, id="6", name="mallory", enabled=True), 'nothing -> "mallory", user, enabled'),
        (msgspec.structs.replace(GUEST, name="mallory"), '"guest", user, disabled -> "mallory", user, disabled'),
        (msgspec.structs.replace(GUEST, role="administrator"), 'user, disabled -> "guest", administrator, disabled'),
        (msgspec.structs.replace(GUEST, enabled=True), 'disabled -> "guest", user, enabled'),
    ],
)
@pytest.mark.parametrize("pending", [False, True])
async def test_an_account_made_or_changed_during_the_lease_is_shown_to_a_person(account, said, pending):
    async with bench() as b:
        b.bmc.listed = (ROOT, GUEST)
        await b.do(registry.get("snapshot"), inspected())
        b.bmc.listed = (ROOT, account) if account.id == GUEST.id else (ROOT, GUEST, account)
        if pending:  # asked before anybody could know of it: no acceptance
            asked = Maintenance(owner="ada", reason="a fan", until=9.0, requested_at=1.0)
            b.host = msgspec.structs.replace(
                b.host, status=msgspec.structs.replace(b.host.status, pending_maintenance=asked)
            )
        outcome, _ = await b.do(registry.get("drift-check"), inspected())
        assert isinstance(outcome, Fail)
        assert (outcome.finding.code, outcome.finding.action) == ("drift.changed", Action.CONFIGURE)
        assert outcome.finding.parts == (f"BMC account {account.id}",)
        assert said in outcome.evidence["differences"][f"BMC account {account.id}"]
        assert "remove or reset it at the BMC" in outcome.finding.remedy
        assert "maintenance" in outcome.finding.remedy


@pytest.mark.parametrize(("before", "after"), [((ROOT,), None), (None, (ROOT,))])
async def test_a_bmc_that_tells_no_accounts_equals_no_list(before, after):
    async with bench() as b:
        b.bmc.listed = before
        await b.do(registry.get("snapshot"), inspected())
        assert isinstance((await b.do(registry.get("drift-check"), inspected()))[0], Advance)
        b.bmc.listed = after
        outcome, _ = await b.do(registry.get("drift-check"), inspected())
        assert isinstance(outcome, Fail)
        assert outcome.finding.parts == (drift.ACCOUNTS,)
        assert "administrator, enabled" in outcome.evidence["differences"][drift.ACCOUNTS]


def test_a_picture_from_before_accounts_were_compared_is_no_pass():
    now = drift.parts(SNAPSHOT, (ROOT,))
    old = {part: value for part, (value, _) in now.items() if not drift.of_account(part)}
    (found,) = drift.compare(old, now)
    assert found == (drift.ACCOUNTS, drift.NOT_PICTURED, '2 "root", administrator, enabled', Action.CONFIGURE)


async def test_no_picture_is_no_pass():
    async with bench() as b:
        outcome, _ = await b.do(registry.get("drift-check"), inspected())
        assert isinstance(outcome, Fail)
        assert outcome.finding.code == "drift.no-snapshot"
        assert "maintenance r1-01" in outcome.finding.remedy


@pytest.mark.parametrize("group", ["bios", "board", "drives", "nics", "pci", "efi", "tpm"])
@pytest.mark.parametrize("name", ["snapshot", "drift-check"])
async def test_a_picture_with_a_hole_is_none(name, group):
    async with bench() as b:
        outcome, ctx = await b.do(registry.get(name), inspected(lambda s: s.pop(group)))
        assert isinstance(outcome, Fail)
        assert outcome.finding.code == "drift.unread"
        assert group in outcome.finding.message
        assert ctx.ops == []


_leaf = st.none() | st.booleans() | st.integers(0, 2**40) | st.text(max_size=20)
_anything = st.recursive(
    _leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_snapshots = st.dictionaries(
    st.sampled_from([*SNAPSHOT, "other"]), _anything | st.sampled_from(list(SNAPSHOT.values()))
)


@given(_snapshots)
def test_any_snapshot_equals_itself_and_survives_the_ledger(snapshot):
    """Whatever a hostile host sends: comparing never raises, and a host that did not change did not drift."""
    parts = drift.parts(snapshot, None)
    assert drift.compare(drift.unpack(drift.pack(parts)), parts) == []
    assert all(text.isprintable() for part, (value, _) in parts.items() for text in (part, value))
