"""Quantities: exact, bounded, refused with what would be right."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.kit.errors import Invalid
from fleetd.model.units import seconds, share, watts


@pytest.mark.parametrize(("text", "value"), [("66 kW", 66_000), ("66kW", 66_000), ("0.5 MW", 500_000), (" 12 W ", 12)])
def test_watts(text: str, value: float) -> None:
    assert watts(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("30m", 1800), ("30 min", 1800), ("30d", 2_592_000), ("1.5h", 5400), ("9s", 9)]
)
def test_seconds(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(
    "text", ["", "kW", "66", "66 kw", "-1 W", "1e3 W", "inf W", "nan W", "9" * 400 + " W", "٣ W", "1,5 W", "1 W W"]
)
def test_what_is_no_power(text: str) -> None:
    with pytest.raises(Invalid):
        watts(text)


@pytest.mark.parametrize(
    ("text", "whole", "count"),
    [
        ("20%", 10, 2),
        ("20%", 11, 3),
        ("1%", 1, 1),
        ("0%", 10, 1),
        ("14.3%", 1000, 143),
        ("100%", 7, 7),
        ("3", 100, 3),
        ("0", 9, 0),
    ],
)
def test_share(text: str, whole: int, count: int) -> None:
    assert share(text, whole) == count


@pytest.mark.parametrize("text", ["101%", "-1", "1.5", "many", "20 %%", "3 h"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(Invalid):
        share(text, 10)


@given(st.decimals(0, 100, places=3), st.integers(0, 100_000))
def test_a_percentage_is_rounded_up_exactly(percent: object, whole: int) -> None:
    assert share(f"{percent}%", whole) == max(1, ceil(Fraction(str(percent)) * whole / 100))
