"""What steps in the deploy environment share: an order to the host-side command, under this boot's key, for this very host."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from fleetd.checks.judge import clean
from fleetd.drivers.ssh.capabilities import Shell
from fleetd.kit.errors import Busy, Garbled, IdentityUnproven, Temporary, Unreachable
from fleetd.lifecycle.outcome import Fail, Outcome, fail, rewind
from fleetd.lifecycle.steps.base import Step, StepContext
from fleetd.model.boot import Boot
from fleetd.model.check import Action
from fleetd.model.host import Host
from fleetd.store import hosts as host_rows

MAX_REPORT = 1024 * 1024
MAX_DRIVES = 256
RECONNECTS = 3  # tries at least to reach a host whose answer got lost, before it is booted afresh
LOST_SHARE, LOST_MOST = 1 / 60, 900.0  # and seconds: by how long its boot is up, that is what would be lost
CONNECT_SECONDS = 30.0
LOOK_AGAIN = 2.0  # seconds between two looks at what it does

# What the ledger can hold: a number beyond it is refused here, not when the evidence is stored and the step stays open.
Count = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Seconds = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """An erase method that did not work, and the drive's own answer."""

    method: str = ""
    reason: str = ""


class DriveReport(msgspec.Struct, frozen=True, kw_only=True):
    """One drive in a host-side report. Sizes in bytes. What of it says "erased" or "written" was read back there."""

    name: str = ""
    serial: str
    model: str = ""
    firmware: str = ""
    bytes: Count = 0
    seconds: Seconds = 0.0
    reason: str = ""
    # wipe: `pattern_written` samples held a known pattern before the erase, `pattern_left` still did after it
    erased: bool = False
    method: str = ""
    samples: Count = 0
    nonzero: Count = 0
    pattern_written: Count = 0
    pattern_left: Count = 0
    tried: list[Tried] = []
    # write-image
    written: bool = False
    wrote_bytes: Count = 0
    zero_bytes: Count = 0
    read_bytes: Count = 0
    url: str = ""
    resumed: Count = 0


class TpmReport(msgspec.Struct, frozen=True, kw_only=True):
    """`pending_reboot`: the firmware clears it at the next start; only a look after that tells."""

    present: bool = False
    cleared: bool = False
    method: str = ""
    pending_reboot: bool = False
    reason: str = ""


class HostReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the host-side command answers when it was not refused (the shell raises Refused then).

    `state`: done, running, unknown (that intent never began there). `code` names what went wrong with an image.
    """

    intent: str = ""
    ok: bool = False
    state: str = "done"
    interrupted: bool = False  # of a running one: its program is dead
    reason: str = ""
    drives: list[DriveReport] = []
    image: str = ""
    digest: str = ""
    code: str = ""
    tpm: TpmReport | None = None
    efi: dict[str, Any] = {}
    removed: list[str] = []
    first: str = ""
    snapshot: dict[str, Any] = {}


def read_host_report(data: bytes) -> HostReport:
    """Raises Garbled."""
    try:
        report = msgspec.json.decode(data, type=HostReport)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Garbled("the host-side command's report cannot be read", why=str(error)[:200]) from error
    if len(report.drives) > MAX_DRIVES:
        raise Garbled("the host-side command's report cannot be read", why=f"{len(report.drives)} drives")
    return report


def named(drives: Sequence[DriveReport]) -> str:
    """`S1 and S2`, for a remedy that a person reads at the rack."""
    serials = [clean(drive.serial, 64) for drive in drives]
    return ", ".join(serials[:-1]) + (" and " if len(serials) > 1 else "") + serials[-1] if serials else "of the host"


def unwiped(host: Host, late: Sequence[str], therefore: str) -> Fail:
    """The finding of drives that the host's last erase did not see."""
    return fail(
        "storage.unwiped",
        f"drive {', '.join(late[:8])} was not there when the drives of this host were erased: {therefore}",
        remedy=f"pull it, or have it erased: `fleetctl host maintenance {host.name}`, then `fleetctl host release"
        f" {host.name}` brings the host up anew; a drive that comes and goes is to be replaced",
        action=Action.RESEAT,
        parts=tuple(late),
    )


