"""The inventory over HTTP: plan, apply exactly that plan, export, and what stands in it."""

from __future__ import annotations

from tests.house import House
from tests.lifecycle.fleet import H100, inventory


def test_plan_apply_export(daemon: House) -> None:
    files = inventory({"lou-a01": 4, "lou-a02": 2, "lou-a03": 1})
    planned = daemon.post("/v1/inventory/plan", {"files": files}).json()
    assert planned["applied"] is False
    assert ("add", "host", "lou-a03-01") in {(c["action"], c["kind"], c["name"]) for c in planned["changes"]}
    stale = daemon.post("/v1/inventory/apply", {"files": files, "expect": "0" * 64})
    assert (stale.status_code, stale.json()["code"]) == (409, "FLT-3001")
    assert daemon.get("/v1/hosts/lou-a03-01").status_code == 404
    applied = daemon.post("/v1/inventory/apply", {"files": files, "expect": planned["digest"]})
    assert applied.status_code == 200, applied.text
    assert applied.json()["applied"] is True
    assert daemon.get("/v1/hosts/lou-a03-01").status_code == 200
    assert daemon.post("/v1/inventory/plan", {"files": files}).json()["changes"] == []
    exported = daemon.get("/v1/inventory").json()["files"]
    assert daemon.post("/v1/inventory/plan", {"files": exported}).json()["changes"] == []


def test_error_names_file_and_line(daemon: House) -> None:
    files = {"sites/x.yaml": "site: x\nhalls: [h1]\ncolour: red\n"}
    answer = daemon.post("/v1/inventory/plan", {"files": files})
    assert (answer.status_code, answer.json()["where"]) == (422, "sites/x.yaml:3")


def test_hostile_names_are_refused(daemon: House) -> None:
    for name in ("/etc/passwd", "../x", "a\nb", "x" * 400):
        answer = daemon.post("/v1/inventory/plan", {"files": {name: "site: x"}})
        assert (answer.status_code, answer.json()["where"]) == (422, "files"), name
    assert daemon.post("/v1/inventory/plan", {"files": {}}).status_code == 422


def test_sites_racks_skus_checks(daemon: House) -> None:
    site = daemon.get("/v1/sites").json()["items"][0]
    assert (site["name"], site["halls"]) == ("louisiana", ["h1"])
    assert daemon.get("/v1/sites/louisiana").json() == site
    rack = daemon.get("/v1/racks/lou-a01").json()
    assert (rack["hosts"], rack["leaseable"], rack["by_state"]) == (4, 4, {"available": 4})
    sku = daemon.get(f"/v1/skus/{H100}").json()
    assert sku["gpus"] == sku["profile"]["gpu"]["count"] == 8
    checks = {check["id"] for check in daemon.get("/v1/checks").json()["items"]}
    assert "gpu.count" in checks
    assert daemon.get("/v1/checks/gpu.count").json()["why"]
    for path in ("sites/x", "racks/x", "skus/x", "checks/x"):
        assert daemon.get(f"/v1/{path}").json()["code"] == "FLT-3003", path


def test_brakes(daemon: House) -> None:
    put = daemon.call("PUT", "/v1/freezes/site:louisiana", json={"reason": "storm"})
    assert put.status_code == 200
    assert "storm" in put.json()["reason"]
    try:
        assert "frozen" in " ".join(daemon.get("/v1/hosts/lou-a01-01").json()["reasons"])
        assert daemon.get("/v1/racks/lou-a01").json()["leaseable"] == 0
    finally:
        assert daemon.call("DELETE", "/v1/freezes/site:louisiana").status_code == 204
    assert daemon.call("DELETE", "/v1/freezes/site:louisiana").status_code == 404
    assert daemon.call("PUT", "/v1/freezes/hall:h1", json={"reason": "x"}).json()["where"] == "scope"
    assert daemon.get("/v1/freezes").json()["items"] == []
    daemon.run(daemon.fleet.brakes.hold("check:gpu.count", "too many"))
    assert daemon.get("/v1/holds").json()["items"][0]["name"] == "check:gpu.count"
    assert daemon.get("/v1/health").json()["status"] == "degraded"
    assert daemon.call("DELETE", "/v1/holds/check:gpu.count").status_code == 204
    assert daemon.call("DELETE", "/v1/holds/check:gpu.count").status_code == 404
