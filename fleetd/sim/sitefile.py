"""The site file of `fleetd simulate -f site.yaml`: what to simulate and what is broken in it, refused by file:line.

::

    seed: 7
    depth: fast                      # full: the real probe runs as a process against a simulated NVML and sysfs
    inventory: inventory             # the very folder that fleetd is given
    boot_url: http://127.0.0.1:17080 # fleetd's boot listener
    ports: {redfish: 17443, ipmi: 17623, ssh: 17022}
    credentials:
      factory-dell: {username: root, password: calvin}
    timings: {power: 0.05, post: 0.2, boot: 0.2, wipe: 0.1, image: 0.2}   # seconds
    behaviours: {"dell.*": dell}     # SKU pattern to BMC behaviour; the rest follows from the SKU's vendor
    record: record.jsonl             # the simulator's own log
    control: control.sock            # a local socket to break, repair and mark hosts while it runs (control.py)
    faults:
      - {host: lou-a01-03, kind: gpu-off-bus, params: {gpu: 3}}
      - {host: lou-a01-05, kind: busy-bmc, count: 2}

Paths are relative to the site file.
"""

from __future__ import annotations

import ipaddress
import random
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import msgspec

from fleetd.kit.errors import Invalid, NotFound
from fleetd.kit.yamlfile import Document, decode, parse
from fleetd.model.host import HostSpec
from fleetd.model.inventory import Inventory, read_inventory
from fleetd.model.sku import Sku
from fleetd.sim.demo_inventory import Ports
from fleetd.sim.faults import KINDS, Fault
from fleetd.sim.host import Behaviour, Timings

Depth = Literal["full", "fast"]
OS_NET = 200  # a host's own address is its BMC's, this much higher in the second byte
PARAMETERS: dict[str, frozenset[str]] = {
    "gpu-off-bus": frozenset({"gpu", "mode"}),
    "nvlink-down": frozenset({"gpu", "link"}),
    "remap-pending": frozenset({"gpu"}),
    "pcie-width": frozenset({"gpu", "width"}),
    "ecc-uncorrectable": frozenset({"gpu", "count"}),
    "throttled": frozenset({"gpu"}),
    "xid": frozenset({"gpu", "code"}),
    "nic-down": frozenset({"nic"}),
    "disk-no-erase": frozenset({"drive"}),
    "erase-lies": frozenset({"drive"}),
    "wrong-serial": frozenset({"serial"}),
    "wrong-domain": frozenset({"cluster_uuid"}),
    "deaf-bmc": frozenset({"mode"}),
    "slow-bmc": frozenset({"seconds"}),
    "busy-bmc": frozenset({"retry_after"}),
    "account-added": frozenset({"username"}),
    "probe-garbage": frozenset({"mode"}),
    "wrong-mac": frozenset({"mac"}),
    "disk-too-small": frozenset({"drive", "bytes"}),
    "write-error": frozenset({"drive", "at"}),
    "read-back-flip": frozenset({"drive", "at"}),
}


MODES: dict[str, frozenset[str]] = {
    "gpu-off-bus": frozenset({"lost", "pci"}),  # pci: not even the bus shows it
    "deaf-bmc": frozenset({"silent", "refuse"}),
    "probe-garbage": frozenset({"huge", "truncated", "text", "other-boot", "other-host"}),
}
_WORDS = frozenset({"username", "mode", "serial", "cluster_uuid", "mac"})  # parameters that are never numbers


class FaultSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One fault on one host. `count`: how often it shows; absent, it stands until repaired."""

    host: str
    kind: str
    params: dict[str, int | str | float] = {}
    count: int | None = None

    def fault(self) -> Fault:
        """A fresh, unfired fault; words that are numbers become numbers."""
        return Fault(
            kind=self.kind,
            params={k: v if k in _WORDS else _number(v) for k, v in self.params.items()},
            count=self.count,
        )


class FactoryLogin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a BMC accepts when it comes from the factory. repr hides the password."""

    username: str
    password: str

    def __repr__(self) -> str:
        return f"FactoryLogin(username={self.username!r}, password=***)"


