"""Power as a step: off, confirmed by read-back."""

from __future__ import annotations

from typing import Any

from fleetd.lifecycle.outcome import Outcome, advance
from fleetd.lifecycle.poweroff import switch_off
from fleetd.lifecycle.steps.base import Step, StepContext
from fleetd.model.host import Host


class PowerOff(Step):
    """Nothing runs on the host from here until a boot that fleetd starts."""

    name = "power-off"
    summary = "power off, confirmed by read-back"
    seconds = 180.0
    needs = frozenset({"managed"})
    spoils = frozenset({"deploy", "disk"})

    def plan(self, host: Host, params: Any) -> str:
        return "power off at the BMC and read back"

    async def do(self, ctx: StepContext) -> Outcome:
        bmc = await ctx.bmc()
        await ctx.waiting(
            "the BMC reads back power off",
            remedy="look at the host: is its power button held, its BMC hung?",
            seconds=60,
        )
        ctx.power = await switch_off(ctx.db, ctx.clock, ctx.host.id, bmc, timeout=60.0)
        return advance(f"power reads back {ctx.power}", power=str(ctx.power))
