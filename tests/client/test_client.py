"""The client against a real daemon, and against servers that misbehave."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from fleetd.client.http import Endpoint, Http, error_of
from fleetd.client.resources import Fleet
from fleetd.client.watch import follow, ticks
from fleetd.kit import errors
from fleetd.model.event import Event
from fleetd.model.image import SignedManifest
from fleetd.store import events
from tests.house import House, house
from tests.images import manifest_of, signed_image


@pytest.fixture
def fleet(daemon: House) -> Iterator[Fleet]:
    made = Fleet(Endpoint(socket=str(daemon.socket)))
    yield made
    made.close()


def test_typed_and_raw_are_the_same_thing(daemon: House, fleet: Fleet) -> None:
    found = fleet.hosts("lou-a01-[01-02]")
    assert [host.name for host in found.items] == ["lou-a01-01", "lou-a01-02"]
    assert found.raw == daemon.get("/v1/hosts", params={"hosts": "lou-a01-[01-02]"}).json()
    one = fleet.host("lou-a01-01")
    assert one.value.certificate is not None
    assert one.raw["certificate"]["id"] == one.value.certificate.id


def test_all_pages_are_one_list(fleet: Fleet) -> None:
    from fleetd.model.resource import HostView

    whole = fleet.all("/v1/hosts", HostView, limit=2)
    assert len(whole.items) == 6
    assert whole.raw["next"] is None
    assert len(fleet.all("/v1/hosts", HostView, limit=2, most=3).items) == 3


def test_problems_become_our_errors(fleet: Fleet) -> None:
    with pytest.raises(errors.NotFound) as missing:
        fleet.host("nobody")
    assert missing.value.what
    assert missing.value.remedy
    with pytest.raises(errors.Invalid):
        fleet.hosts("a[3-1]")
    with pytest.raises(errors.Conflict):
        fleet.quarantine("lou-a01-01", "x", version=999)
    with pytest.raises(errors.Unreachable):
        fleet.power("lou-a01-04", "read")


def test_token_and_roles(daemon: House) -> None:
    viewer = Fleet(Endpoint(url=f"http://127.0.0.1:{daemon.port}", token=daemon.tokens["viewer"]))
    assert viewer.health().value.role == "viewer"
    with pytest.raises(errors.Denied):
        viewer.identify("lou-a01-01", True)
    viewer.close()
    nobody = Fleet(Endpoint(url=f"http://127.0.0.1:{daemon.port}"))
    with pytest.raises(errors.Denied):
        nobody.health()
    nobody.close()


def test_token_is_not_sent_in_clear_beyond_loopback() -> None:
    with pytest.raises(errors.Denied, match="in clear"):
        Http(Endpoint(url="http://fleetd.example.net", token="flt_x")).request("GET", "/")
    assert "flt_secret" not in repr(Endpoint(url="https://x", token="flt_secret"))


@pytest.mark.parametrize("url", ["ftp://x", "fleetd:80", "http://x/path", "http://x:port", "http://"])
def test_bad_urls_are_refused(url: str) -> None:
    with pytest.raises(errors.Invalid):
        Http(Endpoint(url=url)).request("GET", "/")


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(errors.Unreachable, match="no such socket"):
        Http(Endpoint(socket=str(tmp_path / "s"))).request("GET", "/")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(errors.Unreachable):
        Http(Endpoint(url=f"http://127.0.0.1:{port}")).request("GET", "/")


def test_error_of_unknown_answers() -> None:
    assert isinstance(error_of(503, "<html>"), errors.Temporary)
    assert isinstance(error_of(418, None), errors.Permanent)
    for kind in errors.every_error():
        assert type(error_of(kind.status, {"code": kind.code, "what": "x"})) is kind


def test_restart_under_a_kept_connection(tmp_path: Path) -> None:
    async def nothing(_: House) -> None:
        """The ledger of before is still there."""

    with house(tmp_path) as first:
        fleet = Fleet(Endpoint(socket=str(first.socket)))
        assert len(fleet.hosts().items) == 6
    with house(tmp_path, nothing):
        assert len(fleet.hosts().items) == 6
    fleet.close()


@contextlib.contextmanager
def peer(folder: Path, talk: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """A server that does what the test says with its nth connection."""
    path = str(folder / "peer")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        sock.settimeout(5)
        ends = threading.Event()

        def serve() -> None:
            number = 0
            while not ends.is_set():
                try:
                    connection, _ = sock.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    talk(connection, number)
                number += 1

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path
        finally:
            ends.set()
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as last:
                last.connect(path)
            thread.join(5)


def test_lost_answer_is_asked_again_with_the_same_key(tmp_path: Path) -> None:
    seen: list[bytes] = []

    def talk(connection: socket.socket, number: int) -> None:
        head = connection.recv(65536)
        seen.extend(line for line in head.split(b"\r\n") if line.startswith(b"Idempotency-Key"))
        if number:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")

    with peer(tmp_path, talk) as path, contextlib.closing(Http(Endpoint(socket=path))) as http:
        reply = http.request("POST", "/v1/leases")
    assert reply.data == {}
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_silence_is_a_deadline(tmp_path: Path) -> None:
    hold = threading.Event()
    with peer(tmp_path, lambda connection, number: hold.wait(5) and None) as path:
        try:
            with pytest.raises(errors.DeadlineExceeded):
                Http(Endpoint(socket=path), timeout=0.1).request("GET", "/")
        finally:
            hold.set()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n{{{",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{"items": [1, 2]}',
    ],
)
def test_nonsense_is_one_of_our_errors(tmp_path: Path, answer: bytes) -> None:
    def talk(connection: socket.socket, _: int) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    with (
        peer(tmp_path, talk) as path,
        contextlib.closing(Fleet(Endpoint(socket=path))) as fleet,
        pytest.raises((errors.Garbled, errors.Unreachable)),
    ):
        fleet.hosts()


def test_follow_survives_a_cut_and_misses_nothing(tmp_path: Path) -> None:
    """Each connection gives two events and is cut; the next must ask after the last one it saw."""
    asked: list[bytes] = []

    def talk(connection: socket.socket, number: int) -> None:
        head = connection.recv(65536)
        last = next((line for line in head.split(b"\r\n") if line.lower().startswith(b"last-event-id")), b"-")
        asked.append(last.split(b": ")[-1])
        start = 10 if last == b"-" else int(asked[-1])
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        connection.sendall(b"id: %d\n\n" % start)
        for seq in (start + 1, start + 2):
            body = (
                b'{"seq":%d,"kind":"k","at":"x","site":"","host":null,"run":null,"lease":null,"principal":"","data":{}}'
                % seq
            )
            connection.sendall(b"id: %d\nevent: k\ndata: %s\n\n" % (seq, body))
        connection.sendall(b"id: %d\nevent: k\nda" % (start + 9))  # cut in the middle of a message

    with peer(tmp_path, talk) as path:
        told = follow(Fleet(Endpoint(socket=path)))
        assert [next(told).seq for _ in range(6)] == [11, 12, 13, 14, 15, 16]
        told.close()
    assert asked[:3] == [b"-", b"12", b"14"]


def test_follow_live(daemon: House, fleet: Fleet) -> None:
    db = daemon.fleet.db
    start = daemon.run(db.commit([events.append(Event(kind="f.start", at=1.0))]))
    daemon.run(db.commit([events.append(Event(kind="f.one", at=1.0)), events.append(Event(kind="f.two", at=1.0))]))
    told = follow(fleet, after=start, kinds="f.one,f.two")
    assert [next(told).kind, next(told).kind] == ["f.one", "f.two"]
    told.close()


def test_ticks_tell_what_happened(daemon: House, fleet: Fleet) -> None:
    told = ticks(fleet, every=0.01, at_least=5.0)
    assert next(told) == []
    daemon.run(daemon.fleet.db.commit([events.append(Event(kind="tick", at=1.0))]))
    assert [event.kind for event in next(told)] == ["tick"]
    told.close()
    quiet = ticks(fleet, every=0.01, at_least=0.02)
    assert next(quiet) == []
    assert next(quiet) == []
    quiet.close()


def test_an_upload_that_is_refused_in_the_middle_says_why(daemon: House, fleet: Fleet) -> None:
    raw = bytes(4 * 1024 * 1024)
    signed = SignedManifest(manifest=manifest_of("unsigned", raw, raw, format="raw"))
    told: list[int] = []
    with pytest.raises(errors.Invalid, match="not signed"):
        fleet.upload_image(
            "/v1/images/unsigned/content",
            msgspec.json.encode(signed),
            io.BytesIO(raw),
            len(raw),
            disk=len(raw),
            sent=told.append,
        )
    assert fleet.images().items == []


def test_a_file_that_shrinks_while_it_is_sent_is_refused(daemon: House, fleet: Fleet) -> None:
    signed, served = signed_image("shrinks", daemon.image_key)
    with pytest.raises(errors.Invalid, match="became shorter"):
        fleet.upload_image(
            "/v1/images/shrinks/content",
            msgspec.json.encode(signed),
            io.BytesIO(served[:-100]),
            len(served),
            disk=1,
            sent=lambda _: None,
        )
    assert fleet.images().items == []
