"""Verdicts: what a check says, and what a failed one asks a person to do."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec


class Outcome(StrEnum):
    """Three words, on purpose: what did not run did not pass."""

    PASS = "pass"
    FAIL = "fail"
    NOT_RUN = "not_run"


class Action(StrEnum):
    """What a finding asks for, weakest first (NVIDIA's Xid catalogue and DCGM use the same ladder)."""

    RETEST = "retest"
    CONFIGURE = "configure"
    RESET = "reset"
    REBOOT = "reboot"
    POWER_CYCLE = "power-cycle"
    RESEAT = "reseat"
    CHECK_FABRIC = "check-fabric"
    FIX_INVENTORY = "fix-inventory"
    REFLASH = "reflash"
    RMA = "rma"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One check on one subject. measured and expected are for people; evidence holds the raw readings it judged."""

    check: str
    subject: str  # host id, or the name of an NVLink domain
    outcome: Outcome
    measured: str
    expected: str
    parts: tuple[str, ...] = ()  # what is at fault: "GPU 3", "GPU 2 link 7", "nvme2n1"
    action: Action | None = None
    remedy: str = ""
    evidence: dict[str, str] = {}

    @property
    def passed(self) -> bool:
        return self.outcome is Outcome.PASS


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Why a host is out: a verdict that is not a pass, or a step that cannot go on."""

    code: str  # check id ("gpu.count") or error code ("FLT-2004")
    message: str
    remedy: str
    action: Action = Action.RETEST
    parts: tuple[str, ...] = ()
    at: float = 0.0
    step: str = ""


SuiteName = Literal["acceptance", "quick"]


class CheckInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Metadata of a registered check, for lists and docs."""

    id: str
    title: str
    subject: Literal["host", "domain"]
    source: str
    why: str
    needs: str = ""  # what the SKU must describe for it: gpu, no-gpu, network …; empty: nothing
