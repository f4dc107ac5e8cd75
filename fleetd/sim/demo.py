"""The demo: two sites written from a seed, with the broken hosts that fleetd must find and the plan to judge it by.

`build_demo` writes `inventory/` (what fleetd is given), `site.yaml` (what the simulator is given, faults included)
and `plan.json` (what `judge.py` compares with; fleetd never sees it).
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from fleetd.kit.errors import NotFound
from fleetd.model.inventory import Inventory, read_inventory
from fleetd.sim.demo_inventory import (
    FACTORY,
    GB200,
    SKUS,
    DemoHost,
    DemoRack,
    Ports,
    Size,
    lay_out,
    rack_text,
    site_text,
    small_sku,
)
from fleetd.sim.sitefile import FaultSpec

REPOSITORY_SKUS = Path(__file__).resolve().parents[2] / "inventory" / "skus"
DEFAULT_BOOT_URL = "http://127.0.0.1:17080"
SHARE = 0.15  # of the hosts outside the bad rack, in the demo: fewer than this are broken

ALWAYS = (
    "wrong-domain",
    "lying-bmc",
    "wrong-serial",
    "gpu-off-bus",
    "nvlink-down",
    "remap-pending",
    "pcie-width",
    "deaf-bmc",
    "disk-no-erase",
)
EXTRA = ("ecc-uncorrectable", "throttled", "xid", "nic-down", "dimm-gone", "probe-garbage")
REDFISH_ONLY = frozenset({"lying-bmc", "wrong-serial"})  # a 204 and nothing; a serial that a BMC tells
BAD = ("gpu-off-bus", "nvlink-down", "remap-pending", "pcie-width", "ecc-uncorrectable", "nic-down")

# What each fault must be found as: any one of these codes. Check ids, or error codes of kit/errors.py.
EXPECTED: dict[str, tuple[str, ...]] = {
    "gpu-off-bus": ("gpu.count",),
    "nvlink-down": ("nvlink.links",),
    "remap-pending": ("gpu.row-remap", "gpu.recovery-action"),
    "pcie-width": ("pcie.link", "pcie.chain"),
    "ecc-uncorrectable": ("gpu.ecc",),
    "throttled": ("gpu.throttle",),
    "xid": ("gpu.xid",),
    "wrong-serial": ("identity.serial", "identity.unproven", "system.identity", "FLT-2006"),
    "wrong-domain": ("nvlink.domain",),
    "nic-down": ("network.nics",),
    "dimm-gone": ("system.cpu-memory",),
    "disk-no-erase": ("storage.erase",),
    "erase-lies": ("storage.erase",),
    "deaf-bmc": ("FLT-1001", "FLT-1003"),
    "lying-bmc": ("FLT-2004",),
    "account-added": ("drift.changed",),
    "no-boot": ("FLT-1003", "FLT-2004"),
    "probe-garbage": ("probe.garbled", "FLT-2005"),
}


class PlannedRack(msgspec.Struct, frozen=True, kw_only=True):
    """A rack and its hosts in order of position."""

    site: str
    hosts: tuple[str, ...]
    nvlink_domain: str | None = None


class DemoPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What was seeded, and what must come of it. The bad rack's hosts are in `hosts`, `racks` and `faults` too."""

    seed: int
    size: Size
    hosts: tuple[str, ...]
    racks: dict[str, PlannedRack]
    faults: dict[str, FaultSpec]  # by host
    expected: dict[str, tuple[str, ...]]  # finding codes by fault kind: any one of them
    bad_rack: str
    boot_url: str
    ports: Ports

    @property
    def racks_of(self) -> dict[str, str]:
        """The rack of each host."""
        return {host: rack for rack, planned in self.racks.items() for host in planned.hosts}

    @property
    def bad_hosts(self) -> tuple[str, ...]:
        """Hosts of the rack that is brought up in its own run and must be stopped."""
        return self.racks[self.bad_rack].hosts

    @property
    def fleet(self) -> tuple[str, ...]:
        """Every host but the bad rack's."""
        bad = set(self.bad_hosts)
        return tuple(host for host in self.hosts if host not in bad)

    @property
    def faulty(self) -> tuple[str, ...]:
        """Hosts of the fleet that must not become available."""
        return tuple(host for host in self.fleet if host in self.faults)

    @property
    def good(self) -> tuple[str, ...]:
        """Hosts of the fleet that must become available."""
        return tuple(host for host in self.fleet if host not in self.faults)


