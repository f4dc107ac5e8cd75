"""Starts the host into the deploy environment or from its disk, through its own BMC, and waits for the proof that it came."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from fleetd.kit.errors import IdentityUnproven, Lied
from fleetd.lifecycle.outcome import Outcome, advance, fail
from fleetd.lifecycle.steps.base import Step, StepContext
from fleetd.model.boot import Boot
from fleetd.model.check import Action
from fleetd.model.host import Host, State
from fleetd.model.power import BootDevice, PowerVerb


class BootStep(Step):
    """Powers off, arms a fresh nonce, sets the boot device once, powers on, waits for the phone-home that returns the nonce."""

    name = "boot"
    summary = "boot into the deploy environment or from disk, proven by the phone-home"
    seconds = 1800.0
    attempts = 2
    stays_in = frozenset({State.VALIDATING})
    needs = frozenset({"managed"})

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """`to`: deploy (RAM environment, by network) or disk. `patience`: seconds from power-on to the phone-home."""

        to: Literal["deploy", "disk"]
        patience: float = 900.0

    def plan(self, host: Host, params: Any) -> str:
        return f"power off and boot from {'network into the deploy environment' if params.to == 'deploy' else 'disk'}"

    def evidence_of(self, params: Any) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        needs = self.needs | ({"image"} if params.to == "disk" else set())
        return frozenset(needs), frozenset({params.to}), frozenset({"deploy", "disk"} - {params.to})

    async def do(self, ctx: StepContext) -> Outcome:
        params: BootStep.Params = ctx.params
        # Off first, and proven off: what ran until now may hold this very token (a written disk keeps it) and must not
        # answer for the boot that is armed next.
        bmc = await ctx.bmc()
        ctx.power = await bmc.power(PowerVerb.OFF, timeout=120.0)
        boot = await self._arm(ctx, params)
        if boot is None:
            return fail(
                "boot.no-image",
                "no written image is known for this host",
                remedy="run `fleetctl rack bringup`: it writes one",
                action=Action.RETEST,
            )
        await bmc.set_boot_once(BootDevice.NETWORK if params.to == "deploy" else BootDevice.DISK, timeout=60.0)
        ctx.power = await bmc.power(PowerVerb.ON, timeout=120.0)
        remedy = "look at its console; check cable and DHCP of the boot NIC, and the boot order"
        await ctx.waiting(f"the host phones home from {params.to}", remedy=remedy, seconds=params.patience)
        try:
            met = await ctx.wires.boots.wait_hello(boot, params.patience)
        except IdentityUnproven as error:
            return fail("identity.unproven", str(error), remedy=error.remedy, action=Action.FIX_INVENTORY)
        except TimeoutError as error:
            raise Lied("the host never came up") from error
        ctx.data["boot"] = met.id
        return advance(
            f"up in {params.to}, from {met.source}, as serial {met.serial}", boot=met.id, boot_id=met.boot_id
        )

    @staticmethod
    async def _arm(ctx: StepContext, params: BootStep.Params) -> Boot | None:
        boots, host = ctx.wires.boots, ctx.host
        if params.to == "deploy":
            return await boots.arm(host, "deploy", intent=ctx.intent, seconds=params.patience)
        seed = await ctx.wires.credentials.seed(host)
        if seed is None:
            return None
        return await boots.arm(
            host,
            "disk",
            intent=ctx.intent,
            seconds=params.patience,
            token=seed.token,
            keys=(seed.private_key, seed.public_key),
            host_key=seed.host_key,
        )
