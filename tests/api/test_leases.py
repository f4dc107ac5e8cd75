"""Leases over HTTP: a tenant has its own and hears nothing of others."""

from __future__ import annotations

from tests.house import House, in_days
from tests.lifecycle.fleet import H100, KEY


def asks(tenant: str = "acme", count: int = 1, **changes: object) -> dict[str, object]:
    return {"tenant": tenant, "sku": H100, "count": count, "ends_at": in_days(2), "ssh_keys": [KEY], **changes}


def test_life_of_a_lease(daemon: House) -> None:
    made = daemon.post("/v1/leases", asks(user_data="#cloud-config\nsecret: hunter2\n"), token="acme")
    assert made.status_code == 201, made.text
    lease = made.json()
    assert made.headers["location"] == f"/v1/leases/{lease['id']}"
    assert lease["state"] == "delivering"
    assert [host["name"] for host in lease["hosts"]] == ["lou-a01-01"]
    assert "hunter2" not in made.text
    assert daemon.get(f"/v1/leases/{lease['id']}", token="acme").json()["id"] == lease["id"]
    assert daemon.get("/v1/hosts/lou-a01-01").json()["lease"] == lease["id"]

    # Another tenant: not in the list, and by id as if it were not there.
    assert daemon.get("/v1/leases", token="globex").json()["items"] == []
    assert daemon.get("/v1/leases", params={"tenant": "acme"}, token="globex").json()["items"] == []
    foreign = daemon.get(f"/v1/leases/{lease['id']}", token="globex")
    unknown = daemon.get("/v1/leases/lease-nothing", token="globex")
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.json()["code"] == unknown.json()["code"]
    assert daemon.post(f"/v1/leases/{lease['id']}/release", {}, token="globex").status_code == 404
    assert daemon.post(f"/v1/leases/{lease['id']}/extend", {"ends_at": in_days(9)}, token="globex").status_code == 404

    # The power switch: of its own host, of no other.
    assert daemon.post("/v1/hosts/lou-a01-01/power", {"verb": "read"}, token="acme").status_code == 200
    assert daemon.post("/v1/hosts/lou-a01-01/power", {"verb": "off"}, token="globex").status_code == 403
    assert daemon.post("/v1/hosts/lou-a01-02/power", {"verb": "off"}, token="acme").status_code == 403
    assert daemon.post("/v1/hosts/nobody/power", {"verb": "off"}, token="acme").status_code == 403

    # Its stream of events shows its lease and nothing else.
    own = daemon.get("/v1/events/list", token="acme").json()["items"]
    assert own
    assert {event["lease"] for event in own} == {lease["id"]}
    assert daemon.get("/v1/events/list", token="globex").json()["items"] == []

    stale = daemon.post(f"/v1/leases/{lease['id']}/extend", {"ends_at": in_days(9)}, headers={"If-Match": '"42"'})
    assert stale.status_code == 412
    daemon.run(daemon.fleet.hand_over(daemon.run(daemon.fleet.leases.get(lease["id"]))))
    longer = daemon.post(f"/v1/leases/{lease['id']}/extend", {"ends_at": in_days(9)}, token="acme")
    assert longer.status_code == 200
    assert longer.json()["ends"] > lease["ends"]
    released = daemon.post(f"/v1/leases/{lease['id']}/release", {}, token="acme")
    assert released.status_code == 200
    assert released.json()["state"] in ("ending", "ended")


def test_a_tenant_leases_for_itself_only(daemon: House) -> None:
    answer = daemon.post("/v1/leases", asks("acme"), token="globex")
    assert (answer.status_code, answer.json()["where"]) == (403, "tenant")


def test_more_than_there_is_says_why(daemon: House) -> None:
    answer = daemon.post("/v1/leases", asks(count=50))
    assert (answer.status_code, answer.json()["code"]) == (409, "FLT-3001")
    assert answer.json()["why"]


def test_bad_requests_name_the_field(daemon: House) -> None:
    for change, where in (
        ({"count": "two"}, "count"),
        ({"count": 0}, "count"),
        ({"placement": "moon"}, "placement"),
        ({"colour": "red"}, "colour"),
        ({"ends_at": "soon"}, "ends_at"),
        ({"ssh_keys": ["not a key"]}, "ssh_keys"),
    ):
        answer = daemon.post("/v1/leases", asks(**change))
        assert answer.status_code == 422, (change, answer.text)
        assert answer.json()["where"].startswith(where), (change, answer.text)


def test_capacity_counts_and_explains(daemon: House) -> None:
    rows = daemon.get("/v1/capacity", token="acme").json()["items"]
    assert [(row["sku"], row["site"], row["total"]) for row in rows] == [(H100, "louisiana", 6)]
    row = rows[0]
    assert row["leaseable"] + sum(row["reasons"].values()) == row["total"] == sum(row["by_state"].values())
    by_rack = daemon.get("/v1/capacity", params={"by_rack": "true"}).json()["items"]
    assert {row["rack"] for row in by_rack} == {"lou-a01", "lou-a02"}
