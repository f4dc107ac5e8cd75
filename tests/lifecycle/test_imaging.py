"""Imaging on the simulator's wires: what goes wrong ends as one finding with its remedy, and never on a wrong drive."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import msgspec
import pytest

from fleetd.kit.errors import Conflict
from fleetd.lifecycle.drive import Drive
from fleetd.lifecycle.outcome import Advance
from fleetd.model.check import Action
from fleetd.model.host import Host, State
from fleetd.model.lease import LeaseRequest, LeaseState
from fleetd.model.power import PowerVerb
from fleetd.model.run import Run, RunState
from fleetd.store import events
from fleetd.store import runs as run_rows
from tests.world import ADMIN, B200, GB200, H100, KEY, ROOT, Plan, World, image_names, name_of, world

pytestmark = pytest.mark.slow
NAME = name_of("lou-t01", 1)


def record(w: World, what: str, name: str = NAME) -> list[Any]:
    return list(w.sim.record.of(name, what))


def system_drive(w: World, name: str = NAME) -> str:
    """The serial that the SKU's rule (smallest) means."""
    return min(w.sim.hosts[name].drives, key=lambda drive: drive.bytes).serial


async def until(w: World, good: Any, seconds: float = 30.0) -> Host:
    async with asyncio.timeout(seconds):
        while not good(host := await w.host()):
            await w.services.db.wait_events(await events.last(w.services.db), 0.05)
    return host


async def begin(w: World, playbook: str = "rack-bringup") -> Run:
    run = await w.services.runs.start(playbook, "all", who=ADMIN)
    assert isinstance(run, Run)
    return run


async def lease(w: World, **more: Any) -> str:
    fields = {"tenant": "acme", "sku": H100, "count": 1, "ends_at": "2036-01-01T00:00:00Z", "ssh_keys": [KEY], **more}
    made = await w.services.leases.create(msgspec.convert(fields, LeaseRequest), who=ADMIN)
    return made.id


async def lease_is(w: World, lease_id: str, state: LeaseState, seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while (await w.services.leases.get(lease_id)).state is not state:
            await w.services.db.wait_events(await events.last(w.services.db), 0.1)


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "params", "code", "action", "remedy"),
    [
        ("no-dhcp", {}, "boot.no-show", Action.RETEST, "DHCP"),
        ("boots-wrong-device", {}, "boot.no-show", Action.RETEST, "boot from the network first"),
        ("wrong-mac", {}, "identity.unproven", Action.FIX_INVENTORY, "inventory"),
        ("disk-too-small", {"drive": 0}, "storage.too-small", Action.RMA, "pull the drive"),
        ("write-error", {"drive": 0}, "storage.write", Action.RMA, "pull the drive"),
        ("read-back-flip", {"drive": 0}, "storage.read-back", Action.RMA, "pull the drive"),
        ("checksum-mismatch", {}, "image.checksum", Action.RETEST, "fleetctl image verify"),
        ("erase-lies", {"drive": 1}, "storage.erase", Action.RMA, "pull the drive"),
        ("disk-no-erase", {"drive": 2}, "storage.erase", Action.RMA, "pull the drive"),
        ("efi-full", {}, "firmware.boot-order", Action.CONFIGURE, "firmware setup"),
    ],
)
async def test_a_fault_ends_as_one_finding_and_on_no_wrong_drive(tmp_path, kind, params, code, action, remedy):
    plan = Plan(faults={1: [(kind, params)]})
    async with world(tmp_path, plan, patience=3.0 if code in ("boot.no-show", "identity.unproven") else None) as w:
        await w.apply()
        run = await w.run("rack-bringup")
        host = await w.host()
        assert (run.state, host.state) == (RunState.FAILED, State.QUARANTINED)
        (finding,) = host.status.findings
        assert (finding.code, finding.action) == (code, action)
        assert remedy in finding.remedy
        assert host.certificate is None
        assert w.leaseable(host) != []
        machine = w.sim.hosts[NAME]
        if action is Action.RMA:
            at_fault = machine.drives[params["drive"]].serial
            assert finding.parts == (at_fault,)
            assert at_fault in finding.remedy
        assert {entry.data["drive"] for entry in record(w, "drive.write")} <= {system_drive(w)}
        if code.startswith(("boot.", "identity.")):
            assert record(w, "host.command") == []
            assert record(w, "drive.") == []
        if kind != "efi-full":
            assert machine.installed is None  # a disk that failed does not boot
        if code == "image.checksum":
            assert len(record(w, "drive.write")) == 2  # once more, on a new intent, then it is a finding
            assert len({entry.data["intent"] for entry in record(w, "drive.write")}) == 2


