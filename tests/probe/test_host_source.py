"""Fetching an image from servers that redirect, lie, cut, stall and never end."""

from __future__ import annotations

import itertools
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetd.probe.host import source as sources
from fleetd.probe.host.source import HttpSource, SourceFailed
from tests.probe.imaging import serving

DATA = bytes(range(256)) * 40


class Time:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def fetch(*urls, length=len(DATA), time=None, **more):
    time = time or Time()
    source = HttpSource(urls, length, clock=time, wait=time.wait, **more)
    return b"".join(source.chunks()), source


def test_the_bytes_come_as_they_are():
    with serving(lambda request: request.give(DATA)) as server:
        got, source = fetch(f"{server.url}?ticket=SECRET")
    assert got == DATA
    assert (source.url, source.resumed, source.used) == (server.url, 0, {server.url})
    assert server.asked[0][0] == "/image?ticket=SECRET"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(DATA) - 1), min_size=1, max_size=4))
def test_a_stream_cut_anywhere_is_resumed_where_it_stopped(cuts):
    left = iter(cuts)

    def script(request):
        cut = next(left, None)
        request.give(DATA, cut=None if cut is None else min(cut, len(DATA) - request.start() - 1))

    with serving(script) as server:
        got, source = fetch(server.url)
    assert got == DATA
    for _, headers in server.asked:
        if "Range" in headers:
            assert headers["If-Match"] == '"v1"'
    assert source.resumed <= len(cuts)


def test_cut_at_every_boundary_of_a_short_body():
    data = b"0123456789"
    for cut in range(len(data)):
        answers = iter([cut, None])
        with serving(lambda request, answers=answers: request.give(data, cut=next(answers, None))) as server:
            assert fetch(server.url, length=len(data))[0] == data


def test_a_server_without_ranges_gives_all_again_and_what_is_known_is_skipped():
    first = itertools.count()

    def script(request):
        body = DATA[:5000] if next(first) == 0 else DATA
        request.say(200, {"Content-Length": str(len(DATA))}, body)

    with serving(script) as server:
        got, source = fetch(server.url)
    assert (got, source.resumed) == (DATA, 1)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed(status):
    with (
        serving(lambda request: request.give(DATA)) as inner,
        serving(lambda request: request.say(status, {"Location": inner.url, "Content-Length": "0"})) as server,
        pytest.raises(SourceFailed, match="redirects are never followed"),
    ):
        fetch(server.url)
    assert inner.asked == []


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Content-Length": "10239"}, "offers 10239"),
        ({"Content-Length": "99999999999999"}, "offers"),
        ({}, "unknown number"),
        ({"Transfer-Encoding": "chunked"}, "Transfer-Encoding"),
        ({"Content-Length": "10240", "Content-Encoding": "gzip"}, "Content-Encoding"),
    ],
)
def test_a_length_that_is_not_the_manifests_is_refused(headers, said):
    with (
        serving(lambda request: request.say(200, headers, DATA)) as server,
        pytest.raises(SourceFailed, match=said),
    ):
        fetch(server.url)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"Content-Range": "bytes 0-10239/10240"},
        {"Content-Range": "bytes 100-10239/*"},
        {"Content-Range": "bytes 100-10239/99999"},
        {"Content-Range": ""},
        {"Content-Length": "10240"},
    ],
)
def test_another_part_than_asked_for_is_refused(change):
    def script(request):
        if request.start():
            request.give(DATA, **change)
        else:
            request.give(DATA, cut=100)

    with serving(script) as server, pytest.raises(SourceFailed):
        fetch(server.url)


def test_a_body_without_end_is_read_no_further_than_the_manifest():
    sent = 0

    def script(request):
        nonlocal sent
        request.say(200, {"Content-Length": str(len(DATA))}, DATA)
        for _ in range(100_000):
            request.wfile.write(bytes(65536))
            sent += 65536

    with serving(script) as server:
        got, _ = fetch(server.url)
    assert got == DATA
    assert sent < 64 << 20


def test_headers_without_end_are_given_up(monkeypatch):
    monkeypatch.setattr(sources, "HEADERS", 0.3)
    monkeypatch.setattr(sources, "OUTAGE", 0.2)

    def script(request):
        request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            request.wfile.write(b"X-Slow: 1\r\n")
            request.wfile.flush()
            if request.server.over.wait(0.05):
                return

    with serving(script) as server:
        server.over = threading.Event()
        with pytest.raises(SourceFailed, match=r"no progress|header"):
            list(HttpSource([server.url], 10).chunks())
        server.over.set()


