"""Puts the firmware's own boot order right: what a tenant added goes, the system drive comes first."""

from __future__ import annotations

from typing import Any

from fleetd.checks.judge import clean
from fleetd.lifecycle.outcome import Outcome, advance
from fleetd.lifecycle.steps.base import StepContext
from fleetd.lifecycle.steps.ondeploy import HostReport, OnDeploy, no_boot_order
from fleetd.model.boot import Boot
from fleetd.model.host import Host

MAX_ENTRIES = 256


class BootOrder(OnDeploy):
    """Entries that the firmware made itself stay. A host that boots by BIOS has no such variables: nothing to do."""

    name = "boot-order"
    summary = "reset the EFI boot entries, the system drive first"
    seconds = 300.0
    command = "boot-order"
    needs = frozenset({"managed", "deploy"})

    def plan(self, host: Host, params: Any) -> str:
        return "REMOVE EFI boot entries that a tenant added, put the system drive first"

    async def order(self, ctx: StepContext, boot: Boot, drives: list[Any]) -> dict[str, Any]:
        return {"prefer": "disk", "rule": ctx.sku.storage.system_serial_rule}

    async def judge(self, ctx: StepContext, report: HostReport) -> Outcome:
        if not report.ok:
            return no_boot_order(clean(report.reason, 300) or "the host does not say why")
        if not report.efi.get("present"):
            return advance("the host did not start by EFI: there is no boot order to set", present=False)
        entries = report.efi.get("entries")
        order = report.efi.get("boot_order")
        shown = (
            {clean(k, 8): clean(v, 64) for k, v in list(entries.items())[:MAX_ENTRIES]}
            if isinstance(entries, dict)
            else {}
        )
        removed = [clean(number, 8) for number in report.removed[:MAX_ENTRIES]]
        first = clean(report.first, 8)
        return advance(
            f"EFI boot entries removed: {len(removed)}"
            + (f"; {shown.get(first, 'the system drive')} ({first}) comes first" if first else ""),
            present=True,
            removed=removed,
            first=first,
            order=[clean(number, 8) for number in order[:MAX_ENTRIES]] if isinstance(order, list) else [],
            entries=shown,
            note=clean(report.reason, 200),
        )
