"""The demo's two sites as inventory files: which racks stand where, and the YAML a person would have written.

Everything follows from the seed and the SKU files, so that the example in `inventory/` is exactly the demo of seed 0.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from fleetd.model.sku import Sku

Size = Literal["demo", "small"]
Wire = Literal["redfish", "ipmi"]

H100, B200, GB200 = "dell.xe9680-h100-8", "supermicro.as8125-b200-8", "nvidia.gb200-nvl72-tray"
SKUS = (H100, B200, GB200)
FIRST_NET = {"louisiana": 10, "ohio": 20}  # second byte of the BMC addresses; the hosts themselves stand 200 higher
HALLS = {"louisiana": ("h1", "h2"), "ohio": ("h1",)}
SMALL_DOMAIN = (4, 3, 2)  # trays, min_trays, switch_trays of the small variant's NVL72-like rack


class Ports(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the simulator listens, one port a protocol for all hosts; 0 takes a free one."""

    redfish: int = 17443
    ipmi: int = 17623
    ssh: int = 17022


class Login(NamedTuple):
    """A vendor's factory account, as printed in its manuals."""

    username: str
    password: str


FACTORY: dict[str, Login] = {
    "factory-dell": Login("root", "calvin"),
    "factory-supermicro": Login("ADMIN", "ADMIN"),
    "factory-nvidia": Login("root", "0penBmc"),
    "factory-ipmi": Login("ADMIN", "admin"),
}
_FACTORY_OF = {H100: "factory-dell", B200: "factory-supermicro", GB200: "factory-nvidia"}
_OUI = {H100: "04:3f:72", B200: "3c:ec:ef", GB200: "b8:3f:d2"}
_BUDGET = {H100: 10.5, B200: 14.5, GB200: 7.0}  # kW a host


class DemoHost(NamedTuple):
    """A host as the inventory says it is."""

    name: str
    position: int
    sku: str
    serial: str
    wire: Wire
    bmc: str  # host:port
    credentials: str
    mac: str


class DemoRack(NamedTuple):
    """A rack with its hosts in order of position; `bad` marks the one that a failure budget must stop."""

    name: str
    site: str
    hall: str
    sku: str
    wire: Wire
    domain: str | None
    bad: bool
    switch_trays: int
    hosts: tuple[DemoHost, ...]


class _Row(NamedTuple):
    name: str
    site: str
    hall: str
    sku: str
    number: int
    wire: Wire = "redfish"
    domain: str | None = None
    bad: bool = False


def _rows(size: Size, nvl: tuple[int, int, int]) -> list[_Row]:
    """The racks. The bad one has 9 (small: 5) hosts: its wave of 25 % is then larger than its budget of 20 %."""
    trays = nvl[0]
    if size == "small":
        return [
            _Row("lou-a01", "louisiana", "h1", H100, 3),
            _Row("lou-b01", "louisiana", "h1", B200, 2),
            _Row("lou-n01", "louisiana", "h2", GB200, trays, domain="lou-n01-nvl"),
            _Row("oh-c01", "ohio", "h1", H100, 2, wire="ipmi"),
            _Row("oh-x01", "ohio", "h1", H100, 5, bad=True),
        ]
    return [
        *(_Row(f"lou-a{i:02}", "louisiana", "h1", H100, 6) for i in (1, 2, 3)),
        *(_Row(f"lou-b{i:02}", "louisiana", "h1", B200, 4) for i in (1, 2)),
        _Row("lou-n01", "louisiana", "h2", GB200, trays, domain="lou-n01-nvl"),
        *(_Row(f"oh-a{i:02}", "ohio", "h1", H100, 6) for i in (1, 2)),
        *(_Row(f"oh-b{i:02}", "ohio", "h1", B200, 4) for i in (1, 2)),
        _Row("oh-c01", "ohio", "h1", H100, 6, wire="ipmi"),
        _Row("oh-x01", "ohio", "h1", H100, 9, bad=True),
    ]


