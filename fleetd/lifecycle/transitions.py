"""A host's life as one table: the only truth about states. The picture in the docs and the reachability tests come from it.

A state is one row here and one handler. `deadline` is in seconds; a resting state has none, every other must have one,
and `exit_on_deadline` is where the host goes when it passes.
"""

from __future__ import annotations

from typing import NamedTuple

from fleetd.kit.errors import Conflict
from fleetd.model.host import State


class Row(NamedTuple):
    """One state. `goes_to` are all legal exits, besides the return from quarantine to `resume_state`."""

    means: str
    goes_to: frozenset[State]
    deadline: float | None = None
    exit_on_deadline: State | None = None

    @property
    def resting(self) -> bool:
        return self.deadline is None


S = State


def _to(*states: State) -> frozenset[State]:
    return frozenset(states)


TABLE: dict[State, Row] = {
    S.REGISTERED: Row("expected by the inventory; its BMC was not met yet", _to(S.ENROLLING, S.MAINTENANCE, S.RETIRED)),
    S.ENROLLING: Row(
        "identity is read, the factory password replaced, TLS pinned",
        _to(S.MANAGEABLE, S.QUARANTINED),
        900.0,
        S.QUARANTINED,
    ),
    S.MANAGEABLE: Row("under control, not proven", _to(S.PREPARING, S.MAINTENANCE, S.RETIRED)),
    S.PREPARING: Row(
        "firmware compared, disks wiped, the SKU's image written",
        _to(S.VALIDATING, S.QUARANTINED),
        4 * 3600.0,
        S.QUARANTINED,
    ),
    S.VALIDATING: Row("the SKU's suite runs", _to(S.AVAILABLE, S.QUARANTINED), 2 * 3600.0, S.QUARANTINED),
    S.AVAILABLE: Row(
        "leaseable while its certificate is current", _to(S.DELIVERING, S.VALIDATING, S.QUARANTINED, S.MAINTENANCE)
    ),
    S.DELIVERING: Row(
        "claimed; proven quickly again, the tenant's image and keys are written",
        _to(S.LEASED, S.RECLAIMING),
        3 * 3600.0,
        S.RECLAIMING,
    ),
    S.LEASED: Row("a tenant's; fleetd only watches", _to(S.RECLAIMING)),
    S.RECLAIMING: Row(
        "powered off, BMC re-keyed, wiped with proof, the SKU's image written",
        _to(S.VALIDATING, S.QUARANTINED),
        6 * 3600.0,
        S.QUARANTINED,
    ),
    S.QUARANTINED: Row("a finding stands, its remedy is named", _to(S.MAINTENANCE, S.RETIRED)),
    S.MAINTENANCE: Row("a person has it", _to(S.ENROLLING, S.RETIRED)),
    S.RETIRED: Row("gone; the record is kept", _to()),
}


def legal(source: State, target: State, *, resume: State | None = None) -> bool:
    """May a host go from `source` to `target`? `resume` is its stored resume_state, which alone leads out of quarantine."""
    return target in TABLE[source].goes_to or (source is S.QUARANTINED and resume is not None and target is resume)


def require(source: State, target: State, *, resume: State | None = None, host: str = "") -> None:
    """Raises Conflict when the step is not in the table."""
    if not legal(source, target, resume=resume):
        exits = ", ".join(sorted(TABLE[source].goes_to)) or "nowhere"
        raise Conflict(
            f"host {host or '?'} cannot go from {source} to {target}",
            why=f"from {source} it goes to: {exits}" + (f", or back to {resume}" if resume else ""),
            remedy=f"fleetctl host why {host}" if host else "",
        )


def deadline_of(state: State, now: float) -> float | None:
    """Wall seconds by which a host that enters `state` now must have left it."""
    row = TABLE[state]
    return None if row.deadline is None else now + row.deadline


def mermaid() -> str:
    """The picture of the table, for the docs."""
    lines = ["stateDiagram-v2", "    [*] --> registered"]
    lines += [f"    {source} --> {target}" for source, row in TABLE.items() for target in sorted(row.goes_to)]
    lines.append("    quarantined --> enrolling : resume_state")
    lines += [f"    quarantined --> {s} : resume_state" for s in (S.PREPARING, S.VALIDATING, S.RECLAIMING)]
    lines.append("    retired --> [*]")
    return "\n".join(lines) + "\n"
