"""The steps in the deploy environment: what they order, what they believe, and what a finding of theirs asks for."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from fleetd.kit.errors import Garbled, Invalid, Unreachable
from fleetd.lifecycle import progress
from fleetd.lifecycle.outcome import Advance, Fail, Retry, Rewind
from fleetd.lifecycle.playbook import decode_params
from fleetd.lifecycle.steps import registry
from fleetd.lifecycle.steps.ondeploy import OnDeploy, read_host_report
from fleetd.model.check import Action
from fleetd.model.firmware import Baseline
from fleetd.model.power import PowerVerb
from fleetd.store import hosts as host_rows
from tests.lifecycle.reports import erased, inspected, tpm, wiped, written
from tests.lifecycle.stepbench import DRIVES, MANIFEST, FakeBoots, FakeShell, bench

ISO = "http://boot:8680/deploy/deploy.iso"


# --- wipe -----------------------------------------------------------------------------------------------------------


async def test_a_wipe_keeps_its_proof_whole():
    async with bench() as b:
        tried = [{"method": "sanitize", "reason": "Invalid Opcode"}]
        outcome, ctx = await b.do(registry.get("wipe"), wiped({"tried": tried}))
        assert isinstance(outcome, Advance)
        proof = outcome.evidence["drives"]["S0"]
        assert (proof["method"], proof["samples"], proof["pattern_written"], proof["seconds"]) == (
            "format",
            68,
            68,
            1.5,
        )
        assert proof["tried"] == tried
        assert set(outcome.evidence["drives"]) == {d["serial"] for d in DRIVES}
        assert ctx.tenant_data is not None
        assert ctx.tenant_data[0] == "erased"
        assert b.guarded == 1


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        ({"erased": False, "reason": "refused"}, "refused"),
        ({"samples": 0}, "nothing was read back"),
        ({"nonzero": 3}, "3 of 68"),
        ({"pattern_left": 1, "reason": "its data is still there"}, "still there"),
        ({"erased": False, "tried": [{"method": "format", "reason": "0x4002"}]}, "0x4002"),
    ],
)
async def test_a_drive_that_is_not_proven_erased_is_to_be_pulled(spoilt, said):
    """Also when the host itself says erased: its own numbers are weighed again."""
    async with bench() as b:
        outcome, ctx = await b.do(registry.get("wipe"), wiped(spoilt))
        assert isinstance(outcome, Fail)
        assert (outcome.finding.code, outcome.finding.action, outcome.finding.parts) == (
            "storage.erase",
            Action.RMA,
            ("S0",),
        )
        assert said in outcome.finding.message
        assert "pull the drive S0" in outcome.finding.remedy
        assert ctx.tenant_data is None
        assert outcome.evidence["drives"]["S1"]["erased"]


async def test_several_drives_are_named_and_a_missing_one_is_not_erased():
    async with bench() as b:
        bad = {"erased": False, "reason": "no"}
        outcome, _ = await b.do(registry.get("wipe"), wiped(bad, bad))
        assert isinstance(outcome, Fail)
        assert "pull the drives S0 and S1" in outcome.finding.remedy
        fewer = {"ok": True, "drives": wiped()["drives"][:7]}
        outcome, ctx = await b.do(registry.get("wipe"), fewer)
        assert isinstance(outcome, Fail)
        assert outcome.finding.code == "storage.count"
        assert ctx.tenant_data is None


@pytest.mark.parametrize("name", ["wipe", "write-image"])
async def test_a_drive_of_another_host_stops_it_before_any_order(name):
    async with bench() as b:
        other = await b.fleet.named("r1-02")
        await b.fleet.db.commit(host_rows.replace_parts(other.id, "louisiana", {"nvme": ["S3"]}, 1.0))
        shell = FakeShell(wiped())
        outcome, _ = await b.do(registry.get(name), shell)
        assert isinstance(outcome, Fail)
        assert (outcome.finding.code, outcome.finding.parts) == ("storage.foreign", ("S3",))
        assert "r1-02" in outcome.finding.message
        assert shell.orders == []
        assert b.guarded == 0


@pytest.mark.parametrize(
    ("sizes", "hours"),
    [
        ([], None),
        ([10**12], None),  # within the usual four hours
        ([20 * 10**12], 69),
        ([20 * 10**12] * 16, 69),
        ([4 * 10**12] * 17, 27),  # sixteen at once
        ([2**63 - 1, 1], 96),
        ([-1], None),
    ],
)
async def test_a_wipe_of_large_disks_has_the_time_they_take(sizes, hours):
    disks = [{"name": f"sd{i}", "serial": f"D{i}", "model": "M", "bytes": size} for i, size in enumerate(sizes)]
    drives = [{**drive, "bytes": 60 * 10**12} for drive in DRIVES]  # these erase themselves
    async with bench() as b:
        report = wiped() | {"drives": [*wiped()["drives"], *(erased(disk["serial"], name="sda") for disk in disks)]}
        step, shell = registry.get("wipe"), FakeShell(report, drives=[*drives, *disks])
        outcome, ctx = await b.do(step, shell)
        assert isinstance(outcome, Advance)
        assert [int(seconds / 3600) for seconds in b.allowed] == ([] if hours is None else [hours])
        b.allowed, shell.state, shell.looks = [], "running", 2  # after a restart
        assert isinstance(await step.verify(ctx), Advance)
        assert [int(seconds / 3600) for seconds in b.allowed] == ([] if hours is None else [hours])


# --- write-image ----------------------------------------------------------------------------------------------------


async def test_an_image_is_ordered_whole_and_its_proof_kept_without_the_ticket():
    async with bench() as b:
        shell = FakeShell(written())
        outcome, _ = await b.do(registry.get("write-image"), shell)
        assert isinstance(outcome, Advance)
        assert "secret" not in str(outcome.evidence)
        assert outcome.evidence["drive"] == "S0"
        assert outcome.evidence["digest"] == f"sha256:{MANIFEST.raw_sha256}"
        ((command, order),) = shell.orders
        assert command == "write-image"
        assert order["drives"] == [{"serial": d["serial"]} for d in DRIVES]
        assert (order["image"]["sha256"], order["image"]["raw_sha256"], order["image"]["bytes"]) == (
            MANIFEST.sha256,
            MANIFEST.raw_sha256,
            1000,
        )
        assert len(order["image"]["urls"]) == 2
        assert order["seed"]["hostname"] == "r1-01"
        assert order["seed"]["boot_mac"] == b.host.spec.boot_mac
        assert order["seed"]["phone_home_token"] == b.kept_seeds[0].token
        assert order["seed"]["host_key_public"] == b.kept_seeds[0].host_key
        again = FakeShell(written())
        await b.do(registry.get("write-image"), again)
        assert again.orders[0][1]["seed"]["instance_id"] != order["seed"]["instance_id"]


@pytest.mark.parametrize("again", ["verify", "do"])
async def test_an_image_is_judged_by_what_was_ordered_whatever_its_name_means_now(again):
    """The answer was lost, the daemon died, and the SKU got another image before the next one asked."""
    async with bench() as b:
        step, shell = registry.get("write-image"), FakeShell(written())
        b.images[b.sku.image] = MANIFEST
        shell.broken = Unreachable("the line is cut")
        shell.interrupted, shell.looks = False, 1
        ctx = b.context(step, shell)
        with contextlib.suppress(Unreachable):
            await step.do(ctx)
        b.images[b.sku.image] = msgspec.structs.replace(MANIFEST, sha256="d" * 64, raw_sha256="e" * 64)
        b.sku = msgspec.structs.replace(b.sku, image="another")
        b.images["another"] = msgspec.structs.replace(MANIFEST, name="another", raw_sha256="f" * 64)
        shell.state = "done"
        ctx = b.context(step, shell)
        outcome = await (step.verify(ctx) if again == "verify" else step.do(ctx))
        assert isinstance(outcome, Advance)
        assert outcome.text.startswith("image ubuntu written")
        assert len(shell.orders) == 1
        # another intent is another order: it means what the name means now
        shell.state, b.intent = "unknown", "intent-0002"
        outcome, _ = await b.do(step, shell)
        assert shell.orders[-1][1]["image"]["name"] == "another"
        assert isinstance(outcome, Fail)
        assert "the manifest says sha256:ffff" in outcome.finding.message


async def test_a_tenants_image_holds_the_tenants_keys_and_none_of_ours():
    async with bench() as b:
        request = SimpleNamespace(image="their-os", ssh_keys=("ssh-ed25519 AAAA ada",), user_data="#!/bin/sh\n")
        b.lease = SimpleNamespace(id="lease-1", request=request)
        shell = FakeShell(written())
        await b.do(registry.get("write-image"), shell, {"image": "{{ lease.image }}", "tenant": True})
        order = shell.orders[0][1]
        assert order["image"]["name"] == "their-os"
        assert order["seed"]["authorized_keys"] == ["ssh-ed25519 AAAA ada"]
        assert order["seed"]["user_data"] == "#!/bin/sh\n"
        assert (b.kept_seeds[0].private_key, b.kept_seeds[0].public_key) == ("", "")


@pytest.mark.parametrize("code", ["image-checksum", "image-stream", "image-source", "partition-table"])
async def test_what_is_the_images_fault_is_tried_once_more_and_blames_the_image(code):
    async with bench() as b:
        step = registry.get("write-image")
        bad = written(code=code, reason="it is not what the manifest says", digest="")
        first, _ = await b.do(step, bad)
        assert isinstance(first, Retry)
        second, _ = await b.do(step, bad)
        assert isinstance(second, Fail)
        assert second.finding.code == "image." + code.removeprefix("image-")
        assert second.finding.action is Action.RETEST
        assert f"fleetctl image verify {b.sku.image}" in second.finding.remedy
        assert "not to blame" in second.finding.message


@pytest.mark.parametrize(
    ("code", "finding"),
    [
        ("drive-too-small", "storage.too-small"),
        ("drive-write", "storage.write"),
        ("drive-read-back", "storage.read-back"),
    ],
)
async def test_what_is_the_drives_fault_names_the_drive_to_pull(code, finding):
    async with bench() as b:
        outcome, _ = await b.do(registry.get("write-image"), written(code=code, reason="EIO", digest=""))
        assert isinstance(outcome, Fail)
        assert (outcome.finding.code, outcome.finding.action, outcome.finding.parts) == (finding, Action.RMA, ("S0",))
        assert "pull the drive S0" in outcome.finding.remedy


@pytest.mark.parametrize(
    "report",
    [
        written(digest="sha256:" + "c" * 64),
        written(digest=""),
        written() | {"drives": []},
        written() | {"drives": [*written()["drives"], *written()["drives"]]},
        {"ok": True},
        written(code="seed", reason="no mkfs"),
        written(code="something-new"),
    ],
)
async def test_only_the_manifests_own_digest_read_back_from_one_drive_is_believed(report):
    async with bench() as b:
        outcome, _ = await b.do(registry.get("write-image"), report)
        assert isinstance(outcome, Fail)
        assert outcome.finding.code == "image.write"
        assert outcome.finding.remedy


# --- clear-tpm, boot-order ------------------------------------------------------------------------------------------


async def test_a_tpm_is_cleared_or_absent_and_never_left_owned():
    async with bench() as b:
        step = registry.get("clear-tpm")
        assert isinstance((await b.do(step, tpm()))[0], Advance)
        absent, _ = await b.do(step, {"ok": True, "tpm": {"present": False}})
        assert isinstance(absent, Advance)
        assert absent.evidence == {"present": False}
        for bad in (
            tpm(False, reason="it stays owned"),
            {"ok": True},
            tpm(True, cleared=False),
            tpm(False, present=False),
        ):
            outcome, _ = await b.do(step, bad)
            assert isinstance(outcome, Fail)
            assert (outcome.finding.code, outcome.finding.parts) == ("tpm.owned", ("TPM",))
            assert outcome.finding.remedy
        assert b.guarded == 6


async def test_a_tpm_that_only_the_firmware_clears_takes_one_more_boot_and_not_two():
    async with bench() as b:
        step = registry.get("clear-tpm")
        pending = tpm(False, method="ppi", pending_reboot=True, reason="at the next boot")
        first, _ = await b.do(step, pending)
        assert isinstance(first, Rewind)
        assert first.to == "deploy"
        second, _ = await b.do(step, pending)
        assert isinstance(second, Fail)
        assert second.finding.code == "tpm.owned"


async def test_the_boot_order_is_told_and_a_host_without_efi_has_none():
    async with bench() as b:
        step = registry.get("boot-order")
        efi = {"present": True, "boot_order": ["0003", "0001"], "entries": {"0003": "fleetd disk", "0001": "PXE"}}
        shell = FakeShell({"ok": True, "efi": efi, "removed": ["0007"], "first": "0003"})
        outcome, _ = await b.do(step, shell)
        assert isinstance(outcome, Advance)
        assert (outcome.evidence["removed"], outcome.evidence["first"]) == (["0007"], "0003")
        assert "fleetd disk" in outcome.text
        assert shell.orders[0][1]["prefer"] == "disk"
        bios, _ = await b.do(step, {"ok": True, "efi": {"present": False}})
        assert isinstance(bios, Advance)
        bad, _ = await b.do(step, {"ok": False, "reason": "efivarfs: no space left"})
        assert isinstance(bad, Fail)
        assert "no space" in bad.finding.message


# --- what all of them share -----------------------------------------------------------------------------------------

GOOD: dict[str, dict[str, Any]] = {
    "wipe": wiped(),
    "write-image": written(),
    "clear-tpm": tpm(),
    "boot-order": {"ok": True, "efi": {"present": False}},
    "snapshot": inspected(),
}
ON_DEPLOY = sorted(name for name, step in registry.every().items() if isinstance(step, OnDeploy))
DESTRUCTIVE = sorted(name for name in ON_DEPLOY if registry.get(name).destructive)


def test_every_step_in_the_deploy_environment_is_tried_here():
    assert set(ON_DEPLOY) == {*GOOD, "drift-check"}
    assert set(DESTRUCTIVE) == {"wipe", "write-image", "clear-tpm", "boot-order"}


@pytest.mark.parametrize("name", DESTRUCTIVE)
async def test_run_twice_on_one_intent_orders_once(name):
    async with bench() as b:
        shell = FakeShell(GOOD[name])
        first, _ = await b.do(registry.get(name), shell)
        second, _ = await b.do(registry.get(name), shell)
        assert isinstance(first, Advance)
        assert isinstance(second, Advance)
        assert first.text == second.text
        assert len(shell.orders) == 1
        assert len(b.kept_seeds) <= 1  # a second seed would not be the one on the disk


@pytest.mark.parametrize("name", DESTRUCTIVE)
async def test_after_a_crash_the_host_is_asked_before_anything_is_done(name):
    async with bench() as b:
        step = registry.get(name)
        for state, kind in (("done", Advance), ("running", Rewind), ("unknown", type(None))):
            shell = FakeShell(GOOD[name], state=state)
            shell.interrupted = True
            found = await step.verify(b.context(step, shell))
            assert isinstance(found, kind), state
            assert shell.orders == []
        working = FakeShell(GOOD[name], state="running")
        working.looks = 3  # it works on without us: waited for, not begun again
        assert isinstance(await step.verify(b.context(step, working)), Advance)
        assert working.orders == []


@pytest.mark.parametrize("name", DESTRUCTIVE)
async def test_an_answer_that_got_lost_is_fetched_and_the_order_not_given_again(name):
    async with bench() as b:
        shell = FakeShell(GOOD[name])
        shell.broken = Unreachable("the line broke")
        run = shell.run

        async def on(*args: Any, **more: Any) -> bytes:
            try:
                return await run(*args, **more)
            except Unreachable:
                shell.state, shell.looks = "running", 2
                raise

        shell.run = on  # type: ignore[method-assign]
        outcome, _ = await b.do(registry.get(name), shell)
        assert isinstance(outcome, Advance)
        assert len(shell.orders) == 1


@pytest.mark.parametrize("name", DESTRUCTIVE)
async def test_an_order_that_never_began_is_temporary_and_a_host_that_is_gone_is_booted_again(name):
    async with bench() as b:
        shell = FakeShell(GOOD[name])
        shell.broken = Unreachable("the line broke")
        with pytest.raises(Unreachable):
            await b.do(registry.get(name), shell)  # status: unknown
        gone = FakeShell(GOOD[name])
        gone.broken = Unreachable("the line broke")
        run = gone.run

        async def off(*args: Any, **more: Any) -> bytes:
            if gone.orders:
                raise Unreachable("no route to host")
            return await run(*args, **more)

        gone.run = off  # type: ignore[method-assign]
        outcome, _ = await b.do(registry.get(name), gone)
        assert isinstance(outcome, Rewind)
        assert outcome.to == "deploy"


@pytest.mark.parametrize("name", sorted(registry.every()))
async def test_undo_twice_is_fine(name):
    async with bench() as b:
        step = registry.get(name)
        params = {"to": "deploy"} if name == "boot" else {}
        ctx = b.context(step, FakeShell({}), params)
        await step.undo(ctx)
        await step.undo(ctx)
        assert b.bmc.did == [], "nothing was put in"


@pytest.mark.parametrize("name", sorted(registry.every()))
async def test_a_dry_run_says_what_it_would_do_in_one_line(name):
    async with bench() as b:
        step = registry.get(name)
        for params in (
            [{"to": "deploy"}, {"to": "deploy", "via": "virtual-media"}, {"to": "disk"}] if name == "boot" else [{}]
        ):
            text = step.plan(b.host, b.context(step, FakeShell({}), params).params)
            assert text
            assert "\n" not in text


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"drives": 5}', b'{"ok": "yes"}', b"\xff"])
async def test_a_garbled_report_is_an_error_and_no_pass(answer):
    with pytest.raises(Garbled):
        read_host_report(answer)


# --- firmware -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("components", "passes"),
    [({"bmc": ("7.10",)}, True), ({"bmc": ("7.11",)}, False), ({"bios": ("2.3.5",), "bmc": ("7.10",)}, False)],
)
async def test_a_bmc_that_cannot_tell_the_bios_is_compared_by_what_the_baseline_lists(components, passes):
    """As over IPMI: the BIOS's version stays empty. A baseline that lists it asks for it."""
    async with bench() as b:
        observed = msgspec.structs.replace(b.host.status.observed, bmc_version="7.10", bios_version="")
        b.host = msgspec.structs.replace(b.host, status=msgspec.structs.replace(b.host.status, observed=observed))
        step = registry.get("firmware-baseline")
        ctx = b.context(step, FakeShell({}))
        ctx.wires.baselines = {b.host.spec.sku: Baseline(sku=b.host.spec.sku, components=components)}  # type: ignore[misc]
        outcome = await step.do(ctx)
        assert isinstance(outcome, Advance if passes else Fail)
        if isinstance(outcome, Advance):
            assert outcome.evidence == {"bmc": "7.10"}


