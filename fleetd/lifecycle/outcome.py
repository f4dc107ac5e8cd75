"""What a step may answer. Four words; each remembers the file:line that said it, so that `host why` can tell."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from fleetd.kit.errors import FleetError, Held, Temporary
from fleetd.kit.retry import backoff
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


# --- what went wrong in a step, as its answer ---------------------------------------------------------------------------


def of_error(error: FleetError, *, attempt: int, attempts: int, until: float) -> Outcome:
    """Held waits until `until` (wall seconds); Temporary is tried again while it has tries left; all else is a finding."""
    if isinstance(error, Held):
        return Wait(what=error.what, remedy=error.remedy, until=until, source=source_of(error))
    if isinstance(error, Temporary) and attempt < attempts:
        after = backoff(attempt, first=0.5, cap=20.0) if error.retry_after is None else error.retry_after
        return Retry(error=str(error), code=error.code, remedy=error.remedy, after=after, source=source_of(error))
    return Fail(finding=finding_of(error), source=source_of(error))


def of_bug(error: Exception, step: str) -> Fail:
    """An exception that no step should let out. The host is kept out; the fault is ours."""
    finding = Finding(
        code="FLT-0001",
        message=f"{step} met a bug of fleetd: {type(error).__name__}: {error}"[:500],
        remedy="report it with `journalctl -u fleetd`; `fleetctl host release` tries again",
    )
    return Fail(finding=finding, source=source_of(error))


def too_late(step: str, host: str, seconds: float, told: str) -> Fail:
    """The deadline passed. `told`: the newest line of progress; what moved until then was slow, and not stuck."""
    finding = Finding(
        code="FLT-1003",
        message=f"{step} did not finish in {seconds:.0f} s" + (f"; last told: {told}" if told else ""),
        remedy=f"fleetctl host why {host}; then `fleetctl host release {host}` to try again"
        + ("; what moved, but too slowly, will again: replace that part" if told else ""),
    )
    return Fail(finding=finding, source=here())
