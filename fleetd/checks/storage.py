"""Are the NVMe drives there, large enough and healthy?"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from fleetd.checks.context import Context
from fleetd.checks.judge import Judge, clean
from fleetd.checks.registry import Cause, check
from fleetd.model.check import Action
from fleetd.model.report import Nvme, Report
from fleetd.model.sku import Sku

GB = 10**9


def system_drive(drives: Sequence[Nvme], rule: str) -> Nvme | None:
    """The drive that takes the image, by the SKU's rule; None when no drive, or no single one, answers it."""
    kind, _, glob = rule.partition(":")
    if kind in ("serial", "model"):
        matching = [d for d in drives if fnmatchcase((d.serial if kind == "serial" else d.model).v or "", glob)]
        return matching[0] if len(matching) == 1 else None
    sized = [(d.bytes.v, d.name, d) for d in drives if d.bytes.v is not None]
    return min(sized, key=lambda item: item[:2])[2] if sized else None


@check(
    id="storage.nvme",
    title="All NVMe drives are there, large enough and healthy",
    cause=Cause.PRESENCE,
    source="sysfs and NVMe SMART log; AzNHC check_nvme_count, OCI",
    why="a worn or failing drive loses checkpoints; a missing one is space that was rented",
    action=Action.RMA,
    remedy="replace PARTS; it is named by its serial in the evidence",
)
def nvme(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    want = profile.storage
    judge.expected = (
        f"{want.nvme_count} drives of {want.nvme_min_gb} GB, healthy, at most {want.used_max_percent} % used"
    )
    drives = facts.nvme.v
    if drives is None:
        judge.unread("", "NVMe drives not read", facts.nvme.reason)
        return
    number = len({drive.name for drive in drives})
    judge.note("drives", number)
    judge.must(
        number >= want.nvme_count,
        "NVMe",
        f"{number} of {want.nvme_count} drives",
        Action.RESEAT,
        "reseat the missing drive",
    )
    more = "give the host the SKU it really is, or take the extra drive out"
    judge.must(
        number <= want.nvme_count,
        "",
        f"{number} drives, must be {want.nvme_count}",
        Action.FIX_INVENTORY,
        more,
    )
    system = system_drive(drives, want.system_serial_rule)
    if system is None:
        judge.unread("", f"no drive answers the rule `{want.system_serial_rule}` for the system drive")
    for drive in drives[: 4 * want.nvme_count]:
        part = clean(drive.name, 24)
        judge.read(part, "serial", drive.serial)
        size = judge.read(part, "bytes", drive.bytes)
        least = want.system_min_gb if drive is system else want.nvme_min_gb
        if size is not None:
            judge.must(size >= least * GB, part, f"{size // GB} GB, must be {least}")
        judge.equal(part, "state", drive.state, "live", Action.RESEAT)
        judge.equal(part, "critical warning", drive.critical_warning, 0)
        judge.equal(part, "media errors", drive.media_errors, 0)
        used = judge.read(part, "percentage used", drive.percentage_used)
        if used is not None:
            judge.must(0 <= used <= want.used_max_percent, part, f"{used} % of its life used")
        spare = judge.read(part, "available spare", drive.available_spare)
        threshold = judge.read(part, "spare threshold", drive.available_spare_threshold)
        if spare is not None and threshold is not None:
            judge.must(spare >= threshold, part, f"available spare {spare} %, threshold {threshold} %")