# --- boot -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sku", "params", "did"),
    [
        ({}, {"to": "deploy"}, ["off", "network", "on"]),
        ({"boot_mode": "bios"}, {"to": "deploy"}, ["off", "network by bios", "on"]),
        ({}, {"to": "disk"}, ["off", "disk", "on"]),
        ({}, {"to": "deploy", "via": "virtual-media"}, ["off", f"insert {ISO}", "cd", "on", "eject"]),
        ({"boot_via": "virtual-media"}, {"to": "deploy"}, ["off", f"insert {ISO}", "cd", "on", "eject"]),
        ({"boot_via": "virtual-media"}, {"to": "deploy", "via": "network"}, ["off", "network", "on"]),
        ({"boot_via": "virtual-media"}, {"to": "disk"}, ["off", "eject", "disk", "on"]),
    ],
)
async def test_boot_goes_the_way_that_step_and_sku_say(sku, params, did):
    async with bench(**sku) as b:
        outcome, _ = await b.do(registry.get("boot"), {}, params)
        assert isinstance(outcome, Advance)
        assert b.bmc.did == did


async def test_a_host_that_does_not_come_is_booted_twice_and_the_cd_is_taken_out():
    async with bench(boot_via="virtual-media") as b:
        b.boots = FakeBoots(comes=False)
        first, _ = await b.do(registry.get("boot"), {}, {"to": "deploy"})
        assert isinstance(first, Retry)
        assert b.bmc.did[-1] == "eject"
        second, _ = await b.do(registry.get("boot"), {}, {"to": "deploy"})
        assert isinstance(second, Fail)
        assert second.finding.code == "boot.no-show"
        assert "gets none" in second.finding.message
        assert "look at DHCP" in second.finding.remedy
        assert second.evidence["stage"] == "dhcp"
        assert b.bmc.did.count("eject") == 2


