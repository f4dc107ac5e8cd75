"""Images over the API: offered by manifest, streamed in, read by all, written by operators."""

from __future__ import annotations

import socket
from typing import Any

import msgspec

from fleetd.model.image import SignedManifest, sign
from fleetd.sim.image import tiny_image
from tests.house import House
from tests.images import header_of, manifest_of, signed_image


def offer(daemon: House, signed: SignedManifest, **rest: Any) -> Any:
    return daemon.post("/v1/images", msgspec.to_builtins(signed), **rest)


def put(daemon: House, signed: SignedManifest, data: Any, *, name: str = "", **rest: Any) -> Any:
    where = f"/v1/images/{name or signed.manifest.name}/content"
    return daemon.call("PUT", where, content=data, headers=header_of(signed), **rest)


def test_from_offer_to_removal(daemon: House) -> None:
    signed, served = signed_image("life", daemon.image_key)
    said = offer(daemon, signed).json()
    assert said == {"name": "life", "needed": True, "upload": "/v1/images/life/content", "image": None}
    assert daemon.get("/v1/images/life").status_code == 404

    def pieces() -> Any:
        for at in range(0, len(served), 5000):
            yield served[at : at + 5000]

    made = put(daemon, signed, pieces())
    assert made.status_code == 200, made.text
    view = made.json()
    assert (view["name"], view["sha256"], view["raw_sha256"]) == (
        "life", signed.manifest.sha256, signed.manifest.raw_sha256,
    )  # fmt: skip
    assert view["signature"]["key"] == view["signed_by"]
    assert made.headers["etag"] == '"1"'
    assert put(daemon, signed, served).json() == view
    again = offer(daemon, signed).json()
    assert (again["needed"], again["image"]) == (False, view)
    assert daemon.get("/v1/images/life", token="viewer").json() == view
    assert view in daemon.get("/v1/images", token="viewer").json()["items"]
    assert daemon.post("/v1/images/life/verify").json() == {"name": "life", "good": True, "problems": []}
    assert daemon.call("DELETE", "/v1/images/life").status_code == 204
    assert daemon.get("/v1/images/life").status_code == 404
    kinds = [e["kind"] for e in daemon.get("/v1/events/list?limit=1000").json()["items"]]
    assert {"image.added", "image.verified", "image.removed"} <= set(kinds)
    audits = [e["data"] for e in daemon.get("/v1/events/list?limit=1000").json()["items"] if e["kind"] == "audit"]
    assert ("PUT", "/v1/images/life/content") in [(a["method"], a["path"]) for a in audits]
    assert ("POST", "/v1/images") not in [(a["method"], a["path"]) for a in audits]  # an offer changes nothing


def test_only_operators_change_and_tenants_see_nothing(daemon: House) -> None:
    signed, served = signed_image("roles", daemon.image_key)
    for role in ("viewer", "technician", "acme"):
        assert offer(daemon, signed, token=role).status_code == 403
        assert put(daemon, signed, served, token=role).status_code == 403
        assert daemon.call("DELETE", "/v1/images/roles", token=role).status_code == 403
        assert daemon.post("/v1/images/roles/verify", token=role).status_code == 403
    assert daemon.get("/v1/images", token="acme").status_code == 403
    assert put(daemon, signed, served, token="operator").status_code == 200


def test_what_is_refused_says_why_and_leaves_nothing(daemon: House) -> None:
    from fleetd.model import proof

    good, served = signed_image("bad", daemon.image_key)
    foreign, _ = signed_image("bad", proof.new_key())
    for signed, data, status, words in (
        (foreign, served, 422, "not trusted"),
        (SignedManifest(manifest=good.manifest), served, 422, "not signed"),
        (good, served[:-1], 422, "not what its manifest says"),
        (good, served + b"x", 422, "longer than announced"),
        (good, served[:-1] + bytes([served[-1] ^ 1]), 422, "unpacked"),  # gzip's own length
    ):
        answer = put(daemon, signed, data)
        assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
        assert answer.json()["remedy"]
    assert daemon.get("/v1/images/bad").status_code == 404
    assert list((daemon.folder / "images" / "incoming").iterdir()) == []