async def test_a_host_that_starts_from_its_old_disk_is_told_from_one_that_is_dead(tmp_path):
    """After a bring-up its disk boots and phones home with a token that is not of this boot: refused, and said."""
    async with world(tmp_path, Plan(), patience=3.0) as w:
        await w.apply()
        await w.run("rack-bringup")
        await w.services.hosts.maintenance(NAME, reason="drill", until=w.services.clock.wall() + 3600, who=ADMIN)
        w.sim.break_host(NAME, "boots-wrong-device")
        run = await w.services.hosts.release(NAME, who=ADMIN)
        assert (await w.ended(run.id)).state is RunState.FAILED
        (finding,) = (await w.host()).status.findings
        assert finding.code in ("boot.no-show", "identity.unproven")
        assert len(record(w, "wipe.begin")) == 1  # of the first bring-up


async def test_no_image_in_the_ledger_is_a_finding_before_a_drive_is_written(tmp_path):
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        image = (await w.services.images.every())[0]
        (tmp_path / "state/images" / image.manifest.sha256).unlink()
        await w.run("rack-bringup")
        (finding,) = (await w.host()).status.findings
        assert "image" in finding.message
        assert "fleetctl image add" in finding.remedy
        assert record(w, "drive.write") == []


# --- power, restart, rewind -----------------------------------------------------------------------------------------


async def steps_of(w: World, run: Run) -> list[str]:
    return [f"{step.name} {step.outcome}" for step in await run_rows.steps(w.services.db, run.id, (await w.host()).id)]


async def test_a_power_cut_in_the_middle_of_the_write_boots_again_and_does_not_wipe_again(tmp_path):
    async with world(tmp_path, Plan()) as w:
        machine = w.sim.hosts[NAME]
        quick = machine.timings
        machine.timings = msgspec.structs.replace(quick, image=10.0)  # long enough for the cut on a busy machine
        await w.apply()
        run = await begin(w)
        async with asyncio.timeout(30):
            while not record(w, "drive.write"):
                await asyncio.sleep(0.01)
        machine.power_off()
        machine.timings = quick
        await asyncio.sleep(0.1)
        assert (await w.ended(run.id)).state is RunState.PASSED
        host = await w.host()
        assert host.state is State.AVAILABLE, host.status.findings
        steps = await steps_of(w, run)
        assert "write-image abandoned" in steps or "write-image retry" in steps, steps
        assert steps.count("wipe advance") == 1
        assert len(record(w, "wipe.done")) == 1
        intents = [entry.data["intent"] for entry in record(w, "drive.write")]
        assert len(intents) == len(set(intents)) == 2
        assert {entry.data["drive"] for entry in record(w, "drive.write")} == {system_drive(w)}


async def test_a_second_machine_that_comes_as_the_host_makes_its_proof_worthless(tmp_path):
    """Whoever came first holds the boot; the host itself comes second, and nothing the first one said counts."""
    async with world(tmp_path, Plan()) as w:
        machine = w.sim.hosts[NAME]
        quick = machine.timings
        machine.timings = msgspec.structs.replace(quick, image=3.0)
        await w.apply()
        run = await begin(w)
        async with asyncio.timeout(30):
            while not record(w, "drive.write"):
                await asyncio.sleep(0.01)
        host = await w.host()
        await w.services.boots.script(
            host.spec.boot_mac, uuid=host.status.observed.uuid, serial=host.spec.serial, source="10.66.6.6"
        )
        machine.timings = quick
        assert (await w.ended(run.id)).state is RunState.FAILED
        (finding,) = (await w.host()).status.findings
        assert finding.code == "identity.contested"
        assert "10.66.6.6" in finding.message
        again = await w.services.hosts.release(NAME, who=ADMIN)  # a person looked, and there is no stranger
        assert (await w.ended(again.id)).state is RunState.PASSED
        assert len(record(w, "wipe.done")) == 2  # wiped and written anew


