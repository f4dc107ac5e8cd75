"""A host's life over the real wires, at both depths: deploy, wipe, write an image, boot from it, report."""

from __future__ import annotations

import asyncio
import hashlib

import msgspec
import pytest

from fleetd.drivers.boot.admission import Admission, Limits
from fleetd.drivers.boot.capabilities import ImageGrant
from fleetd.kit.errors import Busy, Refused, Unreachable
from fleetd.model.report import MAX_REPORT, read_report
from fleetd.sim.host import Running, Timings
from fleetd.sim.system import System
from tests.host_rig import QUICK, Watched, fault, rig, sim_host, zipapp
from tests.probe.imaging import disk_image, packed

DEPTHS = ["fast", pytest.param("full", marks=pytest.mark.slow)]


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
        order, private = r.image_order(host)
        written = await r.host_command(shell, "write-image", order)
        assert written["ok"], written
        assert written["image"] == "ubuntu-24.04-gpu"
        assert written["digest"] == f"sha256:{order['image']['raw_sha256']}"
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
            if e.what in ("wipe.begin", "wipe.done", "drive.write", "image.write", "boot.disk")
        ]
        assert done == ["wipe.begin", "wipe.done", "drive.write", "image.write", "boot.disk"]
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
        order, _ = r.image_order(host, "intent-1")
        with pytest.raises(Refused, match="intent-reused"):
            await r.host_command(shell, "write-image", order)


@pytest.mark.parametrize("depth", DEPTHS)
async def test_a_second_order_beside_one_at_work_is_told_to_come_later_and_did_nothing(depth, tmp_path):
    timings = Timings(**{**msgspec.structs.asdict(QUICK), "wipe": 600.0})
    async with rig(depth, tmp_path) as r:
        host = r.add(sim_host(timings=timings))
        shell = await r.shell(await r.deploy(host))
        first = asyncio.create_task(r.host_command(shell, "wipe", r.order(host, "first")))
        await host.record.until("wipe.begin")
        order, _ = r.image_order(host, "second")
        with pytest.raises(Busy, match="first"):
            await r.host_command(shell, "write-image", order)
        assert (await r.host_command(shell, "status", {"intent": "second"}))["state"] == "unknown"
        assert not list(host.record.of(host.name, "drive.write"))
        shell = await r.shell(await r.deploy(host))  # a fresh boot ends what is at work
        with pytest.raises(Unreachable):
            await first
        order, _ = r.image_order(host, "second")
        assert (await r.host_command(shell, "write-image", order))["ok"]


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
        order, private = r.image_order(host)
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


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    ("kind", "params", "code"),
    [
        ("disk-too-small", {}, "drive-too-small"),
        ("write-error", {"at": 70}, "drive-write"),
        ("read-back-flip", {}, "drive-read-back"),
        ("checksum-mismatch", {}, "image-checksum"),
    ],
)
async def test_an_image_that_does_not_arrive_leaves_a_disk_that_does_not_boot(depth, kind, params, code, tmp_path):
    async with rig(depth, tmp_path) as r:
        host = r.add(sim_host(fault(kind, **params)))
        shell = await r.shell(await r.deploy(host))
        order, _ = r.image_order(host)
        report = await r.host_command(shell, "write-image", order)
        assert (report["ok"], report["code"]) == (False, code), report
        assert report["drives"][0]["serial"] == host.drives[0].serial
        assert host.installed is None
        assert host.drives[0].content == "partial:ubuntu-24.04-gpu"
        assert [e.data["kind"] for e in host.record.of(host.name, "fault.fired")] == [kind]
        assert not list(host.record.of(host.name, "image.write"))
        host.faults.clear()
        order, private = r.image_order(host, "image-2")
        assert (await r.host_command(shell, "write-image", order))["ok"]
        assert (await r.from_disk(host, private, "t" * 40)).environment == "disk"


@pytest.mark.parametrize("depth", DEPTHS)
async def test_firmware_that_has_no_room_for_an_entry_says_so_and_keeps_its_order(depth, tmp_path):
    async with rig(depth, tmp_path) as r:
        host = r.add(sim_host(fault("efi-full")))
        shell = await r.shell(await r.deploy(host))
        assert (await r.host_command(shell, "boot-order", r.order(host, "order-1")))["ok"]  # nothing is to be added
        order, _ = r.image_order(host)
        report = await r.host_command(shell, "write-image", order)
        assert report["ok"]
        assert (report["efi"]["first"], report["efi"]["efi"]["boot_order"]) == ("", ["0000"])
        assert report["efi"]["efi"]["present"]
        assert "No space left" in report["efi"]["reason"]
        assert [e.data["kind"] for e in host.record.of(host.name, "fault.fired")] == ["efi-full"]


async def test_a_large_image_is_written_in_a_thread_and_its_acts_stand_in_order(tmp_path):
    disk = disk_image(9 << 20)
    served = packed(disk, "raw.gz")
    async with rig() as r:
        host = r.add(sim_host())
        shell = await r.shell(await r.deploy(host))
        image = r.image(
            host,
            bytes=len(served),
            sha256=(digest := hashlib.sha256(served).hexdigest()),
            raw_bytes=len(disk),
            raw_sha256=hashlib.sha256(disk).hexdigest(),
            urls=[f"{r.listener.base_url}/images/{digest}?ticket=ticket-of-the-large-one"],
        )
        (r.images / digest).write_bytes(served)
        r.desk.tickets["ticket-of-the-large-one"] = (digest, ImageGrant(host=host.name, rack="r"))
        order, private = r.image_order(host, image=image)
        progress: list[dict] = []
        report = await r.host_command(shell, "write-image", order, progress.append)
        assert report["ok"], report
        assert progress[0]["event"] == "writing"
        assert progress[-1]["event"] == "written"
        done = [e.what for e in host.record.of(host.name) if e.what in ("drive.write", "image.write")]
        assert done == ["drive.write", "image.write"]
        assert (await r.from_disk(host, private, "t" * 40)).environment == "disk"


