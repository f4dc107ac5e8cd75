"""The moment a host becomes the tenant's."""

from __future__ import annotations

from typing import Any

from fleetd.lifecycle.outcome import Outcome, advance, fail
from fleetd.lifecycle.steps.base import Step, StepContext
from fleetd.model.host import Host, State
from fleetd.model.lease import LeaseState


class HandOver(Step):
    """Last look before the tenant gets it: the proof must be current at this instant."""

    name = "hand-over"
    summary = "give the host to the tenant"
    seconds = 30.0
    needs = frozenset({"suite", "image", "disk"})
    leaves = State.LEASED
    stays_in = frozenset({State.DELIVERING})

    def plan(self, host: Host, params: Any) -> str:
        return "hand over to the tenant"

    async def do(self, ctx: StepContext) -> Outcome:
        if ctx.lease is None or ctx.lease.state is not LeaseState.DELIVERING or ctx.host.id not in ctx.lease.hosts:
            return fail("lease.gone", "no lease in delivery binds this host", remedy="nothing: the host is reclaimed")
        problems = await ctx.wires.proofs.problems(ctx.host, ctx.clock.wall())
        if problems:
            return fail("proof.missing", "; ".join(problems), remedy=f"fleetctl host validate {ctx.host.name}")
        return advance(f"handed over to {ctx.lease.request.tenant} under lease {ctx.lease.id}", lease=ctx.lease.id)
