"""Nouns for the ledger's tests: hosts that differ in everything that must be unique."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleetd.model.bmc import BmcSpec
from fleetd.model.boot import Boot
from fleetd.model.certificate import Certificate, Statement
from fleetd.model.host import Host, HostSpec, HostStatus, State, WaitingFor
from fleetd.model.lease import Lease, LeaseRequest, LeaseState
from fleetd.model.run import Run, RunHost, StepRecord, StepSnapshot, Strategy

NOW = 1_800_000_000.0
LATER = NOW + 86_400


def a_spec(number: int, **changed: Any) -> HostSpec:
    fields: dict[str, Any] = {
        "name": f"lou-a{number // 40:02d}-{number % 40 + 1:02d}",
        "position": number % 40 + 1,
        "sku": "dell.xe9680-h100-8",
        "serial": f"7XK{number:05d}",
        "bmc": BmcSpec("redfish", f"10.{number // 65536}.{number // 256 % 256}.{number % 256}", "factory-dell"),
        "boot_mac": f"04:3f:72:{number // 65536:02x}:{number // 256 % 256:02x}:{number % 256:02x}",
        "site": "louisiana",
        "rack": f"lou-a{number // 40:02d}",
        "labels": {"row": "a"},
    }
    return HostSpec(**(fields | changed))


def a_host(number: int, *, spec: HostSpec | None = None, **changed: Any) -> Host:
    status = HostStatus(
        waiting_for=WaitingFor(what="power", since=NOW, until=NOW + 60, remedy="wait", source="states.py:1")
    )
    fields: dict[str, Any] = {
        "id": f"host-{number:05d}",
        "spec": spec or a_spec(number),
        "state_since": NOW,
        "status": status,
    }
    return Host(**(fields | changed))


def ready(number: int, **changed: Any) -> Host:
    """A host that a lease may claim at NOW."""
    fields = {"state": State.AVAILABLE, "certificate": f"certificate-{number}", "certificate_expires": LATER}
    return a_host(number, **(fields | changed))


def a_lease(name: str, hosts: Sequence[Host], **changed: Any) -> Lease:
    request = LeaseRequest(
        tenant="acme", sku="dell.xe9680-h100-8", count=max(1, len(hosts)), ends_at="2027-02-01T00:00:00Z"
    )
    fields: dict[str, Any] = {
        "id": f"lease-{name}",
        "request": request,
        "state": LeaseState.DELIVERING,
        "hosts": tuple(host.id for host in hosts),
        "created": NOW,
        "starts": NOW,
        "ends": LATER,
    }
    return Lease(**(fields | changed))


def a_run(name: str, **changed: Any) -> Run:
    fields: dict[str, Any] = {
        "id": f"run-{name}",
        "playbook": "rack-bringup",
        "steps": (StepSnapshot(name="enroll", version=1), StepSnapshot(name="wipe", version=1)),
        "strategy": Strategy(),
        "selector": "rack=lou-a00",
        "created": NOW,
    }
    return Run(**(fields | changed))


def in_run(run: Run, host: Host, **changed: Any) -> RunHost:
    return RunHost(run=run.id, host=host.id, wave=0, **changed)


def a_step(run: Run, host: Host, index: int = 0, attempt: int = 1, **changed: Any) -> StepRecord:
    fields: dict[str, Any] = {
        "run": run.id,
        "host": host.id,
        "index": index,
        "attempt": attempt,
        "name": "wipe",
        "intent": f"intent-{index}-{attempt}",
        "destructive": True,
        "began": NOW + index,
    }
    return StepRecord(**(fields | changed))


def a_boot(name: str, host: Host, **changed: Any) -> Boot:
    fields: dict[str, Any] = {
        "id": f"boot-{name}",
        "host": host.id,
        "environment": "deploy",
        "token_hash": f"hash-{name}",
        "public_key": "ssh-ed25519 AAAA",
        "private_key": "v1:sealed",
        "armed": NOW,
        "expires": NOW + 900,
        "intent": "intent-1",
    }
    return Boot(**(fields | changed))


def a_certificate(name: str, host: Host) -> Certificate:
    statement = Statement(
        format="fleetd.certificate/1",
        id=f"certificate-{name}",
        site="louisiana",
        host=host.id,
        host_name=host.name,
        serial=host.spec.serial,
        uuid="4c4c4544-0042-3010-8051-b7c04f4e3233",
        sku=host.spec.sku,
        sku_digest="00",
        suite="acceptance",
        fingerprint="00",
        parts={"gpu": ("GPU-1",)},
        probe="1",
        report="00",
        boot_id="b",
        nonce="n",
        verdicts=(),
        issued="2027-01-15T08:00:00.000Z",
        expires="2027-02-14T08:00:00.000Z",
    )
    return Certificate(statement=statement, key_id="0123456789abcdef", signature="c2ln")
