"""Quantities as people write them (`66 kW`, `20%`, `30m`), as numbers of one unit each: watts, counts, seconds."""

from __future__ import annotations

import math
import re
from decimal import Decimal

from fleetd.kit.errors import Invalid

_QUANTITY = re.compile(r"\s{0,8}([0-9]{1,12}(?:\.[0-9]{1,9})?)\s{0,8}([a-zA-Z%]{0,8})\s{0,8}")
_WATTS = {"W": 1.0, "kW": 1e3, "MW": 1e6}
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _scaled(text: str, units: dict[str, float], kind: str) -> float:
    match = _QUANTITY.fullmatch(text)
    if match is None or match.group(2) not in units:
        raise Invalid(f"{text[:60]!r} is not {kind}", remedy=f"write a number and one of: {', '.join(units)}")
    return float(match.group(1)) * units[match.group(2)]


def watts(text: str) -> float:
    """`66 kW` -> 66000.0"""
    return _scaled(text, _WATTS, "a power")


def seconds(text: str) -> float:
    """`30m` -> 1800.0"""
    return _scaled(text, _SECONDS, "a duration")


def share(text: str, whole: int) -> int:
    """`20%` of `whole` or a plain count; a percentage is rounded up and is at least 1."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None or match.group(2) not in ("", "%"):
        raise Invalid(f"{str(text)[:60]!r} is not a count or a percentage", remedy="write 3 or 25%")
    number = Decimal(match.group(1))  # exact: 14.3 % of 1000 is 143, not 144
    if match.group(2) == "":
        if number != int(number):
            raise Invalid(f"{text!r} is not a whole count")
        return int(number)
    if number > 100:
        raise Invalid(f"{text!r} is more than all")
    return max(1, math.ceil(number * whole / 100))
