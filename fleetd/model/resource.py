"""The API's own representation of the nouns: one truth that the API writes, the client reads and OpenAPI describes.

Times are RFC 3339 in UTC. Absent things are null, never missing: a script may rely on every field.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

import msgspec

from fleetd.model.check import Finding
from fleetd.model.host import Classification
from fleetd.model.lease import LeaseRequest, Placement

T = TypeVar("T")


class Page(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A list: `next` is the cursor of the following page, null on the last one."""

    items: list[T]
    next: str | None = None


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457. `what` and `why` are the halves of `detail`; `remedy`: what to do; `where`: file:line or field."""

    type: str
    title: str
    status: int
    detail: str
    what: str
    why: str
    code: str
    remedy: str
    retryable: bool
    where: str = ""
    instance: str = ""


class WaitingView(msgspec.Struct, frozen=True, kw_only=True):
    """What a host waits for, since when, until when, and what a person should do."""

    what: str
    since: str
    until: str
    remedy: str
    source: str


class AlertView(msgspec.Struct, frozen=True, kw_only=True):
    """A standing health alert."""

    id: str
    target: str
    since: str
    message: str
    remedy: str
    classifications: tuple[Classification, ...]


class FindingView(msgspec.Struct, frozen=True, kw_only=True):
    """Why a host is out, and the remedy."""

    code: str
    message: str
    remedy: str
    action: str
    parts: tuple[str, ...]
    at: str | None
    step: str


class CertificateRef(msgspec.Struct, frozen=True, kw_only=True):
    """Which proof a host has, and until when."""

    id: str
    expires: str | None


class MaintenanceView(msgspec.Struct, frozen=True, kw_only=True):
    """A person has the host; `pending` until its lease ends."""

    owner: str
    reason: str
    until: str
    requested_at: str
    pending: bool


class BmcView(msgspec.Struct, frozen=True, kw_only=True):
    """Where the BMC is; never how to log in."""

    protocol: str
    address: str


class HostSpecView(msgspec.Struct, frozen=True, kw_only=True):
    """What the inventory says beside place and SKU."""

    serial: str
    bmc: BmcView
    boot_mac: str
    outlets: tuple[str, ...]
    nvlink_domain: str | None


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """A host. `reasons` says why it is not leaseable; it is empty exactly when `leaseable` is true."""

    id: str
    name: str
    site: str
    rack: str
    position: int
    sku: str
    state: str
    state_since: str
    deadline: str | None
    waiting_for: WaitingView | None
    health: Literal["ok", "alert", "finding", "unknown"]
    power: str
    leaseable: bool
    reasons: list[str]
    certificate: CertificateRef | None
    lease: str | None
    labels: dict[str, str]
    version: int
    spec: HostSpecView
    alerts: list[AlertView]
    findings: list[FindingView]
    run: str | None
    tenant_data: str
    maintenance: MaintenanceView | None


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    """A step as the run froze it."""

    name: str
    version: int
    params: dict[str, Any]


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """A run. `counts` tells how many hosts are pending, active, passed, failed and held."""

    id: str
    playbook: str
    selector: str
    state: str
    principal: str
    lease: str | None
    created: str
    finished: str | None
    reason: str
    wave: int
    waves: int
    steps: list[StepView]
    counts: dict[str, int]
    version: int


class RunHostView(msgspec.Struct, frozen=True, kw_only=True):
    """A host's place in a run; `step` is the name of the step it works on, `index` its place from 0.

    `waiting_for`: what an active host waits for, or how far its step is (`write-image: 43 % …`).
    """

    host: str
    name: str
    wave: int
    state: str
    index: int
    step: str
    attempt: int
    waiting_for: str = ""
    finding: FindingView | None
    started: str | None
    finished: str | None


class StepRecordView(msgspec.Struct, frozen=True, kw_only=True):
    """One try of one step: `outcome` is empty while it works; `source` is the place in the code that said so."""

    run: str
    host: str
    index: int
    attempt: int
    name: str
    intent: str
    destructive: bool
    began: str
    ended: str | None
    outcome: str
    text: str
    evidence: dict[str, Any]
    source: str


class RunPlanHost(msgspec.Struct, frozen=True, kw_only=True):
    """What a run would do to one host, and in which wave; `host` is its id."""

    host: str
    name: str
    wave: int
    steps: list[str]


class RunPlanSkip(msgspec.Struct, frozen=True, kw_only=True):
    """A host the run would leave alone, and why."""

    host: str
    name: str
    why: str


class RunPlanView(msgspec.Struct, frozen=True, kw_only=True):
    """A dry run: nothing was changed."""

    playbook: str
    hosts: list[RunPlanHost]
    skipped: list[RunPlanSkip]


class LeasedHost(msgspec.Struct, frozen=True, kw_only=True):
    """A host in a lease."""

    id: str
    name: str


class LeaseView(msgspec.Struct, frozen=True, kw_only=True):
    """A lease. The tenant's user_data is never shown: it may hold secrets."""

    id: str
    tenant: str
    sku: str
    count: int
    placement: Placement
    site: str | None
    image: str | None
    ssh_keys: tuple[str, ...]
    state: str
    hosts: list[LeasedHost]
    created: str
    starts: str
    ends: str
    activated: str | None
    released: str | None
    ended: str | None
    reason: str
    run: str | None
    token: int
    principal: str
    version: int


