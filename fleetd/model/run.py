"""Runs: a playbook executed over hosts, with waves and a failure budget; durable from the first row."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from fleetd.model.check import Finding
from fleetd.model.host import State


class RunState(StrEnum):
    """`stopped`: the failure budget was spent, no further host started."""

    RUNNING = "running"
    PASSED = "passed"
    FAILED = "failed"  # finished, and not every host passed
    STOPPED = "stopped"
    CANCELLED = "cancelled"


class RunHostState(StrEnum):
    """One host in a run. `pending` and `active` count as in the run (at most one such row a host)."""

    PENDING = "pending"
    ACTIVE = "active"
    PASSED = "passed"
    FAILED = "failed"
    HELD = "held"  # never started: the budget was spent or the run cancelled first


class StepSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A step as the run froze it: `name@version` and its parameters."""

    name: str
    version: int
    params: dict[str, Any] = {}

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"


class Strategy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a run spreads. `waves`: counts or percentages, in NVLink domains where there are any."""

    waves: tuple[str, ...] = ("1", "25%", "100%")
    max_failures: str = "20%"
    width: int = 256  # hosts at once
    per_rack: int = 64


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """The run itself. Times in wall seconds."""

    id: str
    playbook: str
    steps: tuple[StepSnapshot, ...]
    strategy: Strategy
    selector: str
    state: RunState = RunState.RUNNING
    principal: str = ""
    works_in: State = State.PREPARING  # the playbook's own state, where steps without one run
    lease: str | None = None
    created: float
    finished: float | None = None
    reason: str = ""
    wave: int = 0  # the wave that is open
    waves: int = 1
    version: int = 1


class RunHost(msgspec.Struct, frozen=True, kw_only=True):
    """A host's place in a run. `step` is the index of the step it works on, `attempt` counts tries of it from 1."""

    run: str
    host: str
    wave: int
    state: RunHostState = RunHostState.PENDING
    step: int = 0
    attempt: int = 1
    data: dict[str, Any] = {}  # what earlier steps hand to later ones (boot nonce id, image digest …)
    finding: Finding | None = None
    started: float | None = None
    finished: float | None = None


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The journal of one try of one step: intent before it acts, result after it read back."""

    run: str
    host: str
    index: int
    attempt: int
    name: str
    intent: str  # id; a destructive act happens at most once per intent
    destructive: bool
    began: float
    ended: float | None = None
    outcome: str = ""  # "", advance, fail, retry, abandoned
    text: str = ""
    evidence: dict[str, Any] = {}
    source: str = ""
