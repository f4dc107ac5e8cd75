"""Hosts that die, or crawl, whenever they are written: every run ends, and its finding says what was seen last."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from fleetd.lifecycle import progress
from fleetd.lifecycle.drive import MAX_REWINDS
from fleetd.lifecycle.steps.image import WriteImage
from fleetd.model.host import State
from fleetd.model.run import RunState
from tests.world import ADMIN, Plan, name_of, world

pytestmark = pytest.mark.slow
NAME = name_of("lou-t01", 1)


async def test_a_host_that_dies_in_every_write_is_given_up_and_never_written_twice_on_one_intent(tmp_path):
    async with world(tmp_path, Plan()) as w:
        machine = w.sim.hosts[NAME]
        machine.timings = msgspec.structs.replace(machine.timings, image=10.0)
        await w.apply()
        run = await w.services.runs.start("rack-bringup", "all", who=ADMIN)
        ended = asyncio.create_task(w.ended(run.id))  # type: ignore[union-attr]
        seen = 0
        async with asyncio.timeout(90):
            while not ended.done():
                writes = list(w.sim.record.of(NAME, "drive.write"))
                if len(writes) > seen:
                    seen = len(writes)
                    machine.power_off()
                await asyncio.sleep(0.02)
        assert (await ended).state is RunState.FAILED
        intents = [entry.data["intent"] for entry in w.sim.record.of(NAME, "drive.write")]
        assert len(intents) == len(set(intents)) == MAX_REWINDS + 1
        assert len(list(w.sim.record.of(NAME, "wipe.begin"))) == 1
        host = await w.host()
        assert host.state is State.QUARANTINED
        (finding,) = host.status.findings
        assert finding.remedy


async def test_a_step_that_is_too_slow_tells_how_far_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "FIRST", 0.05)
    monkeypatch.setattr(progress, "EVERY", 0.05)
    monkeypatch.setattr(WriteImage, "seconds", 2.0)
    async with world(tmp_path, Plan()) as w:
        machine = w.sim.hosts[NAME]
        machine.timings = msgspec.structs.replace(machine.timings, image=30.0)
        await w.apply()
        assert (await w.run("rack-bringup")).state is RunState.FAILED
        (finding,) = (await w.host()).status.findings
        assert "did not finish in 2 s; last told: write-image: writing drive" in finding.message
        assert "replace that part" in finding.remedy
        machine.power_off()


async def test_a_drive_put_in_after_the_erase_is_not_proven_and_maintenance_erases_it(tmp_path):
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        assert (await w.run("rack-bringup")).state is RunState.PASSED
        drive = w.sim.hosts[NAME].drives[5]
        drive.serial, drive.content = "FROM-THE-SHELF", "tenant:somebody's"
        assert (await w.run("validate")).state is RunState.FAILED
        host = await w.host()
        assert host.state is State.QUARANTINED
        (finding,) = host.status.findings
        assert (finding.code, finding.parts) == ("storage.unwiped", ("FROM-THE-SHELF",))
        await w.services.hosts.maintenance(NAME, reason="a new drive", until=w.services.clock.wall() + 3600, who=ADMIN)
        run = await w.services.hosts.release(NAME, who=ADMIN)
        assert (await w.ended(run.id)).state is RunState.PASSED, (await w.host()).status.findings
        assert (await w.host()).state is State.AVAILABLE
        assert "tenant" not in drive.content