def lay_out(seed: int, size: Size, skus: Mapping[str, Sku], ports: Ports) -> list[DemoRack]:
    """Racks and hosts of the demo. Serials follow from the seed; names, addresses and MACs do not."""
    domain = skus[GB200].domain
    nvl = (domain.trays, domain.min_trays, domain.switch_trays) if domain is not None else SMALL_DOMAIN
    racks = []
    for number, row in enumerate(_rows(size, nvl), start=1):
        height = skus[row.sku].height
        switches = nvl[2] if row.domain else 0
        port = ports.redfish if row.wire == "redfish" else ports.ipmi
        hosts = []
        for i in range(1, row.number + 1):
            name = f"{row.name}-{i:02}"
            position = (i - 1) * height + 1
            if switches and i > row.number - row.number // 2:  # an NVL72 rack has its switch trays in the middle
                position += switches
            hosts.append(
                DemoHost(
                    name=name,
                    position=position,
                    sku=row.sku,
                    serial=_serial(seed, name, row.sku),
                    wire=row.wire,
                    bmc=f"127.{FIRST_NET[row.site]}.{number}.{i}:{port}",
                    credentials="factory-ipmi" if row.wire == "ipmi" else _FACTORY_OF[row.sku],
                    mac=f"{_OUI[row.sku]}:{FIRST_NET[row.site]:02x}:{number:02x}:{i:02x}",
                )
            )
        racks.append(
            DemoRack(row.name, row.site, row.hall, row.sku, row.wire, row.domain, row.bad, switches, tuple(hosts))
        )
    return racks


def _serial(seed: int, name: str, sku: str) -> str:
    """In the vendor's fashion: a service tag of seven, a Supermicro number, an NVIDIA number."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")
    if sku == H100:
        letters = "BCDFGHJKLMNPQRSTVWXYZ0123456789"
        return "".join(letters[number // 31**i % 31] for i in range(6)) + "3"
    if sku == B200:
        return f"S{number % 10**6:06}X{number // 10**6 % 10**7:07}"
    return f"18{number % 10**11:011}"


def site_text(site: str) -> str:
    """One file of inventory/sites."""
    return f"# A site of the demo.\nsite: {site}\nhalls: [{', '.join(HALLS[site])}]\n"


def rack_text(rack: DemoRack) -> str:
    """One file of inventory/racks/<site>/."""
    lines = [
        f"# {len(rack.hosts)} hosts of {rack.sku} ({rack.wire} BMCs).",
        f"rack: {rack.name}",
        f"site: {rack.site}",
        f"hall: {rack.hall}",
        f"power: {{budget: {len(rack.hosts) * _BUDGET[rack.sku]:g} kW}}",
        f"nvlink_domain: {rack.domain or 'null'}",
    ]
    if rack.switch_trays:
        first = len(rack.hosts) - len(rack.hosts) // 2 + 1
        lines.append("switch_trays:")
        lines += [
            f"  - {{name: {rack.name}-sw{i + 1}, position: {first + i}, serial: {rack.name.upper()}SW{i + 1}}}"
            for i in range(rack.switch_trays)
        ]
    lines.append("hosts:")
    for host in rack.hosts:
        lines += [
            f"  - name: {host.name}",
            f"    position: {host.position}",
            f"    sku: {host.sku}",
            f'    serial: "{host.serial}"',
            f"    bmc: {{protocol: {host.wire}, address: {host.bmc}, credentials: {host.credentials}}}",
            f"    boot_mac: {host.mac}",
        ]
    return "\n".join(lines) + "\n"


def small_sku(text: str) -> str:
    """The GB200 tray's SKU with a domain of few trays, for the small variant; other SKUs are unchanged."""
    if not re.search(r"^domain:", text, re.MULTILINE):
        return text
    for key, number in zip(("trays", "min_trays", "switch_trays"), SMALL_DOMAIN, strict=True):
        text = re.sub(rf"^(  {key}:) \d+", rf"\1 {number}", text, flags=re.MULTILINE)
    return text
