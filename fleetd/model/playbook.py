"""A playbook: ordered steps that take a host from one resting state to another."""

from __future__ import annotations

from typing import Literal

import msgspec

from fleetd.model.host import State
from fleetd.model.run import StepSnapshot, Strategy


class Playbook(msgspec.Struct, frozen=True, kw_only=True):
    """As loaded and proven legal. `state` is where its preparing steps run; `starts` the states it accepts."""

    name: str
    description: str = ""
    scope: Literal["host"] = "host"
    state: State = State.PREPARING
    starts: tuple[State, ...] = ()
    ends: State = State.AVAILABLE
    steps: tuple[StepSnapshot, ...]
    strategy: Strategy = Strategy()
