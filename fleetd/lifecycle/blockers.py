"""Why a host is not leaseable. One list of reasons for the API, the refusals of leases, and the capacity report. Pure.

The one promise of the house stands here: a host without a reason has a current proof, clean disks, and nobody's hand on
it. The ledger guards the same again at the claim.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from fleetd.kit.clock import rfc3339
from fleetd.lifecycle import transitions
from fleetd.model.host import Classification, Host, State


class Blocker(NamedTuple):
    """One reason why a host is not leaseable: `kind` and `detail` to count by, `text` to read."""

    kind: str
    detail: str
    text: str


def blockers(host: Host, now: float, frozen: str | None) -> list[Blocker]:
    """All that keeps a host from being leased at wall second `now`, weightiest first; empty when it is leaseable.

    Args:
        frozen: why a freeze covers it, None when none does. (A hand-over writes disks: no freeze lets it begin.)
    """
    found: list[Blocker] = []
    if host.state is not State.AVAILABLE:
        found.append(_state_blocker(host))
    if host.lease is not None and host.state is not State.LEASED:
        found.append(Blocker("leased", "", f"still bound to lease {host.lease}"))
    if host.run is not None:
        found.append(Blocker("in a run", "", f"run {host.run} has it"))
    if host.certificate is None or host.certificate_expires is None:
        found.append(Blocker("no certificate", "", "no certificate: nothing proves it now"))
    elif host.certificate_expires <= now:
        found.append(
            Blocker("certificate expired", "", f"its certificate expired at {rfc3339(host.certificate_expires)}")
        )
    if host.tenant_data == "possible":
        found.append(Blocker("tenant data", "", "a tenant's data may still be on its disks"))
    found += [
        Blocker("alert", alert.id, f"alert {alert.id}: {alert.message}")
        for alert in host.status.alerts
        if Classification.PREVENTS_LEASE in alert.classifications
    ]
    pending = host.status.pending_maintenance
    if pending is not None:
        found.append(Blocker("pending maintenance", "", f"maintenance is pending: {pending.reason} ({pending.owner})"))
    if frozen is not None:
        found.append(Blocker("frozen", "", frozen))
    return found


def _state_blocker(host: Host) -> Blocker:
    detail, text = "", f"it is {host.state}: {transitions.TABLE[host.state].means}"
    if host.state is State.QUARANTINED and host.status.findings:
        finding = host.status.findings[0]
        detail, text = finding.code, f"quarantined: {finding.code}: {finding.message}"
    elif host.state is State.MAINTENANCE and host.status.maintenance is not None:
        asked = host.status.maintenance
        text = f"in maintenance: {asked.reason} ({asked.owner}, until {rfc3339(asked.until)})"
    elif host.state is State.LEASED and host.lease is not None:
        text = f"leased: {host.lease}"
    return Blocker(str(host.state), detail, text)


def label(blocker: Blocker) -> str:
    """How a blocker is counted: `quarantined: gpu.count`."""
    return f"{blocker.kind}: {blocker.detail}" if blocker.detail else blocker.kind


def tally(blockers: Iterable[Blocker]) -> str:
    """`3 quarantined (gpu.count 1, nvlink.links 2), 4 leased`: the first blockers of many hosts, for a person."""
    kinds: dict[str, Counter[str]] = {}
    for blocker in blockers:
        kinds.setdefault(blocker.kind, Counter())[blocker.detail] += 1
    parts = []
    for kind, details in sorted(kinds.items(), key=lambda item: (-item[1].total(), item[0])):
        named = ", ".join(f"{detail} {count}" for detail, count in sorted(details.items()) if detail)
        parts.append(f"{details.total()} {kind}" + (f" ({named})" if named else ""))
    return ", ".join(parts)
