"""Facts that only the fleet can judge: a part that is in two hosts at once."""

from __future__ import annotations

from fleetd.checks.context import Context
from fleetd.checks.judge import Judge, clean
from fleetd.checks.registry import Cause, check
from fleetd.model.bmc import is_placeholder
from fleetd.model.check import Action
from fleetd.model.report import Report
from fleetd.model.sku import Sku


@check(
    id="fleet.duplicates",
    title="No GPU, NIC or drive of this host is recorded on another",
    cause=Cause.KIND,
    source="the ledger's index of parts; none of the public validation suites looks beyond one host",
    why="a serial on two hosts means a swapped part, a cloned board, or a report of the wrong host",
    action=Action.FIX_INVENTORY,
    remedy=(
        "one of the two hosts was rebuilt with this part: put the other into maintenance, then validate both again"
    ),
)
def duplicates(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    judge.expected = "every UUID, serial and GUID on this host only"
    elsewhere = context.duplicates
    if elsewhere is None:
        judge.unread("", "the other hosts' parts were not looked up")
        return
    parts: list[tuple[str, str]] = []
    for part, gpu in judge.gpus(facts, profile):
        for what, reading in (("UUID", gpu.uuid), ("serial", gpu.serial)):
            value = judge.read(part, what, reading)
            if value is not None:
                parts.append((part, value))
    nics = facts.nics.v
    if nics is None and profile.network.count:
        judge.unread("", "NICs not read", facts.nics.reason)
    for nic in nics or []:
        guid = judge.read(clean(nic.name, 16), "GUID", nic.guid)
        if guid is not None and not is_placeholder(guid.replace(":", "")):
            parts.append((clean(nic.name, 16), guid))
    drives = facts.nvme.v
    if drives is None:
        judge.unread("", "NVMe drives not read", facts.nvme.reason)
    for drive in drives or []:
        serial = judge.read(clean(drive.name, 16), "serial", drive.serial)
        if serial is not None:
            parts.append((clean(drive.name, 16), serial))
    for part, value in parts:
        other = elsewhere.get(value)
        judge.must(other is None, part, f"{clean(value)} is also recorded on {other}")
