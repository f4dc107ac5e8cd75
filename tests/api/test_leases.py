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


def test_a_dry_run_claims_nothing_and_refuses_what_a_lease_refuses(daemon: House) -> None:
    leases = daemon.get("/v1/leases").json()["items"]
    before = daemon.get("/v1/events/list", params={"limit": 1000}).json()["items"][-1]["seq"]
    planned = daemon.post("/v1/leases", asks(count=2, dry_run=True), token="acme")
    assert planned.status_code == 200, planned.text
    named = [host["name"] for host in planned.json()["hosts"]]
    assert len(named) == 2
    assert {daemon.get(f"/v1/hosts/{name}").json()["state"] for name in named} == {"available"}
    assert planned.json()["image"], "the SKU's"
    for wrong in ({"ssh_keys": ["ssh-ed25519 AAAA"]}, {"user_data": "a\0"}, {"image": "none-such"}, {"count": 99}):
        dry = daemon.post("/v1/leases", asks(**wrong, dry_run=True), token="acme")
        real = daemon.post("/v1/leases", asks(**wrong), token="acme")
        assert (dry.status_code, dry.json()["code"]) == (real.status_code, real.json()["code"])
        assert dry.status_code >= 400
    assert daemon.post("/v1/leases", asks("globex", dry_run=True), token="acme").status_code == 403
    assert daemon.get("/v1/leases").json()["items"] == leases
    kinds = {event["kind"] for event in daemon.get("/v1/events/list", params={"after": before}).json()["items"]}
    assert not {kind for kind in kinds if kind.startswith(("lease.", "host."))}, kinds


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
