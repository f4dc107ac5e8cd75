"""The child's files: what TFTP serves, which MACs are known, and what stands while the daemon is away."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec
import pytest

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
