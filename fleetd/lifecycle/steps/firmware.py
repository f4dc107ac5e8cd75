"""Firmware against the baseline: compared only. A drift is a finding; flashing is other work."""

from __future__ import annotations

from typing import Any

from fleetd.lifecycle.outcome import Outcome, advance, fail
from fleetd.lifecycle.steps.base import Step, StepContext
from fleetd.model.check import Action
from fleetd.model.firmware import compare
from fleetd.model.host import Host


class FirmwareBaseline(Step):
    """Compares BIOS and BMC versions, as the BMC told them, with firmware/baselines/<sku>.yaml."""

    name = "firmware-baseline"
    summary = "compare firmware with the SKU's baseline"
    seconds = 60.0
    needs = frozenset({"managed"})

    def plan(self, host: Host, params: Any) -> str:
        return f"compare BIOS and BMC versions with the baseline of {host.spec.sku}"

    async def do(self, ctx: StepContext) -> Outcome:
        baseline = ctx.wires.baselines.get(ctx.host.spec.sku)
        if baseline is None:
            return fail(
                "firmware.no-baseline",
                f"SKU {ctx.host.spec.sku} has no firmware baseline",
                remedy=f"add firmware/baselines/{ctx.host.spec.sku}.yaml and run again",
                action=Action.CONFIGURE,
            )
        seen = ctx.host.status.observed
        drift = compare(baseline, {"bios": seen.bios_version, "bmc": seen.bmc_version})
        if drift:
            return fail(
                "firmware.drift",
                "; ".join(
                    f"{d.component} is {d.observed or 'not known'}, allowed: {', '.join(d.allowed)}" for d in drift
                ),
                remedy=f"flash {drift[0].component} to {drift[0].target}, then retest",
                action=Action.REFLASH,
                parts=tuple(d.component for d in drift),
            )
        told = {"bios": seen.bios_version, "bmc": seen.bmc_version}
        names = {"bios": "BIOS", "bmc": "BMC"}
        # Only what the baseline lists was compared: an IPMI BMC that cannot tell the BIOS is no fault of the host.
        shown = ", ".join(f"{names.get(name, name)} {told[name]}" for name in baseline.components)
        return advance(f"{shown}: as the baseline", **{name: told[name] for name in baseline.components})
