"""What a lease may ask for: each wrong field is refused by its name, and what is accepted fits the order a host takes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fleetd.kit.errors import Denied, Invalid, NotFound
from fleetd.lifecycle.leaserequest import MAX_KEYS, MAX_USER_DATA, check_key, check_request
from fleetd.model.access import Principal, Role
from fleetd.model.lease import LeaseRequest
from fleetd.probe.host import order
from tests.lifecycle.fleet import KEY, START, Fleet, inventory, ledger


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with ledger() as db:
        fleet = Fleet(db)
        await fleet.fill(inventory({"lou-a01": 4, "lou-a02": 6, "lou-a03": 2}))
        yield fleet


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"count": 0}, "count"),
        ({"count": 10_001}, "count"),
        ({"tenant": "a/b"}, "tenant"),
        ({"tenant": "acme\n"}, "tenant"),
        ({"tenant": ""}, "tenant"),
        ({"ends_at": "2020-01-01T00:00:00Z"}, "ends_at"),
        ({"ends_at": "2099-01-01T00:00:00Z"}, "ends_at"),
        ({"ends_at": "tomorrow"}, "ends_at"),
        ({"ends_at": "2027-06-01T00:00:00"}, "ends_at"),
        ({"image": "windows-95"}, "image"),
        ({"user_data": "x" * 65_537}, "user_data"),
        ({"user_data": "ö" * 40_000}, "user_data"),
        ({"user_data": "a\0b"}, "user_data"),
        ({"ssh_keys": (KEY,) * 65}, "ssh_keys"),
        ({"ssh_keys": (KEY, f'command="rm" {KEY}')}, "ssh_keys[1]"),
        ({"ssh_keys": (f"{KEY}\nssh-ed25519 AAAA",)}, "ssh_keys[0]"),
        ({"ssh_keys": (KEY.replace("ssh-ed25519", "ssh-rsa"),)}, "ssh_keys[0]"),
        ({"ssh_keys": ("ssh-dss AAAA",)}, "ssh_keys[0]"),
        ({"ssh_keys": ("ssh-ed25519",)}, "ssh_keys[0]"),
        ({"ssh_keys": ("ssh-ed25519 " + "A" * 9000,)}, "ssh_keys[0]"),
        ({"ssh_keys": tuple(f"{KEY} {n} {'c' * 8000}" for n in range(64))}, "ssh_keys"),
        ({"user_data": "#!" + "\x01" * 65_000}, "user_data"),
        ({"user_data": "#!\ud800"}, "user_data"),
    ],
)
async def test_a_bad_request_is_refused_by_field(fleet: Fleet, change: dict[str, object], where: str) -> None:
    with pytest.raises(Invalid) as refused:
        await fleet.claim(**{"count": 1} | change)  # type: ignore[arg-type]
    assert refused.value.where == where
    assert await fleet.leases.every() == []


@settings(max_examples=30)
@example(MAX_KEYS, 8000, 0, "x")
@example(0, 0, MAX_USER_DATA, "\x01")
@given(
    st.integers(0, MAX_KEYS),
    st.integers(0, 8000),
    st.integers(0, MAX_USER_DATA),
    st.sampled_from(["x", "\n", "\x01", "\x7f", "ö", "\u2028", "😀", "\\"]),
)
def test_whatever_is_accepted_fits_the_order_that_a_host_takes(keys: int, comment: int, length: int, unit: str) -> None:
    key = f"{KEY.strip()} {'ö' * (comment // 2)}"
    asked = LeaseRequest(
        tenant="acme", sku="s", count=1, ends_at="2027-06-01T00:00:00Z", ssh_keys=(key,) * keys, user_data=unit * length
    )
    try:
        check_request(asked, START, lambda name: True)
    except Invalid:
        return
    digest = "0" * 64
    told = {
        "intent": "i" * 128, "nonce": digest, "host_serial": "s" * 128,
        "drives": [{"serial": f"{n:0128}"} for n in range(64)],
        "rule": "smallest",
        "image": {
            "name": "n" * 64, "format": "raw", "bytes": 512, "sha256": digest, "raw_bytes": 512, "raw_sha256": digest,
            "urls": [f"http://10.0.0.{n}/{'p' * 300}/{digest}" for n in range(16)],
        },
        "seed": {
            "hostname": "h" * 63, "instance_id": "i", "authorized_keys": asked.ssh_keys, "host_key_private": "k" * 4096,
            "host_key_public": KEY.strip(), "phone_home_url": "http://10.0.0.1:8680", "phone_home_token": "t" * 43,
            "user_data": asked.user_data, "network": "",
        },
    }  # fmt: skip
    read = order.read("write-image", msgspec.json.encode(told))
    assert read.seed is not None
    assert read.seed.authorized_keys == asked.ssh_keys
    assert read.seed.user_data == asked.user_data


@given(st.text(max_size=300) | st.text(max_size=80).map(lambda tail: "ssh-ed25519 " + tail))
def test_a_key_is_one_printable_line_of_a_known_type_or_refused(text: str) -> None:
    try:
        check_key(text, "ssh_keys[0]")
    except Invalid:
        return
    assert text.isprintable()
    assert "\n" not in text


async def test_sku_site_and_tenant_are_checked(fleet: Fleet) -> None:
    with pytest.raises(NotFound, match="no SKU"):
        await fleet.claim(1, sku="acme.toaster")
    with pytest.raises(NotFound, match="no site"):
        await fleet.claim(1, site="mars")
    other = Principal(name="t", role=Role.TENANT, tenant="umbrella")
    with pytest.raises(Denied):
        await fleet.leases.create(fleet.asks(1), who=other)
    lease = await fleet.claim(1)
    for call in (fleet.leases.release(lease.id, who=other), fleet.leases.extend(lease.id, lease.ends + 9, who=other)):
        with pytest.raises(Denied):
            await call
