"""The stream: in order, none missed, none twice, whatever cuts it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from fleetd.model.event import Event
from fleetd.store import events
from tests.house import House


def say(daemon: House, *kinds: str, **fields: str) -> list[int]:
    """Commit events one by one; returns their seqs."""
    db = daemon.fleet.db
    return [daemon.run(db.commit([events.append(Event(kind=kind, at=1.0, **fields))])) for kind in kinds]


def stream(daemon: House, last: int | None = None, **params: str) -> Iterator[tuple[int, str]]:
    """(seq, kind) of each message; heartbeats are (seq, "")."""
    transport = httpx.HTTPTransport(uds=str(daemon.socket))
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    with (
        httpx.Client(transport=transport, base_url="http://fleetd", timeout=5, trust_env=False) as client,
        client.stream("GET", "/v1/events", params=params, headers=headers) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        seq, kind = -1, ""
        for line in answer.iter_lines():
            if line.startswith("id: "):
                seq = int(line[4:])
            elif line.startswith("data: "):
                body = json.loads(line[6:])
                assert body["seq"] == seq
                kind = body["kind"]
            elif not line and seq >= 0:
                yield seq, kind
                kind = ""


def test_live_events_arrive_in_order(daemon: House) -> None:
    told = stream(daemon)
    assert next(told)[1] == ""  # the greeting names where we stand
    seqs = say(daemon, "a", "b", "c")
    got = []
    for seq, kind in told:
        if kind:
            got.append((seq, kind))
        if len(got) == 3:
            break
    assert got == list(zip(seqs, "abc", strict=True))


def test_resume_misses_nothing(daemon: House) -> None:
    first, second, third = say(daemon, "r.one", "r.two", "r.three")
    told = stream(daemon, last=first)
    got = [next(told), next(told), next(told)]
    assert got[0] == (first, "")
    assert got[1:] == [(second, "r.two"), (third, "r.three")]
    assert [e for e, k in stream_until(daemon, first, third)] == [second, third]


def stream_until(daemon: House, last: int, end: int) -> list[tuple[int, str]]:
    found = []
    for seq, kind in stream(daemon, last=last):
        if kind:
            found.append((seq, kind))
        if seq >= end and kind:
            return found
    return found


def test_thousands_while_reading(daemon: House) -> None:
    """More than a batch, committed while the watcher reads."""
    start = say(daemon, "flood.start")[0]
    ops = [events.append(Event(kind="flood", at=1.0)) for _ in range(1500)]
    end = daemon.run(daemon.fleet.db.commit(ops))
    told = stream(daemon, last=start)
    got = []
    for seq, kind in told:
        if kind:
            got.append(seq)
        if len(got) == 1000:
            end = daemon.run(daemon.fleet.db.commit([events.append(Event(kind="flood", at=2.0)) for _ in range(700)]))
        if seq == end:
            break
    assert got == list(range(start + 1, end + 1))


def test_filters_and_heartbeat_moves_on(daemon: House) -> None:
    start = say(daemon, "x.start")[0]
    seqs = say(daemon, "noise", "wanted", "noise", run="run-7")
    told = stream(daemon, last=start, kinds="wanted", run="run-7")
    assert next(told) == (start, "")
    assert next(told) == (seqs[1], "wanted")
    beat = next(told)
    assert beat == (seqs[2], "")  # past the noise: a resume need not read it again


def test_bad_resume_is_a_problem(daemon: House) -> None:
    for headers in ({"Last-Event-ID": "x"}, {"Last-Event-ID": "-1"}, {"Last-Event-ID": "99999999"}):
        answer = daemon.get("/v1/events", headers=headers)
        assert (answer.status_code, answer.json()["where"]) == (422, "Last-Event-ID")
    assert daemon.get("/v1/events", params={"host": "nobody"}).status_code == 404


def test_list_pages_through_everything(daemon: House) -> None:
    start = say(daemon, "p.start")[0]
    seqs = say(daemon, *("p.a", "p.b") * 5)
    got, cursor = [], None
    while True:
        params = {"limit": 3, "after": start} | ({"cursor": cursor} if cursor else {})
        page = daemon.get("/v1/events/list", params=params).json()
        got += [event["seq"] for event in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert got == seqs
    only = daemon.get("/v1/events/list", params={"after": start, "kinds": "p.b"}).json()["items"]
    assert [event["seq"] for event in only] == seqs[1::2]


def test_too_many_watchers_is_503(daemon: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from fleetd.api import events as api_events

    monkeypatch.setattr(api_events, "MAX_WATCHERS", 0)
    answer = daemon.get("/v1/events")
    assert (answer.status_code, answer.json()["retryable"]) == (503, True)
    assert answer.headers["retry-after"] == "10"


def test_watchers_are_counted_and_forgotten(daemon: House) -> None:
    told = stream(daemon)
    next(told)
    assert daemon.get("/v1/health").json()["watchers"] >= 1
