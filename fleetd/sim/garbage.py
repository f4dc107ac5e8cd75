"""A probe's output that is no good report: the fault `probe-garbage`, by its mode."""

from __future__ import annotations

import json

from fleetd.sim.faults import Fault

HUGE = 16 * 1024 * 1024


def spoil(report: bytes, fault: Fault) -> bytes:
    """What a broken or dishonest host prints in place of `report`."""
    mode = str(fault.params.get("mode", "text"))
    if mode == "huge":
        return b'{"format":"' + b"x" * HUGE
    if mode == "truncated":
        return report[: len(report) // 2]
    if mode == "text":
        return b"Segmentation fault (core dumped)\n"
    facts = json.loads(report)
    if mode == "other-boot":
        facts["boot_id"] = {"v": "00000000-0000-4000-8000-000000000000"}
    else:
        facts["host"] = "host-of-somebody-else"
        facts["identity"]["serial"] = {"v": "SOMEBODYELSE"}
    return json.dumps(facts).encode()
