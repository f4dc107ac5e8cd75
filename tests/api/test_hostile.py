"""What a caller may send at worst: it gets a problem, and the daemon lives on."""

from __future__ import annotations

import socket

import pytest

from fleetd.api import bounds, server
from tests.house import House


def raw(daemon: House, data: bytes, *, chunks: int = 1) -> bytes:
    """Bytes to the unix socket, and all that comes back."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(daemon.socket))
        received = b""
        try:
            for _ in range(chunks):
                sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it hung up on us in the middle: what it said before still counts
        try:
            while piece := sock.recv(65536):
                received += piece
        except ConnectionResetError:
            pass
        return received


HEAD = (
    b"POST /v1/hosts/lou-a01-01/identify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
)


def test_bodies_that_are_not_json(daemon: House) -> None:
    for body in (b"{", b"\xff\xfe", b"nonsense", b'{"on": tru'):
        answer = daemon.call(
            "POST", "/v1/hosts/lou-a01-01/identify", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code in (400, 422), body
        assert answer.json()["where"] == "body"
        assert answer.headers["content-type"].startswith("application/problem+json")


def test_deep_nesting_is_refused(daemon: House) -> None:
    body = b'{"on": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    answer = daemon.call("POST", "/v1/hosts/lou-a01-01/identify", content=body)
    assert answer.status_code in (400, 422)
    assert daemon.get("/v1/hosts/lou-a01-01").status_code == 200


def test_announced_huge_body_is_413_before_it_is_sent(daemon: House) -> None:
    answer = raw(daemon, HEAD + b"Content-Length: 999999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"FLT-3002" in answer


def test_chunked_huge_body_is_413(daemon: House) -> None:
    chunk = b"%x\r\n" % 65536 + b"x" * 65536 + b"\r\n"
    opened = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 8
    answer = raw(daemon, opened)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_body_over_the_limit_is_413(daemon: House) -> None:
    answer = daemon.call("POST", "/v1/hosts/lou-a01-01/identify", content=b'{"on":' + b" " * bounds.MAX_BODY + b"true}")
    assert (answer.status_code, answer.json()["where"]) == (413, "body")


@pytest.mark.slow
def test_body_that_never_comes_is_given_up(daemon: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "BODY_SECONDS", 0.1)
    answer = raw(daemon, HEAD + b'Content-Length: 20\r\n\r\n{"on"')
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.slow
def test_the_mute_are_hung_up_on(daemon: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.1)
    assert raw(daemon, b"GET /v1/hosts HTTP/1.1\r\nX-Slow: ") == b""


def test_nonsense_is_400(daemon: House) -> None:
    assert raw(daemon, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert daemon.get("/v1/hosts/lou-a01-01").status_code == 200


def test_huge_head_is_refused(daemon: House) -> None:
    answer = raw(daemon, b"GET /v1/hosts HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 2_000_000 + b"\r\n\r\n")
    assert not answer.startswith(b"HTTP/1.1 2")


def test_no_such_route_and_method(daemon: House) -> None:
    missing = daemon.get("/v1/nodes")
    assert (missing.status_code, missing.json()["code"]) == (404, "FLT-3003")
    wrong = daemon.call("PATCH", "/v1/hosts")
    assert wrong.status_code == 405
    assert wrong.headers["content-type"].startswith("application/problem+json")


def test_problem_has_all_members(daemon: House) -> None:
    problem = daemon.get("/v1/hosts/nobody").json()
    assert set(problem) == {
        "type",
        "title",
        "status",
        "detail",
        "what",
        "why",
        "code",
        "remedy",
        "retryable",
        "where",
        "instance",
    }
    assert problem["type"].endswith(problem["code"])
    assert problem["status"] == 404
    assert problem["detail"].startswith(problem["what"])
    assert problem["instance"] == "/v1/hosts/nobody"


def test_hostile_names_in_paths(daemon: House) -> None:
    for name in ("..%2f..%2fetc", "%00", "a" * 300, "%E2%80%AE", "'; drop table hosts; --"):
        answer = daemon.get(f"/v1/hosts/{name}")
        assert answer.status_code in (404, 422), name
        assert "traceback" not in answer.text.lower()


def test_surrogates_and_zero_bytes_in_bodies(daemon: House) -> None:
    for text in ("\\u0000", "\\ud800", "\\u202e"):
        body = b'{"reason": "' + text.encode() + b'x"}'
        answer = daemon.call("PUT", "/v1/freezes/rack:lou-a02", content=body)
        assert answer.status_code in (200, 400, 422), answer.text
    daemon.call("DELETE", "/v1/freezes/rack:lou-a02")


def test_a_bug_tells_nothing_of_the_inside(daemon: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("password=hunter2 at /var/lib/fleetd")

    monkeypatch.setattr(daemon.fleet.hosts, "select", broken)
    answer = daemon.get("/v1/hosts")
    assert (answer.status_code, answer.json()["code"]) == (500, "FLT-0001")
    assert "hunter2" not in answer.text
