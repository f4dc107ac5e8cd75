"""Reports that lie, drives that come and go, and real machines that change by themselves: believed no further than proven."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from fleetd.checks.judge import clean
from fleetd.kit.errors import Busy, DeadlineExceeded, Garbled, Unreachable, Unsupported
from fleetd.lifecycle import drift, progress
from fleetd.lifecycle.outcome import Advance, Fail, Rewind
from fleetd.lifecycle.steps import registry
from fleetd.lifecycle.steps.ondeploy import read_host_report
from fleetd.store import hosts as host_rows
from tests.lifecycle.reports import SNAPSHOT, erased, inspected, wiped, written
from tests.lifecycle.stepbench import DRIVES, FakeShell, bench

SATA = {"name": "sda", "serial": "SATA1", "model": "M", "bytes": 10**12}


# --- wipe: by serial, and nothing stands for anything else -----------------------------------------------------------


async def test_a_sata_drive_does_not_stand_for_an_nvme_drive_that_is_gone():
    async with bench() as b:
        drives = [*wiped()["drives"][:7], erased("SATA1", name="sda")]
        outcome, ctx = await b.do(registry.get("wipe"), {"ok": True, "drives": drives})
        assert isinstance(outcome, Fail)
        assert outcome.finding.code == "storage.count"
        assert ctx.tenant_data is None


async def test_drives_beside_the_nvme_drives_are_erased_and_not_counted():
    async with bench() as b:
        drives = [*wiped()["drives"], erased("SATA1", name="sda")]
        shell = FakeShell({"ok": True, "drives": drives}, drives=[*DRIVES, SATA])
        outcome, _ = await b.do(registry.get("wipe"), shell)
        assert isinstance(outcome, Advance)
        assert "SATA1" in outcome.evidence["drives"]


@pytest.mark.parametrize(("told", "missing"), [([], "SATA1"), ([erased("OTHER", name="sda")], "SATA1")])
async def test_a_drive_that_was_to_be_erased_and_is_not_told_of_is_not_erased(told, missing):
    """Also after a restart, when only the ledger knows what was ordered."""
    async with bench() as b:
        step = registry.get("wipe")
        shell = FakeShell({"ok": True, "drives": [*wiped()["drives"], *told]}, drives=[*DRIVES, SATA])
        outcome, ctx = await b.do(step, shell)
        for found in (outcome, await step.verify(ctx)):
            assert isinstance(found, Fail)
            assert found.finding.code == "storage.count"
            assert missing in found.finding.message
            assert found.finding.parts == (missing,)
        assert ctx.tenant_data is None


@pytest.mark.parametrize("field", ["bytes", "samples", "wrote_bytes", "pattern_written", "seconds"])
@pytest.mark.parametrize("value", [2**63, 2**64, 2**80, -(2**63) - 1, 1e300])
def test_numbers_that_the_ledger_cannot_hold_are_no_report(field, value):
    """Met only when the evidence is stored, one would leave the step open and tried again until the state's deadline."""
    said = {"intent": "i", "ok": True, "drives": [erased("S0", **{field: value})]}
    with pytest.raises(Garbled, match="cannot be read"):
        read_host_report(json.dumps(said).encode())


async def test_a_drive_told_twice_does_not_stand_for_one_left_out():
    async with bench() as b:
        drives = [*wiped()["drives"][:7], erased("S0")]
        outcome, ctx = await b.do(registry.get("wipe"), {"ok": True, "drives": drives})
        assert isinstance(outcome, Fail)
        assert outcome.finding.code == "storage.count"
        assert ctx.tenant_data is None


@pytest.mark.parametrize(
    "said", [{"pattern_written": 0}, {"pattern_written": 67}, {"pattern_written": -1}, {"samples": -1}, {"nonzero": -1}]
)
async def test_zeros_without_a_pattern_before_are_no_proof(said):
    async with bench() as b:
        outcome, ctx = await b.do(registry.get("wipe"), wiped(said))
        assert isinstance(outcome, Fail)
        assert outcome.finding.code == "storage.erase"
        assert outcome.finding.parts == ("S0",)
        assert ctx.tenant_data is None


