"""Hosts over HTTP: the representation, ranges, paging, conditions, orders to real simulated BMCs."""

from __future__ import annotations

from fleetd.kit.clock import parse_rfc3339
from fleetd.model.host import Alert, Classification, State
from tests.house import House, in_days

FIELDS = [
    "id",
    "name",
    "site",
    "rack",
    "position",
    "sku",
    "state",
    "state_since",
    "deadline",
    "waiting_for",
    "health",
    "power",
    "leaseable",
    "reasons",
    "certificate",
    "lease",
    "labels",
    "version",
    "spec",
    "alerts",
    "findings",
    "run",
    "tenant_data",
    "maintenance",
]


def test_representation_is_flat_and_complete(daemon: House) -> None:
    host = daemon.get("/v1/hosts/lou-a01-01").json()
    assert list(host) == FIELDS
    assert host["leaseable"] is True
    assert host["reasons"] == []
    assert host["health"] == "unknown"  # its BMC was never met: nobody looked
    assert set(host["spec"]) == {"serial", "bmc", "boot_mac", "outlets", "nvlink_domain"}
    assert set(host["spec"]["bmc"]) == {"protocol", "address"}
    assert parse_rfc3339(host["state_since"]) > 0
    assert host["certificate"]["id"] == "certificate-lou-a01-01"


def test_not_leaseable_always_says_why(daemon: House) -> None:
    items = daemon.get("/v1/hosts").json()["items"]
    assert all(bool(host["reasons"]) != host["leaseable"] for host in items)
    registered = [host for host in items if host["state"] == "registered"]
    assert registered
    assert all(host["reasons"] for host in registered)


def test_alert_shows_and_prevents(daemon: House) -> None:
    alert = Alert(
        id="wire",
        target="bmc",
        since=1.0,
        message="no answer",
        remedy="look",
        classifications=(Classification.PREVENTS_LEASE,),
    )
    daemon.put("lou-a01-04", alerts=(alert,))
    try:
        host = daemon.get("/v1/hosts/lou-a01-04").json()
        assert host["health"] == "alert"
        assert host["alerts"][0]["since"] == "1970-01-01T00:00:01.000Z"
        assert not host["leaseable"]
    finally:
        daemon.put("lou-a01-04", alerts=())


def test_by_id_name_and_serial(daemon: House) -> None:
    host = daemon.get("/v1/hosts/lou-a01-02").json()
    assert daemon.get(f"/v1/hosts/{host['id']}").json() == host
    assert daemon.get(f"/v1/hosts/{host['spec']['serial']}").json() == host


def test_range_filters_and_orders_by_place(daemon: House) -> None:
    items = daemon.get("/v1/hosts", params={"hosts": "lou-a01-[01-03] -lou-a01-02"}).json()["items"]
    assert [host["name"] for host in items] == ["lou-a01-01", "lou-a01-03"]


def test_range_that_names_nothing_is_404(daemon: House) -> None:
    answer = daemon.get("/v1/hosts", params={"hosts": "nowhere-[01-09]"})
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.json()["code"] == "FLT-3003"


def test_bad_range_is_422(daemon: House) -> None:
    answer = daemon.get("/v1/hosts", params={"hosts": "a[3-1]"})
    assert (answer.status_code, answer.json()["code"]) == (422, "FLT-3002")
    assert daemon.get("/v1/hosts", params={"hosts": ""}).status_code == 422


