"""The boot desk over its unix socket: every call, every error, and who may not ask."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
from pathlib import Path

import aiohttp
import pytest

from fleetd.api.server import bind_unix
from fleetd.drivers.boot import desk_wire
from fleetd.drivers.boot.capabilities import BootHost, Hello, ImageGrant, Sighting
from fleetd.drivers.boot.desk_wire import DeskServer, RemoteDesk, admitted, decode_error, encode_error
from fleetd.drivers.boot.listener import BootListener
from fleetd.kit.errors import (
    DeadlineExceeded,
    Denied,
    FleetError,
    Garbled,
    Permanent,
    Temporary,
    Unreachable,
    every_error,
)
from tests.host_rig import Desk

MAC = "04:3f:72:aa:00:01"


@contextlib.asynccontextmanager
async def wired(folder: Path, desk=None, group=""):
    path = folder / "desk.sock"
    server = DeskServer(desk or Desk(), bind_unix(path), group)
    await server.start()
    remote = RemoteDesk(str(path))
    try:
        yield remote, path
    finally:
        await remote.close()
        await server.stop()


async def test_every_call_comes_through(tmp_path):
    desk = Desk()
    token = desk.arm(MAC, "ssh-ed25519 AAAA")
    desk.tickets["t" * 20] = ("d" * 64, ImageGrant(host="h", rack="r", expires=12.5))
    desk.inventory = [BootHost(name="h", mac=MAC, rack="r", site="s")]
    said = Hello(environment="deploy", mac=MAC, serial="S", uuid="U", boot_id="B", host_key="K", sees={"memory": "1"})
    seen = Sighting(stage="dhcp", mac=MAC, at=3.0)
    async with wired(tmp_path, desk) as (remote, _):
        assert (await remote.script(MAC, uuid="U", serial="S", source="1.2.3.4")).token == token
        assert (await remote.script(MAC, uuid="U", serial="S", source="1.2.3.4")).token is None
        assert await remote.authorized_keys(token, source="1.2.3.4") == "ssh-ed25519 AAAA"
        await remote.hello(token, said, source="1.2.3.4")
        assert desk.hellos.get_nowait() == (token, said, "1.2.3.4")
        assert await remote.grant("d" * 64, "t" * 20, source="x") == ImageGrant(host="h", rack="r", expires=12.5)
        assert await remote.hosts() == desk.inventory
        await remote.seen([seen])
        assert desk.sightings == [seen]
        with pytest.raises(Denied) as refused:
            await remote.authorized_keys("x" * 20, source="9.9.9.9")
        assert refused.value.why == "secret reason about 9.9.9.9"
        assert remote.answers


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_survives(kind: type[FleetError]):
    error = kind("what", why="why", remedy="do this", where="f:1")
    if isinstance(error, Temporary):
        error.retry_after = 4.5
    back = decode_error(encode_error(error))
    assert type(back) is kind
    assert (back.what, back.why, back.remedy, back.where) == ("what", "why", "do this", "f:1")
    assert getattr(back, "retry_after", None) == getattr(error, "retry_after", None)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"code":"FLT-9999","retryable":true}', Temporary),
        (b'{"code":"FLT-9999"}', Permanent),
        (b"<html>", Garbled),
        (b"\xff", Garbled),
    ],
)
def test_errors_of_another_version(body, kind):
    assert type(decode_error(body)) is kind


async def test_without_the_daemon_it_is_unreachable_and_hosts_are_told_when(tmp_path):
    remote = RemoteDesk(str(tmp_path / "none.sock"))
    listener = BootListener(remote, "127.0.0.1", 0)
    await listener.start()
    try:
        with pytest.raises(Unreachable):
            await remote.hosts()
        assert not remote.answers
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{listener.port}/boot/{MAC}.ipxe") as answer,
        ):
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            assert "sock" not in await answer.text()
    finally:
        await listener.stop()
        await remote.close()


async def test_a_daemon_that_comes_back_is_found_again(tmp_path):
    async with wired(tmp_path) as (remote, path):
        assert await remote.hosts() == []
    path.unlink(missing_ok=True)
    again = RemoteDesk(str(path))
    with pytest.raises(Unreachable):
        await again.hosts()
    server = DeskServer(Desk(), bind_unix(path))
    await server.start()
    try:
        assert await again.hosts() == []
    finally:
        await again.close()
        await server.stop()


async def test_a_daemon_that_hangs_is_given_up(tmp_path, monkeypatch):
    class Slow(Desk):
        async def hosts(self):
            await asyncio.Event().wait()
            return []

    monkeypatch.setattr(desk_wire, "CALL_SECONDS", 0.05)
    async with wired(tmp_path, Slow()) as (remote, _):
        with pytest.raises(DeadlineExceeded):
            await remote.hosts()


async def test_an_answer_that_is_too_large_or_no_answer_is_garbled(tmp_path, monkeypatch):
    class Odd(Desk):
        async def hosts(self):
            return "nonsense"

    async with wired(tmp_path, Odd()) as (remote, _):
        with pytest.raises(Garbled):
            await remote.hosts()
    monkeypatch.setattr(desk_wire, "MAX_ANSWER", 4)
    async with wired(tmp_path, Odd()) as (remote, _):
        with pytest.raises(Garbled):
            await remote.hosts()


@pytest.mark.parametrize("body", [b"", b"[", b"[" * 5000, b'{"mac":1}', b"\xff\xfe", b"{}"])
async def test_calls_that_cannot_be_read_are_refused(tmp_path, body):
    async with (
        wired(tmp_path) as (_, path),
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
    ):
        for call in ("script", "hello", "grant", "seen", "authorized_keys"):
            async with session.post(f"http://desk/desk/{call}", data=body) as answer:
                assert answer.status == 422, call
        async with session.post("http://desk/desk/drop_everything", data=b"{}") as answer:
            assert answer.status == 422


async def test_a_slip_of_the_desk_is_a_code_and_not_a_trace(tmp_path):
    class Broken(Desk):
        async def hosts(self):
            raise RuntimeError("password is hunter2")

    async with wired(tmp_path, Broken()) as (remote, _):
        with pytest.raises(FleetError) as failed:
            await remote.hosts()
        assert "hunter2" not in str(failed.value)


class Peer:
    """A socket whose other end the kernel names as we like."""

    family = socket.AF_UNIX

    def __init__(self, uid: int, gids: list[int]) -> None:
        self.uid, self.gids = uid, gids

    def getsockopt(self, level: int, name: int, size: int) -> bytes:
        numbers = [1, self.uid, self.gids[0]] if name == socket.SO_PEERCRED else self.gids
        return b"".join(n.to_bytes(4, "little") for n in numbers)


def test_root_ourselves_and_the_group_may_ask_and_nobody_else():
    group = next(g for g in grp.getgrall() if g.gr_gid not in (0, os.getegid()))
    stranger = 4242
    assert admitted(Peer(0, [5]), "")
    assert admitted(Peer(os.geteuid(), [5]), "")
    assert admitted(Peer(stranger, [99_999, group.gr_gid]), group.gr_name)
    assert not admitted(Peer(stranger, [99_999]), group.gr_name)
    assert not admitted(Peer(stranger, [group.gr_gid]), "")
    assert not admitted(Peer(stranger, [group.gr_gid]), "no-such-group")
    assert not admitted(None, group.gr_name)
    with socket.socket() as other:
        assert not admitted(other, group.gr_name)


async def test_who_may_not_ask_is_denied(tmp_path, monkeypatch):
    monkeypatch.setattr(desk_wire, "admitted", lambda *_: False)
    async with wired(tmp_path) as (remote, _):
        with pytest.raises(Denied):
            await remote.hosts()
