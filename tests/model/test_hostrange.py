"""The grammar by which people name hosts, and what must never come of it: a wrong host, or a full memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetd.kit.errors import Invalid
from fleetd.model.hostrange import MAX_NAMES, MAX_TEXT, compile_range, expand, select


def host(name: str, **fields: str) -> dict[str, str]:
    return {"name": name, "id": f"host-{name}", "rack": name[:7], "state": "available", "sku": "hgx.h100", **fields}


HOSTS = [host(f"lou-a0{rack}-{n:02d}", position=str(n)) for rack in (1, 2) for n in range(1, 5)]


def names(text: str) -> list[str]:
    return [h["name"] for h in select(text, HOSTS)]


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("a", ["a"]),
        ("a[1-3]", ["a1", "a2", "a3"]),
        ("a[08-11]", ["a08", "a09", "a10", "a11"]),
        ("a[01-03,7]b", ["a01b", "a02b", "a03b", "a7b"]),
        ("r[1-2]-[1-2]", ["r1-1", "r1-2", "r2-1", "r2-2"]),
        ("a[5]", ["a5"]),
    ],
)
def test_expand(word: str, wanted: list[str]) -> None:
    assert expand(word) == wanted


@pytest.mark.parametrize(
    "word",
    [
        "",
        "a[]",
        "a[x]",
        "a[3-1]",
        "a[1-]",
        "a[-1]",
        "a[1--2]",
        "a[[1]]",
        "a]",
        "a[1",
        "a b",
        "a;b",
        "a[٣]",
        "a[1-99999999]",
    ],
)
def test_what_is_no_range(word: str) -> None:
    with pytest.raises(Invalid):
        expand(word)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("all", [h["name"] for h in HOSTS]),
        ("lou-a01-01", ["lou-a01-01"]),
        ("host-lou-a01-01", ["lou-a01-01"]),
        ("lou-a01-[01-02]", ["lou-a01-01", "lou-a01-02"]),
        ("rack=lou-a02", ["lou-a02-01", "lou-a02-02", "lou-a02-03", "lou-a02-04"]),
        ("rack=lou-a02,position=[2-3]", ["lou-a02-02", "lou-a02-03"]),
        ("lou-a01-01 lou-a02-04", ["lou-a01-01", "lou-a02-04"]),
        ("rack=lou-a01 -lou-a01-03", ["lou-a01-01", "lou-a01-02", "lou-a01-04"]),
        ("-rack=lou-a01", ["lou-a02-01", "lou-a02-02", "lou-a02-03", "lou-a02-04"]),
        ("*-01", ["lou-a01-01", "lou-a02-01"]),
        ("lou-a01-*,-position=1,-position=2", ["lou-a01-03", "lou-a01-04"]),
        ("sku=hgx.*,position=4", ["lou-a01-04", "lou-a02-04"]),
        ("lou-a01-1", []),
    ],
)
def test_select(text: str, wanted: list[str]) -> None:
    assert names(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "  ", "colour=red", "-colour=red", "a,b", "x" * (MAX_TEXT + 1), "rack=", "-=x", "=x"]
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        compile_range(text)


@pytest.mark.parametrize(
    "text",
    [
        "a[" + ",".join(["1-99999"] * 8000) + "]",  # one bracket, many pieces
        " ".join(["a[1-99999]"] * 6000),  # many terms
        "a" + "[1-999]" * 9000,  # many brackets
        "x" * 60_000 + "[1-99999]",  # a long name, many times
        "a[" + "9" * 60_000 + "]",
        "-" * 60_000 + "rack=a",
        "position=[1-99999],position=[1-99999]",
    ],
)
def test_a_text_cannot_fill_the_memory(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        compile_range(text)
    assert len(str(caught.value)) < 500


def test_the_bound_itself_is_allowed() -> None:
    assert len(expand(f"a[1-{MAX_NAMES}]")) == MAX_NAMES


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 300), st.integers(1, 8))
def test_a_range_is_what_counting_gives(first: int, more: int, digits: int) -> None:
    low, high = str(first).zfill(digits), str(first + more)
    assert expand(f"n[{low}-{high}]") == [f"n{str(i).zfill(len(low))}" for i in range(first, first + more + 1)]


@given(st.sets(st.sampled_from([h["name"] for h in HOSTS]), min_size=1))
def test_naming_hosts_selects_exactly_them(wanted: set[str]) -> None:
    assert set(names(" ".join(wanted))) == wanted
    assert set(names("all " + " ".join(f"-{n}" for n in wanted))) == {h["name"] for h in HOSTS} - wanted


@given(st.text(alphabet="ab[]-,=*?.0129 rackposition", max_size=40))
def test_any_text_is_a_range_or_invalid(text: str) -> None:
    try:
        chosen = select(text, HOSTS)
    except Invalid:
        return
    assert all(h in HOSTS for h in chosen)
