"""The simulator's own fetch keeps the rules of the host side's: no redirect, the length told, resumed, waited for."""

from __future__ import annotations

import itertools

import pytest

from fleetd.probe.host.source import SourceFailed
from fleetd.sim.fetch import fetch
from tests.probe.imaging import serving

DATA = bytes(range(256)) * 40


async def got(*urls, length=len(DATA)):
    source = await fetch(urls, length, "127.0.0.77")
    return b"".join(source.chunks()), source


async def test_it_comes_from_the_hosts_own_address():
    peers = []
    with serving(lambda request: (peers.append(request.client_address[0]), request.give(DATA))) as server:
        data, source = await got(f"{server.url}?ticket=SECRET")
    assert (data, source.url, source.resumed, peers) == (DATA, server.url, 0, ["127.0.0.77"])
    assert server.asked[0][0] == "/image?ticket=SECRET"


@pytest.mark.parametrize("cuts", [[0], [1], [5000, 7], [len(DATA) - 1]])
async def test_a_cut_is_resumed(cuts):
    left = iter(cuts)
    with serving(lambda request: request.give(DATA, cut=next(left, None))) as server:
        data, source = await got(server.url)
    assert data == DATA
    assert source.resumed == len([cut for cut in cuts if cut])


@pytest.mark.parametrize(
    "script",
    [
        lambda request: request.say(302, {"Location": "http://127.0.0.1:1/", "Content-Length": "0"}),
        lambda request: request.say(403, {"Content-Length": "0"}),
        lambda request: request.say(200, {"Content-Length": "5"}, b"short"),
        lambda request: request.say(200, {"Content-Length": "10240000"}, DATA),
        lambda request: request.say(200, {"Transfer-Encoding": "chunked"}, b"0\r\n\r\n"),
    ],
)
async def test_what_is_wrong_for_good_gives_way_to_the_next(script):
    with serving(script) as bad, serving(lambda request: request.give(DATA)) as good:
        data, source = await got(bad.url, good.url)
        assert (data, source.url) == (DATA, good.url)
        with pytest.raises(SourceFailed):
            await got(f"{bad.url}?ticket=SECRET")
        source = await fetch([f"{bad.url}?ticket=SECRET"], 10, "")
        with pytest.raises(SourceFailed) as failed:
            list(source.chunks())
        assert "SECRET" not in str(failed.value)


async def test_a_full_server_is_waited_for():
    count = itertools.count()

    def script(request):
        if next(count) < 2:
            request.say(503, {"Retry-After": "0", "Content-Length": "0"})
        else:
            request.give(DATA)

    with serving(script) as server:
        assert (await got(server.url))[0] == DATA
    assert len(server.asked) == 3
