"""What a step may answer. Four words; each remembers the file:line that said it, so that `host why` can tell."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from fleetd.kit.errors import FleetError
from fleetd.model.check import Action, Finding

_ROOT = Path(__file__).resolve().parents[2]


def here(depth: int = 1) -> str:
    """`fleetd/lifecycle/steps/boot.py:88`: where the caller's caller stands."""
    frame = sys._getframe(depth + 1)
    path = Path(frame.f_code.co_filename)
    try:
        path = path.relative_to(_ROOT)
    except ValueError:
        path = Path(path.name)
    return f"{path}:{frame.f_lineno}"


class Advance(msgspec.Struct, frozen=True, kw_only=True):
    """Done and read back."""

    text: str
    evidence: dict[str, Any] = {}
    source: str = ""


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Not yet: somebody else must act first. Asked again when woken or after `every` seconds; past `until` it fails."""

    what: str
    remedy: str
    until: float  # wall seconds
    every: float = 1.0
    source: str = ""


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """A Temporary error; try again after so many seconds."""

    error: str
    code: str
    remedy: str
    after: float
    source: str = ""


class Rewind(msgspec.Struct, frozen=True, kw_only=True):
    """What this step stands on is gone (the boot it needs); go back to the step that makes it. The intent is abandoned."""

    text: str
    to: str  # the evidence that an earlier step must give again
    source: str = ""


class Fail(msgspec.Struct, frozen=True, kw_only=True):
    """A finding stands; the host goes to quarantine."""

    finding: Finding
    evidence: dict[str, Any] = {}
    source: str = ""


Outcome = Advance | Wait | Retry | Rewind | Fail


def advance(text: str, **evidence: Any) -> Advance:
    return Advance(text=text, evidence=evidence, source=here())


def wait(what: str, *, remedy: str, until: float, every: float = 1.0) -> Wait:
    return Wait(what=what, remedy=remedy, until=until, every=every, source=here())


def fail(code: str, message: str, *, remedy: str, action: Action = Action.RETEST, parts: tuple[str, ...] = ()) -> Fail:
    return Fail(finding=Finding(code=code, message=message, remedy=remedy, action=action, parts=parts), source=here())


def rewind(text: str, *, to: str) -> Rewind:
    return Rewind(text=text, to=to, source=here())


_ACTIONS: dict[str, Action] = {
    "FLT-1001": Action.RESEAT,
    "FLT-2002": Action.FIX_INVENTORY,
    "FLT-2004": Action.RESET,
    "FLT-2006": Action.FIX_INVENTORY,
}


def finding_of(error: FleetError) -> Finding:
    """An error as the finding that keeps a host out."""
    return Finding(
        code=error.code, message=str(error), remedy=error.remedy, action=_ACTIONS.get(error.code, Action.RETEST)
    )


def source_of(error: BaseException) -> str:
    """file:line of the deepest frame of ours that raised."""
    place, trace = "", error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.is_relative_to(_ROOT / "fleetd"):
            place = f"{path.relative_to(_ROOT)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
