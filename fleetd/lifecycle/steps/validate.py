"""Proves the host: probe, checks, and for a full suite the signed certificate."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from fleetd.checks import registry as checks
from fleetd.checks.context import Context, Expected
from fleetd.checks.judge import clean
from fleetd.kit.errors import Garbled, IdentityUnproven
from fleetd.lifecycle.outcome import Fail, Outcome, advance, fail, rewind, wait
from fleetd.lifecycle.steps.base import Step, StepContext
from fleetd.lifecycle.steps.ondeploy import unwiped
from fleetd.model.check import Action, Verdict
from fleetd.model.host import Host, State
from fleetd.model.report import MAX_REPORT, Report, fingerprint_parts, read_report
from fleetd.model.run import RunHostState
from fleetd.store import hosts as host_rows
from fleetd.store import runs as run_rows


class Validate(Step):
    """The suite of the SKU runs; every required check must give a pass, or the host is out."""

    name = "validate"
    summary = "read the host's facts and judge them by the SKU's suite"
    seconds = 1800.0
    attempts = 2
    needs = frozenset({"managed", "disk"})
    gives = frozenset({"suite"})

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """`suite`: acceptance (gives a certificate) or quick (between claim and hand-over)."""

        suite: Literal["acceptance", "quick"] = "acceptance"

    def state_for(self, params: Any) -> State | None:
        return State.VALIDATING if params.suite == "acceptance" else None

    def plan(self, host: Host, params: Any) -> str:
        return f"run the {params.suite} suite of {host.spec.sku}"

    async def do(self, ctx: StepContext) -> Outcome:
        suite = ctx.sku.suite(ctx.params.suite)
        report, digest = await self._facts(ctx)
        if not isinstance(report, Report):
            return report
        parts = fingerprint_parts(report)
        context = await self._context(ctx, parts)
        own = tuple(id_ for id_ in suite if (found := checks.find(id_)) is None or found.host is not None)
        verdicts = checks.run_suite(own, ctx.host.id, report, ctx.sku, context)
        if len(own) < len(suite):
            # A tray that is broken by itself has its answer; a good one waits for its domain.
            if all(v.passed for v in verdicts) and (waiting := await self._peers(ctx)) is not None:
                return waiting
            context = msgspec.structs.replace(context, domain_reports=await self._domain_reports(ctx))
            verdicts = checks.run_suite(suite, ctx.host.id, report, ctx.sku, context)
        wrong = [v for v in verdicts if not v.passed]
        evidence = {v.check: f"{v.outcome}: {v.measured}" for v in verdicts}
        if wrong or not verdicts:
            finding = checks.headline(verdicts)
            assert finding is not None, "headline names a finding whenever a verdict is not a pass"
            return msgspec.structs.replace(
                fail(finding.code, finding.message, remedy=finding.remedy, action=finding.action, parts=finding.parts),
                evidence=evidence,
            )
        if (unwiped := await _unwiped(ctx, parts["nvme"])) is not None:
            return msgspec.structs.replace(unwiped, evidence=evidence)
        ctx.ops += host_rows.replace_parts(ctx.host.id, ctx.host.spec.site, parts, ctx.clock.wall())
        if ctx.params.suite == "quick":
            return advance(f"{len(verdicts)} of {len(verdicts)} quick checks pass", **evidence)
        return self._certify(ctx, verdicts, report, digest, evidence)

    def _certify(
        self, ctx: StepContext, verdicts: list[Verdict], report: Report, digest: str, evidence: dict[str, str]
    ) -> Outcome:
        certificate, expires, ops = ctx.wires.proofs.issue(
            ctx.host,
            suite=ctx.params.suite,
            verdicts=verdicts,
            report=report,
            report_digest=digest,
            sku=ctx.sku,
            probe=f"{report.probe} sha256:{ctx.wires.report.digest}",
        )
        ctx.ops += ops
        ctx.certificate = (certificate.statement.id, expires)
        ctx.data["certificate"] = certificate.statement.id
        return advance(
            f"{len(verdicts)} of {len(verdicts)} checks pass; certificate {certificate.statement.id}", **evidence
        )

    async def _facts(self, ctx: StepContext) -> tuple[Report | Outcome, str]:
        """The report of this very boot of this very host, stored; or the outcome that ends the try."""
        try:
            boot, target = await ctx.wires.boots.shell_target(ctx.host, "disk")
        except IdentityUnproven as error:
            return rewind(str(error), to="disk"), ""
        if (kept := ctx.data.get("reported")) and kept == boot.id:
            stored = await host_rows.latest_report(ctx.db, ctx.host.id)
            if stored is not None and stored.run == ctx.run.id:
                return read_report(stored.data), stored.digest
        nonce = secrets.token_hex(16)
        shell = await ctx.wires.shells.connect(target, timeout=30.0)
        try:
            data = await shell.run(
                ctx.wires.report,
                (f"--nonce={nonce}", f"--host={ctx.host.id}"),
                timeout=600.0,
                max_output=MAX_REPORT,
                progress=ctx.progress,
            )
            report = read_report(data)
        except Garbled as error:
            outcome = fail(
                "probe.garbled", str(error), remedy="boot the host again and retest; if it returns, reinstall its image"
            )
            return outcome, ""
        finally:
            await shell.close()
        if wrong := _not_this(report, nonce, ctx.host.id, boot.boot_id):
            return fail(
                "probe.foreign", wrong, remedy="boot the host again and retest; if it returns, look who answers for it"
            ), ""
        digest = hashlib.sha256(data).hexdigest()
        await ctx.db.commit(
            [
                host_rows.save_report(
                    ctx.host.id, ctx.run.id, ctx.params.suite, ctx.clock.wall(), boot.boot_id, digest, data
                )
            ]
        )
        ctx.data["reported"] = boot.id
        return report, digest

    async def _peers(self, ctx: StepContext) -> Outcome | None:
        """A Wait until the other trays of the domain in this run have reported or are out; None when there is nothing to wait for."""
        reported = await host_rows.reports_of_run(ctx.db, ctx.run.id)
        missing = []
        for place in await run_rows.hosts(ctx.db, ctx.run.id):
            if place.host == ctx.host.id or place.host in reported or place.state is not RunHostState.ACTIVE:
                continue
            peer = await host_rows.get(ctx.db, place.host)
            if peer.spec.nvlink_domain == ctx.host.spec.nvlink_domain:
                missing.append(peer.name)
        until = float(ctx.data.setdefault("domain-until", ctx.clock.wall() + ctx.wires.domain_patience))
        if not missing or ctx.clock.wall() >= until:
            return None
        return wait(
            f"reports of {len(missing)} trays of NVLink domain {ctx.host.spec.nvlink_domain}",
            remedy=f"look at {', '.join(sorted(missing)[:4])}: `fleetctl host why {sorted(missing)[0]}`",
            until=until + 5.0,
            every=0.5,
        )

    @staticmethod
    async def _context(ctx: StepContext, parts: dict[str, tuple[str, ...]]) -> Context:
        """What the checks may know beside the report, read once."""
        host, seen = ctx.host, ctx.host.status.observed
        domain = host.spec.nvlink_domain or ""
        members = await host_rows.every(ctx.db, domain=domain) if domain else []
        return Context(
            expected=Expected(serial=host.spec.serial, uuid=seen.uuid, boot_mac=host.spec.boot_mac),
            duplicates=await host_rows.parts_elsewhere(ctx.db, host.id, parts),
            baseline=ctx.wires.baselines.get(host.spec.sku),
            versions={"bios": seen.bios_version, "bmc": seen.bmc_version},
            domain=domain,
            domain_members=tuple(h.id for h in members if h.state is not State.RETIRED),
        )

    @staticmethod
    async def _domain_reports(ctx: StepContext) -> dict[str, Report]:
        """The newest report of every other tray of the domain."""
        reports: dict[str, Report] = {}
        for peer in await host_rows.every(ctx.db, domain=ctx.host.spec.nvlink_domain):
            if peer.id == ctx.host.id or peer.state is State.RETIRED:
                continue
            stored = await host_rows.latest_report(ctx.db, peer.id)
            if stored is not None:
                reports[peer.id] = read_report(stored.data)
        return reports


async def _unwiped(ctx: StepContext, drives: Sequence[str]) -> Fail | None:
    """A drive that was put in after the last erase: a proof of the hardware says nothing of what is stored on it."""
    erased = await host_rows.drives_of(ctx.db, ctx.host.id)
    late = sorted(clean(serial, 64) for serial in drives if serial not in erased) if erased else []
    if not late:
        return None
    return unwiped(ctx.host, late, "the host is not proven with it")


def _not_this(report: Report, nonce: str, host: str, boot_id: str) -> str:
    """Why this report is not of this question, this host, this boot; empty when it is."""
    if report.nonce != nonce:
        return "the report does not carry the nonce of this question"
    if report.host != host:
        return f"the report is of host {report.host[:60]!r}"
    if report.boot_id.v != boot_id:
        return (
            f"the report is of boot {report.boot_id.v or report.boot_id.reason!r}, the host phoned home from {boot_id}"
        )
    return ""


class Publish(Step):
    """Out to the inventory: only with a current certificate of this hardware, and without tenant data."""

    name = "publish"
    summary = "make the host leaseable"
    seconds = 30.0
    needs = frozenset({"suite", "managed"})
    leaves = State.AVAILABLE
    stays_in = frozenset({State.VALIDATING})

    def plan(self, host: Host, params: Any) -> str:
        return "publish as available"

    async def do(self, ctx: StepContext) -> Outcome:
        host, now = ctx.host, ctx.clock.wall()
        problems = await ctx.wires.proofs.problems(host, now)
        if host.tenant_data == "possible":
            problems.append("a tenant's data may still be on its drives")
        if problems:
            return fail(
                "proof.missing", "; ".join(problems), remedy=f"fleetctl host validate {host.name}", action=Action.RETEST
            )
        ctx.clear_findings = True
        return advance(f"available under certificate {host.certificate}", certificate=host.certificate)
