"""One step on one host without wires: the shell answers what a test says, the rest is the real ledger."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec

from fleetd.kit.errors import DeadlineExceeded, Unsupported
from fleetd.lifecycle.boottrail import Diagnosis, Entry
from fleetd.lifecycle.outcome import Outcome
from fleetd.lifecycle.steps.base import Step, StepContext
from fleetd.model.bmc import BmcAccount
from fleetd.model.boot import Boot
from fleetd.model.image import ImageFormat, Manifest
from fleetd.model.power import BootDevice, PowerState, PowerVerb
from fleetd.model.run import Run, Strategy
from fleetd.store import inventory as inventory_rows
from tests.lifecycle.fleet import START, Fleet, inventory, ledger

INTENT = "intent-0001"
DRIVES = [{"name": f"nvme{i}", "serial": f"S{i}", "model": "M", "bytes": 10**12} for i in range(8)]
MANIFEST = Manifest(
    name="ubuntu", format=ImageFormat.RAW_GZ, bytes=1000, sha256="a" * 64, raw_bytes=2 * 10**9, raw_sha256="b" * 64
)
BOOT = Boot(
    id="boot-1",
    host="h",
    environment="deploy",
    token_hash="t" * 64,
    public_key="ssh-ed25519 AAAA",
    private_key="sealed",
    armed=0.0,
    expires=1.0,
    intent=INTENT,
    met=START,
    source="10.0.0.1",
)


class FakeShell:
    """`status` says what became of the intent; every other command answers `report`."""

    def __init__(self, report: dict[str, Any], *, state: str = "unknown", drives: list[dict[str, Any]] | None = None):
        self.report, self.state, self.drives = report, state, DRIVES if drives is None else drives
        self.interrupted = False
        self.looks = 0  # while it runs, so many more looks find it running
        self.broken: Exception | None = None  # what the next order meets after it left
        self.orders: list[tuple[str, dict[str, Any]]] = []

    async def run(self, app: Any, arguments: tuple[str, ...], *, stdin: bytes = b"", **_: Any) -> bytes:
        order = json.loads(stdin)
        if arguments == ("status",):
            if self.state == "running" and self.looks:
                self.looks -= 1
                self.state = "running" if self.looks else "done"
            if self.state == "done":
                return json.dumps({"intent": order["intent"], "state": "done", **self.report}).encode()
            said = {"ok": True, "state": self.state, "intent": order["intent"], "drives": self.drives}
            return json.dumps(said | {"interrupted": self.interrupted}).encode()
        self.orders.append((arguments[0], order))
        broken, self.broken = self.broken, None
        if broken is not None:
            raise broken
        self.state = "done"  # the host's journal
        return json.dumps({"intent": order.get("intent"), "state": "done", **self.report}).encode()

    async def connect(self, target: Any, *, timeout: float) -> FakeShell:
        return self

    async def close(self) -> None:
        return


class FakeBmc:
    """Notes what it was told, in order."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.listed: tuple[BmcAccount, ...] | None = (
            BmcAccount(id="2", name="root", role="administrator", enabled=True),
        )

    async def power(self, verb: PowerVerb, *, timeout: float) -> PowerState:
        self.did.append(str(verb))
        return PowerState.OFF if verb is PowerVerb.OFF else PowerState.ON

    async def set_boot_once(self, device: BootDevice, *, timeout: float, uefi: bool = True) -> None:
        self.did.append(f"{device}{'' if uefi else ' by bios'}")

    async def insert_media(self, url: str, *, timeout: float) -> None:
        self.did.append(f"insert {url}")

    async def eject_media(self, *, timeout: float) -> None:
        self.did.append("eject")

    async def accounts(self, *, timeout: float) -> tuple[BmcAccount, ...]:
        if self.listed is None:
            raise Unsupported("no account service")
        return self.listed


