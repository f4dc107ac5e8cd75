"""A site file is refused at the line that is wrong, and what it names is what the simulator builds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.kit.errors import Invalid, NotFound
from fleetd.model.bmc import BmcSpec
from fleetd.model.host import HostSpec
from fleetd.sim.demo import build_demo
from fleetd.sim.sitefile import load_site, os_address, true_serial

Edit = Callable[[str, str], Path]


@pytest.fixture
def edit(tmp_path: Path) -> Edit:
    """Write the small demo with one text of its site file replaced; returns the path."""

    def make(old: str, new: str) -> Path:
        build_demo(tmp_path, 3, size="small")
        path = tmp_path / "site.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        return path

    return make


def line_of(path: Path, text: str) -> str:
    lines = path.read_text().splitlines()
    return f"site.yaml:{next(i for i, line in enumerate(lines, 1) if text in line)}"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("seed: 3", "sed: 3", "unknown key `sed`"),
        ("seed: 3", "seed: three", "Expected `int`"),
        ("depth: fast", "depth: deep", "Invalid enum value"),
        ("faults:\n", "faults:\n  - {host: nobody, kind: xid}\n", "host `nobody` is not in the inventory"),
        ("faults:\n", "faults:\n  - {host: lou-a01-01, kind: gremlin}\n", "there is no fault `gremlin`"),
        ("faults:\n", "faults:\n  - {host: lou-a01-01, kind: xid, parms: {}}\n", "unknown key `parms`"),
        ("faults:\n", "faults:\n  - {host: lou-a01-01, kind: xid, params: {colour: 3}}\n", "no parameter `colour`"),
        ("faults:\n", "faults:\n  - {host: lou-a01-01, kind: xid, params: {gpu: 8}}\n", "has no gpu 8"),
        ("faults:\n", "faults:\n  - {host: lou-n01-01, kind: gpu-off-bus, params: {gpu: 4}}\n", "has no gpu 4"),
        ("faults:\n", "faults:\n  - {host: lou-a01-01, kind: xid, params: {gpu: one}}\n", "`gpu` is a number"),
        ("faults:\n", "faults:\n  - {host: lou-a01-01, kind: slow-bmc, params: {seconds: -1}}\n", "0 or more"),
        ("faults:\n", "faults:\n  - {host: lou-a01-01, kind: deaf-bmc, params: {mode: rude}}\n", "no mode `rude`"),
        ("faults:\n", "faults:\n  - {host: lou-a01-01, kind: wrong-domain}\n", "in no NVLink domain"),
        ("faults:\n", "faults:\n  - {host: lou-a01-01, kind: busy-bmc, count: 0}\n", "`count` is at least 1"),
        ("post: 0.2", "post: -1", "`post` is a number of seconds, 0 or more"),
        ("post: 0.2", "post: quick", "Expected `float`"),
        ("post: 0.2", "coffee: 1", "unknown key `coffee`"),
        ("  factory-dell:", "  factory-hal:", "credentials `factory-dell`"),
        ("redfish: 17443", "redfish: 17444", "listens on 17444"),
        ("ipmi: 17623", "ipmi: 1", "listens on 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(edit: Edit, old: str, new: str, says: str) -> None:
    path = edit(old, new)
    with pytest.raises(Invalid) as caught:
        load_site(path)
    assert says in str(caught.value)
    assert "site.yaml:" in caught.value.where
    assert caught.value.exit_code == 2


def test_the_line_is_exact_in_the_list_of_faults(edit: Edit) -> None:
    path = edit("faults:\n", "faults:\n  - {host: lou-a01-01, kind: xid}\n  - host: lou-a01-02\n    kind: gremlin\n")
    with pytest.raises(Invalid) as caught:
        load_site(path)
    assert caught.value.where.endswith(line_of(path, "kind: gremlin"))


def test_a_missing_file_or_folder_says_so(tmp_path: Path, edit: Edit) -> None:
    with pytest.raises(NotFound):
        load_site(tmp_path / "nowhere.yaml")
    with pytest.raises(NotFound, match="no inventory folder"):
        load_site(edit("inventory: inventory", "inventory: elsewhere"))
    (tmp_path / "site.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(Invalid, match="UTF-8"):
        load_site(tmp_path / "site.yaml")
    (tmp_path / "site.yaml").write_text("- a list\n")
    with pytest.raises(Invalid, match="mapping"):
        load_site(tmp_path / "site.yaml")


def test_a_bmc_outside_loopback_is_refused(edit: Edit, tmp_path: Path) -> None:
    path = edit("seed: 3", "seed: 3")
    rack = tmp_path / "inventory/racks/louisiana/lou-a01.yaml"
    rack.write_text(rack.read_text().replace("127.10.1.1:", "10.10.1.1:"))
    with pytest.raises(Invalid, match=r"10\.10\.1\.1, which is not a loopback"):
        load_site(path)


def test_words_become_numbers_and_faults_are_fresh_each_time(edit: Edit) -> None:
    path = edit(
        "faults:\n",
        "faults:\n  - {host: lou-a01-02, kind: xid, params: {gpu: 7, code: 79}, count: 2}\n"
        "  - {host: lou-a01-02, kind: wrong-serial, params: {serial: 0012}}\n",
    )
    site = load_site(path)
    first, second = site.faults("lou-a01-02")[:2]
    assert first.params == {"gpu": 7, "code": 79}
    assert first.count == 2
    assert second.params == {"serial": "0012"}
    first.fired = 5
    assert site.faults("lou-a01-02")[0].fired == 0


def test_a_pattern_chooses_the_behaviour_but_the_wire_comes_first(edit: Edit) -> None:
    site = load_site(edit("faults:\n", 'behaviours: {"dell.*": supermicro}\nfaults:\n'))
    assert site.behaviour(site.inventory.hosts["lou-a01-01"]) == "supermicro"
    assert site.behaviour(site.inventory.hosts["oh-c01-01"]) == "ipmi"


def spec(address: str, serial: str = "7XK21B3") -> HostSpec:
    bmc = BmcSpec(protocol="redfish", address=address, credentials="x")
    return HostSpec(name="a-01", position=1, sku="s", serial=serial, bmc=bmc, boot_mac="04:3f:72:aa:00:01")


@given(st.integers(0, 55), st.integers(0, 255), st.integers(1, 254))
def test_a_host_stands_200_above_its_bmc(x: int, y: int, z: int) -> None:
    assert os_address(spec(f"127.{x}.{y}.{z}:443")) == f"127.{x + 200}.{y}.{z}"


@pytest.mark.parametrize("address", ["127.56.0.1", "192.0.2.1", "localhost", "128.0.0.1", "::1"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(Invalid):
        os_address(spec(address))


@given(st.integers(0, 999), st.text("ABC0123456789", min_size=1, max_size=14))
def test_the_true_serial_is_another_one_of_the_same_length(seed: int, serial: str) -> None:
    true = true_serial(seed, spec("127.0.0.1", serial))
    assert true != serial
    assert len(true) == len(serial)
    assert true == true_serial(seed, spec("127.0.0.1", serial))