def read_plan(path: Path) -> DemoPlan:
    """A saved plan. Raises NotFound when the file cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=DemoPlan)
    except OSError as error:
        raise NotFound(f"there is no demo plan at {path}", why=error.strerror or "") from error


def build_demo(
    folder: Path,
    seed: int,
    *,
    size: Size = "demo",
    ports: Ports | None = None,
    boot_url: str = DEFAULT_BOOT_URL,
    skus: Path = REPOSITORY_SKUS,
) -> DemoPlan:
    """Write a demo into `folder` (made if absent; files of the same names are replaced).

    Args:
        size: `demo`: 70 hosts and a bad rack of 9; `small`: 11 and 5, for tests.
        ports: where the simulator shall listen; the inventory names them, so 0 (a free port) makes no sense here.
        boot_url: fleetd's boot listener, as the hosts reach it.
        skus: folder of SKU files to copy from.

    Raises:
        NotFound: the SKU files are not there.
        Invalid: an SKU file is wrong.
    """
    ports = ports or Ports()
    racks, texts = _inventory(seed, size, ports, skus)
    inventory = read_inventory(texts)
    faults = choose_faults(racks, inventory, seed, size)
    plan = DemoPlan(
        seed=seed,
        size=size,
        hosts=tuple(host.name for rack in racks for host in rack.hosts),
        racks={
            r.name: PlannedRack(site=r.site, hosts=tuple(h.name for h in r.hosts), nvlink_domain=r.domain)
            for r in racks
        },
        faults={spec.host: spec for spec in faults},
        expected={kind: EXPECTED[kind] for kind in sorted({spec.kind for spec in faults})},
        bad_rack=next(rack.name for rack in racks if rack.bad),
        boot_url=boot_url,
        ports=ports,
    )
    _write(folder / "inventory", texts)
    (folder / "site.yaml").write_text(site_file_text(plan, faults), encoding="utf-8")
    (folder / "plan.json").write_bytes(msgspec.json.format(msgspec.json.encode(plan)) + b"\n")
    return plan


def write_example(folder: Path) -> None:
    """The repository's own `inventory/`: sites and racks of the demo of seed 0, beside the SKUs that stand there."""
    _, texts = _inventory(0, "demo", Ports(), REPOSITORY_SKUS)
    _write(folder, {name: text for name, text in texts.items() if not name.startswith("skus/")})


def _inventory(seed: int, size: Size, ports: Ports, skus: Path) -> tuple[list[DemoRack], dict[str, str]]:
    """The racks, and every inventory file by its relative name."""
    texts = _sku_texts(skus, size)
    racks = lay_out(seed, size, read_inventory(texts).skus, ports)
    texts |= {f"sites/{site}.yaml": site_text(site) for site in sorted({rack.site for rack in racks})}
    texts |= {f"racks/{rack.site}/{rack.name}.yaml": rack_text(rack) for rack in racks}
    return racks, texts


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _sku_texts(folder: Path, size: Size) -> dict[str, str]:
    texts = {}
    for name in SKUS:
        path = folder / f"{name}.yaml"
        if not path.is_file():
            raise NotFound(
                f"the demo needs the SKU file {path}",
                remedy="run it from a checkout, or name the folder of SKU files",
            )
        text = path.read_text(encoding="utf-8")
        texts[f"skus/{name}.yaml"] = small_sku(text) if size == "small" else text
    return texts