class FakeBoots:
    """A host that comes, or does not."""

    base_url = "http://boot:8680"

    def __init__(self, *, comes: bool = True) -> None:
        self.comes = comes
        self.armed_for: list[float] = []
        self.waited: list[float] = []
        self.forgotten = 0

    async def shell_target(self, host: Any, environment: str) -> tuple[Boot, Any]:
        return BOOT, SimpleNamespace()

    def image_urls(self, boot: Boot, host: Any, manifest: Manifest) -> list[str]:
        return [f"http://mirror/{manifest.sha256}", f"{self.base_url}/images/{manifest.sha256}?ticket=secret"]

    async def arm(self, host: Any, environment: str, *, seconds: float, **_: Any) -> Boot:
        self.armed_for.append(seconds)
        return BOOT

    def forget(self, boot: Boot) -> None:
        self.forgotten += 1

    async def wait_hello(self, boot: Boot, seconds: float) -> Boot:
        self.waited.append(seconds)
        if not self.comes:
            raise DeadlineExceeded("no phone-home")
        return boot

    async def contested(self, host: Any) -> str:
        return ""

    async def doctor(self, host: Any) -> tuple[Boot, list[Entry], Diagnosis]:
        found = Diagnosis(stage="dhcp", ok=False, what="it asks for an address and gets none", remedy="look at DHCP")
        return BOOT, [Entry(stage="dhcp", at=1.0, mac="04:3f:72:aa:00:01")], found


class Bench:
    """A host of the ledger, and a context for any step on it."""

    def __init__(self, fleet: Fleet, host: Any, sku: Any) -> None:
        self.fleet, self.host, self.sku = fleet, host, sku
        self.bmc = FakeBmc()
        self.boots = FakeBoots()
        self.data: dict[str, Any] = {}
        self.guarded = 0
        self.lease: Any = None
        self.kept_seeds: list[Any] = []
        self.images: dict[str, Manifest] = {}
        self.intent = INTENT
        self.allowed: list[float] = []
        self.waits: list[str] = []

    def context(self, step: Step, shell: FakeShell, params: dict[str, Any] | None = None) -> StepContext:
        async def bmc() -> Any:
            return self.bmc

        async def say(what: str, remedy: str, until: float, source: str) -> None:
            assert what
            assert remedy
            assert until
            self.waits.append(what)

        async def guard(seconds: float) -> None:
            self.guarded += 1

        async def allow(seconds: float) -> None:
            self.allowed.append(seconds)

        async def manifest(name: str) -> Manifest:
            return self.images.get(name, msgspec.structs.replace(MANIFEST, name=name))

        async def persist(data: dict[str, Any]) -> None:
            self.data = json.loads(json.dumps(data))  # what a restarted daemon would find

        def keep(host: Any, seed: Any) -> list[Any]:
            self.kept_seeds.append(seed)
            return []

        async def kept(host: Any) -> Any:
            return SimpleNamespace(token="t", private_key="p", public_key="k", host_key="h")

        run = Run(id="run-1", playbook="t", steps=(), strategy=Strategy(), selector="all", created=0.0)
        wires: Any = SimpleNamespace(
            shells=shell,
            host=None,
            bmc_patience=5.0,
            boots=self.boots,
            credentials=SimpleNamespace(keep_seed=keep, seed=kept),
            images=SimpleNamespace(manifest=manifest),
        )
        return StepContext(
            host=self.host,
            run=run,
            sku=self.sku,
            lease=self.lease,
            params=msgspec.convert(params or {}, type(step).Params),
            intent=self.intent,
            index=0,
            data=self.data,
            db=self.fleet.db,
            clock=self.fleet.clock,
            wires=wires,
            open_bmc=bmc,
            say_waiting=say,
            guard=guard,
            persist=persist,
            allow=allow,
            progress=lambda fields: None,
        )

    async def do(
        self, step: Step, shell: FakeShell | dict[str, Any], params: dict[str, Any] | None = None
    ) -> tuple[Outcome, StepContext]:
        ctx = self.context(step, shell if isinstance(shell, FakeShell) else FakeShell(shell), params)
        try:
            outcome = await step.do(ctx)
        finally:
            self.data = ctx.data  # the engine keeps it with every outcome, an error's too
        if ctx.ops:
            await self.fleet.db.commit(ctx.ops)
        return outcome, ctx


@contextlib.asynccontextmanager
async def bench(**sku: Any) -> AsyncIterator[Bench]:
    """One available host of an H100 rack; `sku` changes its SKU."""
    async with ledger() as db:
        fleet = Fleet(db)
        await fleet.fill(inventory({"r1": 2}))
        host = await fleet.named("r1-01")
        found = await inventory_rows.sku(db, host.spec.sku)
        yield Bench(fleet, host, msgspec.structs.replace(found, **sku))
