"""From the ledger's nouns to the API's representation: the one place where a field gets its public name and its time format."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from fleetd.kit.clock import rfc3339
from fleetd.lifecycle.boottrail import Diagnosis, Entry
from fleetd.lifecycle.leases import LeasePlan
from fleetd.model.boot import Boot
from fleetd.model.bootresource import BootDoctorView, ImageView, OpenBootView, SightingView, SignatureView
from fleetd.model.check import Finding
from fleetd.model.event import Event
from fleetd.model.host import Alert, Host, HostStatus
from fleetd.model.image import Image
from fleetd.model.lease import Lease
from fleetd.model.playbook import Playbook
from fleetd.model.resource import (
    AlertView,
    BmcView,
    CertificateRef,
    CertificateView,
    EventView,
    FindingView,
    HostSpecView,
    HostView,
    LeasedHost,
    LeasePlanView,
    LeaseView,
    MaintenanceView,
    PlaybookView,
    RunHostView,
    RunView,
    StepRecordView,
    StepView,
    WaitingView,
    finding_view,
)
from fleetd.model.run import Run, RunHost, RunHostState, StepRecord, StepSnapshot

if TYPE_CHECKING:
    from fleetd.store.certificates import StoredCertificate


def when(seconds: float) -> str:
    """A time that is always there."""
    text = rfc3339(seconds)
    assert text is not None
    return text


def finding(value: Finding) -> FindingView:
    return finding_view(value, rfc3339(value.at or None))


def alert(value: Alert) -> AlertView:
    return AlertView(
        id=value.id,
        target=value.target,
        since=when(value.since),
        message=value.message,
        remedy=value.remedy,
        classifications=value.classifications,
    )


def host(value: Host, reasons: list[str]) -> HostView:
    """A host; `reasons` comes from HostDesk.reasons, the one judge of leaseability."""
    status, spec = value.status, value.spec
    waiting = status.waiting_for
    keep = status.maintenance or status.pending_maintenance
    return HostView(
        id=value.id,
        name=spec.name,
        site=spec.site,
        rack=spec.rack,
        position=spec.position,
        sku=spec.sku,
        state=str(value.state),
        state_since=when(value.state_since),
        deadline=rfc3339(value.deadline),
        waiting_for=None
        if waiting is None
        else WaitingView(
            what=waiting.what,
            since=when(waiting.since),
            until=when(waiting.until),
            remedy=waiting.remedy,
            source=waiting.source,
        ),
        health=_health(status),
        power=str(status.power),
        leaseable=not reasons,
        reasons=reasons,
        certificate=None
        if value.certificate is None
        else CertificateRef(id=value.certificate, expires=rfc3339(value.certificate_expires)),
        lease=value.lease,
        labels=spec.labels,
        version=value.version,
        spec=HostSpecView(
            serial=spec.serial,
            bmc=BmcView(protocol=spec.bmc.protocol, address=spec.bmc.address),
            boot_mac=spec.boot_mac,
            outlets=spec.outlets,
            nvlink_domain=spec.nvlink_domain,
        ),
        alerts=[alert(a) for a in status.alerts],
        findings=[finding(f) for f in status.findings],
        run=value.run,
        tenant_data=value.tenant_data,
        maintenance=None
        if keep is None
        else MaintenanceView(
            owner=keep.owner,
            reason=keep.reason,
            until=when(keep.until),
            requested_at=when(keep.requested_at),
            pending=status.maintenance is None,
        ),
    )


def step(value: StepSnapshot) -> StepView:
    return StepView(name=value.name, version=value.version, params=value.params)


def run(value: Run, members: list[RunHost]) -> RunView:
    """A run with its hosts counted; every state is named, also with zero."""
    counted = Counter(str(member.state) for member in members)
    return RunView(
        id=value.id,
        playbook=value.playbook,
        selector=value.selector,
        state=str(value.state),
        principal=value.principal,
        lease=value.lease,
        created=when(value.created),
        finished=rfc3339(value.finished),
        reason=value.reason,
        wave=value.wave,
        waves=value.waves,
        steps=[step(s) for s in value.steps],
        counts={str(state): counted[state] for state in RunHostState},
        version=value.version,
    )


def run_host(value: RunHost, host: Host | None, steps: tuple[StepSnapshot, ...]) -> RunHostView:
    """A place in a run; `host` is its host as it stands, None when the ledger lacks it."""
    waiting = host.status.waiting_for if host is not None and host.run == value.run else None
    return RunHostView(
        host=value.host,
        name=value.host if host is None else host.name,
        wave=value.wave,
        state=str(value.state),
        index=value.step,
        step=steps[value.step].name if 0 <= value.step < len(steps) else "",
        attempt=value.attempt,
        waiting_for="" if waiting is None else waiting.what,
        finding=None if value.finding is None else finding(value.finding),
        started=rfc3339(value.started),
        finished=rfc3339(value.finished),
    )


def step_record(value: StepRecord) -> StepRecordView:
    return StepRecordView(
        run=value.run,
        host=value.host,
        index=value.index,
        attempt=value.attempt,
        name=value.name,
        intent=value.intent,
        destructive=value.destructive,
        began=when(value.began),
        ended=rfc3339(value.ended),
        outcome=value.outcome,
        text=value.text,
        evidence=value.evidence,
        source=value.source,
    )


def lease(value: Lease, names: dict[str, str]) -> LeaseView:
    """A lease; `names` maps host ids to names."""
    asked = value.request
    return LeaseView(
        id=value.id,
        tenant=asked.tenant,
        sku=asked.sku,
        count=asked.count,
        placement=asked.placement,
        site=asked.site,
        image=asked.image,
        ssh_keys=asked.ssh_keys,
        state=str(value.state),
        hosts=[LeasedHost(id=h, name=names.get(h, h)) for h in value.hosts],
        created=when(value.created),
        starts=when(value.starts),
        ends=when(value.ends),
        activated=rfc3339(value.activated),
        released=rfc3339(value.released),
        ended=rfc3339(value.ended),
        reason=value.reason,
        run=value.run,
        token=value.token,
        principal=value.principal,
        version=value.version,
    )


def lease_plan(value: LeasePlan) -> LeasePlanView:
    """What a lease would get."""
    asked = value.request
    return LeasePlanView(
        tenant=asked.tenant,
        sku=asked.sku,
        count=asked.count,
        image=asked.image or "",
        ends=when(value.ends),
        hosts=[LeasedHost(id=host.id, name=host.name) for host in value.hosts],
    )


def event(value: Event) -> EventView:
    return EventView(
        seq=value.seq,
        kind=value.kind,
        at=when(value.at),
        site=value.site,
        host=value.host,
        run=value.run,
        lease=value.lease,
        principal=value.principal,
        data=value.data,
    )


def certificate(value: StoredCertificate) -> CertificateView:
    statement = value.certificate.statement
    return CertificateView(
        id=statement.id,
        host=statement.host_name,
        suite=statement.suite,
        issued=statement.issued,
        expires=statement.expires,
        revoked=rfc3339(value.revoked),
        reason=value.reason or "",
    )


def image(value: Image, used_by: list[str]) -> ImageView:
    said = value.manifest
    return ImageView(
        id=value.id,
        name=said.name,
        format=said.format.value,
        bytes=said.bytes,
        sha256=said.sha256,
        raw_bytes=said.raw_bytes,
        raw_sha256=said.raw_sha256,
        source_sha256=said.source_sha256,
        description=said.description,
        signed_by=value.signed_by,
        signature=None
        if value.signature is None
        else SignatureView(key=value.signature.key, value=value.signature.value),
        added=when(value.added),
        added_by=value.added_by,
        used_by=used_by,
        version=value.version,
    )


def boot(host: Host, boot: Boot | None, trail: list[Entry], found: Diagnosis, since: float) -> BootDoctorView:
    """Where a host's boot stands; `since`: wall second at which the trail begins."""
    return BootDoctorView(
        host=host.id,
        name=host.name,
        mac=host.spec.boot_mac,
        boot=None
        if boot is None
        else OpenBootView(
            id=boot.id,
            environment=boot.environment,
            armed=when(boot.armed),
            expires=when(boot.expires),
            met=rfc3339(boot.met),
            source=boot.source,
        ),
        stage=found.stage,
        good=found.ok,
        what=found.what,
        remedy=found.remedy,
        remembered_since=when(since),
        trail=[
            SightingView(at=when(e.at), stage=e.stage, mac=e.mac, source=e.source, detail=e.detail, answer=e.answer)
            for e in trail
        ],
    )


def playbook(value: Playbook) -> PlaybookView:
    strategy: dict[str, Any] = msgspec.to_builtins(value.strategy)
    return PlaybookView(
        name=value.name,
        description=value.description,
        scope=value.scope,
        steps=[step(s) for s in value.steps],
        strategy=strategy,
    )


def _health(status: HostStatus) -> Literal["ok", "alert", "finding", "unknown"]:
    """A host whose BMC was never met is not well: nobody looked."""
    if status.findings:
        return "finding"
    if status.alerts:
        return "alert"
    return "unknown" if status.observed.met_at is None else "ok"