async def test_a_tpm_that_wants_a_boot_gets_one_and_the_wipe_is_not_repeated(tmp_path, monkeypatch):
    from fleetd.sim.drives import MemoryMachine

    asked: list[str] = []

    def clear(self: Any) -> dict[str, Any]:
        asked.append(self.marker())
        done = len(asked) > 1
        method = "TPM2_Clear(platform)" if done else "ppi"
        return {"present": True, "cleared": done, "method": method, "pending_reboot": not done, "reason": ""}

    monkeypatch.setattr(MemoryMachine, "clear_tpm", clear)
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        run = await w.run("rack-bringup")
        assert run.state is RunState.PASSED, (await w.host()).status.findings
        steps = await steps_of(w, run)
        assert steps.count("wipe advance") == 1
        assert steps.count("boot advance") == 3  # deploy, deploy again, disk
        assert len(set(asked)) == 2  # two boots


async def test_every_step_may_be_done_twice_on_one_intent(tmp_path, monkeypatch):
    """Bring-up, hand-over and reclaim with each `do` called again after it succeeded: nothing is done to a drive twice."""
    tried, again = Drive._try, []

    async def twice(self: Drive, step: Any, ctx: Any, resumed: bool) -> Any:
        first = await tried(self, step, ctx, resumed)
        if isinstance(first, Advance):
            second = await tried(self, step, ctx, False)
            assert isinstance(second, Advance), (step.name, second)
            again.append(step.name)
        return first

    monkeypatch.setattr(Drive, "_try", twice)
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        assert (await w.run("rack-bringup")).state is RunState.PASSED, (await w.host()).status.findings
        held = await lease(w)
        await lease_is(w, held, LeaseState.ACTIVE)
        await w.services.leases.release(held, who=ADMIN)
        await until(w, lambda host: host.state in (State.AVAILABLE, State.QUARANTINED) and host.run is None)
        host = await w.host()
        assert host.state is State.AVAILABLE, host.status.findings
        assert {
            "enroll",
            "rekey",
            "boot",
            "wipe",
            "clear-tpm",
            "boot-order",
            "snapshot",
            "drift-check",
            "hand-over",
        } <= {*again}
        writes = [entry.data["intent"] for entry in record(w, "drive.write")]
        assert len(writes) == len(set(writes)) == 3
        assert len(record(w, "wipe.done")) == 2


async def test_progress_of_a_long_write_is_told(tmp_path, monkeypatch):
    from fleetd.lifecycle import progress

    monkeypatch.setattr(progress, "FIRST", 0.05)
    monkeypatch.setattr(progress, "EVERY", 0.05)
    async with world(tmp_path, Plan()) as w:
        for machine in w.sim.hosts.values():
            machine.timings = msgspec.structs.replace(machine.timings, image=1.0)
        await w.apply()
        run = await begin(w)
        seen = await until(w, lambda host: host.status.waiting_for and "writing drive" in host.status.waiting_for.what)
        waiting = seen.status.waiting_for
        assert waiting is not None
        assert system_drive(w) in waiting.what
        assert waiting.remedy
        assert waiting.until > w.services.clock.wall()
        assert (await w.ended(run.id)).state is RunState.PASSED
        told = [e for e in await events.after(w.services.db, 0, limit=5000) if e.kind == "run.progress"]
        assert any("write-image: writing drive" in event.data["text"] for event in told)


@pytest.mark.parametrize("changed", [False, True])
async def test_the_daemon_restarts_in_the_middle_of_a_write(tmp_path, changed):
    """Killed while the host writes, and another one opened on the same ledger: one image per intent, and it boots.

    `changed`: meanwhile the SKU got another image. What was ordered is judged, and stays needed until it is judged.
    """
    from fleetd.daemon.config import load
    from fleetd.daemon.wiring import build_house
    from fleetd.sim.site import SimSite
    from fleetd.sim.sitefile import load_site
    from tests.world import write_world

    config = write_world(tmp_path, [Plan()])
    run_id = ""
    async with SimSite(load_site(tmp_path / "site.yaml")) as sim:
        sim.hosts[NAME].timings = msgspec.structs.replace(sim.hosts[NAME].timings, image=1.0)
        for last in (False, True):
            async with build_house(load(config)) as house:
                assert house.boot is not None
                await house.boot.start()
                ready = asyncio.Event()
                work = asyncio.create_task(house.engine.run(ready.set))
                await ready.wait()
                w = World(tmp_path, sim, house)
                if last:
                    assert (await w.ended(run_id)).state is RunState.PASSED
                    host = await w.host()
                    assert host.state is State.AVAILABLE
                    house.engine.park()
                    await work
                else:
                    await w.apply()
                    run_id = (await begin(w)).id
                    async with asyncio.timeout(30):
                        while not record(w, "drive.write"):
                            await asyncio.sleep(0.01)
                    work.cancel()  # as good as killed: no step reaches its safe point
                    await asyncio.gather(work, return_exceptions=True)
                    if changed:
                        old = next(iter(image_names(tmp_path)))
                        sku = tmp_path / f"inventory/skus/{H100}.yaml"
                        sku.write_text(sku.read_text().replace(f"image: {old}\n", "image: another\n"))
                        await w.apply()
                        with pytest.raises(Conflict) as caught:
                            await w.services.images.remove(old, who=ADMIN)
                        assert caught.value.why == f"run {run_id}"
                await house.boot.stop()
        intents = [entry.data["intent"] for entry in sim.record.of(NAME, "drive.write")]
        assert len(intents) == len(set(intents))
        assert len(list(sim.record.of(NAME, "wipe.done"))) == 1