class LeasePlanView(msgspec.Struct, frozen=True, kw_only=True):
    """A dry run: these hosts it would be now; nothing was claimed."""

    tenant: str
    sku: str
    count: int
    image: str
    ends: str
    hosts: list[LeasedHost]


class CapacityView(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a SKU there is at one place, and why the rest is not leaseable (reason: count of hosts)."""

    sku: str
    site: str
    rack: str | None
    total: int
    leaseable: int
    by_state: dict[str, int]
    reasons: dict[str, int]
    free_at: str | None


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """What happened; `seq` is its place in the ledger's one order."""

    seq: int
    kind: str
    at: str
    site: str
    host: str | None
    run: str | None
    lease: str | None
    principal: str
    data: dict[str, Any]


class CertificateView(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate in the history of a host."""

    id: str
    host: str
    suite: str
    issued: str
    expires: str
    revoked: str | None
    reason: str


class PublicKeyView(msgspec.Struct, frozen=True, kw_only=True):
    """The site's public key (PEM). Give it to verifiers by a way of its own, not beside the certificate."""

    pem: str


class ChangeView(msgspec.Struct, frozen=True, kw_only=True):
    """One planned change; `why` says why it is refused."""

    action: str
    kind: str
    name: str
    field: str = ""
    before: str = ""
    after: str = ""
    why: str = ""


class PlanView(msgspec.Struct, frozen=True, kw_only=True):
    """What an inventory would change. `digest` names exactly this plan; apply takes it as `expect`."""

    digest: str
    changes: list[ChangeView]
    applied: bool


class InventoryView(msgspec.Struct, frozen=True, kw_only=True):
    """The whole inventory as files."""

    files: dict[str, str]


class SiteView(msgspec.Struct, frozen=True, kw_only=True):
    """A site and how many racks and hosts it has."""

    name: str
    halls: tuple[str, ...]
    pdus: tuple[str, ...]
    racks: int
    hosts: int


class RackView(msgspec.Struct, frozen=True, kw_only=True):
    """A rack and where its hosts stand in their life."""

    name: str
    site: str
    hall: str
    power_budget: str | None
    nvlink_domain: str | None
    hosts: int
    leaseable: int
    by_state: dict[str, int]


class SkuView(msgspec.Struct, frozen=True, kw_only=True):
    """A SKU; `profile` is the whole file as judged by."""

    name: str
    vendor: str
    model: str
    gpus: int
    gpu: str
    image: str
    hosts: int
    digest: str
    profile: dict[str, Any]


class PlaybookView(msgspec.Struct, frozen=True, kw_only=True):
    """A playbook: its steps, in order."""

    name: str
    description: str
    scope: str
    steps: list[StepView]
    strategy: dict[str, Any]


class CheckView(msgspec.Struct, frozen=True, kw_only=True):
    """A check: what it proves, why it exists, and where that is known from."""

    id: str
    title: str
    subject: str
    source: str
    why: str


class FreezeView(msgspec.Struct, frozen=True, kw_only=True):
    """A brake that a person put on: no destructive step starts in this scope."""

    scope: str
    reason: str


class HoldView(msgspec.Struct, frozen=True, kw_only=True):
    """A brake that fleetd put on itself, because too much happened at once; a person lifts it."""

    name: str
    reason: str


class PowerView(msgspec.Struct, frozen=True, kw_only=True):
    """What the read-back said."""

    host: str
    power: str


class DoneView(msgspec.Struct, frozen=True, kw_only=True):
    """An order that leaves nothing but its doing."""

    host: str
    done: str


class HealthView(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon's own condition. Ages in seconds; `problems` is empty when all is well.

    `images`: `kept` how many, `gone` names of those without a file; `unnamed`, `unnamed_bytes` and `unnamed_names` (some)
    tell of files that no image names. Empty when the directory or the database could not be read.
    """

    status: Literal["ok", "degraded"]
    version: str
    time: str
    database: dict[str, Any]
    engine: dict[str, Any]
    clock: dict[str, Any]
    hosts: dict[str, int]
    past_deadline: int
    runs_active: int
    watchers: int
    freezes: dict[str, str]
    holds: dict[str, str]
    problems: list[str]
    images: dict[str, Any] = {}
    who: str = ""
    role: str = ""


# What the API reads -----------------------------------------------------------------------------------------------


class _Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class PowerOrder(_Order, frozen=True, kw_only=True):
    """`verb`: on, off, soft, cycle, reset; `read` only reads the state now."""

    verb: Literal["on", "off", "soft", "cycle", "reset", "read"]


class BootOrder(_Order, frozen=True, kw_only=True):
    """Where the next boot comes from, once."""

    device: Literal["network", "disk", "cd", "bios-setup"]


class IdentifyOrder(_Order, frozen=True, kw_only=True):
    """The identify LED."""

    on: bool = True


class QuarantineOrder(_Order, frozen=True, kw_only=True):
    """Take a host out; the reason stands as its finding."""

    reason: str


class MaintenanceOrder(_Order, frozen=True, kw_only=True):
    """A person takes the host; `until` is RFC 3339."""

    reason: str
    until: str


class InventoryOrder(_Order, frozen=True, kw_only=True):
    """`files`: name to text; `expect`: the digest of the plan that was shown."""

    files: dict[str, str]
    expect: str | None = None


class RunOrder(_Order, frozen=True, kw_only=True):
    """Start a playbook over a host range; with `dry_run` only say what it would do."""

    playbook: str
    hosts: str
    dry_run: bool = False


class LeaseOrder(LeaseRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Lease hosts; with `dry_run` only say which it would be now."""

    dry_run: bool = False


class ExtendOrder(_Order, frozen=True, kw_only=True):
    """The new end, RFC 3339."""

    ends_at: str


class ReleaseOrder(_Order, frozen=True, kw_only=True):
    """End the lease; `wipe_now` false keeps the disks for the grace period."""

    wipe_now: bool = True


class FreezeOrder(_Order, frozen=True, kw_only=True):
    """Why the brake goes on."""

    reason: str


def finding_view(finding: Finding, at: str | None) -> FindingView:
    """A finding as shown; `at` is its time in RFC 3339."""
    return FindingView(
        code=finding.code,
        message=finding.message,
        remedy=finding.remedy,
        action=str(finding.action),
        parts=finding.parts,
        at=at,
        step=finding.step,
    )
