"""Erases every drive of the host, and believes only the read-back."""

from __future__ import annotations

from typing import Any

from fleetd.lifecycle.outcome import Outcome, advance, fail
from fleetd.lifecycle.steps.base import StepContext
from fleetd.lifecycle.steps.ondeploy import HostReport, OnDeploy
from fleetd.model.check import Action
from fleetd.model.host import Host


class Wipe(OnDeploy):
    """Every drive, with a sampled read-back per drive; one that keeps its data keeps the host out."""

    name = "wipe"
    summary = "erase every drive and prove it by read-back"
    seconds = 4 * 3600.0
    command = "wipe"
    needs = frozenset({"managed", "deploy"})
    gives = frozenset({"wiped"})
    spoils = frozenset({"image"})

    def plan(self, host: Host, params: Any) -> str:
        return "ERASE every drive of the host, then read samples back"

    async def judge(self, ctx: StepContext, report: HostReport) -> Outcome:
        kept = [drive for drive in report.drives if not drive.erased]
        if kept or not report.ok or not report.drives:
            return fail(
                "storage.erase",
                "; ".join(f"drive {d.serial} was not erased: {d.reason}" for d in kept)
                or "no drive was reported erased",
                remedy=f"pull the drive{'s' if len(kept) > 1 else ''} {', '.join(d.serial for d in kept)} and replace it, then retest",
                action=Action.RMA,
                parts=tuple(d.serial for d in kept),
            )
        if len(report.drives) != ctx.sku.storage.nvme_count:
            return fail(
                "storage.count",
                f"{len(report.drives)} drives erased, the SKU has {ctx.sku.storage.nvme_count}",
                remedy="reseat the missing drive: its data was not erased",
                action=Action.RESEAT,
            )
        evidence = {d.serial: f"{d.method}, read back in {d.seconds:.1f} s" for d in report.drives}
        ctx.tenant_data = ("erased", f"intent {ctx.intent}: " + ", ".join(sorted(evidence)))
        return advance(f"{len(report.drives)} drives erased and read back", drives=evidence)
