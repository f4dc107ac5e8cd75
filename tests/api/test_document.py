"""OpenAPI: generated, committed, current; health and metrics."""

from __future__ import annotations

import json
from pathlib import Path

from fleetd.api.app import openapi_document
from fleetd.api.paging import decode, encode
from tests.house import House

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_committed_document_is_current() -> None:
    committed = json.loads((REFERENCE / "openapi.json").read_text())
    assert committed == json.loads(json.dumps(openapi_document())), "run `make docs`"


def test_document_is_served_and_complete(daemon: House) -> None:
    document = daemon.get("/v1/openapi.json", token="acme").json()
    assert document["openapi"].startswith("3.1")
    assert document == json.loads(json.dumps(openapi_document()))
    operations = [op for path in document["paths"].values() for op in path.values()]
    assert len({op["operationId"] for op in operations}) == len(operations)
    assert all(op["description"] for op in operations)
    assert all("default" in op["responses"] for op in operations)


def test_every_reference_resolves() -> None:
    document = openapi_document()
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}

    def references(value: object) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        if isinstance(value, list):
            return set().union(*map(references, value))
        return set()

    assert references(document) <= known


def test_health_is_ok_until_it_is_not(daemon: House) -> None:
    assert daemon.get("/v1/health").json()["status"] == "ok"
    daemon.engine_age = 500.0
    sick = daemon.get("/v1/health").json()
    daemon.engine_age = None
    unborn = daemon.get("/v1/health").json()
    daemon.engine_age = 0.5
    assert (sick["status"], unborn["status"]) == ("degraded", "degraded")
    assert "no sign of life" in sick["problems"][0]
    assert "not started" in unborn["problems"][0]


def test_metrics_count_and_name_no_host(daemon: House) -> None:
    text = daemon.get("/metrics", token="viewer").text
    assert 'fleetd_hosts{site="louisiana",sku="dell.xe9680-h100-8",state="available"} 4.0' in text
    assert 'fleetd_hosts_leaseable{site="louisiana",sku="dell.xe9680-h100-8"} 4.0' in text
    assert "fleetd_api_requests_total{" in text
    assert "lou-a01-01" not in text
    assert daemon.call("GET", "/metrics", token="acme").status_code == 403


def test_cursor_is_opaque_and_whole() -> None:
    key = ("louisiana", "lou-a01", 7, "host-x")
    assert decode(encode(key), ("", "", 0, "")) == key
