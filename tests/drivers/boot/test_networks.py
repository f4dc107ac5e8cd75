"""Networks behind relays: each with its own range, router and tag; none that could give a host another rack's address."""

from __future__ import annotations

import ipaddress
import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.drivers.boot.dnsmasq import Settings, check, config_text
from fleetd.drivers.boot.networks import MAX_RELAYED, Range, Relayed, check_disjoint
from fleetd.kit.errors import Invalid

URL = "http://10.77.0.1:8680"
ROW = Relayed(range="10.78.0.50,10.78.0.199,255.255.255.0", router="10.78.0.1")
OTHER = Relayed(range="10.79.0.50,10.79.0.199,255.255.255.0", router="10.79.0.1", dns="10.79.0.2", lease="1h")
HALL = Settings(
    interface="br0",
    address="10.77.0.1",
    range="10.77.0.50,10.77.0.99,255.255.255.0",
    relayed=(ROW, OTHER),
    dns="10.0.0.53",
)
BESIDE = msgspec.structs.replace(
    HALL, mode="proxy", range="10.77.0.0/24", relayed=(Relayed(range="10.78.0.0/24"), Relayed(range="10.79.0.0/24"))
)


def lines(settings: Settings = HALL) -> list[str]:
    return config_text(settings, URL, state="/var/lib/fleetd-boot").splitlines()


def test_each_network_has_its_range_its_router_and_its_dns():
    text = lines()
    assert [line for line in text if line.startswith("dhcp-range=")] == [
        "dhcp-range=10.77.0.50,10.77.0.99,255.255.255.0,10m",
        "dhcp-range=set:net0,10.78.0.50,10.78.0.199,255.255.255.0,10m",
        "dhcp-range=set:net1,10.79.0.50,10.79.0.199,255.255.255.0,1h",
    ]
    assert [line for line in text if "option:router" in line] == [
        "dhcp-option=option:router",
        "dhcp-option=tag:net0,option:router,10.78.0.1",
        "dhcp-option=tag:net1,option:router,10.79.0.1",
    ]
    assert [line for line in text if "option:dns-server" in line] == [
        "dhcp-option=option:dns-server,10.0.0.53",
        "dhcp-option=tag:net1,option:dns-server,10.79.0.2",
    ]
    assert "dhcp-ignore=tag:!fleet" in text
    assert "dhcp-boot=tag:efi,tag:!ipxe,snponly.efi,,10.77.0.1" in text


def test_a_server_apart_from_all_hosts_answers_relays_only():
    apart = lines(msgspec.structs.replace(HALL, range=""))
    assert not [line for line in apart if line.startswith("dhcp-range=10.77")]
    assert len([line for line in apart if line.startswith("dhcp-range=")]) == 2


def test_beside_the_sites_dhcp_a_relayed_network_is_a_network():
    text = lines(BESIDE)
    assert "dhcp-range=set:net0,10.78.0.0,proxy,255.255.255.0" in text
    assert not [line for line in text if "router" in line]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"range": ""}, "relayed.1.range"),
        ({"range": "10.79.0.50,10.79.0.199"}, "relayed.1.range"),
        ({"range": "10.79.0.0/24"}, "relayed.1.range"),
        ({"range": "10.79.0.0,10.79.0.199,255.255.255.0"}, "relayed.1.range"),
        ({"range": "10.79.0.50,10.79.0.255,255.255.255.0"}, "relayed.1.range"),
        ({"range": "10.79.0.50,10.79.0.199,0.0.0.255"}, "relayed.1.range"),
        ({"range": "10.78.0.200,10.78.0.220,255.255.255.0", "router": "10.78.0.1"}, "relayed.1.range"),
        ({"range": "10.78.4.50,10.78.4.99,255.255.0.0", "router": "10.78.0.1"}, "relayed.1.range"),
        ({"range": "10.77.0.150,10.77.0.199,255.255.255.0", "router": "10.77.0.254"}, "relayed.1.range"),
        ({"range": "10.76.0.50,10.76.0.99,255.254.0.0", "router": "10.76.0.1"}, "relayed.1.range"),
        ({"router": ""}, "relayed.1.router"),
        ({"router": "10.78.0.1"}, "relayed.1.router"),
        ({"router": "10.79.0.60"}, "relayed.1.router"),
        ({"router": "10.79.0.1,10.79.0.2"}, "relayed.1.router"),
        ({"router": "10.79.0.1\n"}, "relayed.1.router"),
        ({"dns": "dns.example"}, "relayed.1.dns"),
        ({"dns": "10.0.0.53\ndhcp-script=/x"}, "relayed.1.dns"),
        ({"lease": "1h,tag:x"}, "relayed.1.lease"),
        ({"lease": "0"}, "relayed.1.lease"),
    ],
)
def test_a_network_that_cannot_be_is_refused_with_its_key(change, where):
    wrong = msgspec.structs.replace(HALL, relayed=(ROW, msgspec.structs.replace(OTHER, **change)))
    with pytest.raises(Invalid) as refused:
        check(wrong, URL)
    assert refused.value.where == where


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"range": "", "relayed": ()}, "range"),
        ({"range": "", "router": "10.77.0.254"}, "router"),
        ({"address": "10.80.0.1"}, "address"),
        ({"router": "10.80.0.1"}, "router"),
        ({"router": "10.77.0.60"}, "router"),
        ({"relayed": (ROW,) * (MAX_RELAYED + 1)}, "relayed"),
        ({"range": "", "address": "10.78.0.9"}, "relayed.0.range"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_their_key(change, where):
    with pytest.raises(Invalid) as refused:
        check(msgspec.structs.replace(HALL, **change), URL)
    assert refused.value.where == where


@pytest.mark.parametrize("name", ["router", "dns", "lease"])
def test_a_proxy_tells_nothing_of_a_relayed_network(name):
    value = {"router": "10.78.0.1", "dns": "10.78.0.2", "lease": "1h"}[name]
    told = msgspec.structs.replace(BESIDE, relayed=(Relayed(range="10.78.0.0/24", **{name: value}),))
    with pytest.raises(Invalid) as refused:
        check(told, URL)
    assert refused.value.where == f"relayed.0.{name}"


networks = st.tuples(st.integers(0, 255), st.integers(20, 30)).map(
    lambda at: ipaddress.IPv4Network((0x0A000000 + at[0] * 64, at[1]), strict=False)
)


@given(st.lists(networks, max_size=8))
def test_two_networks_that_share_an_address_are_found_wherever_they_stand(found):
    share = any(one.overlaps(other) for one, other in itertools.combinations(found, 2))
    ranges = [(str(n), Range(network, None, None)) for n, network in enumerate(found)]
    if share:
        with pytest.raises(Invalid):
            check_disjoint(ranges)
    else:
        check_disjoint(ranges)


@given(st.text(max_size=30), st.sampled_from(["range", "router", "dns", "lease"]))
def test_no_text_adds_a_line(text, name):
    try:
        made = lines(msgspec.structs.replace(HALL, relayed=(ROW, msgspec.structs.replace(OTHER, **{name: text}))))
    except Invalid:
        return
    assert len(made) - len(lines()) in (0, -1 if name == "dns" else 0)
