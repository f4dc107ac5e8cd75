"""First contact: pin the BMC's TLS key, read who stands behind it, replace the factory password."""

from __future__ import annotations

from typing import Any

import msgspec

from fleetd.drivers.bmc.capabilities import Bmc
from fleetd.kit.errors import PinMismatch
from fleetd.lifecycle.outcome import Outcome, advance, fail
from fleetd.lifecycle.steps.base import Step, StepContext, short_hash
from fleetd.model.bmc import SystemInfo, is_placeholder
from fleetd.model.check import Action
from fleetd.model.host import Host, Observed, State
from fleetd.store import hosts as host_rows


class Enroll(Step):
    """Identity before passwords: a BMC of another host is never re-keyed."""

    name = "enroll"
    summary = "pin TLS, read identity, replace the factory password"
    seconds = 120.0
    attempts = 3
    enters = State.ENROLLING
    leaves = State.MANAGEABLE
    gives = frozenset({"managed"})

    def plan(self, host: Host, params: Any) -> str:
        return f"log in to the BMC at {host.spec.bmc.address}, compare its serial with {host.spec.serial}, give it a password of its own"

    async def do(self, ctx: StepContext) -> Outcome:
        host, wires, patience = ctx.host, ctx.wires, ctx.wires.bmc_patience
        pinned = host.status.observed.tls_pin
        # The factory password counts only here; which address we ask stands in the target.
        target = wires.credentials.target(host, wires.credentials.factory(host), pin="")
        pin = await wires.bmcs.read_pin(target, timeout=patience)
        if pinned and pin != pinned:
            raise PinMismatch(
                f"the BMC of {host.name} shows another TLS certificate", why=f"pinned {pinned[:12]}…, shown {pin[:12]}…"
            )
        bmc = await wires.credentials.open(host, timeout=patience, pin=pin, enrolling=True)
        try:
            info = await bmc.system(timeout=patience)
            if wrong := self._wrong(host, info):
                return wrong
            ctx.observed = Observed(
                serial=info.serial,
                uuid=info.uuid,
                manufacturer=info.manufacturer,
                model=info.model,
                bios_version=info.bios_version,
                bmc_version=info.bmc_version,
                tls_pin=pin,
                met_at=ctx.clock.wall(),
            )
            ctx.power = info.power
            await self._own_password(ctx, bmc, pin)
        finally:
            await bmc.close()
        ctx.ops += host_rows.record_facts(
            host.id,
            {"serial": info.serial, "uuid": info.uuid, "tls-pin": pin, "bmc-version": info.bmc_version},
            ctx.clock.wall(),
        )
        return advance(
            f"{info.manufacturer} {info.model}, serial {info.serial}", serial=info.serial, uuid=info.uuid, pin=pin
        )

    async def _own_password(self, ctx: StepContext, bmc: Bmc, pin: str) -> None:
        credentials, host, patience = ctx.wires.credentials, ctx.host, ctx.wires.bmc_patience
        username = await credentials.username(host)
        await credentials.rotate(host, bmc, username=username, timeout=patience, pin=pin)

    @staticmethod
    def _wrong(host: Host, info: SystemInfo) -> Outcome | None:
        if is_placeholder(info.serial) or is_placeholder(info.uuid):
            return fail(
                "identity.unprogrammed",
                f"the BMC tells no usable identity: serial {info.serial!r}, UUID {info.uuid!r}",
                remedy="program serial and UUID into the board's FRU with the vendor's tool, or RMA the board",
                action=Action.RMA,
            )
        if info.serial != host.spec.serial:
            return fail(
                "identity.serial",
                f"the BMC says serial {info.serial}, the inventory says {host.spec.serial}",
                remedy="read the sticker at the rack: correct the inventory and apply it, or re-cable the BMC",
                action=Action.FIX_INVENTORY,
            )
        return None


class Rekey(Step):
    """After a tenant: the BMC is hostile until it has a password the tenant cannot know."""

    name = "rekey"
    summary = "give the BMC a new password and compare what it says of itself"
    seconds = 120.0
    needs = frozenset({"managed"})

    def plan(self, host: Host, params: Any) -> str:
        return f"give the BMC at {host.spec.bmc.address} a new password"

    async def do(self, ctx: StepContext) -> Outcome:
        host, credentials, patience = ctx.host, ctx.wires.credentials, ctx.wires.bmc_patience
        # The run's own session, which learns the new password: another one would leave this one with the old.
        bmc = await ctx.bmc()
        info = await bmc.system(timeout=patience)
        seen = host.status.observed
        if (info.serial, info.uuid) != (seen.serial, seen.uuid):
            return fail(
                "identity.changed",
                f"serial {info.serial}, UUID {info.uuid}; before the lease {seen.serial}, {seen.uuid}",
                remedy="look at the host: was its board or chassis swapped? `fleetctl host maintenance`, then bring it up again",
                action=Action.FIX_INVENTORY,
            )
        await credentials.rotate(host, bmc, username=await credentials.username(host), timeout=patience)
        ctx.observed = msgspec.structs.replace(seen, bios_version=info.bios_version, bmc_version=info.bmc_version)
        return advance("new BMC password set and proven", pin=short_hash(seen.tls_pin))
