"""What a step is, and what it is given. The engine journals, retries and moves states; a step only acts and reads back."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import msgspec

from fleetd.drivers.bmc.capabilities import Bmc, BmcDrivers
from fleetd.drivers.ssh.capabilities import Progress, Shells, Zipapp
from fleetd.kit.clock import Clock
from fleetd.lifecycle.boots import Boots
from fleetd.lifecycle.certificates import ProofDesk
from fleetd.lifecycle.credentials import Credentials
from fleetd.lifecycle.images import ImageDesk
from fleetd.lifecycle.outcome import Outcome
from fleetd.model.firmware import Baseline
from fleetd.model.host import Host, Observed, State, TenantData
from fleetd.model.lease import Lease
from fleetd.model.power import PowerState
from fleetd.model.run import Run
from fleetd.model.sku import Sku
from fleetd.store.database import Database, Op


class Wires(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a step may reach, by protocol. Put together by the composition root."""

    bmcs: BmcDrivers
    shells: Shells
    report: Zipapp
    host: Zipapp
    boots: Boots
    credentials: Credentials
    images: ImageDesk
    proofs: ProofDesk
    baselines: dict[str, Baseline]  # by SKU
    domain_patience: float = 300.0  # seconds to wait for the other trays of an NVLink domain
    bmc_patience: float = 30.0  # seconds a BMC has for a login or a question


class StepContext:
    """One try of one step on one host.

    Changes a step wants stand in the fields below and are committed with its result, in one transaction.
    """

    def __init__(
        self,
        *,
        host: Host,
        run: Run,
        sku: Sku,
        lease: Lease | None,
        params: Any,
        intent: str,
        index: int,
        data: dict[str, Any],
        db: Database,
        clock: Clock,
        wires: Wires,
        open_bmc: Callable[[], Awaitable[Bmc]],
        say_waiting: Callable[[str, str, float, str], Awaitable[None]],
        guard: Callable[[float], Awaitable[None]],
        persist: Callable[[dict[str, Any]], Awaitable[None]],
        allow: Callable[[float], Awaitable[None]],
        progress: Progress,
    ) -> None:
        self.host, self.run, self.sku, self.lease, self.params = host, run, sku, lease, params
        self.intent, self.index, self.data = intent, index, data
        self.db, self.clock, self.wires = db, clock, wires
        self.bmc = open_bmc
        self._say_waiting = say_waiting
        self.guard = guard
        self._persist = persist
        self.allow = allow
        self.progress = progress
        # what is committed with the result
        self.observed: Observed | None = None
        self.power: PowerState | None = None
        self.tenant_data: tuple[TenantData, str] | None = None
        self.certificate: tuple[str | None, float | None] | None = None
        self.clear_findings = False
        self.ops: list[Op] = []

    async def waiting(self, what: str, *, remedy: str, seconds: float) -> None:
        """Say (durably, for `host why`) what this step now waits for, and until when."""
        from fleetd.lifecycle.outcome import here

        await self._say_waiting(what, remedy, self.clock.wall() + seconds, here())

    async def keep(self, **data: Any) -> None:
        """Put these into `data` and commit it now, not with the result: a restarted daemon finds them beside the open intent.

        `data` may hold what JSON holds. Raises StaleClaim.
        """
        self.data |= data
        await self._persist(self.data)

    def resolve(self, text: str) -> str:
        """`{{ sku.image }}`, `{{ lease.image }}`, `{{ host.name }}`: the only templates a playbook may hold."""
        return resolve(text, host=self.host, sku=self.sku, lease=self.lease)


def resolve(text: str, *, host: Host, sku: Sku, lease: Lease | None) -> str:
    """Replace the known templates; anything else in braces was refused when the playbook was loaded."""
    image = (lease.request.image if lease else None) or sku.image
    for name, value in {"sku.image": sku.image, "lease.image": image, "host.name": host.name}.items():
        text = text.replace("{{ " + name + " }}", value)
    return text


class Step(ABC):
    """One kind of work on one host. Stateless: everything it needs comes with the context.

    Class fields:
        name, version: `name@version` stands in run snapshots; raise the version when meaning or params change.
        destructive: it destroys data; then `do` calls `ctx.guard` right before, and the intent travels to the host.
        seconds: deadline of one try. attempts: tries on Temporary errors.
        enters: the state it moves the host to before it runs; None: the playbook's own state, or where the host is.
        leaves: the state the host reaches when it passed; None: it stays.
        needs, gives, spoils: evidence words; loading a playbook proves that each need was given before.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    summary: ClassVar[str]
    destructive: ClassVar[bool] = False
    seconds: ClassVar[float] = 300.0
    attempts: ClassVar[int] = 3
    enters: ClassVar[State | None] = None
    stays_in: ClassVar[frozenset[State]] = frozenset()  # states in which it runs without moving the host
    leaves: ClassVar[State | None] = None
    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()
    spoils: ClassVar[frozenset[str]] = frozenset()

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """No parameters."""

    @abstractmethod
    def plan(self, host: Host, params: Any) -> str:
        """What it would do to this host, in one line, for the dry run."""

    @abstractmethod
    async def do(self, ctx: StepContext) -> Outcome:
        """Act and read back. Idempotent: a second call after success finds it done. Raises FleetError."""

    async def verify(self, ctx: StepContext) -> Outcome | None:
        """After a crash between intent and result: what really happened. None: safe to call `do` with the same intent."""
        return None

    async def undo(self, ctx: StepContext) -> None:
        """The step failed for good: take back what can be taken back; twice is fine. Most steps have nothing to undo.

        Raises FleetError; the host is quarantined with the finding of the failure all the same.
        """
        return

    def state_for(self, params: Any) -> State | None:
        """The state it moves the host to, for these parameters."""
        return self.enters

    def evidence_of(self, params: Any) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        """(needs, gives, spoils) for these parameters."""
        return self.needs, self.gives, self.spoils


def short_hash(text: str) -> str:
    """First 12 hex digits of a sha256: to show a key or digest to a person."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
