"""What a host-side command says while it works, as one line for `host why` and `run watch`. The host may be hostile."""

from __future__ import annotations

from typing import Any

from fleetd.checks.judge import clean

EVERY = 5.0  # seconds between two lines that are stored
FIRST = 2.0  # seconds before the first: what is over sooner needs none
_DOING = {"write": "written to", "read-back": "read back from", "erase": "erased of"}


def line(step: str, fields: dict[str, Any]) -> str:
    """`write-image: 43 % (0.9 of 2.1 GiB) written to drive S1`; empty for what is no news."""
    event, drive = fields.get("event"), clean(fields.get("drive") or "", 64)
    if event == "progress":
        done, of = _number(fields.get("done")), _number(fields.get("of"))
        if done is None or not of:
            return ""
        share = int(100 * min(1.0, done / max(of, 1.0)))
        doing = _DOING.get(str(fields.get("what")), clean(fields.get("what") or "done", 20) + " of")
        return f"{step}: {share} % ({_size(done)} of {_size(of)}) {doing} drive {drive}".rstrip()
    if event in ("erasing", "writing"):
        n, of = _number(fields.get("n")), _number(fields.get("of"))
        place = f" ({n:.0f} of {of:.0f})" if n and of else ""
        return f"{step}: {event} drive {drive}{place}"
    return ""


def _number(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**63
    return float(value) if good and isinstance(value, int | float) else None


def _size(value: float) -> str:
    return f"{value / 2**30:.1f} GiB" if value >= 2**29 else f"{value / 2**20:.0f} MiB"
