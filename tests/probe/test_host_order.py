"""Orders: every field bounded, and no input does more than be refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.probe.host import order as orders
from fleetd.probe.host.order import Refusal
from fleetd.probe.host.work import COMMANDS
from tests.probe.imaging import SEED

IMAGE = {
    "name": "ubuntu",
    "format": "raw.zst",
    "bytes": 10,
    "sha256": "0" * 64,
    "raw_bytes": 1024,
    "raw_sha256": "f" * 64,
    "urls": ["http://10.0.0.1:8680/images/x?ticket=t", "https://mirror.example/x"],
}
GOOD = {
    "intent": "i",
    "nonce": "n",
    "host_serial": "H",
    "drives": [{"serial": "D0"}],
    "rule": "smallest",
    "image": IMAGE,
    "seed": SEED,
}


def read(value, command="write-image"):
    return orders.read(command, json.dumps(value).encode())


def test_a_good_order_is_read_whole():
    order = read(GOOD)
    assert order.image.urls == tuple(IMAGE["urls"])
    assert order.seed.hostname == "lou-a01-01"
    assert "SECRET" not in repr(order)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("image.name", ["", "a\nb", "x" * 257, None, 1]),
        ("image.format", ["qcow2", "", None, "RAW", ["raw"]]),
        ("image.bytes", [0, -1, 1 << 60, "10", True, 1.5, None]),
        ("image.raw_bytes", [0, 513, 1 << 60, None]),
        ("image.sha256", ["0" * 63, "G" * 64, "0" * 65, "A" * 64, None]),
        ("image.raw_sha256", ["", "0" * 64 + "\n"]),
        (
            "image.urls",
            [
                [],
                "http://x/",
                ["file:///etc/passwd"],
                ["ftp://x/"],
                ["http://"],
                ["http://user:pw@x/"],
                ["http://x/ y"],
                ["http://x/\r\nHost: y"],
                ["http://x:99999/"],
                ["http://x:0/"],
                ["http://[::1/"],
                ["//x/y"],
                ["http://ü/"],
                ["http://x/#f"],
                ["http://x/" + "y" * 3000],
                ["http://x/"] * 17,
                [None],
            ],
        ),
        (
            "seed.hostname",
            [
                "a\nb",
                "-a",
                "a-",
                "a..b",
                ".a",
                "a.",
                "a_b",
                "a b",
                "",
                "x" * 64,
                "a\0",
                "ä",
                "a\n",
                "x." * 127 + "xx",
                5,
            ],
        ),
        ("seed.instance_id", ["", "a b", "a\n", "../x", "x" * 200]),
        ("seed.authorized_keys", ["ssh-ed25519 A", [""], ["a\nb"], ["a\0"], [1], ["x"] * 257, None, ["a\u2028b"]]),
        ("seed.host_key_private", ["", "a\x07b", "a\rb", None, "x" * 20000]),
        ("seed.host_key_public", ["", "a\nb"]),
        ("seed.phone_home_url", ["", "x", "javascript:1", "http://a b/", None]),
        ("seed.phone_home_token", ["", "a b", "a\nb", "a'b", 'a"b', "ü"]),
        ("seed.user_data", [1, ["x"], "\ud800"]),
        ("seed.network", [1, "x" * 70000]),
        ("seed.boot_mac", ["x", "04:3f:72:aa:00", "04:3f:72:aa:00:01\n", 7]),
        ("rule", ["", None, "a\nb", "x" * 300]),
        ("drives", [[], None, [{}], ["D0"], [{"serial": "D"}] * 2, [{"serial": str(i)} for i in range(300)]]),
        ("image", [None, [], "x"]),
        ("seed", [None, [], "x"]),
    ],
)
def test_each_field_is_bounded(field, bad):
    for value in bad:
        changed = json.loads(json.dumps(GOOD))
        at = changed
        *path, last = field.split(".")
        for name in path:
            at = at[name]
        at[last] = value
        with pytest.raises(Refusal) as refused:
            read(changed)
        assert refused.value.code == "bad-order", value
        del at[last]
        if field not in ("rule", "seed.user_data", "seed.network", "seed.boot_mac"):
            with pytest.raises(Refusal):
                read(changed)


def test_a_mac_in_capitals_is_the_same_mac():
    assert read({**GOOD, "seed": SEED | {"boot_mac": "04:3F:72:AA:00:01"}}).seed.boot_mac == "04:3f:72:aa:00:01"


@given(st.sampled_from(COMMANDS), st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(command, data):
    with pytest.raises(Refusal):
        orders.read(command, data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(GOOD)), st.sampled_from(sorted({*IMAGE, *SEED, "serial"})), JSON)
def test_any_json_anywhere_is_read_or_refused(field, inner, value):
    changed = json.loads(json.dumps(GOOD))
    for place in (changed, changed["image"], changed["seed"]):
        before = dict(place)
        place[field if place is changed else inner] = value
        try:
            orders.read("write-image", json.dumps(changed).encode())
        except Refusal as refusal:
            assert refusal.code == "bad-order"
        place.clear()
        place.update(before)


def test_oversized_and_deep_input_is_refused():
    with pytest.raises(Refusal):
        orders.read("wipe", b" " * (orders.MAX_ORDER + 1))
    with pytest.raises(Refusal):
        orders.read("wipe", b"[" * 100_000)