@pytest.mark.parametrize("depth", DEPTHS)
async def test_firmware_is_read_and_set(depth, tmp_path):
    async with rig(depth, tmp_path) as r:
        host = r.add(sim_host())
        shell = await r.shell(await r.deploy(host))
        seen = (await r.host_command(shell, "inspect", r.order(host)))["snapshot"]
        assert seen["bios"]["version"] == host.bios_version
        assert seen["board"]["serial"] == host.serial
        assert [d["serial"] for d in seen["drives"]] == [d.serial for d in host.drives]
        order, _ = r.image_order(host)
        assert (await r.host_command(shell, "write-image", order))["efi"]["first"] == "0001"
        after = (await r.host_command(shell, "inspect", r.order(host)))["snapshot"]
        assert after["efi"]["entries"] == {"0000": "UEFI PXEv4", "0001": "fleetd disk"}
        reset = await r.host_command(shell, "boot-order", {**r.order(host, "b"), "prefer": "disk"})
        assert (reset["ok"], reset["removed"]) == (True, ["0001"])
        assert (await r.host_command(shell, "clear-tpm", r.order(host, "t")))["tpm"]["cleared"]


@pytest.mark.parametrize("raw_bytes", [192 * 1024, 64 << 20])  # on the loop, and in a thread
@pytest.mark.parametrize("depth", DEPTHS)
async def test_a_power_cut_while_an_image_is_fetched_ends_it(depth, raw_bytes, tmp_path):
    async with rig(depth, tmp_path) as r:
        host = r.add(sim_host())
        shell = await r.shell(await r.deploy(host))
        connected = asyncio.Event()
        hanging: list[asyncio.StreamWriter] = []

        async def hang(reader, writer):
            hanging.append(writer)
            connected.set()

        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/image"
        order, _ = r.image_order(host, image=r.image(host, urls=[url], raw_bytes=raw_bytes))
        work = asyncio.create_task(r.host_command(shell, "write-image", order))
        async with asyncio.timeout(10):
            await connected.wait()
        assert hanging[0].get_extra_info("peername")[0] == host.os_address
        shell = await r.shell(await r.deploy(host))
        with pytest.raises(Unreachable):
            await work
        assert (await r.host_command(shell, "status", {"intent": "image-1"}))["state"] == "unknown"
        order, _ = r.image_order(host, "image-2")
        assert (await r.host_command(shell, "write-image", order))["ok"]
        done = [e.what for e in host.record.of(host.name) if e.what in ("drive.write", "image.write", "image.failed")]
        assert done == ["drive.write", "drive.write", "image.write"]
        for writer in hanging:
            writer.close()
        server.close()


@pytest.mark.slow
async def test_a_rack_images_at_once_under_an_admission_limit_and_none_starves():
    record, count = Watched(), 40
    async with rig(admission=Admission(Limits(server=4, rack=2))) as r:
        hosts = [
            r.add(sim_host(name=f"lou-a{i // 10:02}-{i % 10:02}", address=f"127.0.1.{i + 1}", record=record))
            for i in range(count)
        ]
        systems = [System(host, None) for host in hosts]
        beats = 0

        async def beat():
            nonlocal beats
            while True:
                await asyncio.sleep(0.01)
                beats += 1

        heart = asyncio.create_task(beat())
        for host, system in zip(hosts, systems, strict=True):
            system.push(zipapp("host").digest, zipapp("host").data)
            r.tokens[host.name] = "n" * 40
            host.running = Running(
                environment="deploy",
                boot_id="b",
                authorized_key="",
                token="n" * 40,
                host_key_private="",
                host_key_public="",
                started=0.0,
            )
        answers = await asyncio.gather(
            *(
                system.run(
                    "host",
                    zipapp("host").digest,
                    ("write-image",),
                    msgspec.json.encode(r.image_order(host)[0]),
                    lambda _: None,
                )
                for host, system in zip(hosts, systems, strict=True)
            )
        )
        heart.cancel()
        reports = [msgspec.json.decode(answer.stdout) for answer in answers]
        assert all(report["ok"] for report in reports), [x for x in reports if not x["ok"]][:1]
        assert all(host.installed is not None for host in hosts)
        assert beats > 3  # the loop went on meanwhile


async def test_work_goes_on_when_its_starter_is_gone_and_its_report_waits():
    timings = Timings(**{**msgspec.structs.asdict(QUICK), "wipe": 0.01})
    async with rig() as r:
        host = r.add(sim_host(timings=timings))
        target = await r.deploy(host)
        shell = await r.shell(target)
        order = msgspec.json.encode(r.order(host))
        work = asyncio.create_task(
            shell.run(zipapp("host"), ("wipe",), stdin=order, timeout=30.0, max_output=1, outlives_us=True)
        )
        await host.record.until("wipe.begin")
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
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