async def test_a_step_may_ask_for_more_time_and_so_the_host_gets_it(tmp_path, monkeypatch):
    from fleetd.lifecycle.steps.wipe import Wipe

    monkeypatch.setattr(Wipe, "seconds", 4.0)
    monkeypatch.setattr(Wipe, "seconds_for", lambda self, drives: 50 * 3600.0)
    async with world(tmp_path, Plan()) as w:
        w.sim.hosts[NAME].timings = msgspec.structs.replace(w.sim.hosts[NAME].timings, wipe=1.0)
        await w.apply()
        run = await begin(w)
        host = await until(w, lambda host: record(w, "wipe.begin"))
        assert host.deadline is not None
        assert host.deadline - host.state_since >= 54 * 3600  # the wipe's, and after it the state's own
        assert (await w.ended(run.id)).state is RunState.PASSED, (await w.host()).status.findings


# --- drift ----------------------------------------------------------------------------------------------------------


async def test_a_part_swapped_during_the_lease_keeps_the_host_out_until_it_is_brought_up_again(tmp_path):
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        await w.run("rack-bringup")
        held = await lease(w)
        await lease_is(w, held, LeaseState.ACTIVE)
        w.sim.hosts[NAME].drives[3].model = "SIM SWAPPED"
        await w.services.leases.release(held, who=ADMIN)
        host = await until(w, lambda host: host.state is State.QUARANTINED)
        (finding,) = host.status.findings
        serial = w.sim.hosts[NAME].drives[3].serial
        assert (finding.code, finding.parts) == ("drift.changed", (f"drive {serial}",))
        assert "SIM PM9A3" in finding.message
        assert "SIM SWAPPED" in finding.message
        assert host.tenant_data == "erased"  # the wipe went before, and stands
        # Going on without a word finds the same again; the way that the remedy names accepts it.
        run = await w.services.hosts.release(NAME, who=ADMIN)
        assert (await w.ended(run.id)).state is RunState.FAILED
        await until(w, lambda host: host.lease is None)  # erased with proof: the lease lets go of it
        await w.services.hosts.maintenance(NAME, reason="meant", until=w.services.clock.wall() + 3600, who=ADMIN)
        run = await w.services.hosts.release(NAME, who=ADMIN)
        assert (await w.ended(run.id)).state is RunState.PASSED
        assert w.leaseable(await w.host()) == []
        held = await lease(w)
        await lease_is(w, held, LeaseState.ACTIVE)
        await w.services.leases.release(held, who=ADMIN)
        host = await until(w, lambda host: host.state in (State.AVAILABLE, State.QUARANTINED) and host.run is None)
        assert host.state is State.AVAILABLE, host.status.findings


@pytest.mark.parametrize("ipmi", [False, True])
async def test_an_account_made_at_the_bmc_during_the_lease_keeps_the_host_out_until_it_is_gone(tmp_path, ipmi):
    async with world(tmp_path, Plan(ipmi=ipmi)) as w:
        await w.apply()
        await w.run("rack-bringup")
        held = await lease(w)
        await lease_is(w, held, LeaseState.ACTIVE)
        w.sim.break_host(NAME, "account-added")
        await w.services.leases.release(held, who=ADMIN)
        host = await until(w, lambda host: host.state in (State.QUARANTINED, State.AVAILABLE))
        assert host.state is State.QUARANTINED
        (finding,) = host.status.findings
        assert (finding.code, finding.action) == ("drift.changed", Action.CONFIGURE)
        assert '"mallory", administrator, enabled' in finding.message
        assert "mallory" in w.sim.hosts[NAME].accounts  # compared, never removed by us: it may be the site's own
        w.sim.repair(NAME, "account-added")  # a technician does, at the BMC
        run = await w.services.hosts.release(NAME, who=ADMIN)
        assert (await w.ended(run.id)).state is RunState.PASSED
        assert (await w.host()).state is State.AVAILABLE


