"""Inventory files: what is right is read whole, what is wrong is refused with the line a person has to look at."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fleetd.kit.errors import Invalid
from fleetd.model.inventory import read_inventory

RACK = "racks/louisiana/lou-a01.yaml"
SITE = "sites/louisiana.yaml"
H100 = "skus/dell.xe9680-h100-8.yaml"


def refused(files: dict[str, str]) -> Invalid:
    with pytest.raises(Invalid) as caught:
        read_inventory(files)
    assert caught.value.remedy
    return caught.value


def test_a_right_inventory(files: dict[str, str]) -> None:
    inventory = read_inventory(files)
    assert list(inventory.hosts) == ["lou-a01-01", "lou-a01-02"]
    host = inventory.hosts["lou-a01-02"]
    assert (host.site, host.rack, host.serial, host.boot_mac) == (
        "louisiana",
        "lou-a01",
        "7XK21B4",
        "04:3f:72:aa:00:02",
    )
    assert len(inventory.skus) == 3


def test_the_inventory_of_the_project() -> None:
    root = Path(__file__).parents[2] / "inventory"
    texts = {str(p.relative_to(root)): p.read_text() for p in root.rglob("*.yaml")}
    assert len(read_inventory(texts).skus) == 3


# (what is replaced in which file, by what, the line that must be named, a word of the message)
BAD = [
    (RACK, "hall: h1", "hell: h1", 3, "unknown key `hell`"),
    (RACK, "    position: 7", "    positon: 7", 15, "unknown key `positon`"),
    (RACK, "serial: 7XK21B4", "serial: 7XK21B3", 17, "serial `7XK21B3` stands twice"),
    (RACK, "serial: 7XK21B4", "serial: 7xk21b3", 17, "stands twice"),
    (RACK, "serial: 7XK21B4", "serial: To be filled by O.E.M.", 17, "not a serial"),
    (RACK, "serial: 7XK21B4", 'serial: ""', 17, "not a serial"),
    (RACK, "name: lou-a01-02", "name: lou-a01-01", 14, "host `lou-a01-01` stands twice"),
    (RACK, "name: lou-a01-02", "name: LOU_02", 14, "not a name"),
    (RACK, "name: lou-a01-02", "name: lou..02", 14, "not a name"),
    (RACK, "name: lou-a01-02", "name: lou-.02", 14, "not a name"),
    (
        RACK,
        "    position: 7\n    sku: dell.xe9680-h100-8",
        "    position: 7\n    sku: dell.none",
        16,
        "SKU `dell.none`",
    ),
    (RACK, "    position: 7", "    position: 1", 15, "U1 of `lou-a01-02` is taken"),
    (RACK, "    position: 7", "    position: 6", 15, "U6 of `lou-a01-02` is taken"),  # by the height of the one below
    (RACK, "    position: 7", "    position: 60", 15, "not in a rack"),
    (RACK, "    position: 7", "    position: 0", 15, "not in a rack"),
    (RACK, "    position: 7", "    position: top", 15, "int"),
    (RACK, "04:3f:72:aa:00:02", "04:3f:72:aa:00", 19, "not a MAC"),
    (RACK, "04:3f:72:aa:00:02", "04:3F:72:AA:00:02", 19, "not a MAC"),
    (RACK, "04:3f:72:aa:00:02", "05:3f:72:aa:00:02", 19, "not a MAC"),  # multicast
    (RACK, "04:3f:72:aa:00:02", "00:00:00:00:00:00", 19, "not a MAC"),
    (RACK, "04:3f:72:aa:00:02", "04:3f:72:aa:00:01", 19, "boot MAC `04:3f:72:aa:00:01` stands twice"),
    (RACK, "10.1.1.2,", "10.1.1.1,", 18, "BMC address"),
    (RACK, "10.1.1.2,", '"10.1.1.2:99999",', 18, "not an address"),
    (RACK, "10.1.1.2,", '"10.1.1.2:4_43",', 18, "not an address"),
    (RACK, "10.1.1.2,", "10.1.1.2/../x,", 18, "not an address"),
    (RACK, "10.1.1.2,", '"fe80::1",', 18, "not an address"),
    (RACK, "protocol: redfish, address: 10.1.1.2", "protocol: telnet, address: 10.1.1.2", 18, "telnet"),
    (RACK, "lou-a01-pdu-a/2", "lou-a01-pdu-a/1", 20, "outlet `lou-a01-pdu-a/1` stands twice"),
    (RACK, "[lou-a01-pdu-a/2]", "[lou-a01-pdu-a/2, lou-a01-pdu-a/2]", 20, "stands twice"),
    (RACK, "lou-a01-pdu-a/2", "lou-a01-pdu-z/2", 20, "has no PDU"),
    (RACK, "lou-a01-pdu-a/2", "second", 20, "not an outlet"),
    (RACK, "    position: 7", "    position: 7\n    site: ohio", 16, "unknown key `site`"),
    (RACK, "site: louisiana", "site: ohio", 2, "site `ohio`"),
    (RACK, "hall: h1", "hall: h9", 3, "no hall `h9`"),
    (RACK, "66 kW", "lots", 4, "not a power"),
    (RACK, "hosts:", "hosts: 3\nx:", 6, "`hosts` is a list"),
    (RACK, "nvlink_domain: null", "nvlink_domain: &a null", 5, "YAML anchor"),
    (RACK, "hall: h1", "hall: *a", 3, "YAML alias"),
    (RACK, "hall: h1", "hall: !!python/name:os.system h1", 3, "YAML tag"),
    (RACK, "hall: h1", "rack: lou-a02", 3, "key `rack` stands here twice"),
    (RACK, "    position: 7", "    position: 7\n    position: 8", 16, "stands here twice"),
    (RACK, "hall: h1", "hall: [", 5, "not YAML"),
    (SITE, "driver: apc-rpdu2", "diver: apc-rpdu2", 4, "unknown key `diver`"),
    (SITE, "site: louisiana", "site: 'Louis Iana'", 1, "not a name"),
    (H100, "height: 6", "height: 0", 8, "height"),
    (H100, "certificate_ttl: 30d", "certificate_ttl: soon", 11, "not a duration"),
    (H100, "certificate_ttl: 30d", "certificate_ttl: 0d", 11, "longer"),
    (H100, "links: 18", "lynx: 18", 24, "unknown key `lynx`"),
]


@pytest.mark.parametrize(("file", "old", "new", "line", "words"), BAD)
def test_a_bad_place_is_named(files: dict[str, str], file: str, old: str, new: str, line: int, words: str) -> None:
    assert files[file].count(old) == 1
    files[file] = files[file].replace(old, new)
    error = refused(files)
    assert words in error.what
    assert error.where == f"{file}:{line}"


def test_the_first_place_of_a_duplicate_is_named_too(files: dict[str, str]) -> None:
    files[RACK] = files[RACK].replace("7XK21B4", "7XK21B3")
    assert refused(files).why == f"first at {RACK}:10"


def test_a_host_in_two_racks(files: dict[str, str]) -> None:
    text = files[RACK].replace("rack: lou-a01\n", "rack: lou-a02\n")
    files["racks/louisiana/lou-a02.yaml"] = text
    error = refused(files)
    assert error.where == "racks/louisiana/lou-a02.yaml:7"
    assert error.why == f"first at {RACK}:7"


def test_the_same_rack_in_two_files(files: dict[str, str]) -> None:
    files["racks/louisiana/zzz.yaml"] = "rack: lou-a01\nsite: louisiana\n"
    assert refused(files).where == "racks/louisiana/zzz.yaml:1"


def test_a_second_bad_pdu_is_named_not_the_first(files: dict[str, str]) -> None:
    files[SITE] += "  - {name: lou-a01-pdu-b, rack: lou-a01, address: 10.1.0.11, driver: apc-rpdu2}\n"
    error = refused(files)
    assert error.where == f"{SITE}:5"


def test_a_pdu_that_stands_twice(files: dict[str, str]) -> None:
    files[SITE] += files[SITE].splitlines()[-1] + "\n"
    assert refused(files).where == f"{SITE}:5"


def test_a_switch_tray_takes_its_position(files: dict[str, str]) -> None:
    files[RACK] = files[RACK].replace(
        "nvlink_domain: null", "nvlink_domain: null\nswitch_trays:\n  - {name: sw1, position: 3}"
    )
    error = refused(files)
    assert "U3 of `lou-a01-01` is taken" in error.what


def test_a_tray_in_a_rack_without_a_domain(files: dict[str, str]) -> None:
    files[RACK] = files[RACK].replace(
        "    position: 7\n    sku: dell.xe9680-h100-8", "    position: 7\n    sku: nvidia.gb200-nvl72-tray"
    )
    error = refused(files)
    assert error.where == f"{RACK}:16"
    files[RACK] = files[RACK].replace("nvlink_domain: null", "nvlink_domain: a01")
    assert read_inventory(files).hosts["lou-a01-02"].nvlink_domain == "a01"


def test_a_file_in_no_folder(files: dict[str, str]) -> None:
    files["notes.yaml"] = "x: 1\n"
    assert refused(files).where == "notes.yaml:1"


def test_the_nearest_folder_decides(files: dict[str, str]) -> None:
    assert len(read_inventory({f"/home/skus/sites/inventory/{k}": v for k, v in files.items()}).hosts) == 2


@pytest.mark.parametrize("text", ["", "[]", "- a", "text", "null"])
def test_a_file_of_another_shape(files: dict[str, str], text: str) -> None:
    for name in (RACK, SITE, H100):
        with pytest.raises(Invalid) as caught:
            read_inventory({**files, name: text})
        assert caught.value.where.startswith(f"{name}:")


@pytest.mark.parametrize("suite", ["acceptance", "quick"])
def test_an_empty_suite_is_no_suite(files: dict[str, str], suite: str) -> None:
    files[H100], times = re.subn(rf"^{suite}:\n((  - |#).*\n)+", f"{suite}: []\n", files[H100], flags=re.MULTILINE)
    assert times == 1
    assert "zero checks are never a pass" in refused(files).what


def test_a_check_twice_in_a_suite(files: dict[str, str]) -> None:
    files[H100] = files[H100].replace("  - gpu.memory\n", "  - gpu.memory\n  - gpu.memory\n", 1)
    assert "twice" in refused(files).what


def test_a_changed_number_changes_the_digest(files: dict[str, str]) -> None:
    before = read_inventory(files).skus["dell.xe9680-h100-8"].digest
    files[H100] = files[H100].replace("remapped_rows_max: 2", "remapped_rows_max: 3")
    after = read_inventory(files).skus["dell.xe9680-h100-8"].digest
    assert before != after
    files[H100] += "# a comment\n"
    assert read_inventory(files).skus["dell.xe9680-h100-8"].digest == after
