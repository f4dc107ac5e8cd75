"""What a check may know beside the report: a snapshot of what fleetd expects, of the peers and of history.

Everything here defaults to *not known*, and a check that needs it then gives `not_run`: a caller that forgets to
look up duplicates must not get a pass for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fleetd.model.check import Action
from fleetd.model.firmware import Baseline
from fleetd.model.report import Report


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """Who the host has to be: serial of the inventory, UUID its BMC told at enrolment, MAC it boots from."""

    serial: str
    uuid: str
    boot_mac: str = ""


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """A remedy that was carried out earlier. `at` in wall seconds; callers leave out what is too old to count."""

    check: str
    action: Action
    parts: tuple[str, ...] = ()
    at: float = 0.0


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """One snapshot for one suite.

    duplicates: part value (GPU UUID, serial, NIC GUID …) -> name of another host that shows it now; None: not known.
    baseline, versions: allowed firmware, and what the BMC tells by component ("bios", "bmc").
    domain, domain_members: the NVLink domain's name and the ids of all hosts the inventory puts in it.
    domain_reports: report by host id, of the members that reported (the subject's own may be left out).
    history: remedies carried out earlier on this host.
    repaired_at: seconds since boot of the last repair in this boot; older Xids are history.
    """

    expected: Expected | None = None
    duplicates: Mapping[str, str] | None = None
    baseline: Baseline | None = None
    versions: Mapping[str, str] = {}
    domain: str = ""
    domain_members: tuple[str, ...] = ()
    domain_reports: Mapping[str, Report] = {}
    history: tuple[Past, ...] = ()
    repaired_at: float = 0.0
