"""A host's life over the real wires, at both depths: deploy, wipe, write an image, boot from it, report."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from fleetd.drivers.ssh.keys import new_key_pair
from fleetd.kit.errors import DeadlineExceeded, Refused, Unreachable
from fleetd.model.report import MAX_REPORT, read_report
from fleetd.sim.host import Timings
from tests.host_rig import QUICK, fault, rig, sim_host, zipapp

DEPTHS = ["fast", pytest.param("full", marks=pytest.mark.slow)]


def image_order(r, host, intent="image-1", **more):
    private, public = new_key_pair("fleetd")
    host_private, host_public = new_key_pair("host")
    seed = {
        "hostname": host.name,
        "authorized_keys": [public],
        "host_key_private": host_private,
        "host_key_public": host_public,
        "phone_home_url": r.listener.base_url,
        "phone_home_token": "t" * 40,
    }
    return r.order(host, intent, image={"name": "ubuntu-24.04-gpu"}, seed=seed, **more), private


@pytest.mark.parametrize("depth", DEPTHS)
async def test_from_bare_metal_to_a_report_from_its_own_disk(depth, tmp_path):
    async with rig(depth, tmp_path) as r:
        host = r.add(sim_host())
        shell = await r.shell(await r.deploy(host))
        assert {d.content for d in host.drives} == {"factory"}
        wiped = await r.host_command(shell, "wipe", r.order(host, "wipe-1"))
        assert wiped["ok"], wiped
        assert [d["serial"] for d in wiped["drives"]] == [d.serial for d in host.drives]
        assert all(d["erased"] and d["samples"] >= 2 for d in wiped["drives"])
        assert {d.content for d in host.drives} == {"blank"}
        order, private = image_order(r, host)
        written = await r.host_command(shell, "write-image", order)
        assert written["ok"], written
        assert written["image"] == "ubuntu-24.04-gpu"
        assert written["digest"].startswith("sha256:")
        assert written["drives"][0]["serial"] == host.drives[0].serial  # the smallest
        assert host.drives[0].content == "image:ubuntu-24.04-gpu"
        target = await r.from_disk(host, private, "t" * 40)
        assert target.environment == "disk"
        assert target.host_key == host.installed.host_key_public
        data = await (await r.shell(target)).run(
            zipapp("report"), ("--nonce", "n", "--host", "h"), timeout=30, max_output=MAX_REPORT
        )
        report = read_report(data)
        assert report.boot_id.v == host.running.boot_id
        assert len(report.nvml.gpus) == 8
        done = [
            e.what
            for e in host.record.of(host.name)
            if e.what in ("wipe.begin", "wipe.done", "image.write", "boot.disk")
        ]
        assert done == ["wipe.begin", "wipe.done", "image.write", "boot.disk"]
        assert {e.data["intent"] for e in host.record.of(host.name, "wipe.")} == {"wipe-1"}
        assert len(list(host.record.of(host.name, "wipe.drive"))) == 8


@pytest.mark.parametrize("depth", DEPTHS)
async def test_the_same_intent_acts_once(depth, tmp_path):
    async with rig(depth, tmp_path) as r:
        host = r.add(sim_host())
        shell = await r.shell(await r.deploy(host))
        first = await r.host_command(shell, "wipe", r.order(host))
        host.drives[3].content = "tenant:x"
        again = await r.host_command(shell, "wipe", r.order(host))
        assert again == {**first, "again": True}
        assert host.drives[3].content == "tenant:x"
        status = await r.host_command(shell, "status", {"intent": "intent-1"})
        assert status == first
        assert (await r.host_command(shell, "status", {"intent": "never"}))["state"] == "unknown"
        assert len(list(host.record.of(host.name, "wipe.begin"))) == 1
        order, _ = image_order(r, host, "intent-1")
        with pytest.raises(Refused, match="intent-reused"):
            await r.host_command(shell, "write-image", order)


@pytest.mark.parametrize("depth", DEPTHS)
async def test_orders_that_do_not_fit_touch_nothing(depth, tmp_path):
    async with rig(depth, tmp_path) as r:
        host = r.add(sim_host())
        shell = await r.shell(await r.deploy(host))
        good = r.order(host)
        for code, order in {
            "other-boot": {**good, "nonce": "0" * 64},
            "other-host": {**good, "host_serial": "ELSE"},
            "other-drives": {**good, "drives": [{"serial": "GHOST"}, *good["drives"][1:]]},
            "bad-order": {**good, "drives": []},
        }.items():
            with pytest.raises(Refused, match=code):
                await r.host_command(shell, "wipe", order)
        with pytest.raises(Refused, match="other-drives"):  # a drive that the order does not know of
            await r.host_command(shell, "wipe", {**good, "drives": good["drives"][1:]})
        assert {d.content for d in host.drives} == {"factory"}
        assert not list(host.record.of(host.name, "wipe."))


@pytest.mark.parametrize("depth", DEPTHS)
async def test_a_system_from_disk_refuses_to_be_wiped(depth, tmp_path):
    async with rig(depth, tmp_path) as r:
        host = r.add(sim_host())
        shell = await r.shell(await r.deploy(host))
        order, private = image_order(r, host)
        assert (await r.host_command(shell, "write-image", order))["ok"]
        own = await r.shell(await r.from_disk(host, private, "t" * 40))
        for nonce in (r.tokens[host.name], "t" * 40):
            with pytest.raises(Refused, match="not-deploy"):
                await r.host_command(own, "wipe", {**r.order(host, "late"), "nonce": nonce})
        assert not list(host.record.of(host.name, "wipe."))


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("kind", "said"), [("erase-lies", "still there"), ("disk-no-erase", "Invalid Format")])
async def test_a_drive_that_keeps_its_data_is_found(depth, kind, said, tmp_path):
    async with rig(depth, tmp_path) as r:
        host = r.add(sim_host(fault(kind, drive=2)))
        shell = await r.shell(await r.deploy(host))
        report = await r.host_command(shell, "wipe", r.order(host))
        assert not report["ok"]
        kept = [d for d in report["drives"] if not d["erased"]]
        assert [d["serial"] for d in kept] == [host.drives[2].serial]
        assert said in kept[0]["reason"]
        assert host.drives[2].content == "factory"
        assert [e.data["kind"] for e in host.record.of(host.name, "fault.fired")] == [kind]


async def test_work_goes_on_when_its_starter_is_gone_and_its_report_waits():
    timings = Timings(**{**msgspec.structs.asdict(QUICK), "wipe": 0.01})
    async with rig() as r:
        host = r.add(sim_host(timings=timings))
        target = await r.deploy(host)
        shell = await r.shell(target)
        with pytest.raises(DeadlineExceeded):
            await shell.run(
                zipapp("host"), ("wipe",), stdin=msgspec.json.encode(r.order(host)), timeout=0.05, max_output=1
            )
        await shell.drop()
        shell = await r.shell(target)
        await host.record.until("wipe.done")
        status = await r.host_command(shell, "status", {"intent": "intent-1"})
        assert status["state"] == "done"
        assert status["ok"]
        assert len(list(host.record.of(host.name, "wipe.begin"))) == 1


@pytest.mark.parametrize("depth", DEPTHS)
async def test_a_power_cut_ends_the_work_where_it_stands(depth, tmp_path):
    timings = Timings(**{**msgspec.structs.asdict(QUICK), "wipe": 0.2})
    async with rig(depth, tmp_path) as r:
        host = r.add(sim_host(timings=timings))
        shell = await r.shell(await r.deploy(host))
        begun = asyncio.Event()
        work = asyncio.create_task(r.host_command(shell, "wipe", r.order(host), lambda _: begun.set()))
        async with asyncio.timeout(10):
            await begun.wait()
        target = await r.deploy(host)
        with pytest.raises(Unreachable):
            await work
        shell = await r.shell(target)
        assert (await r.host_command(shell, "status", {"intent": "intent-1"}))["state"] == "unknown"
        assert not list(host.record.of(host.name, "wipe.done"))
        with pytest.raises(Refused, match="other-boot"):  # an order of the boot before
            await r.host_command(shell, "wipe", {**r.order(host, "later"), "nonce": "x" * 43})


@pytest.mark.slow
async def test_many_full_probes_are_bounded(tmp_path):
    async with rig("full", tmp_path) as r:
        host = r.add(sim_host())
        shell = await r.shell(await r.deploy(host))
        reports = await asyncio.gather(
            *(
                shell.run(zipapp("report"), ("--nonce", str(i), "--host", "h"), timeout=60, max_output=MAX_REPORT)
                for i in range(6)
            )
        )
        assert [read_report(data).nonce for data in reports] == [str(i) for i in range(6)]
