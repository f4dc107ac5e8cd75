"""Files and images over real HTTP: what flows, who may not have it, and who is given up."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import logging
import os
import socket
from pathlib import Path

import aiohttp
import pytest
import structlog

from fleetd.drivers.boot import admission, images, listener, transfer
from fleetd.drivers.boot.admission import Admission, Limits
from fleetd.drivers.boot.capabilities import ImageGrant
from fleetd.drivers.boot.files import PLACEHOLDER, URL_BYTES, Files, prepare_iso
from fleetd.drivers.boot.listener import REFUSALS, BootListener
from fleetd.kit.clock import LoopClock
from fleetd.kit.errors import Conflict, Denied, Invalid, Unreachable
from tests.host_rig import Desk

DATA = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(DATA).hexdigest()
OTHER = "0" * 64
TICKET = "ticket-of-host-1-in-boot-1"
URL = f"/images/{DIGEST}?ticket={TICKET}"


class Flaky(Desk):
    """A desk whose daemon can be stopped."""

    down = False

    async def grant(self, digest, ticket, *, source):
        if self.down:
            raise Unreachable("the daemon is not there", retry_after=5)
        return await super().grant(digest, ticket, source=source)


class Rig:
    def __init__(self, folder: Path, **more) -> None:
        self.desk = Flaky()
        self.desk.tickets[TICKET] = (DIGEST, ImageGrant(host="host-1", rack="r1"))
        self.folder = folder
        files, stored = folder / "files", folder / "images"
        files.mkdir()
        stored.mkdir()
        (files / "vmlinuz").write_bytes(b"kernel" * 1000)
        (files / "initrd").write_bytes(b"initrd" * 1000)
        (files / "secret").write_bytes(b"not for the network")
        (stored / DIGEST).write_bytes(DATA)
        (stored / OTHER).symlink_to(files / "secret")
        self.listener = BootListener(self.desk, "127.0.0.1", 0, files=Files(files), images=stored, **more)


@contextlib.asynccontextmanager
async def rig(folder: Path, **more):
    made = Rig(folder, **more)
    await made.listener.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{made.listener.port}") as made.session:
        try:
            yield made
        finally:
            await made.listener.stop()


async def raw(port: int, request: bytes, seconds: float = 5.0) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        async with asyncio.timeout(seconds):
            return await reader.read()
    finally:
        writer.close()


def written_down(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the listener logs from here on."""
    lines = io.StringIO()
    log = structlog.wrap_logger(
        structlog.WriteLogger(lines), wrapper_class=structlog.make_filtering_bound_logger(logging.INFO)
    )
    monkeypatch.setattr(listener, "log", log)
    return lines


async def test_files_have_fixed_names(tmp_path):
    async with rig(tmp_path) as r:
        for path, body in (("/deploy/vmlinuz", b"kernel" * 1000), ("/deploy/initrd", b"initrd" * 1000)):
            async with r.session.get(path) as answer:
                assert (answer.status, await answer.read()) == (200, body)
                assert answer.headers["ETag"]
            async with r.session.head(path) as answer:
                assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(body)))
            async with r.session.get(path, headers={"Range": "bytes=6-11"}) as answer:
                assert (answer.status, await answer.read()) == (206, body[6:12])
        async with r.session.get("/deploy/deploy.iso") as answer:
            assert answer.status == 404
    stages = {(s.stage, s.detail) for s in r.desk.sightings}
    assert ("kernel", "vmlinuz") in stages
    assert ("initrd", "initrd") in stages


