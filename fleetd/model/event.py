"""An event: what happened, in the one order that the ledger's sequencer gave it."""

from __future__ import annotations

from typing import Any

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """`seq` is assigned at commit; a watcher that resumes after it misses nothing. `at` in wall seconds."""

    kind: str  # "host.state", "run.finished", "lease.active", "step.done", "audit", …
    at: float
    seq: int = 0
    site: str = ""
    host: str | None = None  # id
    run: str | None = None
    lease: str | None = None
    principal: str = ""
    data: dict[str, Any] = {}
