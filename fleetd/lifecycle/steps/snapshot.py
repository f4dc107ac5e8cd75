"""The picture of a host before a tenant has it, and the look whether it is still the same host afterwards."""

from __future__ import annotations

from typing import Any

import msgspec

from fleetd.checks.judge import clean, stronger
from fleetd.kit.errors import Garbled, Unsupported
from fleetd.kit.logs import get
from fleetd.lifecycle import drift
from fleetd.lifecycle.outcome import Outcome, advance, fail
from fleetd.lifecycle.steps.base import StepContext
from fleetd.lifecycle.steps.ondeploy import HostReport, OnDeploy
from fleetd.model.check import Action
from fleetd.model.host import Host
from fleetd.store import hosts as host_rows

log = get("snapshot")
SHOWN = 6  # differences in the words of a finding; all of them stand in its parts and evidence


class _Inspect(OnDeploy):
    """Reads only: no drive is named, nothing is journalled on the host, asking twice is fine."""

    destructive = False
    command = "inspect"
    seconds = 300.0

    @staticmethod
    def incomplete(report: HostReport) -> Outcome | None:
        """A picture with a group missing would let what is behind it pass."""
        missing = drift.complete(report.snapshot) if report.ok else ["all of it"]
        if not missing:
            return None
        return fail(
            "drift.unread",
            f"the deploy environment could not read: {', '.join(missing)}; {clean(report.reason)}".rstrip("; "),
            remedy="boot the host into the deploy environment again and retest; if it returns, the environment lacks a"
            " driver for this board",
            action=Action.RETEST,
        )

    @staticmethod
    async def seen(ctx: StepContext, report: HostReport) -> drift.Parts:
        """What is compared: the report, and the accounts as the BMC itself tells them now.

        A BMC without a list is noted as that. One that does not answer raises, and the step is done again: no picture is
        taken without it.
        """
        bmc = await ctx.bmc()
        try:
            accounts = await bmc.accounts(timeout=ctx.wires.bmc_patience)
        except Unsupported as error:
            log.warning("drift.accounts-not-told", host=ctx.host.name, error=str(error))
            return drift.parts(report.snapshot, None)
        return drift.parts(report.snapshot, accounts)


class Snapshot(_Inspect):
    """Kept as a versioned fact of the host: a new row only when something changed since the last one."""

    name = "snapshot"
    summary = (
        "read firmware, board, drives, NICs, PCI, EFI keys, TPM and BMC accounts, and keep them for after the lease"
    )
    touches = True  # a picture with another host's drive in it would later call its absence a change
    needs = frozenset({"managed", "deploy"})
    gives = frozenset({"snapshot"})

    def plan(self, host: Host, params: Any) -> str:
        return "read what the host is made of, and keep it to compare with after the lease"

    async def judge(self, ctx: StepContext, report: HostReport) -> Outcome:
        if (wrong := self.incomplete(report)) is not None:
            return wrong
        seen = await self.seen(ctx, report)
        digest = drift.digest(seen)
        ctx.ops += host_rows.record_facts(ctx.host.id, {drift.FACT: drift.pack(seen)}, ctx.clock.wall())
        return advance(
            f"{len(seen)} parts noted, sha256 {digest[:12]}",
            digest=digest,
            parts=len(seen),
            lease=ctx.lease.id if ctx.lease else "",
        )


class DriftCheck(_Inspect):
    """What a tenant with root for weeks could have changed, and what was swapped meanwhile. No picture, no pass.

    A change that is meant is accepted by asking for maintenance: nobody leases the host while that is pending, it takes
    effect when the host is reclaimed, and from it the host comes back only by enrolling, with a proof and a picture anew.
    Asking beforehand accepts no change of the BMC's accounts: those are shown to a person first.
    """

    name = "drift-check"
    summary = "compare firmware, parts, boot keys and BMC accounts with the picture taken before the lease"
    needs = frozenset({"managed", "deploy"})
    gives = frozenset({"drift-checked"})

    def plan(self, host: Host, params: Any) -> str:
        return "compare firmware, board, drives, NICs, PCI, EFI keys, TPM and BMC accounts with before the lease"

    async def judge(self, ctx: StepContext, report: HostReport) -> Outcome:
        if (wrong := self.incomplete(report)) is not None:
            return wrong
        facts = await host_rows.facts(ctx.db, ctx.host.id)
        kept = next((fact for fact in reversed(facts) if fact.fact == drift.FACT and fact.until is None), None)
        name = ctx.host.name
        again = (
            f"`fleetctl host maintenance {name}`, then `fleetctl host release {name}`: it goes through maintenance and"
            " enrolling, is proven anew and a new picture is taken"
        )
        now = await self.seen(ctx, report)
        before = None
        if kept is not None:
            try:
                before = drift.unpack(kept.value)
            except Garbled as error:
                log.warning("drift.unreadable", host=name, error=str(error))  # as good as none
        found = drift.compare(before, now) if before is not None else []
        told = {one.part: f"{one.before} -> {one.after}" for one in found[:256]}
        pending = ctx.host.status.pending_maintenance
        accounts = [one.part for one in found if drift.of_account(one.part)]
        if pending is not None and not accounts and (found or before is None):
            return advance(
                f"{len(found)} parts changed; {clean(pending.owner, 64)} asked for maintenance, which comes before any lease",
                differences=told,
                accepted_by=pending.owner,
            )
        if before is None:
            return fail(
                "drift.no-snapshot",
                f"there is no {'picture' if kept is None else 'readable picture'} of this host from before the lease to"
                " compare with",
                remedy=again,
                action=Action.FIX_INVENTORY,
            )
        if (update := drift.signed_update(found, now)) is not None:
            found.remove(update)
        if not found:
            return advance(
                f"{len(now)} parts are as they were before the lease"
                + ("" if update is None else "; Secure Boot's ban list grew by a signed update"),
                digest=drift.digest(now),
                parts=len(now),
                differences={} if update is None else told,
            )
        action = found[0].action
        for one in found[1:]:
            action = stronger(action, one.action)
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        outcome = fail(
            "drift.changed",
            "changed since before the lease: " + "; ".join(map(str, found[:SHOWN])) + more,
            remedy=(
                f"a tenant may have made {', '.join(accounts[:SHOWN])}: remove or reset it at the BMC, unless it is the"
                " site's own; "
                if accounts
                else ""
            )
            + f"look at {', '.join(one.part for one in found[:SHOWN])}: put it back as it was, then retest; if the"
            f" change is meant, {again}",
            action=action,
            parts=tuple(one.part for one in found[:64]),
        )
        return msgspec.structs.replace(outcome, evidence={"differences": told})
