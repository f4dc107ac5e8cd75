"""Erases every drive of the host, and believes only the read-back."""

from __future__ import annotations

from typing import Any

import msgspec

from fleetd.checks.judge import clean
from fleetd.lifecycle.outcome import Fail, Outcome, advance, fail
from fleetd.lifecycle.steps.base import StepContext
from fleetd.lifecycle.steps.ondeploy import DriveReport, HostReport, OnDeploy, named
from fleetd.model.check import Action
from fleetd.model.host import Host


class Wipe(OnDeploy):
    """Every drive: a known pattern written and read, erased, and read back again; one that keeps data keeps the host out."""

    name = "wipe"
    version = 2
    summary = "erase every drive and prove it by read-back"
    seconds = 4 * 3600.0
    command = "wipe"
    touches = True
    needs = frozenset({"managed", "deploy"})
    gives = frozenset({"wiped"})
    spoils = frozenset({"image"})

    def plan(self, host: Host, params: Any) -> str:
        return "ERASE every drive of the host by its own means or by overwriting, then read samples back"

    async def judge(self, ctx: StepContext, report: HostReport) -> Outcome:
        evidence = {clean(d.serial, 64): _proof(d) for d in report.drives}
        kept = [drive for drive in report.drives if not _proven(drive)]
        if kept or not report.ok or not report.drives:
            return _with(
                fail(
                    "storage.erase",
                    "; ".join(f"drive {clean(d.serial, 64)} was not erased: {_why(d)}" for d in kept)
                    or clean(report.reason)
                    or "no drive was reported erased",
                    remedy=f"pull the drive{'s' if len(kept) > 1 else ''} {named(kept)}, replace and destroy"
                    f" {'them' if len(kept) > 1 else 'it'}, then retest",
                    action=Action.RMA,
                    parts=tuple(clean(d.serial, 64) for d in kept),
                ),
                evidence,
            )
        wanted = ctx.sku.storage.nvme_count
        if sum(d.name.startswith("nvme") for d in report.drives) != wanted and len(report.drives) != wanted:
            return _with(
                fail(
                    "storage.count",
                    f"{len(report.drives)} drives erased, the SKU has {wanted} NVMe drives",
                    remedy="reseat the missing drive: its data was not erased",
                    action=Action.RESEAT,
                ),
                evidence,
            )
        ctx.tenant_data = ("erased", f"intent {ctx.intent}: " + ", ".join(sorted(evidence)))
        return advance(f"{len(report.drives)} drives erased and read back", drives=evidence)


def _proven(drive: DriveReport) -> bool:
    """What the host says is weighed again: erased, samples taken, and none of them, nor of the pattern, left."""
    return drive.erased and drive.samples > 0 and not drive.nonzero and not drive.pattern_left


def _why(drive: DriveReport) -> str:
    tried = "; ".join(f"{clean(t.method, 40)}: {clean(t.reason)}" for t in drive.tried[:8])
    reason = clean(drive.reason, 300) or (
        f"{drive.nonzero} of {drive.samples} samples still hold data" if drive.samples else "nothing was read back"
    )
    return reason + (f" (tried {tried})" if tried else "")


def _proof(drive: DriveReport) -> dict[str, Any]:
    """One drive of the reclaim evidence, whole."""
    return {
        "name": clean(drive.name, 32),
        "model": clean(drive.model, 64),
        "bytes": drive.bytes,
        "erased": _proven(drive),
        "method": clean(drive.method, 64),
        "seconds": drive.seconds,
        "samples": drive.samples,
        "nonzero": drive.nonzero,
        "pattern_written": drive.pattern_written,
        "pattern_left": drive.pattern_left,
        "reason": clean(drive.reason, 300),
        "tried": [{"method": clean(t.method, 64), "reason": clean(t.reason, 200)} for t in drive.tried[:16]],
    }


def _with(outcome: Fail, drives: dict[str, Any]) -> Fail:
    return msgspec.structs.replace(outcome, evidence={"drives": drives})