# --- whose drives these are ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wipe", "snapshot", "write-image"])
async def test_any_kind_of_drive_is_known_as_another_hosts_before_that_one_was_ever_proven(name):
    """A host whose first wipe failed: its drives are in no probe's report, and SATA drives never are."""
    async with bench() as b:
        mine, b.host = b.host, await b.fleet.named("r1-02")
        bad = wiped({"erased": False, "reason": "no"})
        outcome, _ = await b.do(registry.get("wipe"), FakeShell(bad, drives=[*DRIVES, SATA]))
        assert isinstance(outcome, Fail)
        await b.fleet.db.commit(host_rows.replace_parts(b.host.id, "louisiana", {"gpu": ["G1"]}, 1.0))  # keeps drives
        b.host = mine
        shell = FakeShell(wiped(), drives=[{**drive, "serial": f"T{i}"} for i, drive in enumerate(DRIVES)] + [SATA])
        outcome, _ = await b.do(registry.get(name), shell)
        assert isinstance(outcome, Fail)
        assert (outcome.finding.code, outcome.finding.parts) == ("storage.foreign", ("SATA1",))
        assert shell.orders == []


async def test_a_drive_that_the_erase_did_not_see_gets_no_image_beside_it():
    """Away when the drives were erased, or plugged in since: also in a hand-over, weeks after the erase."""
    async with bench() as b:
        outcome, _ = await b.do(registry.get("wipe"), wiped())
        assert isinstance(outcome, Advance)
        b.data = {}  # of another run
        shell = FakeShell(written(), drives=[*DRIVES, SATA])
        outcome, _ = await b.do(registry.get("write-image"), shell)
        assert isinstance(outcome, Fail)
        assert (outcome.finding.code, outcome.finding.parts) == ("storage.unwiped", ("SATA1",))
        assert shell.orders == []
        assert b.guarded == 1  # of the wipe
        fewer, _ = await b.do(registry.get("write-image"), FakeShell(written(), drives=DRIVES[:7]))
        assert isinstance(fewer, Advance)  # one that is gone is for the checks to find


# --- one order at a time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wipe", "write-image", "clear-tpm", "boot-order"])
@pytest.mark.parametrize("answer", [{"state": "running", "ok": False}, {"intent": "another"}])
async def test_an_answer_that_is_no_end_of_this_order_is_no_verdict_on_the_drives(name, answer):
    class Elsewhere(FakeShell):
        async def run(self, app: Any, arguments: tuple[str, ...], *, stdin: bytes = b"", **more: Any) -> bytes:
            if arguments == ("status",):
                self.state = "unknown"
                return await super().run(app, arguments, stdin=stdin, **more)
            order = json.loads(stdin)
            self.orders.append((arguments[0], order))
            return json.dumps({"intent": order["intent"], "state": "done", "ok": False, **answer}).encode()

    async with bench() as b:
        outcome, ctx = await b.do(registry.get(name), Elsewhere({}))
        assert isinstance(outcome, Rewind)
        assert ctx.tenant_data is None


@pytest.mark.parametrize("name", ["wipe", "write-image", "clear-tpm", "boot-order"])
async def test_a_host_that_still_carries_out_another_order_is_booted_afresh_and_not_blamed(name):
    """An order went out on a line that broke, was thought not to have begun, and began: the next one finds it at work."""
    async with bench() as b:
        shell = FakeShell({})
        shell.broken = Busy("the order of intent i-0 is being carried out here")
        outcome, ctx = await b.do(registry.get(name), shell)
        assert isinstance(outcome, Rewind)
        assert outcome.to == "deploy"
        assert "i-0" in outcome.text
        assert len(shell.orders) == 1
        assert ctx.tenant_data is None


@pytest.mark.parametrize(
    ("hours", "down", "outcome"),
    [(50.0, 300.0, Advance), (5.0, 200.0, Advance), (50.0, 1e9, Rewind), (0.1, 300.0, Rewind)],
)
async def test_a_line_that_is_down_for_minutes_does_not_end_a_wipe_of_hours(hours, down, outcome):
    """A switch that restarts takes some: what would be lost is weighed against the wait. One that is gone is gone."""
    async with bench() as b:
        clock, shell = b.fleet.clock, FakeShell(wiped())
        shell.broken = Unreachable("the line is cut")
        connect, left = shell.connect, down

        async def away(target: Any, *, timeout: float) -> FakeShell:
            nonlocal left
            if shell.orders and left > 0:
                clock.go(32.0)
                left -= 32.0
                raise DeadlineExceeded("no SSH session")
            shell.state = "done" if shell.orders else shell.state
            return await connect(target, timeout=timeout)

        shell.connect = away  # type: ignore[method-assign]
        begun = clock.go(hours * 3600)
        found, _ = await b.do(registry.get("wipe"), shell)
        assert isinstance(found, outcome)
        assert clock.wall() - begun < 1000.0
        assert len(shell.orders) == 1


async def test_a_long_wait_for_an_order_begun_before_is_told_once_and_not_at_every_look():
    """Each telling is a row written: five thousand hosts that a restart found at work would write without end."""
    async with bench() as b:
        step, shell = registry.get("wipe"), FakeShell(wiped())
        await b.do(step, shell)
        shell.state, shell.looks, b.waits = "running", 5, []
        assert isinstance(await step.verify(b.context(step, shell)), Advance)
        assert len(b.waits) == 1