@pytest.mark.parametrize(
    "path",
    [
        "/deploy/secret",
        "/deploy/..%2fsecret",
        "/deploy/%2e%2e/files/secret",
        "/deploy/../deploy/secret",
        "/deploy/vmlinuz%00.txt",
        "/deploy//vmlinuz",
        "//deploy/vmlinuz/../secret",
        "/etc/passwd",
        "/boot/../../etc/passwd",
        "/boot/%2e%2e%2f%2e%2e%2fetc%2fpasswd.ipxe",
        f"/images/../files/secret?ticket={TICKET}",
        f"/images/..%2ffiles%2fsecret?ticket={TICKET}",
        f"/images/{DIGEST}%00?ticket={TICKET}",
        f"/images/{DIGEST.upper()}?ticket={TICKET}",
        f"/images//etc/passwd?ticket={TICKET}",
        f"/images/?ticket={TICKET}",
        "http://other/deploy/secret",
    ],
)
async def test_no_path_leads_elsewhere_and_who_tried_is_written_down(tmp_path, path, monkeypatch):
    lines = written_down(monkeypatch)
    async with rig(tmp_path) as r:
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        answer = await raw(r.listener.port, request)
        assert answer.split(b" ")[1] in (b"404", b"400"), answer[:300]
        assert b"not for the network" not in answer
        assert b"root:" not in answer
        assert str(tmp_path).encode() not in answer
    said = lines.getvalue()
    assert "boot.refused" in said
    assert "127.0.0.1" in said
    assert TICKET not in said


async def test_a_flood_of_refused_paths_fills_no_log_and_a_path_breaks_no_line(tmp_path, monkeypatch):
    lines = written_down(monkeypatch)
    async with rig(tmp_path) as r:
        for n in range(40):
            await raw(
                r.listener.port, f"GET /{n}%0aroot:%1b[2J HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            )
    said = lines.getvalue()
    assert said.count("boot.refused") == said.count("\n") == REFUSALS
    assert "\x1b" not in said


async def test_an_image_needs_the_ticket_of_this_very_image(tmp_path):
    async with rig(tmp_path) as r:
        async with r.session.get(URL) as answer:
            assert (answer.status, await answer.read()) == (200, DATA)
            assert answer.headers["Cache-Control"] == "private, no-store"
        for url in (
            f"/images/{DIGEST}",
            f"/images/{DIGEST}?ticket=",
            f"/images/{DIGEST}?ticket={TICKET}x",
            f"/images/{OTHER}?ticket={TICKET}",
            f"/images/{DIGEST}?ticket={'a' * 600}",
            f"/images/{DIGEST}?ticket=%0d%0aX-Evil:1{'a' * 20}",
        ):
            async with r.session.get(url) as answer:
                text = await answer.text()
                assert answer.status == 403, url
                assert "secret reason" not in text
                assert json.loads(text)["code"] == Denied.code


async def test_a_link_among_the_images_is_no_image(tmp_path):
    async with rig(tmp_path) as r:
        r.desk.tickets["t" * 20] = (OTHER, ImageGrant(host="host-1", rack="r1"))
        async with r.session.get(f"/images/{OTHER}?ticket={'t' * 20}") as answer:
            assert answer.status == 404


async def test_an_image_that_should_be_there_and_is_not_is_told_to_the_log(tmp_path, monkeypatch):
    told = structlog.testing.CapturingLogger()  # the tests' own logs say errors only
    monkeypatch.setattr(listener, "log", told)
    async with rig(tmp_path) as r:
        (tmp_path / "images" / DIGEST).unlink()
        async with r.session.get(URL) as answer:
            assert answer.status == 404
        r.listener.images.folder = tmp_path / "files" / "vmlinuz"  # no directory
        async with r.session.get(URL) as answer:
            assert answer.status == 404
            assert str(tmp_path) not in await answer.text()
    errors = [call.kwargs["error"] for call in told.calls if call.args == ("boot.image.missing",)]
    assert [error.partition(": ")[2] for error in errors] == ["No such file or directory", "Not a directory"]


def test_a_directory_of_images_that_cannot_be_read_has_a_reason(tmp_path):
    assert images.unreadable(tmp_path) == ""
    assert "No such file" in images.unreadable(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"x")
    assert "Not a directory" in images.unreadable(tmp_path / "file")


async def test_ranges(tmp_path):
    async with rig(tmp_path) as r:
        for value, status, body in (
            ("bytes=100-199", 206, DATA[100:200]),
            ("bytes=1048000-", 206, DATA[1048000:]),
            ("bytes=-10", 206, DATA[-10:]),
            ("bytes=0-999999999999", 206, DATA),
            (f"bytes={len(DATA)}-", 416, None),
            ("bytes=9-1", 416, None),
            ("bytes=0-1,5-9,20-30", 416, None),
            ("bytes=" + ",".join(f"{n}-{n}" for n in range(500)), 416, None),
            ("bytes=--5", 416, None),
            ("bytes=" + "9" * 3000 + "-", 416, None),
            ("lines=1-2", 416, None),
        ):
            async with r.session.get(URL, headers={"Range": value}) as answer:
                found = await answer.read()
                assert answer.status == status, value[:60]
                if body is not None:
                    assert found == body
        assert r.listener.admission.active == 0


async def test_a_packed_neighbour_is_never_sent_in_a_files_place(tmp_path):
    """`vmlinuz.gz` beside `vmlinuz` is somebody's, and no kernel: what a client accepts does not choose the file."""
    async with rig(tmp_path) as r:
        for end in (".gz", ".br"):
            (tmp_path / "files" / f"vmlinuz{end}").write_bytes(b"packed")
            (tmp_path / "images" / f"{DIGEST}{end}").write_bytes(b"packed")
        accepts = {"Accept-Encoding": "gzip, br, deflate"}
        for url, body in (("/deploy/vmlinuz", b"kernel" * 1000), (URL, DATA)):
            async with r.session.get(url, headers=accepts) as answer:
                assert (answer.status, await answer.read()) == (200, body)
                assert "Content-Encoding" not in answer.headers
            async with r.session.head(url, headers=accepts) as answer:
                assert answer.headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize("header", [b"User-Agent: Firma M\xfcller", b"Range: bytes=\xff-", b"If-Range: \xfe"])
async def test_a_header_that_is_no_utf8_fails_nothing(tmp_path, header):
    """Firmware has its own ideas; what is no range is no range."""
    async with rig(tmp_path) as r:
        request = b"GET /deploy/vmlinuz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + header + b"\r\n\r\n"
        answer = await raw(r.listener.port, request)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"kernel" * 1000)


