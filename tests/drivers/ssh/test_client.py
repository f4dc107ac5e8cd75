"""Our SSH client in front of the simulator's sshd: a real wire on loopback."""

from __future__ import annotations

import asyncio
import time

import asyncssh
import msgspec
import pytest

from fleetd.drivers.ssh.keys import new_key_pair
from fleetd.kit.errors import (
    AuthFailed,
    DeadlineExceeded,
    Garbled,
    Invalid,
    Permanent,
    PinMismatch,
    Refused,
    Unreachable,
)
from fleetd.model.report import MAX_REPORT, read_report
from fleetd.sim.host import Timings
from tests.host_rig import QUICK, fault, rig, sim_host, zipapp

PROBE = ("--nonce", "n-1", "--host", "host-1")


async def probe(shell, **more):
    return await shell.run(zipapp("report"), PROBE, timeout=10, max_output=MAX_REPORT, **more)


async def test_a_report_comes_over_ssh_and_names_this_boot():
    async with rig() as r:
        host = r.add(sim_host())
        shell = await r.shell(await r.deploy(host))
        report = read_report(await probe(shell))
        assert (report.nonce, report.host) == ("n-1", "host-1")
        assert report.boot_id.v == host.running.boot_id
        assert report.identity.serial.v == host.serial
        assert "***" in report.system.cmdline.v
        assert host.running.token not in report.system.cmdline.v


async def test_one_connection_is_kept_and_the_program_pushed_once():
    async with rig() as r:
        host = r.add(sim_host())
        target = await r.deploy(host)
        first = await r.shell(target)
        await probe(first)
        await first.close()
        again = await r.shell(target)
        assert again is first
        began = time.perf_counter()
        await probe(again)
        assert time.perf_counter() - began < 1.0


async def test_another_host_key_is_a_pin_mismatch():
    async with rig() as r:
        target = await r.deploy(r.add(sim_host()))
        _, other = new_key_pair()
        with pytest.raises(PinMismatch):
            await r.shell(msgspec.structs.replace(target, host_key=other))


async def test_another_key_type_is_a_pin_mismatch():
    async with rig() as r:
        target = await r.deploy(r.add(sim_host()))
        rsa = (
            "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBEmKSENjQEezOmxkZMy7opKgwFB9nkt5YRrYMjNuG5N87"
            "uRgg6CLrbo5wAdT/y6v0mKV0U2w0WZ2YB/++Tpockg="
        )
        with pytest.raises(PinMismatch):
            await r.shell(msgspec.structs.replace(target, host_key=rsa))


async def test_another_client_key_is_refused():
    async with rig() as r:
        host = r.add(sim_host())
        target = await r.deploy(host)
        private, _ = new_key_pair()
        with pytest.raises(AuthFailed):
            await r.shell(msgspec.structs.replace(target, private_key=private))
        assert [e.what for e in host.record.of(host.name, "ssh.denied")]


async def test_unusable_keys_are_invalid():
    async with rig() as r:
        target = await r.deploy(r.add(sim_host()))
        with pytest.raises(Invalid):
            await r.shell(msgspec.structs.replace(target, host_key="ssh-ed25519 ????"))
        with pytest.raises(Invalid):
            await r.shell(msgspec.structs.replace(target, private_key="nonsense"))


async def test_a_host_that_is_off_is_unreachable():
    async with rig() as r:
        host = r.add(sim_host())
        target = await r.deploy(host)
        host.reboot()
        with pytest.raises(Unreachable):
            await r.shell(target)


async def test_a_reboot_cuts_the_connection_and_forgets_the_program():
    async with rig() as r:
        host = r.add(sim_host())
        shell = await r.shell(await r.deploy(host))
        await probe(shell)
        target = await r.deploy(host)
        with pytest.raises(Unreachable):
            await probe(shell)
        fresh = await r.shell(target)
        assert fresh is not shell
        assert read_report(await probe(fresh)).boot_id.v == host.running.boot_id