class SimTimings(Timings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Timings as a file may name them."""


class SiteFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The site file as written."""

    inventory: str
    boot_url: str
    seed: int = 0
    depth: Depth = "fast"
    ports: Ports = Ports()
    credentials: dict[str, FactoryLogin]
    timings: SimTimings = SimTimings()
    behaviours: dict[str, Behaviour] = {}
    record: str | None = None
    control: str | None = None
    faults: tuple[FaultSpec, ...] = ()


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """A site file with all that it names, checked: each fault has its host, each host its login and addresses."""

    file: SiteFile
    folder: Path
    inventory: Inventory

    @property
    def record_path(self) -> Path | None:
        return self.folder / self.file.record if self.file.record else None

    @property
    def control_path(self) -> Path | None:
        return self.folder / self.file.control if self.file.control else None

    def behaviour(self, host: HostSpec) -> Behaviour:
        """How this host's BMC behaves: its wire decides first, then the file, then the SKU's vendor."""
        return behaviour_of(self.inventory.skus[host.sku], host.bmc.protocol, self.file.behaviours)

    def faults(self, host: str) -> list[Fault]:
        return [spec.fault() for spec in self.file.faults if spec.host == host]


def load_site(path: Path) -> Site:
    """Read a site file and the inventory it names.

    Raises:
        NotFound: there is no such file or folder.
        Invalid: with file:line of the first thing that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFound(
            f"the site file {path} cannot be read", why=error.strerror or "", remedy="name a file: `-f site.yaml`"
        ) from error
    except UnicodeDecodeError as error:
        raise Invalid("the site file is not UTF-8", where=f"{path}:1") from error
    document = parse(text, str(path))
    if not isinstance(document.value, dict):
        raise Invalid("a site file is a mapping", where=document.where())
    raw_faults = document.value.get("faults") or []
    if not isinstance(raw_faults, list):
        raise Invalid("`faults` is a list", where=document.where(("faults",)))
    head = {key: value for key, value in document.value.items() if key != "faults"}
    file = decode(document._replace(value=head), SiteFile)
    folder = path.parent / file.inventory
    site = Site(file=file, folder=path.parent, inventory=read_inventory(inventory_texts(folder)))
    faults = tuple(_fault(document, i, site.inventory) for i in range(len(raw_faults)))
    _check(site, document)
    return msgspec.structs.replace(site, file=msgspec.structs.replace(file, faults=faults))


def inventory_texts(folder: Path) -> dict[str, str]:
    """The texts of an inventory folder by relative name, as `read_inventory` takes them. Raises NotFound, Invalid."""
    if not folder.is_dir():
        raise NotFound(
            f"there is no inventory folder {folder}", remedy="name the folder that holds sites/, racks/ and skus/"
        )
    texts = {}
    for path in sorted(folder.glob("**/*.yaml")):
        name = path.relative_to(folder).as_posix()
        try:
            texts[name] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise Invalid("the file is not UTF-8", where=f"{name}:1") from error
    return texts


def _fault(document: Document, i: int, inventory: Inventory) -> FaultSpec:
    spec = decode(document, FaultSpec, at=("faults", i))
    check_fault(spec, inventory, lambda *path: document.where(("faults", i, *path)))
    return spec


def check_fault(spec: FaultSpec, inventory: Inventory, where: Callable[..., str]) -> None:
    """The host, the kind and the parameters exist. `where` names the place of a key. Raises Invalid."""
    if spec.host not in inventory.hosts:
        raise Invalid(f"host `{spec.host}` is not in the inventory", where=where("host"))
    if spec.kind not in KINDS:
        raise Invalid(f"there is no fault `{spec.kind}`", remedy=f"use one of: {', '.join(KINDS)}", where=where("kind"))
    if spec.count is not None and spec.count < 1:
        raise Invalid("`count` is at least 1", where=where("count"))
    host = inventory.hosts[spec.host]
    if spec.kind == "wrong-domain" and host.nvlink_domain is None:
        raise Invalid(f"`{spec.host}` is in no NVLink domain of several hosts", where=where("host"))
    sku = inventory.skus[host.sku]
    known = PARAMETERS.get(spec.kind, frozenset())
    if ("gpu" in known and sku.gpu is None) or ("nic" in known and not sku.network.count):
        raise Invalid(f"`{spec.host}` has no part that `{spec.kind}` could break", where=where("kind"))
    bounds = {
        "gpu": sku.gpu_count,
        "link": sku.gpu.nvlink.links if sku.gpu is not None else 0,
        "nic": sku.network.count,
        "drive": sku.storage.nvme_count,
    }
    for name, value in spec.params.items():
        at, number = where("params", name), _number(value)
        if name not in known:
            remedy = f"use one of: {', '.join(sorted(known))}" if known else "leave `params` out"
            raise Invalid(f"fault `{spec.kind}` has no parameter `{name}`", remedy=remedy, where=at)
        if name == "mode" and value not in MODES[spec.kind]:
            remedy = f"use one of: {', '.join(sorted(MODES[spec.kind]))}"
            raise Invalid(f"fault `{spec.kind}` has no mode `{value}`", remedy=remedy, where=at)
        if name in _WORDS:
            continue
        if isinstance(number, str) or number < 0:
            raise Invalid(f"`{name}` is a number of 0 or more, not `{value}`", where=at)
        if name in bounds and (not isinstance(number, int) or number >= bounds[name]):
            raise Invalid(f"`{spec.host}` has no {name} {value}", why=_range(bounds[name]), where=at)


def _range(count: int) -> str:
    return f"it has 0 to {count - 1}" if count else "it has none"


def _check(site: Site, document: Document) -> None:
    """Every host can be simulated: a login, a behaviour, loopback addresses, the port that the wire listens on."""
    for name in Timings.__struct_fields__:
        if not 0 <= getattr(site.file.timings, name) < float("inf"):
            raise Invalid(f"`{name}` is a number of seconds, 0 or more", where=document.where(("timings", name)))
    for host in site.inventory.hosts.values():
        place = f"host `{host.name}`"
        if host.bmc.credentials not in site.file.credentials:
            raise Invalid(
                f"credentials `{host.bmc.credentials}` of {place} are not in the site file",
                where=document.where(("credentials",)),
            )
        try:
            os_address(host)
        except Invalid as error:
            raise Invalid(
                error.what, why=error.why, remedy=error.remedy, where=document.where(("inventory",))
            ) from error
        site.behaviour(host)
        port = site.file.ports.redfish if host.bmc.protocol == "redfish" else site.file.ports.ipmi
        if port and host.bmc.port != port:
            raise Invalid(
                f"{place} has its BMC at port {host.bmc.port}, the simulator's {host.bmc.protocol} listens on {port}",
                remedy=f"write `address: {host.bmc.host}:{port}` in the inventory or change `ports`",
                where=document.where(("ports",)),
            )


def os_address(host: HostSpec) -> str:
    """The host's own loopback address: its BMC's, `OS_NET` higher in the second byte (127.10.1.3 -> 127.210.1.3).

    Raises:
        Invalid: the BMC's address is not in 127.0.0.0/8, or so high there that no room is left for the host's own.
    """
    try:
        address = ipaddress.IPv4Address(host.bmc.host)
    except ValueError:
        address = ipaddress.IPv4Address("0.0.0.0")
    if not address.is_loopback:
        raise Invalid(
            f"the BMC of `{host.name}` is at {host.bmc.host}, which is not a loopback address",
            why="a simulator that listens to the outside would be taken for a machine",
            remedy="use 127.0.x.y to 127.55.x.y in a simulated inventory",
        )
    second = address.packed[1]
    if second + OS_NET > 255:
        raise Invalid(
            f"the BMC of `{host.name}` is at {host.bmc.host}: no room for the host's own address",
            why=f"the host stands {OS_NET} higher in the second byte",
            remedy="use 127.0.x.y to 127.55.x.y in a simulated inventory",
        )
    return str(ipaddress.IPv4Address(bytes([127, second + OS_NET, *address.packed[2:]])))


def behaviour_of(sku: Sku, protocol: str, chosen: dict[str, Behaviour]) -> Behaviour:
    """The BMC behaviour of a SKU. Raises Invalid when neither file nor vendor tells one."""
    if protocol == "ipmi":
        return "ipmi"
    for pattern, behaviour in chosen.items():
        if fnmatchcase(sku.sku, pattern):
            return behaviour
    vendor = sku.vendor.lower()
    for word, behaviour in _VENDORS.items():
        if vendor.startswith(word):
            return behaviour
    raise Invalid(
        f"no BMC behaviour is known for vendor `{sku.vendor}` of SKU `{sku.sku}`",
        remedy="name one under `behaviours:`",
    )


_VENDORS: dict[str, Behaviour] = {"dell": "dell", "supermicro": "supermicro", "nvidia": "openbmc"}


def true_serial(seed: int, host: HostSpec) -> str:
    """What the metal says when somebody mistyped the inventory: the same letters, two neighbours swapped."""
    rng = random.Random(f"{seed}/{host.name}/serial")
    letters = list(host.serial)
    for i in rng.sample(range(len(letters) - 1), len(letters) - 1) if len(letters) > 1 else []:
        if letters[i] != letters[i + 1]:
            letters[i], letters[i + 1] = letters[i + 1], letters[i]
            return "".join(letters)
    return host.serial[:-1] + ("1" if host.serial[-1:] != "1" else "2")


def _number(value: int | str | float) -> int | str | float:
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"-?\d{1,15}", value):
        return int(value)
    if re.fullmatch(r"-?\d{1,15}\.\d{1,15}", value):
        return float(value)
    return value
