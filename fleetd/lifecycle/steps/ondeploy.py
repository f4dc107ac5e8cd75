"""What the destructive steps share: an order to the host-side command, under this boot's key, for this very host and its drives."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import msgspec

from fleetd.drivers.ssh.capabilities import Shell
from fleetd.kit.errors import Garbled, IdentityUnproven, Unreachable
from fleetd.lifecycle.outcome import Outcome, rewind
from fleetd.lifecycle.steps.base import Step, StepContext
from fleetd.model.boot import Boot

MAX_REPORT = 1024 * 1024


class DriveReport(msgspec.Struct, frozen=True, kw_only=True):
    """One drive in a host-side report."""

    name: str = ""
    serial: str
    model: str = ""
    bytes: int = 0
    method: str = ""
    seconds: float = 0.0
    erased: bool = False
    reason: str = ""


class HostReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the host-side command answers when it was not refused (the shell raises Refused then). `state`: done, running, unknown (that intent never began there)."""

    intent: str = ""
    ok: bool = False
    state: str = "done"
    drives: list[DriveReport] = []
    image: str = ""
    digest: str = ""


def read_host_report(data: bytes) -> HostReport:
    """Raises Garbled."""
    try:
        return msgspec.json.decode(data, type=HostReport)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Garbled("the host-side command's report cannot be read", why=str(error)[:200]) from error


class OnDeploy(Step):
    """Base of steps that run a host-side command in the deploy environment."""

    destructive = True
    command = ""

    async def order(self, ctx: StepContext, drives: list[DriveReport]) -> dict[str, Any]:
        """The rest of the order, beside intent, nonce, serials."""
        return {}

    @abstractmethod
    async def judge(self, ctx: StepContext, report: HostReport) -> Outcome:
        """A finished report as an outcome."""

    async def do(self, ctx: StepContext) -> Outcome:
        try:
            boot, shell = await self._shell(ctx)
        except (IdentityUnproven, Unreachable) as error:
            return rewind(str(error), to="deploy")
        try:
            present = await self._status(ctx, shell, boot)
            order = {
                "intent": ctx.intent,
                "nonce": boot.token_hash,
                "host_serial": ctx.host.spec.serial,
                "drives": [{"serial": drive.serial} for drive in present.drives],
                **await self.order(ctx, present.drives),
            }
            await ctx.guard(self.seconds)
            answer = await shell.run(
                ctx.wires.host,
                (self.command,),
                stdin=msgspec.json.encode(order),
                timeout=self.seconds,
                max_output=MAX_REPORT,
                progress=ctx.progress,
            )
        finally:
            await shell.close()
        return await self.judge(ctx, read_host_report(answer))

    async def verify(self, ctx: StepContext) -> Outcome | None:
        """Ask the host what became of the intent. Its journal lives as long as its boot; with another boot it is abandoned."""
        try:
            boot, shell = await self._shell(ctx)
        except (IdentityUnproven, Unreachable) as error:
            return rewind(f"the boot of the interrupted {self.name} is gone: {error}", to="deploy")
        try:
            report = await self._status(ctx, shell, boot)
        except Unreachable as error:
            return rewind(f"the boot of the interrupted {self.name} is gone: {error}", to="deploy")
        finally:
            await shell.close()
        if report.state == "done":
            return await self.judge(ctx, report)
        if report.state == "running":
            # Its starter died with our SSH connection or works on; either way this boot is not trusted with a second order.
            return rewind(f"the interrupted {self.name} was still running; a fresh boot ends it", to="deploy")
        return None

    async def _shell(self, ctx: StepContext) -> tuple[Boot, Shell]:
        boot, target = await ctx.wires.boots.shell_target(ctx.host, "deploy")
        return boot, await ctx.wires.shells.connect(target, timeout=30.0)

    async def _status(self, ctx: StepContext, shell: Shell, boot: Boot) -> HostReport:
        order = {"intent": ctx.intent, "nonce": boot.token_hash, "host_serial": ctx.host.spec.serial}
        answer = await shell.run(
            ctx.wires.host, ("status",), stdin=msgspec.json.encode(order), timeout=60.0, max_output=MAX_REPORT
        )
        return read_host_report(answer)