def choose_faults(racks: Sequence[DemoRack], inventory: Inventory, seed: int, size: Size) -> list[FaultSpec]:
    """Who is broken, and how: one host a rack at most (no good rack spends its budget), and most of the bad rack."""
    rng = random.Random(f"demo/{seed}")
    fleet = [rack for rack in racks if not rack.bad]
    if size == "demo":
        count = sum(len(rack.hosts) for rack in fleet)
        room = -int(-count * SHARE // 1) - 1  # the largest number that is still below the share
        kinds = [*ALWAYS, *rng.sample(EXTRA, min(len(EXTRA), max(0, min(room, len(fleet)) - len(ALWAYS))))]
    else:
        rest = [kind for kind in ALWAYS if kind != "wrong-domain"]
        kinds = ["wrong-domain", *rng.sample(rest, len(rest))]
    chosen = _one_a_rack(rng, fleet, kinds)
    for rack in racks:
        if rack.bad:
            # Faults from the lowest position on: the first waves must spend the budget, whatever it is up to 20 %.
            broken = rack.hosts[: len(rack.hosts) - max(1, len(rack.hosts) // 5)]
            turn = rng.sample(BAD, len(BAD))
            chosen += [(host, turn[i % len(turn)]) for i, host in enumerate(broken)]
    return sorted((_specify(rng, host, kind, inventory) for host, kind in chosen), key=lambda spec: spec.host)


def _one_a_rack(rng: random.Random, racks: Sequence[DemoRack], kinds: Sequence[str]) -> list[tuple[DemoHost, str]]:
    """A random host in a random rack that the kind fits, for as many kinds as there are racks."""
    free = rng.sample(list(racks), len(racks))
    chosen = []
    for kind in kinds:
        rack = next((r for r in free if _fits(kind, r)), None)
        if rack is not None:
            free.remove(rack)
            chosen.append((rng.choice(rack.hosts), kind))
    return chosen


def _fits(kind: str, rack: DemoRack) -> bool:
    if rack.sku == GB200 or kind == "wrong-domain":
        return rack.sku == GB200 and kind == "wrong-domain"
    return rack.wire == "redfish" or kind not in REDFISH_ONLY


def _specify(rng: random.Random, host: DemoHost, kind: str, inventory: Inventory) -> FaultSpec:
    """The fault with its parameters, within what the SKU has."""
    sku = inventory.skus[host.sku]
    gpu = rng.randrange(sku.gpus.count)
    params: Mapping[str, int | str] = {}
    match kind:
        case "gpu-off-bus" | "remap-pending" | "throttled":
            params = {"gpu": gpu}
        case "nvlink-down":
            params = {"gpu": gpu, "link": rng.randrange(sku.gpus.nvlink.links)}
        case "pcie-width":
            params = {"gpu": gpu, "width": 8}
        case "ecc-uncorrectable":
            params = {"gpu": gpu, "count": rng.randint(1, 9)}
        case "xid":
            params = {"gpu": gpu, "code": rng.choice((48, 74, 79, 95))}
        case "nic-down":
            params = {"nic": rng.randrange(sku.network.count)}
        case "disk-no-erase":
            params = {"drive": rng.randrange(sku.storage.nvme_count)}
        case "probe-garbage":
            params = {"mode": rng.choice(("huge", "truncated", "text"))}
    return FaultSpec(host=host.name, kind=kind, params=dict(params))


def site_file_text(plan: DemoPlan, faults: Sequence[FaultSpec]) -> str:
    """The simulator's site file, as a person would write it."""
    ports = plan.ports
    lines = [
        f"# The demo of seed {plan.seed}. fleetd is given inventory/ and never sees this file.",
        f"seed: {plan.seed}",
        f"depth: {'full' if plan.size == 'demo' else 'fast'}",
        "inventory: inventory",
        f"boot_url: {plan.boot_url}",
        f"ports: {{redfish: {ports.redfish}, ipmi: {ports.ipmi}, ssh: {ports.ssh}}}",
        "credentials:",
        *(f"  {name}: {{username: {login.username}, password: {login.password}}}" for name, login in FACTORY.items()),
        "timings: {power: 0.05, post: 0.2, boot: 0.2, wipe: 0.1, image: 0.2}  # seconds",
        "record: record.jsonl",
        "control: control.sock  # break, repair and mark hosts while it runs: fleetd/sim/control.py",
        "faults:",
    ]
    for spec in faults:
        params = ", ".join(f"{key}: {value}" for key, value in spec.params.items())
        lines.append(
            f"  - {{host: {spec.host}, kind: {spec.kind}" + (f", params: {{{params}}}" if params else "") + "}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":  # python -m fleetd.sim.demo inventory
    write_example(Path(sys.argv[1]))