@pytest.mark.parametrize("broken", ["set_boot_once", "power_on", "insert_media"])
async def test_a_boot_whose_bmc_fails_is_not_left_armed(broken, monkeypatch):
    async with bench(boot_via="virtual-media") as b:
        done = b.bmc.power

        async def fails(*args, **_):
            if broken == "power_on" and args[0] is not PowerVerb.ON:
                return await done(*args, **_)
            raise Unreachable("the BMC is gone")

        monkeypatch.setattr(b.bmc, "power" if broken == "power_on" else broken, fails)
        with pytest.raises(Unreachable):
            await b.do(registry.get("boot"), {}, {"to": "deploy"})
        assert b.boots.forgotten == len(b.boots.armed_for) == 1


@pytest.mark.parametrize(
    ("sku", "params", "seconds"),
    [
        ({}, {}, 900.0),
        ({"boot_patience": "2m"}, {}, 120.0),
        ({"boot_patience": "2m"}, {"patience": 30.0}, 30.0),
    ],
)
async def test_a_host_has_the_time_of_its_sku_unless_the_playbook_says_otherwise(sku, params, seconds):
    async with bench(**sku) as b:
        b.boots = FakeBoots(comes=False)
        retry, _ = await b.do(registry.get("boot"), {}, {"to": "disk", **params})
        assert isinstance(retry, Retry)
        assert b.boots.waited == [seconds]
        assert f"within {seconds:.0f} s" in retry.error


