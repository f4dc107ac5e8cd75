"""Starts the host into the deploy environment or from its disk, through its own BMC, and waits for the proof that it came."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from fleetd.drivers.bmc.capabilities import Bmc
from fleetd.kit.errors import DeadlineExceeded, FleetError, IdentityUnproven, Unsupported
from fleetd.kit.logs import get
from fleetd.lifecycle.outcome import Outcome, Retry, advance, fail, here
from fleetd.lifecycle.poweroff import switch_off
from fleetd.lifecycle.steps.base import Step, StepContext
from fleetd.model.boot import Boot
from fleetd.model.check import Action
from fleetd.model.host import Host, State
from fleetd.model.power import BootDevice, PowerVerb
from fleetd.model.sku import BOOT_SECONDS, BootVia

log = get("boot")
ISO = "/deploy/deploy.iso"
MEDIA_SECONDS = 180.0  # a BMC opens the ISO over its own slow network before it says that it is in
DEVICE_SECONDS, POWER_SECONDS = 60.0, 120.0
START_SECONDS = (
    MEDIA_SECONDS + DEVICE_SECONDS + POWER_SECONDS
)  # most between arming and power-on: no part of the patience
PATIENCE = msgspec.Meta(gt=0, le=BOOT_SECONDS[1])
TRIES = 2  # boots before a host that does not come is a finding
_LOOK = "look at its console; check cable and DHCP of the boot NIC, and the boot order"


class BootStep(Step):
    """Powers off, arms a fresh nonce, sets the boot device once, powers on, waits for the phone-home that returns the nonce."""

    name = "boot"
    version = 2
    summary = "boot into the deploy environment or from disk, proven by the phone-home"
    # power off, arm to power-on, the longest patience, the medium out, and what the ledger takes
    seconds = POWER_SECONDS + START_SECONDS + BOOT_SECONDS[1] + MEDIA_SECONDS + 60.0
    attempts = 2
    stays_in = frozenset({State.VALIDATING})
    needs = frozenset({"managed"})

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """`to`: deploy (RAM environment) or disk. `via`: how deploy reaches the host, in place of what its SKU says.

        `patience`: seconds from power-on to the phone-home, above 0 and at most 1200, in place of its SKU's `boot_patience`.
        """

        to: Literal["deploy", "disk"]
        patience: Annotated[float, PATIENCE] | None = None
        via: BootVia | None = None

    def plan(self, host: Host, params: Any) -> str:
        if params.to == "disk":
            return "power off and boot from disk"
        ways = {"network": "by network ", "virtual-media": "from a virtual CD ", None: ""}
        return f"power off and boot {ways[params.via]}into the deploy environment"

    def evidence_of(self, params: Any) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        needs = self.needs | ({"image"} if params.to == "disk" else set())
        return frozenset(needs), frozenset({params.to}), frozenset({"deploy", "disk"} - {params.to})

    async def do(self, ctx: StepContext) -> Outcome:
        params: BootStep.Params = ctx.params
        media = (params.via or ctx.sku.boot_via) == "virtual-media"
        # Off first, and proven off: what ran until now may hold this very token (a written disk keeps it) and must not
        # answer for the boot that is armed next.
        bmc = await ctx.bmc()
        ctx.power = await switch_off(ctx.db, ctx.clock, ctx.host.id, bmc, timeout=POWER_SECONDS)
        boot = await self._arm(ctx, params)
        if boot is None:
            return fail(
                "boot.no-image",
                "no written image is known for this host",
                remedy="run `fleetctl rack bringup`: it writes one",
                action=Action.RETEST,
            )
        try:
            return await self._go(ctx, bmc, boot, media)
        finally:
            ctx.wires.boots.forget(boot)  # a BMC that failed: else its token would wait for whoever asks later

    async def _go(self, ctx: StepContext, bmc: Bmc, boot: Boot, media: bool) -> Outcome:
        """The armed boot, medium and all."""
        params: BootStep.Params = ctx.params
        device = BootDevice.DISK
        if params.to == "deploy":
            device = BootDevice.CD if media else BootDevice.NETWORK
        elif media or ctx.data.get("media"):
            await bmc.eject_media(timeout=MEDIA_SECONDS)  # what a cut-short boot left in must not come before the disk
            ctx.data.pop("media", None)  # only now: an eject that failed is tried again
        try:
            if device is BootDevice.CD:
                await ctx.keep(media=True)  # committed first: a daemon that goes on here knows that one may be in
                # one that reports no success may be in all the same
                await bmc.insert_media(f"{ctx.wires.boots.base_url}{ISO}", timeout=MEDIA_SECONDS)
            return await self._start(ctx, bmc, boot, device)
        finally:
            if device is BootDevice.CD:
                await self._take_out(ctx, bmc)

    @staticmethod
    def _patience(ctx: StepContext) -> float:
        params: BootStep.Params = ctx.params
        return ctx.sku.boot_seconds if params.patience is None else params.patience

    async def _start(self, ctx: StepContext, bmc: Bmc, boot: Boot, device: BootDevice) -> Outcome:
        params: BootStep.Params = ctx.params
        patience = self._patience(ctx)
        await bmc.set_boot_once(device, timeout=DEVICE_SECONDS, uefi=ctx.sku.boot_mode == "uefi")
        ctx.power = await bmc.power(PowerVerb.ON, timeout=POWER_SECONDS)
        await ctx.waiting(f"the host phones home from {params.to}", remedy=_LOOK, seconds=patience)
        try:
            met = await ctx.wires.boots.wait_hello(boot, patience)
        except IdentityUnproven as error:
            return fail("identity.unproven", str(error), remedy=error.remedy, action=Action.FIX_INVENTORY)
        except DeadlineExceeded as error:
            return await self._absent(ctx, error)
        ctx.data["boot"] = met.id
        ctx.data.pop("boots-missed", None)
        return advance(
            f"up in {params.to}, from {met.source}, as serial {met.serial}", boot=met.id, boot_id=met.boot_id
        )

    async def _absent(self, ctx: StepContext, error: DeadlineExceeded) -> Outcome:
        """It did not come: what was seen of it on its way says where to look. Booted once more before it is a finding."""
        _, seen, diagnosis = await ctx.wires.boots.doctor(ctx.host)
        remedy = diagnosis.remedy or _LOOK
        what = f"no phone-home from {ctx.params.to} within {self._patience(ctx):.0f} s: {diagnosis.what}"
        missed = int(ctx.data.get("boots-missed", 0)) + 1
        if missed < TRIES:
            ctx.data["boots-missed"] = missed
            return Retry(error=what, code=error.code, remedy=remedy, after=1.0, source=here())
        ctx.data.pop("boots-missed", None)
        outcome = fail("boot.no-show", what, remedy=f"{remedy}; `fleetctl boot doctor {ctx.host.name}` says more")
        trail = [f"{entry.stage} {entry.answer} {entry.source} {entry.detail}".strip() for entry in seen[-16:]]
        return msgspec.structs.replace(outcome, evidence={"stage": diagnosis.stage, "trail": trail})

    async def undo(self, ctx: StepContext) -> None:
        """Take out a virtual CD that this run put in and could not take out; any other host is left alone."""
        if ctx.data.get("media"):
            await (await ctx.bmc()).eject_media(timeout=MEDIA_SECONDS)
            ctx.data.pop("media")

    @staticmethod
    async def _take_out(ctx: StepContext, bmc: Bmc) -> None:
        """After the hello or the failure. One that stays in remains noted: the boot from disk takes it out first."""
        try:
            await bmc.eject_media(timeout=MEDIA_SECONDS)
        except Unsupported:
            pass  # then nothing went in
        except FleetError as error:
            log.warning("boot.media.left", host=ctx.host.name, error=str(error))
            return
        ctx.data.pop("media", None)

    async def _arm(self, ctx: StepContext, params: BootStep.Params) -> Boot | None:
        boots, host = ctx.wires.boots, ctx.host
        seconds = self._patience(ctx) + START_SECONDS
        if params.to == "deploy":
            return await boots.arm(host, "deploy", intent=ctx.intent, seconds=seconds)
        seed = await ctx.wires.credentials.seed(host)
        if seed is None:
            return None
        return await boots.arm(
            host,
            "disk",
            intent=ctx.intent,
            seconds=seconds,
            token=seed.token,
            keys=(seed.private_key, seed.public_key),
            host_key=seed.host_key,
        )