async def test_a_drive_of_another_host_is_not_touched(tmp_path):
    async with world(tmp_path, Plan(count=2)) as w:
        await w.apply()
        await w.run("rack-bringup", name_of("lou-t01", 2))
        mine, other = w.sim.hosts[NAME], w.sim.hosts[name_of("lou-t01", 2)]
        mine.drives[5].serial = other.drives[5].serial
        mine.drives[5].content = "tenant:somebody's"
        await w.run("rack-bringup", NAME)
        (finding,) = (await w.host()).status.findings
        assert (finding.code, finding.parts) == ("storage.foreign", (other.drives[5].serial,))
        assert name_of("lou-t01", 2) in finding.message
        assert mine.drives[5].content == "tenant:somebody's"
        assert record(w, "wipe.") == []
        assert record(w, "drive.") == []


# --- virtual media --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sku", [H100, B200, GB200])
async def test_a_host_is_brought_up_from_virtual_media(tmp_path, sku):
    """One vendor's ways each; the SKU says so, the playbook does not."""
    plan = Plan(sku=sku, domain="lou-nvl-1" if sku == GB200 else None)
    async with world(tmp_path, plan) as w:
        text = (tmp_path / f"inventory/skus/{sku}.yaml").read_text()
        text = text.replace("boot_mode: uefi\n", "boot_mode: uefi\nboot_via: virtual-media\n")
        if sku == GB200:
            text = text.replace("  - nvlink.domain\n", "")  # one tray is no domain
        (tmp_path / f"inventory/skus/{sku}.yaml").write_text(text)
        await w.apply()
        run = await w.run("rack-bringup")
        assert run.state is RunState.PASSED, (await w.host()).status.findings
        assert record(w, "media.insert")[0].data["url"].endswith("/deploy/deploy.iso")
        assert record(w, "media.eject")
        assert w.sim.hosts[NAME].media == {}
        assert {entry.data["device"] for entry in record(w, "boot.once")} == {"cd", "disk"}


async def test_virtual_media_over_ipmi_is_a_finding_with_the_way_around(tmp_path):
    async with world(tmp_path, Plan(ipmi=True)) as w:
        path = tmp_path / f"inventory/skus/{H100}.yaml"
        path.write_text(path.read_text().replace("boot_mode: uefi\n", "boot_mode: uefi\nboot_via: virtual-media\n"))
        await w.apply()
        await w.run("rack-bringup")
        (finding,) = (await w.host()).status.findings
        assert "virtual media" in finding.message
        assert "boot_via: network" in finding.remedy


# --- a host without GPUs --------------------------------------------------------------------------------------------


async def test_a_host_without_gpus_is_brought_up_leased_and_taken_back(tmp_path):
    async with world(tmp_path, Plan()) as w:
        path = tmp_path / f"inventory/skus/{H100}.yaml"
        head, _, rest = path.read_text().partition("\ngpu:\n")
        rest = rest[rest.index("\nstorage:\n") :].partition("\n# Closed:")[0]
        suites = (
            "acceptance: [system.identity, fleet.duplicates, system.cpu-memory, storage.nvme, firmware.baseline,"
            " gpu.absent]\nquick: [system.identity, gpu.absent]\n"
        )
        path.write_text(f"{head}\nnetwork: {{count: 0}}\n{rest}\n{suites}")
        w.sim.hosts[NAME].sku = read(path)
        await w.apply()
        run = await w.run("rack-bringup")
        assert run.state is RunState.PASSED, (await w.host()).status.findings
        held = await lease(w)
        await lease_is(w, held, LeaseState.ACTIVE)
        await w.services.leases.release(held, who=ADMIN)
        host = await until(w, lambda host: host.state in (State.AVAILABLE, State.QUARANTINED) and host.run is None)
        assert host.state is State.AVAILABLE, host.status.findings


def read(path: Any) -> Any:
    from fleetd.kit.yamlfile import parse
    from fleetd.model.sku import read_sku

    return read_sku(parse(path.read_text(), path.name))


# --- who phones home ------------------------------------------------------------------------------------------------