def test_another_content_under_the_same_name_is_409(daemon: House) -> None:
    signed, served = signed_image("taken", daemon.image_key)
    assert put(daemon, signed, served).status_code == 200
    other, raw = tiny_image("other content")
    second = sign(manifest_of("taken", other, raw), daemon.image_key)
    for answer in (offer(daemon, second), put(daemon, second, other)):
        assert (answer.status_code, answer.json()["code"]) == (409, "FLT-3001")
        assert "image remove taken" in answer.json()["remedy"]


def test_what_a_sku_names_is_not_removed(daemon: House) -> None:
    signed, served = signed_image("ubuntu-24.04-gpu", daemon.image_key)
    made = put(daemon, signed, served).json()
    assert any(user.startswith("SKU ") for user in made["used_by"])
    answer = daemon.call("DELETE", "/v1/images/ubuntu-24.04-gpu")
    assert answer.status_code == 409
    assert "SKU" in answer.json()["why"]


def test_hostile_manifests_and_names(daemon: House) -> None:
    signed, served = signed_image("hostile", daemon.image_key)
    assert put(daemon, signed, served, name="another").status_code == 422
    for header in ("", "not base64!", "e30", "A" * 30_000, "eyJtYW5pZmVzdCI6MX0"):
        answer = daemon.call("PUT", "/v1/images/hostile/content", content=served, headers={"Fleetd-Manifest": header})
        assert answer.status_code in (400, 422, 431), header[:20]
    assert daemon.call("PUT", "/v1/images/hostile/content", content=served).status_code == 422
    for body in ({}, {"manifest": {}}, {"manifest": {"name": "../x"}}, {"manifest": [], "signature": 1}):
        assert daemon.post("/v1/images", body).status_code == 422
    odd = msgspec.to_builtins(signed)
    odd["manifest"]["name"] = "../../etc"
    assert daemon.post("/v1/images", odd).status_code == 422
    for name in ("..%2f..%2fetc", "%00", "a" * 300):
        assert daemon.get(f"/v1/images/{name}").status_code in (404, 422)


def test_larger_than_any_body_elsewhere_may_come_in(daemon: House) -> None:
    raw = bytes(2 * 1024**2)
    signed = sign(manifest_of("large", raw, raw, format="raw"), daemon.image_key)
    assert put(daemon, signed, raw).status_code == 200
    head = b"PUT /v1/images/large/content HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(daemon.socket))
        sock.sendall(head + b"Content-Length: 99999999999999\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_caller_that_hangs_up_leaves_nothing(daemon: House) -> None:
    signed, served = signed_image("gone", daemon.image_key)
    lines = [f"{name}: {value}" for name, value in header_of(signed).items()]
    head = ["PUT /v1/images/gone/content HTTP/1.1", "Host: x", f"Content-Length: {len(served)}", *lines, "", ""]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(daemon.socket))
        sock.sendall("\r\n".join(head).encode() + served[:5000])
    import time

    incoming = daemon.folder / "images" / "incoming"
    end = time.monotonic() + 5
    while list(incoming.iterdir()) and time.monotonic() < end:
        time.sleep(0.02)
    assert list(incoming.iterdir()) == []
    assert put(daemon, signed, served).status_code == 200


def test_the_document_says_how_to_send_one(daemon: House) -> None:
    operation = daemon.get("/v1/openapi.json").json()["paths"]["/v1/images/{name}/content"]["put"]
    assert "application/octet-stream" in operation["requestBody"]["content"]
    assert [p["name"] for p in operation["parameters"] if p["in"] == "header"] == ["Fleetd-Manifest"]


def test_a_host_that_is_not_expected_has_nothing_wrong(daemon: House) -> None:
    answer = daemon.get("/v1/hosts/lou-a01-01/boot", token="viewer")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["good"], found["stage"], found["boot"], found["trail"]) == (True, "none", None, [])
    assert daemon.get("/v1/hosts/nobody/boot").status_code == 404
    assert daemon.get("/v1/hosts/lou-a01-01/boot", token="acme").status_code == 403