async def test_a_resume_of_what_was_replaced_begins_anew(tmp_path):
    """If-Range names the file of which a client has a part: of another one it gets all, never the middle."""
    kernel = tmp_path / "files" / "vmlinuz"
    async with rig(tmp_path) as r:
        async with r.session.head("/deploy/vmlinuz") as answer:
            tag, date = answer.headers["ETag"], answer.headers["Last-Modified"]

        async def resume(since: str) -> tuple[int, bytes]:
            async with r.session.get("/deploy/vmlinuz", headers={"Range": "bytes=6-11", "If-Range": since}) as answer:
                return answer.status, await answer.read()

        assert await resume(tag) == (206, b"kernel")
        assert await resume(date) == (206, b"kernel")
        assert await resume("W/" + tag) == (200, b"kernel" * 1000)  # a weak tag proves nothing, byte for byte
        for age in (1_600_000_000, 2_000_000_000):  # an older file in its place is another one too
            fresh = tmp_path / "fresh"
            fresh.write_bytes(b"KERNEL" * 1000)
            os.utime(fresh, (age, age))
            fresh.replace(kernel)
            for since in (tag, date, '"x"', "nonsense"):
                assert await resume(since) == (200, b"KERNEL" * 1000), (age, since)


async def test_a_file_that_shrinks_under_a_transfer_ends_the_connection(tmp_path):
    """Else the client waits for bytes that never come, or takes the next answer for them."""
    big = tmp_path / "files" / "vmlinuz"
    async with rig(tmp_path) as r:
        with big.open("wb") as file:
            file.truncate(64 << 20)
        reader, writer = await asyncio.open_connection("127.0.0.1", r.listener.port, limit=1 << 16)
        writer.write(b"GET /deploy/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Content-Length: 67108864" in head
        os.truncate(big, 1000)
        got = 0
        async with asyncio.timeout(10):
            while piece := await reader.read(1 << 20):
                got += len(piece)
        assert got < 64 << 20
        writer.close()


async def test_a_resume_by_range_needs_no_daemon_and_only_for_a_while(tmp_path, monkeypatch):
    async with rig(tmp_path, clock=LoopClock()) as r:
        async with r.session.get(URL, headers={"Range": "bytes=0-99"}) as answer:
            assert await answer.read() == DATA[:100]
        r.desk.down = True
        async with r.session.get(URL, headers={"Range": "bytes=100-199"}) as answer:
            assert await answer.read() == DATA[100:200]
        async with r.session.get(f"/images/{DIGEST}?ticket={'n' * 20}") as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        monkeypatch.setattr(LoopClock, "wall", lambda self: 1_800_000_000.0 + images.REMEMBERED_SECONDS + 60)
        async with r.session.get(URL) as answer:
            assert answer.status == 503


async def test_what_is_remembered_ends_with_the_ticket_and_with_the_desks_no(tmp_path):
    async with rig(tmp_path, clock=LoopClock()) as r:
        r.desk.tickets[TICKET] = (DIGEST, ImageGrant(host="host-1", rack="r1", expires=1_800_000_000.2))
        async with r.session.get(URL) as answer:
            assert answer.status == 200
        await asyncio.sleep(0.3)
        r.desk.down = True
        async with r.session.get(URL) as answer:
            assert answer.status == 503
        r.desk.down = False
        r.desk.tickets[TICKET] = (DIGEST, ImageGrant(host="host-1", rack="r1"))
        async with r.session.get(URL) as answer:
            assert answer.status == 200
        del r.desk.tickets[TICKET]  # the boot is over
        async with r.session.get(URL) as answer:
            assert answer.status == 403
        r.desk.down = True
        async with r.session.get(URL) as answer:
            assert answer.status == 503


async def test_a_full_service_says_when(tmp_path, monkeypatch):
    monkeypatch.setattr(admission, "PATIENCE", 0.05)
    desk = Admission(Limits(server=1, rack=1))
    async with rig(tmp_path, admission=desk) as r, desk.slot("another", "r9"):
        async with r.session.get(URL) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "3")
        async with r.session.head(URL) as answer:
            assert answer.status == 200, "HEAD needs no slot"
        assert desk.waiting == 1


