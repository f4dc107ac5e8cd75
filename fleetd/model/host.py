"""A host: an immutable id, versioned facts, and three axes that never mix: state, health, power."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from fleetd.model.bmc import BmcSpec
from fleetd.model.check import Finding
from fleetd.model.power import PowerState


class State(StrEnum):
    """Where a host is in its life. Meanings and exits: lifecycle/transitions.py, the only truth."""

    REGISTERED = "registered"
    ENROLLING = "enrolling"
    MANAGEABLE = "manageable"
    PREPARING = "preparing"
    VALIDATING = "validating"
    AVAILABLE = "available"
    DELIVERING = "delivering"
    LEASED = "leased"
    RECLAIMING = "reclaiming"
    QUARANTINED = "quarantined"
    MAINTENANCE = "maintenance"
    RETIRED = "retired"


class Classification(StrEnum):
    """What an alert does beside being shown."""

    PREVENTS_LEASE = "prevents-lease"
    PREVENTS_STATE_CHANGE = "prevents-state-change"
    SUPPRESS_NOTIFY = "suppress-notify"


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One standing health alert. `since` in wall seconds."""

    id: str
    target: str
    since: float
    message: str
    remedy: str
    classifications: tuple[Classification, ...] = ()


class WaitingFor(msgspec.Struct, frozen=True, kw_only=True):
    """What a host waits for: a wait without these is a bug. Times in wall seconds; `source` is file:line."""

    what: str
    since: float
    until: float
    remedy: str
    source: str


class LastOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the last handler or step said, and where in the code it was said."""

    kind: Literal["advance", "wait", "retry", "fail"]
    step: str
    text: str
    at: float
    source: str


class Maintenance(msgspec.Struct, frozen=True, kw_only=True):
    """A person has the host. `until` in wall seconds."""

    owner: str
    reason: str
    until: float
    requested_at: float


class HostSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the inventory says of a host (rack and site come from its file)."""

    name: str
    position: int
    sku: str
    serial: str
    bmc: BmcSpec
    boot_mac: str
    outlets: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    site: str = ""
    rack: str = ""
    nvlink_domain: str | None = None


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """Identity and versions as the wires told them; empty until met."""

    serial: str = ""
    uuid: str = ""
    manufacturer: str = ""
    model: str = ""
    bios_version: str = ""
    bmc_version: str = ""
    tls_pin: str = ""  # sha256 hex of the BMC's certificate
    met_at: float | None = None


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What fleetd knows and does; stored as one JSON document beside the indexed columns."""

    observed: Observed = Observed()
    power: PowerState = PowerState.UNKNOWN
    waiting_for: WaitingFor | None = None
    outcome: LastOutcome | None = None
    alerts: tuple[Alert, ...] = ()
    findings: tuple[Finding, ...] = ()
    tenant_data_evidence: str = ""
    maintenance: Maintenance | None = None
    pending_maintenance: Maintenance | None = None


TenantData = Literal["none", "possible", "erased"]


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the ledger. `version` grows with every write; a write names the version it read."""

    id: str
    spec: HostSpec
    spec_version: int = 1
    state: State = State.REGISTERED
    state_since: float
    deadline: float | None = None
    resume_state: State | None = None
    tenant_data: TenantData = "none"
    status: HostStatus = HostStatus()
    certificate: str | None = None  # id of the newest certificate not revoked
    certificate_expires: float | None = None
    lease: str | None = None  # id of the live lease that binds it
    run: str | None = None  # id of the active run that has it
    version: int = 1

    @property
    def name(self) -> str:
        return self.spec.name

    def fields(self) -> dict[str, str]:
        """What a host range can ask for."""
        return {
            "name": self.spec.name,
            "id": self.id,
            "site": self.spec.site,
            "rack": self.spec.rack,
            "sku": self.spec.sku,
            "state": str(self.state),
            "serial": self.spec.serial,
            "domain": self.spec.nvlink_domain or "",
            "position": str(self.spec.position),
        }