def test_a_trickle_is_cut_and_the_next_server_goes_on_from_there(monkeypatch):
    monkeypatch.setattr(sources, "STALL", 0.3)
    over = threading.Event()

    def trickle(request):
        request.say(200, {"Content-Length": str(len(DATA))})
        for byte in DATA:
            request.wfile.write(bytes([byte]))
            if over.wait(0.02):
                return

    with serving(trickle) as slow, serving(lambda request: request.give(DATA)) as good:
        source = HttpSource([slow.url, good.url], len(DATA))
        assert b"".join(source.chunks()) == DATA
        over.set()
    assert source.used == {slow.url, good.url}
    assert good.asked[0][1]["Range"].startswith("bytes=")
    assert "If-Match" not in good.asked[0][1]  # that tag is another server's


def test_a_slow_taker_is_not_the_servers_fault(monkeypatch):
    time = Time()
    with serving(lambda request: request.give(DATA * 2000)) as server:
        source = HttpSource([server.url], len(DATA) * 2000, clock=time, wait=time.wait)
        got = 0
        for chunk in source.chunks():
            got += len(chunk)
            time.now += 10 * sources.STALL  # a drive that hangs
    assert (got, source.resumed) == (len(DATA) * 2000, 0)


def test_a_full_server_is_waited_for_as_it_says():
    count = itertools.count()

    def script(request):
        if next(count) < 5:
            request.say(503, {"Retry-After": "7", "Content-Length": "0"})
        else:
            request.give(DATA)

    time = Time()
    with serving(script) as server:
        assert fetch(server.url, time=time)[0] == DATA
    assert time.waits == [7.0] * 5


@pytest.mark.parametrize("said", ["999999", "-1", "soon", "", "Wed, 21 Oct 2026 07:28:00 GMT", "٣"])
def test_no_retry_after_makes_it_wait_for_ever_or_spin(said):
    time = Time()
    with (
        serving(lambda request: request.say(503, {"Retry-After": said.encode().decode("latin-1")})) as server,
        pytest.raises(SourceFailed, match="full"),
    ):
        fetch(server.url, time=time)
    assert time.now <= sources.ADMISSION + sources.MAX_RETRY_AFTER
    assert len(server.asked) < 1000


def test_a_dead_server_is_left_for_the_next_and_nothing_secret_is_told():
    with serving(lambda request: request.say(403, {"Content-Length": "0"})) as bad:
        with serving(lambda request: request.give(DATA)) as good:
            got, source = fetch("http://127.0.0.1:9/x?ticket=SECRET", f"{bad.url}?ticket=SECRET", good.url)
            assert (got, source.url) == (DATA, good.url)
        with pytest.raises(SourceFailed) as failed:
            fetch(f"{bad.url}?ticket=SECRET")
    assert "SECRET" not in str(failed.value)
    assert "403" in str(failed.value)


def test_nobody_there_is_given_up_by_patience():
    time = Time()
    with pytest.raises(SourceFailed, match="no progress"):
        fetch("http://127.0.0.1:9/x", time=time)
    assert sources.OUTAGE <= time.now <= sources.OUTAGE + 2 * sources.LONGEST_PAUSE
    assert len(time.waits) < 40


def test_garbage_instead_of_http_is_an_error_like_any_other():
    time = Time()
    with (
        serving(lambda request: request.wfile.write(b"\0\xff" * 50_000)) as server,
        pytest.raises(SourceFailed),
    ):
        fetch(server.url, time=time)


def test_a_changed_file_is_not_glued_to_the_old_one():
    def script(request):
        if request.headers.get("If-Match"):
            request.say(412, {"Content-Length": "0"})
        else:
            request.give(DATA, cut=500)

    with serving(script) as server, pytest.raises(SourceFailed, match="412"):
        fetch(server.url)


def test_closing_ends_a_fetch_that_waits():
    over = threading.Event()
    began = threading.Event()

    def script(request):
        request.say(200, {"Content-Length": "10"})
        began.set()
        over.wait(30)

    with serving(script) as server:
        source = HttpSource([server.url], 10)
        failed = []

        def run():
            with pytest.raises(SourceFailed):
                list(source.chunks())
            failed.append(True)

        thread = threading.Thread(target=run)
        thread.start()
        assert began.wait(10)
        source.close()
        thread.join(10)
        over.set()
    assert failed == [True]


def test_it_fetches_from_the_address_it_is_given():
    with serving(lambda request: request.give(DATA)) as server:
        peers = []
        server.script = lambda request: (peers.append(request.client_address[0]), request.give(DATA))
        fetch(server.url, address="127.0.0.42")
    assert peers == ["127.0.0.42"]
