"""YAML as people mean it, and as attackers write it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetd.kit.errors import Invalid
from fleetd.kit.yamlfile import MAX_BYTES, MAX_DEPTH, decode, parse


class Item(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    size: int = 0


class Box(msgspec.Struct, forbid_unknown_fields=True):
    items: list[Item] = []
    named: dict[str, Item] = {}
    flag: bool | None = None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("on", "on"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("True", "True"),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ('"true"', "true"),
        ("0012", "0012"),
        ("7e5", "7e5"),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("12:30:45", "12:30:45"),
        ("04:37:12:10:00:01", "04:37:12:10:00:01"),
        ("2026-11-23", "2026-11-23"),
        (".inf", ".inf"),
    ],
)
def test_words_stay_words(text: str, value: object) -> None:
    assert parse(f"x: {text}", "f").value == {"x": value}


def test_a_typed_field_makes_a_number() -> None:
    assert decode(parse("{name: 0012, size: 12}", "f"), Item) == Item(name="0012", size=12)


def test_every_value_keeps_its_line() -> None:
    document = parse("a:\n  - b: 1\n  - b: 2\n    c: 3\n", "f.yaml")
    assert document.where(("a", 1, "c")) == "f.yaml:4"
    assert document.where(("a", 1)) == "f.yaml:3"
    assert document.where(("a", 1, "none", "deeper")) == "f.yaml:3"
    assert document.where() == "f.yaml:1"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("items:\n  - name: a\n  - name: b\n    size: x\n  - name: c\n", 4),
        ("items:\n  - name: a\n  - nome: b\n", 3),
        ("items:\n  - name: a\n  - size: 3\n", 3),
        ("named:\n  x: {name: a}\n  y:\n    name: b\n    size: big\n", 5),
        ("named:\n  x: {name: a}\n  y: 3\n", 3),
        ("flag: maybe\n", 1),
        ("\n\nflog: true\n", 3),
        ("items:\n  - name: a\n    size: x\n  - name: b\n    size: x\n", 3),
    ],
)
def test_the_line_of_a_bad_value_is_exact_even_in_lists(text: str, line: int) -> None:
    with pytest.raises(Invalid) as caught:
        decode(parse(text, "f.yaml"), Box)
    assert caught.value.where == f"f.yaml:{line}"


@pytest.mark.parametrize(
    "text", ["a: &x 1", "a: *x", "a: !!int 1", "&x a: 1", "a: 1\na: 2", "? [1]\n: 2", "a: 1\n---\nb: 2"]
)
def test_what_is_not_allowed(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(text, "f.yaml")
    assert caught.value.where.startswith("f.yaml:")


@pytest.mark.parametrize("opener", ["[", "{a: ", "- ", "[{a: "])
def test_deep_nesting_is_refused_and_does_not_kill_the_process(opener: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(opener * 100_000, "f.yaml")
    assert "nested deeper" in caught.value.what


def test_allowed_depth_is_allowed() -> None:
    assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH, "f").value is not None


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(Invalid):
        parse("x" * (MAX_BYTES + 1), "f.yaml")


@pytest.mark.parametrize("text", ["\ud800", "a: \x00", "\x07", "a: \ufffe"])
def test_what_is_not_text_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse(text, "f.yaml")


@pytest.mark.slow
@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:-[]{}#&*!|>'\"%@` \n\t,?0"), max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse(text, "f.yaml")
    except Invalid as refusal:
        where = refusal.where
    else:
        where = "f.yaml"
    assert where.startswith("f.yaml")
