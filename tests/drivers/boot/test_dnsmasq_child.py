"""The child's files: what TFTP serves, which MACs are known, and what stands while the daemon is away."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import msgspec
import pytest
from structlog.testing import CapturingLogger

from fleetd.drivers.boot.capabilities import BootHost
from fleetd.drivers.boot.dnsmasq import Settings
from fleetd.drivers.boot.dnsmasq_child import Dnsmasq
from fleetd.drivers.boot.sightings import Sightings
from fleetd.kit.errors import Conflict, Invalid, NotFound, Unreachable
from tests.host_rig import Desk

MAC = "04:3f:72:aa:00:01"


def made(folder: Path, desk: Desk | None = None, script: str = "exit 0", **more) -> Dnsmasq:
    files, state = folder / "files", folder / "state"
    for path in (files, state):
        path.mkdir(exist_ok=True)
    for name in ("undionly.kpxe", "snponly.efi", "vmlinuz"):
        (files / name).write_text(name)
    program = folder / "child"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    settings = Settings(
        program=str(program), interface="br0", address="10.77.0.1", range="10.77.0.50,10.77.0.99,255.255.255.0"
    )
    desk = desk or Desk()
    return Dnsmasq(
        msgspec.structs.replace(settings, **more),
        "http://10.77.0.1:8680",
        files=files,
        state=state,
        desk=desk,
        sightings=Sightings(desk),
    )


async def test_tftp_has_the_loaders_and_nothing_else(tmp_path):
    await made(tmp_path).prepare()
    assert sorted(p.name for p in (tmp_path / "state" / "tftp").iterdir()) == ["snponly.efi", "undionly.kpxe"]


async def test_what_dnsmasq_refuses_is_refused_with_its_words(tmp_path):
    with pytest.raises(Invalid, match="refuses") as refused:
        await made(tmp_path, script="echo bad option at line 7 >&2; exit 1").prepare()
    assert "line 7" in refused.value.why
    assert not (tmp_path / "state" / "dnsmasq.conf").exists()


async def test_without_dnsmasq_the_remedy_is_the_package(tmp_path):
    with pytest.raises(NotFound) as missing:
        await made(tmp_path, program="/nonexistent/dnsmasq").prepare()
    assert "apt install" in missing.value.remedy


async def test_while_the_daemon_is_away_the_last_known_macs_stand(tmp_path):
    class Away(Desk):
        async def hosts(self):
            raise Unreachable("the daemon is not there")

    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "hosts").write_text(f"{MAC},set:fleet\n")
    child = made(tmp_path, Away(), script="case $1 in --test) exit 0;; esac; exec sleep 60")
    await child.prepare()
    task = asyncio.create_task(child.run())
    async with asyncio.timeout(10):
        while not child.starts:
            await asyncio.sleep(0.01)
    assert (tmp_path / "state" / "hosts").read_text() == f"{MAC},set:fleet\n"
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_disk_that_takes_no_file_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("fleetd.drivers.boot.dnsmasq_child.HOSTS_SECONDS", 0.01)
    asked = []

    class Counting(Desk):
        async def hosts(self):
            asked.append(1)
            return [BootHost(name="h", mac=MAC, rack="r", site="s")]

    script = "case $1 in --test) exit 0;; esac; echo 'dnsmasq: started, version 2.90' >&2; exec sleep 60"
    child = made(tmp_path, Counting(), script)
    (tmp_path / "state" / "hosts").write_bytes(b"\xff\xfe\0")  # as a power cut leaves it
    (tmp_path / "state" / "hosts.new").mkdir()  # no file can be written in its place
    await child.prepare()
    task = asyncio.create_task(child.run())
    async with asyncio.timeout(10):
        await child.up.wait()
        while len(asked) < 3 and not task.done():
            await asyncio.sleep(0.01)
    assert not task.done()
    (tmp_path / "state" / "hosts.new").rmdir()  # there is room again
    async with asyncio.timeout(10):
        while (tmp_path / "state" / "hosts").read_bytes() != f"{MAC},set:fleet\n".encode():
            await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_files_that_cannot_be_written_are_refused_with_the_reason(tmp_path):
    child = made(tmp_path)
    (tmp_path / "state" / "dnsmasq.conf.new").mkdir()
    with pytest.raises(Conflict) as refused:
        await child.prepare()
    assert "directory" in refused.value.why
    assert refused.value.remedy


async def test_a_child_that_says_very_long_lines_is_still_read(tmp_path):
    desk = Desk()
    desk.inventory = [BootHost(name="h", mac=MAC, rack="r", site="s")]
    script = (
        "case $1 in --test) exit 0;; esac\n"
        "head -c 200000 /dev/zero | tr '\\0' x >&2; echo >&2\n"
        "echo 'dnsmasq: started, version 2.90' >&2; exec sleep 60"
    )
    child = made(tmp_path, desk, script)
    await child.prepare()
    task = asyncio.create_task(child.run())
    async with asyncio.timeout(10):
        await child.up.wait()
        while not (tmp_path / "state" / "hosts").read_text():
            await asyncio.sleep(0.01)
    assert (tmp_path / "state" / "hosts").read_text() == f"{MAC},set:fleet\n"
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@contextlib.asynccontextmanager
async def running(child: Dnsmasq):
    """Prepared, and kept up while the test looks."""
    await child.prepare()
    task = asyncio.create_task(child.run())
    try:
        async with asyncio.timeout(20):
            yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.01)


# In place of dnsmasq: reads the hosts when `go` is there, then says that it started; notes what it is told.
SLOW = """case $1 in --test) exit 0;; esac
here="$(dirname "$0")"
trap 'echo hup >> "$here/signals"' HUP
trap 'exit 0' TERM
cp "$here/state/hosts" "$here/read"
while [ ! -e "$here/go" ]; do sleep 0.02; done
echo 'dnsmasq: started, version 2.90' >&2
while :; do sleep 0.02; done"""


async def test_macs_that_came_while_it_started_are_told_once_it_is_up(tmp_path):
    class Late(Desk):
        async def hosts(self):
            await until((tmp_path / "read").exists)
            return [BootHost(name="h", mac=MAC, rack="r", site="s")]

    async with running(made(tmp_path, Late(), SLOW)):
        await until(lambda: MAC in (tmp_path / "state" / "hosts").read_text())
        (tmp_path / "go").touch()
        told = tmp_path / "signals"
        await until(lambda: told.exists() and told.read_text().endswith("\n"))  # the shell makes it before it writes it
        assert told.read_text() == "hup\n"


async def test_a_reload_takes_other_loaders_and_starts_nothing_anew(tmp_path):
    script = (
        "case $1 in --test) exit 0;; esac\n"
        "trap 'exit 0' TERM; trap 'touch $(dirname $0)/alive' WINCH\n"
        "echo 'dnsmasq: started, version 2.90' >&2; while :; do sleep 0.02; done"
    )
    child = made(tmp_path, script=script)
    other = tmp_path / "other"
    other.mkdir()
    async with running(child):
        await child.up.wait()
        process = child._process
        assert process is not None
        for name in ("undionly.kpxe", "snponly.efi"):
            (other / name).write_text(f"other {name}")
        await child.reload(child._settings, other)
        assert (tmp_path / "state" / "tftp" / "snponly.efi").read_text() == "other snponly.efi"
        process.send_signal(signal.SIGWINCH)  # behind whatever the reload sent: one told to end does not answer
        await until((tmp_path / "alive").exists)
        assert (child.starts, child._process) == (1, process)


async def test_a_reload_that_finds_one_loader_only_leaves_both(tmp_path):
    """Else BIOS hosts would boot by the new directory and UEFI hosts by the old one."""
    child = made(tmp_path, script="case $1 in --test) exit 0;; esac; exec sleep 60")
    other = tmp_path / "other"
    other.mkdir()
    (other / "undionly.kpxe").write_text("other")
    async with running(child):
        with pytest.raises(NotFound, match=r"other/snponly\.efi"):
            await child.reload(child._settings, other)
        for name in ("undionly.kpxe", "snponly.efi"):
            assert (tmp_path / "state" / "tftp" / name).read_text() == name


async def test_a_reload_that_is_refused_leaves_the_loaders_too(tmp_path):
    child = made(tmp_path, script="case $1 in --test) ! grep -q br9 ${2#*=}; exit;; esac; exec sleep 60")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("undionly.kpxe", "snponly.efi"):
        (other / name).write_text("other")
    async with running(child):
        with pytest.raises(Invalid):
            await child.reload(msgspec.structs.replace(child._settings, interface="br9"), other)
        assert (tmp_path / "state" / "tftp" / "snponly.efi").read_text() == "snponly.efi"
        assert child._settings.interface == "br0"


async def test_a_reload_ends_the_wait_of_one_that_could_not_start(tmp_path, monkeypatch):
    monkeypatch.setattr("fleetd.drivers.boot.dnsmasq_child.backoff", lambda failures: 3600.0)
    script = (
        "case $1 in --test) exit 0;; esac\n"
        "if grep -q 'interface=br0' ${2#*=}; then echo 'dnsmasq: unknown interface br0' >&2; exit 2; fi\n"
        "echo 'dnsmasq: started, version 2.90' >&2; exec sleep 60"
    )
    child = made(tmp_path, script=script)
    async with running(child):
        await until(lambda: "unknown interface" in child.trouble)
        await child.reload(msgspec.structs.replace(child._settings, interface="br1"), tmp_path / "files")
        await child.up.wait()
        assert "interface=br1" in (tmp_path / "state" / "dnsmasq.conf").read_text()
        assert child._settings.interface == "br1"


async def test_a_reload_while_it_is_being_started_is_not_lost(tmp_path, monkeypatch):
    script = "case $1 in --test) exit 0;; esac; cp ${2#*=} $(dirname $0)/read; exec sleep 60"
    child = made(tmp_path, script=script)
    spawn, begun, go = asyncio.create_subprocess_exec, asyncio.Event(), asyncio.Event()

    async def slowly(*words, **more):
        process = await spawn(*words, **more)
        if "--keep-in-foreground" in words and not begun.is_set():
            await until(lambda: (tmp_path / "read").exists() and (tmp_path / "read").read_text())
            begun.set()
            await go.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slowly)
    async with running(child):
        await begun.wait()
        await child.reload(msgspec.structs.replace(child._settings, interface="br1"), tmp_path / "files")
        go.set()
        await until(lambda: "interface=br1" in (tmp_path / "read").read_text())
        assert child._settings.interface == "br1"


async def test_what_it_cannot_do_is_logged_once_and_a_relay_is_told_to_the_desk(tmp_path, monkeypatch):
    script = (
        "case $1 in --test) exit 0;; esac\n"
        "for i in 1 2 3; do\n"
        "echo 'dnsmasq-dhcp[7]: no address range available for DHCP request via 10.79.0.1' >&2\n"
        "echo 'dnsmasq-dhcp[7]: Error sending DHCP packet to 10.78.0.1: Network is unreachable' >&2\n"
        "done\n"
        "echo 'dnsmasq: started, version 2.90' >&2; exec sleep 60"
    )
    desk = Desk()
    child = made(tmp_path, desk, script)
    said = CapturingLogger()
    monkeypatch.setattr("fleetd.drivers.boot.dnsmasq_child.log", said)
    async with running(child):
        await child.up.wait()
        await until(lambda: desk.sightings)
    assert [(s.stage, s.source) for s in desk.sightings] == [("relay", "10.79.0.1")]
    cannot = [call.kwargs for call in said.calls if call.args == ("dnsmasq.cannot",)]
    assert [("boot.yaml" in line["remedy"], line["relay"]) for line in cannot] == [(True, "10.79.0.1"), (False, "")]
