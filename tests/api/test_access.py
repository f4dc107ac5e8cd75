"""Who may do what: peers of the socket, tokens, roles; and the audit of what they did."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from fleetd.api.auth import new_token, token_hash
from fleetd.api.peers import SocketPolicy, principal_of_peer
from fleetd.kit.errors import Denied
from fleetd.kit.peer import Peer, peer_of
from fleetd.model.access import Role, Token
from fleetd.store import access
from tests.house import House, house

READS = [
    "hosts",
    "hosts/lou-a01-01",
    "hosts/lou-a01-01/why",
    "runs",
    "playbooks",
    "sites",
    "racks",
    "skus",
    "checks",
    "freezes",
    "holds",
    "inventory",
    "health",
    "capacity",
    "leases",
    "events/list",
    "images",
    "hosts/lou-a01-01/boot",
]
MUTATIONS = [
    ("POST", "/v1/hosts/lou-a01-01/power", {"verb": "off"}),
    ("POST", "/v1/hosts/lou-a01-01/boot", {"device": "disk"}),
    ("POST", "/v1/hosts/lou-a01-01/identify", {}),
    ("POST", "/v1/hosts/lou-a01-01/quarantine", {"reason": "x"}),
    ("POST", "/v1/hosts/lou-a01-01/maintenance", {"reason": "x", "until": "2027-01-01T00:00:00Z"}),
    ("POST", "/v1/hosts/lou-a01-01/release", None),
    ("POST", "/v1/hosts/lou-a01-01/retire", None),
    ("POST", "/v1/inventory/plan", {"files": {"a": "b"}}),
    ("POST", "/v1/inventory/apply", {"files": {"a": "b"}}),
    ("POST", "/v1/runs", {"playbook": "validate", "hosts": "all"}),
    ("POST", "/v1/runs/run-1/cancel", None),
    ("POST", "/v1/runs/run-1/retry", None),
    ("POST", "/v1/leases", {"tenant": "a", "sku": "b", "count": 1, "ends_at": "2027-01-01T00:00:00Z"}),
    ("POST", "/v1/leases/lease-1/extend", {"ends_at": "2027-01-01T00:00:00Z"}),
    ("POST", "/v1/leases/lease-1/release", {}),
    ("POST", "/v1/images", {"manifest": {}}),
    ("PUT", "/v1/images/x/content", None),
    ("POST", "/v1/images/x/verify", None),
    ("DELETE", "/v1/images/x", None),
    ("PUT", "/v1/freezes/all", {"reason": "x"}),
    ("DELETE", "/v1/freezes/all", None),
    ("DELETE", "/v1/holds/x", None),
]


def test_every_mutation_is_in_the_list_above(daemon: House) -> None:
    routes = {
        (method, route.path)
        for route in daemon.app.routes
        for method in getattr(route, "methods", ())
        if method not in ("GET", "HEAD", "OPTIONS")
    }
    assert len(routes) == len(MUTATIONS)


def test_viewer_reads_and_changes_nothing(daemon: House) -> None:
    for path in READS:
        assert daemon.get(f"/v1/{path}", token="viewer").status_code == 200, path
    before = daemon.get("/v1/hosts").json()
    for method, path, body in MUTATIONS:
        answer = daemon.call(method, path, json=body, token="viewer")
        assert (answer.status_code, answer.json()["code"]) == (403, "FLT-3005"), path
        assert answer.json()["remedy"]
    assert daemon.get("/v1/hosts").json() == before


def test_tenant_sees_no_fleet(daemon: House) -> None:
    for path in READS:
        expected = 200 if path in ("skus", "capacity", "leases", "events/list") else 403
        assert daemon.get(f"/v1/{path}", token="acme").status_code == expected, path
    for method, path, body in MUTATIONS:
        answer = daemon.call(method, path, json=body, token="acme")
        assert answer.status_code in (403, 404), path


def test_technician_may_not_what_an_operator_may(daemon: House) -> None:
    assert daemon.post("/v1/hosts/lou-a01-01/retire", token="technician").status_code == 403
    assert daemon.call("PUT", "/v1/freezes/all", json={"reason": "x"}, token="technician").status_code == 200
    assert daemon.call("DELETE", "/v1/freezes/all", token="technician").status_code == 403
    assert daemon.call("DELETE", "/v1/freezes/all", token="operator").status_code == 204


def test_tcp_needs_a_token(daemon: House) -> None:
    import httpx

    answer = httpx.get(f"http://127.0.0.1:{daemon.port}/v1/hosts", trust_env=False)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["content-type"].startswith("application/problem+json")
    for header in ("Basic cm9vdDpyb290", "Bearer x", "Bearer flt_unknown", "Bearer flt_" + "x" * 500):
        got = httpx.get(f"http://127.0.0.1:{daemon.port}/v1/hosts", headers={"Authorization": header}, trust_env=False)
        assert got.status_code == 401, header


def test_expired_and_revoked_tokens_are_nobody(daemon: House) -> None:
    for name, changes in (("old", {"expires": 5.0}), ("gone", {"revoked": 5.0})):
        text = new_token()
        token = Token(id=f"token-{name}", name=name, role=Role.ADMIN, hash=token_hash(text), created=1.0, **changes)
        daemon.run(daemon.fleet.db.commit([access.insert_token(token)]))
        assert daemon.get("/v1/hosts", token=text).status_code == 401, name


def test_token_on_the_socket_wins_over_the_peer(daemon: House) -> None:
    headers = {"Authorization": f"Bearer {daemon.tokens['viewer']}"}
    assert daemon.get("/v1/health", headers=headers).json()["who"] == "viewer"
    assert daemon.post("/v1/hosts/lou-a01-01/identify", {}, headers=headers).status_code == 403


def test_peer_is_known_on_the_socket(daemon: House) -> None:
    said = daemon.get("/v1/health").json()
    assert said["role"] == "admin"
    assert said["who"] != ""
    assert (daemon.socket.stat().st_mode & 0o777) == 0o660


def test_peer_credentials_of_a_socket_pair() -> None:
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        peer = peer_of(left)
    assert peer is not None
    assert (peer.pid, peer.uid) == (os.getpid(), os.getuid())
    assert os.getgid() in peer.gids
    with socket.socket() as tcp:
        assert peer_of(tcp) is None


def test_policy_maps_groups_and_denies_the_rest() -> None:
    import grp

    group = grp.getgrgid(os.getgid()).gr_name
    stranger = Peer(1, 64_999, frozenset({os.getgid()}))
    policy = SocketPolicy(groups={group: Role.OPERATOR, "no-such-group": Role.ADMIN})
    assert principal_of_peer(stranger, policy).role is Role.OPERATOR
    assert principal_of_peer(stranger, policy).name == "uid:64999"
    outsider = Peer(1, 64_999, frozenset({64_999}))
    with pytest.raises(Denied, match="may not use this socket"):
        principal_of_peer(outsider, policy)
    assert principal_of_peer(outsider, SocketPolicy(others=Role.VIEWER)).role is Role.VIEWER
    assert principal_of_peer(Peer(1, 0, frozenset({0})), policy).role is Role.ADMIN


def test_every_change_is_audited_with_its_principal(daemon: House) -> None:
    start = daemon.get("/v1/health").json()["database"]["last_event"]
    assert daemon.post("/v1/hosts/lou-a01-02/identify", {"on": True}, token="technician").status_code == 200
    daemon.post("/v1/hosts/lou-a01-02/identify", {"on": True}, token="viewer")
    daemon.post("/v1/hosts/lou-a01-02/identify", {"wrong": True}, token="technician")
    daemon.post("/v1/runs", {"playbook": "validate", "hosts": "nobody"}, token="technician")
    found = daemon.get("/v1/events/list", params={"after": start, "kinds": "audit"}).json()["items"]
    assert [(e["principal"], e["data"]["path"], e["data"]["status"]) for e in found] == [
        ("technician", "/v1/hosts/lou-a01-02/identify", 200)
    ]
    assert found[0]["host"] == daemon.get("/v1/hosts/lou-a01-02").json()["id"]


def test_an_act_that_failed_at_the_wire_is_audited_too(daemon: House) -> None:
    start = daemon.get("/v1/health").json()["database"]["last_event"]
    assert daemon.post("/v1/hosts/lou-a01-04/power", {"verb": "on"}).status_code == 503
    found = daemon.get("/v1/events/list", params={"after": start, "kinds": "audit"}).json()["items"]
    assert [event["data"]["status"] for event in found] == [503]


@pytest.mark.slow
def test_strangers_on_the_socket_are_denied() -> None:
    """The whole way: another user connects, the kernel names it, the API says no."""
    if os.getuid() != 0:
        pytest.skip("needs root to become another user")
    with tempfile.TemporaryDirectory() as folder, house(Path(folder), policy=SocketPolicy(groups={})) as daemon:
        Path(folder).chmod(0o755)
        daemon.socket.chmod(0o666)
        child = os.fork()
        if child == 0:
            code = 9
            try:
                os.setgroups([])
                os.setgid(64_999)
                os.setuid(64_999)
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(str(daemon.socket))
                    sock.sendall(b"GET /v1/hosts HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    code = int(sock.recv(4096).split()[1]) - 400
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 3