def no_boot_order(why: str) -> Fail:
    """The finding of a firmware that did not take its boot order."""
    return fail(
        "firmware.boot-order",
        f"the EFI boot order could not be set: {why}",
        remedy="look at the firmware setup: is its variable store full or write-protected? Reset the boot order"
        " there, then retest",
        action=Action.CONFIGURE,
        parts=("EFI boot order",),
    )


class OnDeploy(Step):
    """Base of steps that run a host-side command in the deploy environment.

    Class fields beside those of Step:
        command: of the host-side program.
        touches: it writes to the drives it names, or vouches for them, so every one of them must be this host's.
    """

    destructive = True
    command = ""
    touches = False

    async def order(self, ctx: StepContext, boot: Boot, drives: list[DriveReport]) -> dict[str, Any]:
        """The rest of the order, beside intent, nonce, serials."""
        return {}

    async def admit(self, ctx: StepContext, serials: Sequence[str]) -> Fail | None:
        """A look at the drives that stand in the host now, before any order leaves: a finding when one may not be touched."""
        return None

    def seconds_for(self, drives: Sequence[DriveReport]) -> float:
        """Seconds that it may take on these drives, which the host says it has."""
        return self.seconds

    async def _say(self, ctx: StepContext, seconds: float) -> None:
        await ctx.waiting(
            f"{self.name} on the host",
            remedy=f"look at its progress: `fleetctl host why {ctx.host.name}`; a deploy environment that hangs is"
            " booted again when the step's time is over",
            seconds=seconds,
        )

    async def _time(self, ctx: StepContext, drives: Sequence[DriveReport]) -> float:
        seconds = self.seconds_for(drives)
        if seconds > self.seconds:
            await ctx.allow(seconds)
        return seconds

    @abstractmethod
    async def judge(self, ctx: StepContext, report: HostReport) -> Outcome:
        """A finished report as an outcome."""

    async def do(self, ctx: StepContext) -> Outcome:
        try:
            boot, shell = await self._shell(ctx)
        except (IdentityUnproven, Unreachable) as error:
            return rewind(str(error), to="deploy")
        try:
            await self._say(ctx, self.seconds)
            present = await self._status(ctx, shell, boot)
            if (seconds := await self._time(ctx, present.drives)) > self.seconds:
                await self._say(ctx, seconds)
            if (ended := await self._ended(ctx, present)) is not None:
                return ended
            if self.touches:
                if (foreign := await self._foreign(ctx, present.drives)) is not None:
                    return foreign
                if (late := await self.admit(ctx, [drive.serial for drive in present.drives])) is not None:
                    return late
            order = {
                "intent": ctx.intent,
                "nonce": boot.token_hash,
                "host_serial": ctx.host.spec.serial,
                "drives": [{"serial": drive.serial} for drive in present.drives],
                **await self.order(ctx, boot, present.drives),
            }
            if self.destructive:
                await ctx.guard(seconds)
            try:
                answer = await shell.run(
                    ctx.wires.host,
                    (self.command,),
                    stdin=msgspec.json.encode(order),
                    timeout=seconds,
                    max_output=MAX_REPORT,
                    progress=ctx.progress,
                    outlives_us=self.destructive,
                )
            except Busy as error:
                # One that was thought not to have begun works here all the same: a fresh boot ends it, for sure.
                return rewind(f"{error}; a fresh boot ends it", to="deploy")
            except Temporary:
                # The order is out: a second one beside it would find its drive taken. Its own end is waited for.
                if not self.destructive or (found := await self._follow(ctx)) is None:
                    raise
                return found
        finally:
            await shell.close()
        report = read_host_report(answer)
        if self.destructive and (report.state != "done" or report.intent != ctx.intent):
            # It runs already: its own end is waited for, it is no verdict on a drive. None: it was of another order.
            return await self._follow(ctx) or rewind(f"the answer is not of this {self.name}", to="deploy")
        return await self._believed(ctx, report)

    async def verify(self, ctx: StepContext) -> Outcome | None:
        """Ask the host what became of the intent. Its journal lives as long as its boot; with another boot it is abandoned."""
        if not self.destructive:
            return None  # it only reads: asked again
        return await self._follow(ctx)

    async def _follow(self, ctx: StepContext) -> Outcome | None:
        """What the order came to whose answer got lost; None when it never began.

        The host-side program works on without a listener, and its report waits in the journal: a wipe of hours is not
        begun again because a line or the daemon broke. A host that is gone for good is booted afresh.
        """
        clock, patience = ctx.clock, 0.0
        lost, told, heard = 0, False, clock.steady()
        while True:
            try:
                boot, target = await ctx.wires.boots.shell_target(ctx.host, "deploy")
                patience = min(LOST_MOST, LOST_SHARE * (clock.wall() - (boot.met or clock.wall())))
                shell = await ctx.wires.shells.connect(target, timeout=CONNECT_SECONDS)
                try:
                    report = await self._status(ctx, shell, boot)
                finally:
                    await shell.close()
            except IdentityUnproven as error:
                return rewind(f"the boot of the interrupted {self.name} is gone: {error}", to="deploy")
            except Temporary as error:
                lost += 1
                if lost > RECONNECTS and clock.steady() - heard >= patience:
                    return rewind(f"the boot of the interrupted {self.name} is gone: {error}", to="deploy")
            else:
                lost, heard = 0, clock.steady()
                if report.state != "running" or report.interrupted:
                    return await self._ended(ctx, report)
                if not told:
                    told = True
                    await ctx.waiting(
                        f"{self.name} on the host, which was begun before the connection broke",
                        remedy=f"look again later; `fleetctl host power {ctx.host.name} off` ends it, then it is booted"
                        " afresh",
                        seconds=await self._time(ctx, report.drives),
                    )
            await clock.sleep(LOOK_AGAIN)

    async def _ended(self, ctx: StepContext, report: HostReport) -> Outcome | None:
        """What became of this intent in this boot, by the host's journal; None: it never began there."""
        if report.state == "done" and report.intent == ctx.intent:
            return await self._believed(ctx, report)
        if report.state == "running":
            # Cut off in the middle, or at work on this very intent: this boot is not trusted with a second order.
            return rewind(f"the {self.name} was cut off in the middle; a fresh boot begins it anew", to="deploy")
        if report.state != "unknown" or report.intent != ctx.intent:
            # Only a plain "never seen" lets an order go out: else two might work side by side.
            return rewind(f"the host does not tell what became of this {self.name}", to="deploy")
        return None

    async def _believed(self, ctx: StepContext, report: HostReport) -> Outcome:
        """The verdict on a report, if the boot it comes from is beyond doubt; else a finding, and all is done again."""
        contested = await ctx.wires.boots.contested(ctx.host)
        if not contested:
            return await self.judge(ctx, report)
        return fail(
            "identity.contested",
            f"two machines came as this host in one boot: {contested}",
            remedy="find the one that is not it: look for a stranger on the boot network, and for a host that restarts by"
            " itself; then retest: everything is wiped and written anew",
            action=Action.FIX_INVENTORY,
        )

    async def _shell(self, ctx: StepContext) -> tuple[Boot, Shell]:
        boot, target = await ctx.wires.boots.shell_target(ctx.host, "deploy")
        return boot, await ctx.wires.shells.connect(target, timeout=CONNECT_SECONDS)

    async def _status(self, ctx: StepContext, shell: Shell, boot: Boot) -> HostReport:
        order = {"intent": ctx.intent, "nonce": boot.token_hash, "host_serial": ctx.host.spec.serial}
        answer = await shell.run(
            ctx.wires.host, ("status",), stdin=msgspec.json.encode(order), timeout=60.0, max_output=MAX_REPORT
        )
        return read_host_report(answer)

    @staticmethod
    async def _foreign(ctx: StepContext, drives: Sequence[DriveReport]) -> Fail | None:
        """A drive that the ledger knows as another host's: nothing is touched before a person has looked."""
        serials = tuple(drive.serial for drive in drives)
        elsewhere = await host_rows.parts_elsewhere(ctx.db, ctx.host.id, {"nvme": serials, "drive": serials})
        if not elsewhere:
            return None
        told = "; ".join(f"drive {clean(serial, 64)} belongs to host {host}" for serial, host in elsewhere.items())
        first = next(iter(elsewhere.values()))
        return fail(
            "storage.foreign",
            f"{told}: nothing was written",
            remedy=f"put the drive back, or, when it was moved on purpose, `fleetctl host maintenance {first}` and bring"
            f" {first} up again without it; then retest",
            action=Action.FIX_INVENTORY,
            parts=tuple(elsewhere),
        )
