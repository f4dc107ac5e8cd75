"""Globally unique ids that say what they name and sort by birth, so that logs of two sites never collide."""

from __future__ import annotations

import os

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base32: nothing to misread at the rack


def new_id(kind: str, wall: float) -> str:
    """`host-01kc3w…`: 10 characters of milliseconds, 12 of randomness (60 bits)."""
    number = (int(wall * 1000) << 60) | int.from_bytes(os.urandom(8), "big") >> 4
    digits = []
    for _ in range(22):
        digits.append(_ALPHABET[number & 31])
        number >>= 5
    return f"{kind}-" + "".join(reversed(digits))
