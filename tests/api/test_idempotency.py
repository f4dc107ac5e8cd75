"""Idempotency-Key: sent twice, done once, answered alike."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.api.test_leases import asks
from tests.house import House


def test_replay_gives_the_same_answer_and_does_nothing(daemon: House) -> None:
    headers = {"Idempotency-Key": "one"}
    body = asks()
    first = daemon.post("/v1/leases", body, headers=headers)
    again = daemon.post("/v1/leases", body, headers=headers)
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["etag"] == first.headers["etag"]
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["idempotency-replayed"] == "true"
    assert len(daemon.get("/v1/leases").json()["items"]) == 1
    audits = daemon.get("/v1/events/list", params={"kinds": "audit"}).json()["items"]
    assert len([event for event in audits if event["data"]["path"] == "/v1/leases"]) == 1


def test_same_key_for_another_request_is_422(daemon: House) -> None:
    headers = {"Idempotency-Key": "two"}
    assert daemon.post("/v1/hosts/lou-a01-01/identify", {"on": True}, headers=headers).status_code == 200
    other = daemon.post("/v1/hosts/lou-a01-01/identify", {"on": False}, headers=headers)
    assert (other.status_code, other.json()["where"]) == (422, "Idempotency-Key")


def test_key_counts_per_route_and_principal(daemon: House) -> None:
    headers = {"Idempotency-Key": "three"}
    assert daemon.post("/v1/hosts/lou-a01-01/identify", {}, headers=headers).status_code == 200
    elsewhere = daemon.post("/v1/hosts/lou-a01-02/identify", {}, headers=headers)
    assert "idempotency-replayed" not in elsewhere.headers
    somebody = daemon.post("/v1/hosts/lou-a01-01/identify", {}, headers=headers, token="technician")
    assert "idempotency-replayed" not in somebody.headers


def test_failure_is_not_remembered(daemon: House) -> None:
    headers = {"Idempotency-Key": "four"}
    body = {"playbook": "rack-bringup", "hosts": "rack=nowhere"}
    assert daemon.post("/v1/runs", body, headers=headers).status_code == 404
    second = daemon.post("/v1/runs", body, headers=headers)
    assert second.status_code == 404
    assert "idempotency-replayed" not in second.headers


def test_at_once_only_one_does_it(daemon: House) -> None:
    before = len(daemon.get("/v1/leases").json()["items"])
    body = asks()
    daemon.get("/v1/leases", token="operator")  # the client is made once, outside the threads

    def one(_: int) -> int:
        return daemon.post("/v1/leases", body, headers={"Idempotency-Key": "five"}, token="operator").status_code

    with ThreadPoolExecutor(8) as pool:
        codes = set(pool.map(one, range(8)))
    assert codes <= {201, 409}
    assert 201 in codes
    assert len(daemon.get("/v1/leases").json()["items"]) == before + 1


def test_bad_key_is_422(daemon: House) -> None:
    for key in ("", "x" * 300):
        answer = daemon.post("/v1/hosts/lou-a01-01/identify", {}, headers={"Idempotency-Key": key})
        assert (answer.status_code, answer.json()["where"]) == (422, "Idempotency-Key")