async def test_a_port_where_nobody_speaks_ssh():
    async def babble(_reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" * 2000)
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with rig() as r:
        target = await r.deploy(r.add(sim_host()))
        port = server.sockets[0].getsockname()[1]
        with pytest.raises((Unreachable, Garbled)):
            await r.shell(msgspec.structs.replace(target, port=port))
    server.close()


async def test_a_silent_port_ends_in_a_deadline():
    gone = asyncio.Event()

    async def hold(_reader, writer):
        await gone.wait()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    async with rig() as r:
        target = await r.deploy(r.add(sim_host()))
        port = server.sockets[0].getsockname()[1]
        with pytest.raises((DeadlineExceeded, Unreachable)):
            await r.shells.connect(msgspec.structs.replace(target, port=port), timeout=0.1)
    gone.set()
    server.close()


async def test_huge_output_is_garbled_and_the_connection_still_serves():
    async with rig() as r:
        host = r.add(sim_host(fault("probe-garbage", mode="huge", count=1)))
        shell = await r.shell(await r.deploy(host))
        with pytest.raises(Garbled):
            await probe(shell)
        assert read_report(await probe(shell)).nonce == "n-1"


@pytest.mark.parametrize("mode", ["truncated", "text"])
async def test_garbage_is_found_by_the_reader(mode):
    async with rig() as r:
        shell = await r.shell(await r.deploy(r.add(sim_host(fault("probe-garbage", mode=mode)))))
        with pytest.raises(Garbled):
            read_report(await probe(shell))


async def test_a_report_of_another_boot_or_host_is_told_by_its_words():
    for mode in ("other-boot", "other-host"):
        async with rig() as r:
            host = r.add(sim_host(fault("probe-garbage", mode=mode)))
            report = read_report(await probe(await r.shell(await r.deploy(host))))
            assert (report.boot_id.v != host.running.boot_id) == (mode == "other-boot")
            assert (report.host != "host-1") == (mode == "other-host")


async def test_a_bad_option_tells_exit_code_and_what_was_said():
    async with rig() as r:
        shell = await r.shell(await r.deploy(r.add(sim_host())))
        with pytest.raises(Permanent) as caught:
            await shell.run(msgspec.structs.replace(zipapp("host"), name="other"), (), timeout=5, max_output=100)
        assert "exit code 2" in caught.value.what
        assert "no such program" in caught.value.why


async def test_a_refusal_of_the_host_side_is_refused():
    async with rig() as r:
        host = r.add(sim_host())
        shell = await r.shell(await r.deploy(host))
        with pytest.raises(Refused) as caught:
            await r.host_command(shell, "wipe", {**r.order(host), "host_serial": "SOMEBODY"})
        assert "other-host" in caught.value.what


async def test_progress_arrives_while_it_works():
    async with rig() as r:
        host = r.add(sim_host())
        shell = await r.shell(await r.deploy(host))
        heard = []
        report = await r.host_command(shell, "wipe", r.order(host), heard.append)
        assert report["ok"] is True
        assert [p["event"] for p in heard] == ["erasing", "erased"] * len(host.drives)


async def test_a_command_that_takes_too_long_ends_in_a_deadline():
    slow = Timings(**{**msgspec.structs.asdict(QUICK), "wipe": 30.0})
    async with rig() as r:
        host = r.add(sim_host(timings=slow))
        shell = await r.shell(await r.deploy(host))
        with pytest.raises(DeadlineExceeded):
            await shell.run(
                zipapp("host"), ("wipe",), stdin=msgspec.json.encode(r.order(host)), timeout=0.3, max_output=1000
            )


@pytest.mark.parametrize("ended", ["cancelled", "late"])
@pytest.mark.parametrize("outlives", [False, True])
async def test_only_a_program_that_may_not_outlive_its_listener_is_killed(monkeypatch, outlives, ended):
    """A daemon that is stopped, or a step whose time is over, must not cut an erase in the middle."""
    heard = []
    monkeypatch.setattr(asyncssh.SSHServerProcess, "signal_received", lambda self, signal: heard.append(signal))
    slow = Timings(**{**msgspec.structs.asdict(QUICK), "wipe": 30.0})
    async with rig() as r:
        host = r.add(sim_host(timings=slow))
        shell = await r.shell(await r.deploy(host))
        await r.host_command(shell, "status", {"intent": "i"})  # pushes the program: who is late there kills the push
        order = msgspec.json.encode(r.order(host))
        seconds = 30.0 if ended == "cancelled" else 0.5
        call = shell.run(zipapp("host"), ("wipe",), stdin=order, timeout=seconds, max_output=1000, outlives_us=outlives)
        work = asyncio.create_task(call)
        if ended == "cancelled":
            await host.record.until("wipe.begin")
            work.cancel()
        with pytest.raises(asyncio.CancelledError if ended == "cancelled" else DeadlineExceeded):
            await work
        await probe(shell)  # on the same wire: what was sent before it has arrived
        assert heard == ([] if outlives else ["KILL"])


async def test_many_commands_share_one_connection():
    async with rig() as r:
        host = r.add(sim_host())
        shell = await r.shell(await r.deploy(host))
        reports = await asyncio.gather(*(probe(shell) for _ in range(5)))
        assert {read_report(data).nonce for data in reports} == {"n-1"}


async def test_arguments_with_every_kind_of_letter_arrive_as_given():
    async with rig() as r:
        shell = await r.shell(await r.deploy(r.add(sim_host())))
        odd = "a'b\"c $(id); `x` \\ | > & * \t é"
        data = await shell.run(zipapp("report"), ("--nonce", odd, "--host", "h"), timeout=10, max_output=MAX_REPORT)
        assert read_report(data).nonce == odd
        with pytest.raises(Invalid):
            await shell.run(zipapp("report"), ("a\0b",), timeout=10, max_output=10)