def test_paging_sees_each_once(daemon: House) -> None:
    names, cursor = [], None
    while True:
        page = daemon.get("/v1/hosts", params={"limit": 4} | ({"cursor": cursor} if cursor else {})).json()
        names += [host["name"] for host in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert names == sorted(names)
    assert len(names) == len(set(names)) == 6


def test_bad_cursor_and_limit_are_422(daemon: House) -> None:
    for params in ({"cursor": "%%%"}, {"cursor": "WzFd"}, {"limit": "0"}, {"limit": "9999"}, {"limit": "many"}):
        answer = daemon.get("/v1/hosts", params=params)
        assert answer.status_code == 422, params
        assert answer.json()["where"] in ("cursor", "limit")


def test_etag_is_the_version_and_if_match_is_honoured(daemon: House) -> None:
    answer = daemon.get("/v1/hosts/lou-a02-01")
    version = answer.json()["version"]
    assert answer.headers["etag"] == f'"{version}"'
    body = {"reason": "fan", "until": in_days(1)}
    stale = daemon.post("/v1/hosts/lou-a02-01/maintenance", body, headers={"If-Match": '"999"'})
    assert (stale.status_code, stale.json()["code"]) == (412, "FLT-3001")
    assert daemon.host("lou-a02-01").state is State.REGISTERED
    done = daemon.post("/v1/hosts/lou-a02-01/maintenance", body, headers={"If-Match": answer.headers["etag"]})
    assert done.status_code == 200
    assert done.json()["state"] == "maintenance"
    assert done.json()["maintenance"]["reason"] == "fan"
    assert done.json()["maintenance"]["pending"] is False
    assert done.headers["etag"] == f'"{done.json()["version"]}"' != answer.headers["etag"]


def test_power_says_what_the_read_back_says(daemon: House) -> None:
    assert daemon.post("/v1/hosts/lou-a01-01/power", {"verb": "on"}).json() == {"host": "lou-a01-01", "power": "on"}
    assert daemon.post("/v1/hosts/lou-a01-01/power", {"verb": "off"}).json()["power"] == "off"
    assert daemon.post("/v1/hosts/lou-a01-01/power", {"verb": "read"}).json()["power"] == "off"
    assert daemon.rig.hosts[0].power_state == "off"
    assert daemon.get("/v1/hosts/lou-a01-01").json()["power"] == "off"


def test_deaf_bmc_is_503_and_retryable(daemon: House) -> None:
    answer = daemon.post("/v1/hosts/lou-a01-03/power", {"verb": "read"})
    assert answer.status_code == 503
    assert answer.json()["retryable"] is True
    assert answer.json()["code"] == "FLT-1001"
    assert int(answer.headers["retry-after"]) >= 1


def test_boot_and_identify_reach_the_bmc(daemon: House) -> None:
    assert daemon.post("/v1/hosts/lou-a01-01/boot", {"device": "network"}).status_code == 200
    assert daemon.post("/v1/hosts/lou-a01-01/identify", {"on": True}).status_code == 200
    assert daemon.rig.hosts[0].boot_once == "network"
    assert daemon.rig.hosts[0].identify_led is True


def test_why_and_history(daemon: House) -> None:
    said = daemon.get("/v1/hosts/lou-a02-02/why").json()
    assert said["state"] == "registered"
    assert said["host"]["name"] == "lou-a02-02"
    daemon.post("/v1/hosts/lou-a01-02/identify", {})
    history = daemon.get("/v1/hosts/lou-a01-02/history").json()["items"]
    assert {"audit", "host.identify"} <= {event["kind"] for event in history}
    assert [event["seq"] for event in history] == sorted((event["seq"] for event in history), reverse=True)


def test_orders_name_the_wrong_field(daemon: House) -> None:
    cases = [
        ("power", {"verb": "explode"}, "verb"),
        ("power", {}, "verb"),
        ("power", {"verb": "on", "sudo": True}, "sudo"),
        ("quarantine", {"reason": "  "}, "reason"),
        ("maintenance", {"reason": "x", "until": "tomorrow"}, "until"),
        ("maintenance", {"reason": "x", "until": "2001-01-01T00:00:00Z"}, "until"),
        ("maintenance", {"reason": "x", "until": "2126-01-01T00:00:00"}, "until"),
        ("boot", {"device": 7}, "device"),
        ("identify", [], "body"),
    ]
    for order, body, where in cases:
        answer = daemon.post(f"/v1/hosts/lou-a01-02/{order}", body)
        assert (answer.status_code, answer.json()["where"]) == (422, where), (order, body, answer.text)


def test_certificate_of_nobody_is_404(daemon: House) -> None:
    assert daemon.get("/v1/hosts/lou-a02-02/certificate").status_code == 404
    assert daemon.get("/v1/hosts/nobody/why").status_code == 404
    assert "BEGIN PUBLIC KEY" in daemon.get("/v1/public-key").json()["pem"]