@pytest.mark.parametrize("said", [{}, {"state": "done", "intent": "another"}, {"ok": False, "reason": "EIO"}])
async def test_a_host_that_does_not_tell_what_became_of_an_order_gets_no_second_one(said):
    class Vague(FakeShell):
        async def run(self, app: Any, arguments: tuple[str, ...], **more: Any) -> bytes:
            if arguments == ("status",) and self.orders:
                return json.dumps(said).encode()
            return await super().run(app, arguments, **more)

    shell = Vague(wiped())
    shell.broken = Unreachable("the line is cut")
    async with bench() as b:
        outcome, _ = await b.do(registry.get("wipe"), shell)
        assert isinstance(outcome, Rewind)  # a fresh boot ends whatever still runs
        assert len(shell.orders) == 1


# --- words that break a reader ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [5e-324, 1e-308, 0.5, 2**62])
def test_progress_of_any_size_is_a_line(of):
    told = progress.line("wipe", {"event": "progress", "what": "erase", "done": 1.0, "of": of})
    assert told == "" or 0 <= int(told.split()[1]) <= 100


@pytest.mark.parametrize("depth", [10, 330, 490, 900])
def test_a_report_that_is_all_brackets_is_read_and_compared(depth):
    nested = "[" * depth + "]" * depth
    report = read_host_report(f'{{"intent":"i","snapshot":{{"bios":{{"vendor":{nested}}}}}}}'.encode())
    parts = drift.parts(report.snapshot, None)
    assert drift.compare(drift.unpack(drift.pack(parts)), parts) == []
    assert len(clean(report.snapshot)) <= 120


# --- real machines change by themselves ------------------------------------------------------------------------------


def with_nic(mac: str, pci: str) -> Any:
    return lambda s: s["nics"].append({"name": "x", "mac": mac, "driver": "d", "pci": pci})


INFINIBAND = "00:00:10:49:fe:80:00:00:00:00:00:00:94:6d:ae:03:00:31:78:f2"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # the BMC's own port to the host: MAC made up at each of the BMC's starts, and the BMC was re-keyed
        (with_nic("3a:1f:22:00:00:01", "1-14.3:2.0"), with_nic("9e:77:10:00:00:02", "1-14.3:2.0")),
        (with_nic("3a:1f:22:00:00:01", "3-1:1.0"), lambda s: None),
        # IP over InfiniBand: the queue pair in front of the GUID is the driver's, the prefix the subnet manager's
        (with_nic(INFINIBAND, "0000:18:00.1"), with_nic("80:00:02:08:fe:c0" + INFINIBAND[17:], "0000:18:00.1")),
    ],
)
async def test_what_no_tenant_changed_is_no_drift(before, after):
    async with bench() as b:
        await b.do(registry.get("snapshot"), inspected(before))
        outcome, _ = await b.do(registry.get("drift-check"), inspected(after))
        assert isinstance(outcome, Advance), outcome


async def test_another_infiniband_port_is_drift():
    async with bench() as b:
        await b.do(registry.get("snapshot"), inspected(with_nic(INFINIBAND, "0000:18:00.1")))
        other = with_nic(INFINIBAND[:-2] + "f3", "0000:18:00.1")
        outcome, _ = await b.do(registry.get("drift-check"), inspected(other))
        assert isinstance(outcome, Fail)


def secure(dbx: str, size: int, *, setup: bool = False, **keys: str) -> dict[str, Any]:
    efi = copy.deepcopy(SNAPSHOT["efi"])
    return efi | {"keys": efi["keys"] | {"dbx": dbx} | keys, "sizes": {"dbx": size}, "setup_mode": setup}


@pytest.mark.parametrize(
    ("before", "after", "good"),
    [
        (secure("4" * 64, 8000), secure("5" * 64, 14000), True),  # an update that a system with updates on brings
        (secure("4" * 64, 14000), secure("5" * 64, 8000), False),  # bans that were lifted
        (secure("4" * 64, 8000), secure("5" * 64, 8000), False),
        (secure("4" * 64, 8000), secure("5" * 64, 14000, KEK="9" * 64), False),  # signed by whom?
        (secure("4" * 64, 8000), secure("5" * 64, 14000, db="9" * 64), False),
        (secure("4" * 64, 8000, setup=True), secure("5" * 64, 14000, setup=True), False),  # taken unsigned
        (secure("4" * 64, 8000) | {"sizes": {}}, secure("5" * 64, 14000), False),
        (secure("4" * 64, 8000), secure("5" * 64, 14000) | {"sizes": {"dbx": "99999"}}, False),
    ],
)
async def test_a_ban_list_that_grew_by_a_signed_update_is_told_and_no_drift(before, after, good):
    async with bench() as b:
        await b.do(registry.get("snapshot"), inspected(lambda s: s.update(efi=before)))
        outcome, _ = await b.do(registry.get("drift-check"), inspected(lambda s: s.update(efi=after)))
        assert isinstance(outcome, Advance if good else Fail)
        assert drift.DBX in outcome.evidence["differences"]