async def test_a_flood_of_head_takes_no_slot(tmp_path):
    desk = Admission(Limits(server=1, rack=1))
    async with rig(tmp_path, admission=desk) as r:

        async def one() -> int:
            async with r.session.head(URL) as answer:
                return answer.status

        found = await asyncio.gather(*(one() for _ in range(500)))
        assert set(found) == {200}
        assert desk.counters.admitted == 0
    assert len([s for s in r.desk.sightings if s.stage == "image"]) == 0


def slow_reader(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    sock.sendall(f"GET {URL} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return sock


async def test_who_does_not_read_is_cut_off_and_its_slot_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "WINDOW", 0.4)
    monkeypatch.setattr(transfer, "STEP", 0.1)
    desk = Admission(Limits(server=1, rack=1, min_rate=1_000_000))
    async with rig(tmp_path, admission=desk) as r:
        with (r.folder / "images" / DIGEST).open("ab") as file:
            file.truncate(64 * 1024 * 1024)  # more than all socket buffers
        with slow_reader(r.listener.port):
            async with asyncio.timeout(10):
                while not desk.counters.admitted:
                    await asyncio.sleep(0.01)
                while desk.active:
                    await asyncio.sleep(0.05)
        async with r.session.get(URL, headers={"Range": "bytes=0-9"}) as answer:
            assert answer.status == 206


async def test_who_hangs_up_frees_its_slot_at_once(tmp_path):
    desk = Admission(Limits(server=1, rack=1))
    async with rig(tmp_path, admission=desk) as r:
        with (r.folder / "images" / DIGEST).open("ab") as file:
            file.truncate(64 * 1024 * 1024)
        sock = slow_reader(r.listener.port)
        async with asyncio.timeout(10):
            while not desk.active:
                await asyncio.sleep(0.01)
            sock.close()
            while desk.active:
                await asyncio.sleep(0.01)
        async with r.session.get(URL, headers={"Range": "bytes=0-9"}) as answer:
            assert answer.status == 206, "the one slot is free again"


async def test_a_stop_lets_flow_what_flows_and_sends_away_who_waits(tmp_path):
    desk = Admission(Limits(server=1, rack=1))
    async with rig(tmp_path, admission=desk) as r:
        large = 64 * 1024 * 1024  # more than all socket buffers: it still flows when the stop comes
        with (r.folder / "images" / DIGEST).open("ab") as file:
            file.truncate(large)
        r.desk.tickets["s" * 20] = (DIGEST, ImageGrant(host="host-2", rack="r1"))
        async with r.session.get(URL) as flowing:
            waiting = asyncio.create_task(r.session.get(f"/images/{DIGEST}?ticket={'s' * 20}"))
            async with asyncio.timeout(5):
                while not desk.waiting:
                    await asyncio.sleep(0.01)
            stop = asyncio.create_task(r.listener.stop())
            assert (await waiting).status == 503
            assert len(await flowing.read()) == large
            await stop


class TestIso:
    """The ISO is the same for all but for the URL of its boot service."""

    def iso(self, folder: Path, places: int = 2) -> Path:
        path = folder / "built.iso"
        hole = b"fleetd.url=" + b"@FLEETD-URL@".ljust(200, b"@")
        assert hole == PLACEHOLDER
        path.write_bytes(b"\0" * 5000 + (b"linux /vmlinuz " + hole + b" quiet\n") * places + b"\1" * 5000)
        return path

    def test_the_url_is_written_over_every_place_and_nothing_else_changes(self, tmp_path):
        source = self.iso(tmp_path)
        state = tmp_path / "state"
        state.mkdir()
        made = prepare_iso(source, state, "http://10.77.0.1:8680")
        data, before = made.read_bytes(), source.read_bytes()
        assert len(data) == len(before)
        assert data.count(b"fleetd.url=" + b"http://10.77.0.1:8680".ljust(URL_BYTES) + b" quiet\n") == 2
        assert b"@FLEETD" not in data
        assert data.replace(b"http://10.77.0.1:8680".ljust(URL_BYTES), PLACEHOLDER[11:]) == before

    def test_it_is_made_again_only_when_something_changed(self, tmp_path):
        source = self.iso(tmp_path)
        made = prepare_iso(source, tmp_path, "http://a")
        first = made.stat().st_ino
        assert prepare_iso(source, tmp_path, "http://a").stat().st_ino == first
        assert b"http://b " in prepare_iso(source, tmp_path, "http://b").read_bytes()
        source.write_bytes(source.read_bytes() + b"more")
        assert prepare_iso(source, tmp_path, "http://b").read_bytes().endswith(b"more")

    def test_a_copy_that_cannot_be_made_and_a_damaged_note(self, tmp_path):
        source = self.iso(tmp_path)
        state = tmp_path / "state"
        state.mkdir()
        made = prepare_iso(source, state, "http://a")
        (state / "deploy.iso.json").write_bytes(b"\xff\0")
        assert prepare_iso(source, state, "http://a") == made
        (state / "deploy.iso.new").mkdir()
        with pytest.raises(Conflict) as refused:
            prepare_iso(source, state, "http://b")
        assert refused.value.remedy
        assert b"http://a " in made.read_bytes()  # what was served is served on

    def test_none_is_none_and_one_without_a_place_is_refused(self, tmp_path):
        assert prepare_iso(tmp_path / "none.iso", tmp_path, "http://a") is None
        with pytest.raises(Invalid):
            prepare_iso(self.iso(tmp_path, places=0), tmp_path, "http://a")
        with pytest.raises(Invalid):
            prepare_iso(self.iso(tmp_path), tmp_path, "http://" + "a" * 200)
        assert not list(tmp_path.glob("*.new"))