async def post(w: World, token: str, body: dict[str, Any]) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            w.house.boot_url + "/deploy/hello", json=body, headers={"Authorization": f"Bearer {token}"}
        ) as answer,
    ):
        return answer.status


def hello(w: World, number: int, **changes: Any) -> dict[str, Any]:
    machine = w.sim.hosts[name_of("lou-t01", number)]
    key = machine.running.host_key_public if machine.running else "ssh-ed25519 AAAA"
    body = {"environment": "deploy", "mac": machine.mac, "serial": machine.serial, "uuid": machine.uuid}
    return body | {"boot_id": "11111111-2222-3333-4444-555555555555", "host_key": key} | changes


async def test_a_stolen_token_opens_nothing(tmp_path):
    """Of a boot that is armed: another host with it, the host's own identity from another environment, and after use."""
    async with world(tmp_path, Plan(count=2)) as w:
        await w.apply()
        await w.run("rack-bringup")
        boots, host = w.house.engine.wires.boots, await w.host()
        await boots.arm(host, "deploy", intent="intent-x", seconds=60, token="t" * 40)
        assert await post(w, "t" * 40, hello(w, 2)) == 403  # another host
        assert await post(w, "t" * 40, hello(w, 1, environment="disk")) == 403
        assert await post(w, "t" * 40, hello(w, 1, mac="02:00:00:00:00:99")) == 403
        assert await post(w, "t" * 40, hello(w, 1)) == 204
        assert await post(w, "t" * 40, hello(w, 1)) == 204  # the same boot says it again: its answer got lost
        assert await post(w, "t" * 40, hello(w, 1, boot_id="another")) == 403  # reused
        boot = await boots.arm(host, "deploy", intent="intent-y", seconds=60, token="u" * 40)
        assert await post(w, "t" * 40, hello(w, 1)) == 403  # closed by the newer boot
        assert boot.met is None
        denied = [e for e in await events.after(w.services.db, 0, limit=5000) if e.kind == "boot.denied"]
        assert len(denied) >= 5
        assert all("t" * 40 not in str(event.data) and "u" * 40 not in str(event.data) for event in denied)


async def test_an_expired_token_opens_nothing(tmp_path):
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        await w.run("rack-bringup")
        boots, host = w.house.engine.wires.boots, await w.host()
        await boots.arm(host, "deploy", intent="intent-x", seconds=0.05, token="t" * 40)
        await asyncio.sleep(0.1)
        assert await post(w, "t" * 40, hello(w, 1)) == 403
        script = await boots.script(host.spec.boot_mac, uuid=hello(w, 1)["uuid"], serial=host.spec.serial, source="x")
        assert script.token is None


async def test_the_tokens_of_this_boot_stand_in_no_event_and_no_journal(tmp_path):
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        run = await w.run("rack-bringup")
        running = w.sim.hosts[NAME].running
        assert running is not None
        told = [str(event.data) for event in await events.after(w.services.db, 0, limit=5000)]
        steps = await run_rows.steps(w.services.db, run.id, (await w.host()).id)
        told += [f"{step.text} {step.evidence}" for step in steps]
        assert not any(running.token in text for text in told)
        assert not any("ticket=" in text for text in told)


async def test_a_host_that_a_person_switched_off_is_started_by_fleetd_again(tmp_path):
    """The one-time boot device holds for one boot: after a power cut without it, the next boot is armed anew."""
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        await w.run("rack-bringup")
        await w.services.hosts.power(NAME, PowerVerb.OFF, who=ADMIN)
        assert (await w.run("validate", NAME)).state is RunState.PASSED
        assert w.leaseable(await w.host()) == []


def test_the_shipped_playbooks_have_the_new_steps_in_their_order():
    from fleetd.lifecycle.playbook import load as read_playbook

    def steps(name: str) -> list[str]:
        path = ROOT / f"playbooks/{name}.yaml"
        return [step.name for step in read_playbook(path.read_text(), path.name).steps]

    reclaim, handover, bringup = steps("reclaim"), steps("handover"), steps("rack-bringup")
    assert (
        reclaim.index("wipe") < reclaim.index("clear-tpm") < reclaim.index("drift-check") < reclaim.index("write-image")
    )
    assert reclaim.index("rekey") < reclaim.index("drift-check")  # the accounts are read when ours is nobody else's
    assert handover.index("snapshot") < handover.index("write-image")
    assert "wipe" not in handover
    assert bringup.index("wipe") < bringup.index("write-image") < bringup.index("boot-order")