@pytest.mark.parametrize("word", ["", "!", "AAAA", "eJw=", "eJyrVkrLz1eyUkpKLFKqBQAgTgQ3"])
async def test_a_picture_that_cannot_be_read_is_none_and_has_the_same_way_out(word):
    async with bench() as b:
        await b.fleet.db.commit(host_rows.record_facts(b.host.id, {drift.FACT: word}, 1.0))
        outcome, _ = await b.do(registry.get("drift-check"), inspected())
        assert isinstance(outcome, Fail)
        if outcome.finding.code == "drift.no-snapshot":
            assert "maintenance r1-01" in outcome.finding.remedy
        else:
            assert word.endswith("Q3")  # readable, and of another host altogether
            assert outcome.finding.code == "drift.changed"


async def test_firmware_with_nothing_to_put_first_is_no_fault_of_it():
    """After a wipe no drive has a system partition: the host says so, and the reclaim goes on."""
    async with bench() as b:
        told = {
            "ok": True,
            "efi": SNAPSHOT["efi"],
            "removed": ["0007"],
            "reason": "no drive has an EFI system partition",
        }
        outcome, _ = await b.do(registry.get("boot-order"), told)
        assert isinstance(outcome, Advance)
        assert "no drive has" in outcome.evidence["note"]


# --- a virtual CD that half went in ----------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [True, False])
async def test_a_cd_whose_insertion_failed_is_taken_out_all_the_same(inside):
    """A BMC that times out may have it in all the same; the next start would come up from it."""
    async with bench(boot_via="virtual-media") as b:

        async def insert(url: str, *, timeout: float) -> None:
            b.bmc.did.append("insert")
            raise DeadlineExceeded("no answer") if inside else Unsupported("no virtual media")

        async def eject(*, timeout: float) -> None:
            b.bmc.did.append("eject")
            if not inside:
                raise Unsupported("no virtual media")

        b.bmc.insert_media, b.bmc.eject_media = insert, eject  # type: ignore[method-assign, assignment]
        with pytest.raises(DeadlineExceeded if inside else Unsupported):
            await b.do(registry.get("boot"), {}, {"to": "deploy"})
        assert b.bmc.did == ["off", "insert", "eject"]
        assert "media" not in b.data


async def test_a_cd_that_stays_in_is_taken_out_before_the_disk_boots_however_often_that_fails(monkeypatch):
    async with bench() as b:
        stuck = True

        async def eject(*, timeout: float) -> None:
            b.bmc.did.append("eject")
            if stuck:
                raise Unreachable("the BMC is busy with itself")

        monkeypatch.setattr(b.bmc, "eject_media", eject)
        boot = registry.get("boot")
        outcome, _ = await b.do(boot, {}, {"to": "deploy", "via": "virtual-media"})
        assert isinstance(outcome, Advance)
        for _ in range(2):
            b.bmc.did.clear()
            with pytest.raises(Unreachable):
                await b.do(boot, {}, {"to": "disk"})
            assert b.bmc.did == ["off", "eject"], "it does not start with the CD in"
        with pytest.raises(Unreachable):
            await boot.undo(b.context(boot, FakeShell({}), {"to": "disk"}))
        stuck = False
        b.bmc.did.clear()
        await b.do(boot, {}, {"to": "disk"})
        assert b.bmc.did == ["off", "eject", "disk", "on"]
        assert "media" not in b.data


async def test_a_restarted_daemon_knows_of_the_cd_that_was_going_in():
    async with bench() as b:
        boot = registry.get("boot")
        kept: list[dict[str, object]] = []

        async def insert(url: str, *, timeout: float) -> None:
            kept.append(dict(b.data))
            raise Unreachable("the daemon was killed here")

        b.bmc.insert_media = insert  # type: ignore[method-assign]
        with pytest.raises(Unreachable):
            await b.do(boot, {}, {"to": "deploy", "via": "virtual-media"})
        assert kept == [{"media": True}]
        b.data = dict(kept[0])
        ctx = b.context(boot, FakeShell({}), {"to": "deploy"})
        b.bmc.did.clear()
        await boot.undo(ctx)
        await boot.undo(ctx)
        assert b.bmc.did == ["eject"]