@pytest.mark.parametrize("patience", [0, -1.0, 1201, 3600.0, float("nan"), float("inf")])
def test_a_patience_that_the_step_could_not_keep_is_refused(patience):
    with pytest.raises(Invalid, match="patience"):
        decode_params(registry.get("boot"), {"to": "disk", "patience": patience})


def test_the_longest_boot_fits_the_step_with_a_bmc_that_takes_all_its_time():
    longest = 120 + 180 + 60 + 120 + 1200 + 180  # off, medium in, device, on, patience, medium out
    assert registry.get("boot").seconds > longest


@pytest.mark.parametrize("to", ["deploy", "disk"])
async def test_a_boot_does_not_expire_before_its_patience_from_power_on(to):
    """Between arming and power-on a slow BMC may take all its time: medium out, medium in, boot device, power."""
    async with bench(boot_via="virtual-media") as b:
        await b.do(registry.get("boot"), {}, {"to": to, "patience": 100.0})
        assert b.boots.armed_for == [100.0 + 180.0 + 60.0 + 120.0]


# --- progress -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"event": "progress", "what": "write", "drive": "S1", "done": 2**30, "of": 2**31},
            "write-image: 50 % (1.0 GiB of 2.0 GiB) written to drive S1",
        ),
        ({"event": "progress", "what": "read-back", "done": 1, "of": 3}, "write-image: 33 % (0 MiB of 0 MiB) read back from drive"),
        ({"event": "erasing", "drive": "S1", "n": 2, "of": 8}, "write-image: erasing drive S1 (2 of 8)"),
        ({"event": "progress", "what": "write", "done": True, "of": 3}, ""),
        ({"event": "progress", "what": "write", "done": "x", "of": 3}, ""),
        ({"event": "progress", "what": "write", "done": 5, "of": 0}, ""),
        ({"event": "progress", "what": "write", "done": float("nan"), "of": 3}, ""),
        ({"event": "progress", "what": "write", "done": 9, "of": 3}, "write-image: 100 % (0 MiB of 0 MiB) written to drive"),
        ({"event": "else"}, ""),
        ({}, ""),
    ],
)  # fmt: skip
def test_progress_is_one_printable_line(fields, line):
    assert progress.line("write-image", fields) == line


def test_a_hostile_drive_name_does_not_reach_the_terminal():
    said = progress.line("wipe", {"event": "erasing", "drive": "S\x1b[2J" + "x" * 5000})
    assert said.isprintable()
    assert len(said) < 120
