"""Erases every drive of the host, and believes only the read-back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from fleetd.checks.judge import clean
from fleetd.lifecycle.outcome import Fail, Outcome, advance, fail
from fleetd.lifecycle.steps.base import StepContext
from fleetd.lifecycle.steps.ondeploy import DriveReport, HostReport, OnDeploy, named
from fleetd.model.check import Action
from fleetd.model.host import Host
from fleetd.store import hosts as host_rows

# Bytes a second that the slowest disk worth keeping is written with. A disk of 20 TB so has 69 hours: twice what it needs,
# as one erase that fails may come before the overwrite.
RATE = 80e6
NVME_RATE = 500_000_000  # bytes a second; QLC flash, once its cache is full
ABREAST = 16  # drives that the host erases at once
MOST_SECONDS = 96 * 3600.0  # whatever sizes a host tells


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

    def seconds_for(self, drives: Sequence[DriveReport]) -> float:
        """What overwriting all of them would take: which drive refuses its own erase is known only when it did."""
        each = [drive.bytes / (NVME_RATE if drive.name.startswith("nvme") else RATE) for drive in drives]
        rounds = -(-len(each) // ABREAST)
        return min(MOST_SECONDS, max(self.seconds, rounds * max(each, default=0.0)))

    def plan(self, host: Host, params: Any) -> str:
        return "ERASE every drive of the host by its own means or by overwriting, then read samples back"

    async def admit(self, ctx: StepContext, serials: Sequence[str]) -> Fail | None:
        """This host's from now on, whatever becomes of them: one that keeps data, once pulled, is known in any other."""
        now = ctx.clock.wall()
        await ctx.db.commit(host_rows.replace_drives(ctx.host.id, ctx.host.spec.site, serials, now))
        return None

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
        # By serial: one told twice must not stand for one left out. A host of other drives only (a virtual one) counts
        # those; beside NVMe drives they count nothing, or a SATA drive would stand for an NVMe drive that is gone.
        counted = {serial for serial, proof in evidence.items() if proof["name"].startswith("nvme")} or set(evidence)
        if len(counted) != wanted or len(evidence) != len(report.drives):
            return _with(
                fail(
                    "storage.count",
                    f"{len(evidence)} drives erased, {len(counted)} of them count, the SKU has {wanted} NVMe drives",
                    remedy="reseat the missing drive: its data was not erased",
                    action=Action.RESEAT,
                ),
                evidence,
            )
        # What this order named stands in the ledger since before it left; a host of an older fleetd's order has none.
        ordered = {clean(serial, 64) for serial in await host_rows.drives_of(ctx.db, ctx.host.id)} or set(evidence)
        if missing := sorted(ordered - set(evidence)):
            return _with(
                fail(
                    "storage.count",
                    f"drive {', '.join(missing[:8])} was to be erased, and the host does not tell of it",
                    remedy=f"pull {', '.join(missing[:8])}, or reseat it and retest: its data was not erased",
                    action=Action.RESEAT,
                    parts=tuple(missing),
                ),
                evidence,
            )
        ctx.tenant_data = ("erased", f"intent {ctx.intent}: " + ", ".join(sorted(evidence)))
        return advance(f"{len(report.drives)} drives erased and read back", drives=evidence)


def _proven(drive: DriveReport) -> bool:
    """What the host says is weighed again: erased, a pattern written before, and neither it nor any data left after."""
    marked = drive.pattern_written >= drive.samples > 0
    return drive.erased and marked and not drive.nonzero and not drive.pattern_left


def _why(drive: DriveReport) -> str:
    tried = "; ".join(f"{clean(t.method, 40)}: {clean(t.reason)}" for t in drive.tried[:8])
    reason = clean(drive.reason, 300) or (
        f"{drive.nonzero} of {drive.samples} samples still hold data" if drive.samples else "nothing was read back"
    )
    if drive.samples > drive.pattern_written:
        reason = f"no pattern stood on all samples before, so their zeros prove nothing; {reason}"
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
