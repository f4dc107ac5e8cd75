"""What stands under `inventory/`: sites, racks, hosts; parsed whole or refused whole with file:line.

Pure: takes (file name, text) pairs, returns nouns. Reading files is the caller's business (the hand sends texts).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec

from fleetd.kit.errors import Invalid
from fleetd.kit.yamlfile import Document, decode, parse
from fleetd.model.bmc import is_placeholder
from fleetd.model.host import HostSpec
from fleetd.model.sku import Sku, read_sku
from fleetd.model.units import watts

KINDS = ("sites", "racks", "skus")
# A host's name becomes its hostname: RFC 1123 labels, each beginning and ending with a letter or digit.
NAME = re.compile(r"^(?=.{1,63}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$")
MAC = re.compile(r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")
MAX_POSITION = 64
_BMC_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9a-fA-F:.]{2,45}\]")
_BMC_PORT = re.compile(r"[0-9]{1,5}")
_OUTLET = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}/[0-9]{1,3}")
_OF_THE_RACK = ("site", "rack", "nvlink_domain")  # what a host has from its file, and may not say itself


class PduSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A rack PDU."""

    name: str
    rack: str
    address: str
    driver: str
    credentials: str


class SiteSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One file of inventory/sites."""

    site: str
    halls: tuple[str, ...] = ()
    pdus: tuple[PduSpec, ...] = ()


class PowerSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rack's power budget, as written (`66 kW`)."""

    budget: str


class SwitchTray(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An NVLink switch tray of an NVL72 rack: known, not driven."""

    name: str
    position: int
    serial: str = ""


class RackSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One file of inventory/racks/<site>/, without its hosts."""

    rack: str
    site: str
    hall: str = ""
    power: PowerSpec | None = None
    nvlink_domain: str | None = None
    switch_trays: tuple[SwitchTray, ...] = ()


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, keyed by name."""

    sites: dict[str, SiteSpec] = {}
    racks: dict[str, RackSpec] = {}
    hosts: dict[str, HostSpec] = {}
    skus: dict[str, Sku] = {}


class _Seen:
    """First places of things that may exist once."""

    def __init__(self) -> None:
        self._at: dict[tuple[str, str], str] = {}

    def once(self, kind: str, value: str, where: str) -> None:
        key = (kind, value.casefold())
        first = self._at.get(key)
        self._at[key] = where
        if first is not None:
            raise Invalid(f"{kind} `{value}` stands twice", why=f"first at {first}", where=where)


Misfit = Callable[[Sku], tuple[tuple[str | int, ...], str, str] | None]


def read_inventory(files: Mapping[str, str], misfit: Misfit | None = None) -> Inventory:
    """Parse `{file name: text}`; names decide the kind by their folder (sites/, racks/, skus/).

    Args:
        misfit: who judges a SKU's suites (`checks.misfit`): (place in its file, what, why) of what does not fit it.

    Raises:
        Invalid: with file:line, for the first thing that is wrong. Nothing is returned then.
    """
    sites: dict[str, SiteSpec] = {}
    racks: dict[str, RackSpec] = {}
    hosts: dict[str, HostSpec] = {}
    skus: dict[str, Sku] = {}
    seen = _Seen()
    documents = {name: parse(text, name) for name, text in sorted(files.items())}
    kinds = {name: _kind(name) for name in documents}
    for name, document in documents.items():
        if kinds[name] == "skus":
            sku = read_sku(document)
            _name(sku.sku, document, ("sku",))
            seen.once("SKU", sku.sku, document.where(("sku",)))
            if misfit is not None and (wrong := misfit(sku)) is not None:
                raise Invalid(
                    wrong[1],
                    why=wrong[2],
                    remedy="take it out of the suite, or describe the part",
                    where=document.where(wrong[0]),
                )
            skus[sku.sku] = sku
        elif kinds[name] == "sites":
            site = decode(document, SiteSpec)
            _name(site.site, document, ("site",))
            seen.once("site", site.site, document.where(("site",)))
            for i, pdu in enumerate(site.pdus):
                _name(pdu.name, document, ("pdus", i, "name"))
                seen.once("PDU", pdu.name, document.where(("pdus", i, "name")))
            sites[site.site] = site
    for name, document in documents.items():
        if kinds[name] == "racks":
            rack, members = _rack(document, sites, skus, seen)
            racks[rack.rack] = rack
            hosts.update({host.name: host for host in members})
    return Inventory(sites=sites, racks=racks, hosts=hosts, skus=skus)


def _kind(name: str) -> str:
    """sites, racks or skus, by the folder nearest to the file (`racks/<site>/<rack>.yaml` has one between)."""
    folders = name.split("/")[:-1]
    near = [folder for folder in (folders[-2:-1] if folders[-2:-1] == ["racks"] else folders[-1:]) if folder in KINDS]
    if not near:
        raise Invalid("the file is in none of sites/, racks/<site>/, skus/", where=f"{name}:1")
    return near[0]


def _name(value: str, document: Document, path: tuple[str | int, ...]) -> None:
    if not NAME.fullmatch(value):
        raise Invalid(
            f"`{value}` is not a name",
            why="lower case letters, digits, dots and dashes, up to 63",
            where=document.where(path),
        )


def _rack(
    document: Document, sites: Mapping[str, SiteSpec], skus: Mapping[str, Sku], seen: _Seen
) -> tuple[RackSpec, list[HostSpec]]:
    if not isinstance(document.value, dict):
        raise Invalid("a rack file is a mapping", where=document.where())
    raw_hosts = document.value.get("hosts") or []
    if not isinstance(raw_hosts, list):
        raise Invalid("`hosts` is a list", where=document.where(("hosts",)))
    head = {key: value for key, value in document.value.items() if key != "hosts"}
    rack = decode(document._replace(value=head), RackSpec)
    _name(rack.rack, document, ("rack",))
    seen.once("rack", rack.rack, document.where(("rack",)))
    if rack.site not in sites:
        raise Invalid(f"site `{rack.site}` is not in the inventory", where=document.where(("site",)))
    if rack.hall and rack.hall not in sites[rack.site].halls:
        raise Invalid(f"site `{rack.site}` has no hall `{rack.hall}`", where=document.where(("hall",)))
    if rack.power is not None:
        try:
            watts(rack.power.budget)
        except Invalid as error:
            raise Invalid(error.what, remedy=error.remedy, where=document.where(("power", "budget"))) from error
    taken: dict[int, str] = {}
    for i, tray in enumerate(rack.switch_trays):
        _position(taken, tray.position, 1, tray.name, document, ("switch_trays", i))
    members = []
    pdus = {pdu.name for pdu in sites[rack.site].pdus}
    for i in range(len(raw_hosts)):
        at: tuple[str | int, ...] = ("hosts", i)
        for key in _OF_THE_RACK:
            if isinstance(raw_hosts[i], dict) and key in raw_hosts[i]:
                raise Invalid(f"unknown key `{key}`", why="the rack's file says it", where=document.where((*at, key)))
        host = decode(document, HostSpec, at=at)
        _name(host.name, document, (*at, "name"))
        if host.sku not in skus:
            raise Invalid(f"SKU `{host.sku}` is not in the inventory", where=document.where((*at, "sku")))
        if skus[host.sku].domain is not None and not rack.nvlink_domain:
            raise Invalid(
                f"`{host.name}` is a tray of an NVLink domain, and the rack names none",
                remedy="write `nvlink_domain: <name>` in the rack's file",
                where=document.where((*at, "sku")),
            )
        if is_placeholder(host.serial):
            raise Invalid(
                f"`{host.serial}` is not a serial",
                why="empty, or what boards carry before they get one",
                remedy="read it from the pull-out tag",
                where=document.where((*at, "serial")),
            )
        if not MAC.fullmatch(host.boot_mac) or int(host.boot_mac[:2], 16) & 1 or set(host.boot_mac) == {"0", ":"}:
            raise Invalid(
                f"`{host.boot_mac}` is not a MAC address",
                remedy="write 04:3f:72:aa:00:01",
                where=document.where((*at, "boot_mac")),
            )
        _bmc_address(host, document, (*at, "bmc"))
        for kind, value, key in (
            ("host", host.name, "name"),
            ("serial", host.serial, "serial"),
            ("boot MAC", host.boot_mac, "boot_mac"),
            ("BMC address", f"{host.bmc.host}:{host.bmc.port}", "bmc"),
        ):
            seen.once(kind, value, document.where((*at, key)))
        for n, outlet in enumerate(host.outlets):
            place = document.where((*at, "outlets", n))
            if not _OUTLET.fullmatch(outlet):
                raise Invalid(f"`{outlet}` is not an outlet", remedy="write lou-a01-pdu-a/1", where=place)
            if outlet.partition("/")[0] not in pdus:
                raise Invalid(f"site `{rack.site}` has no PDU `{outlet.partition('/')[0]}`", where=place)
            seen.once("outlet", outlet, place)
        _position(taken, host.position, skus[host.sku].height, host.name, document, (*at, "position"))
        members.append(msgspec.structs.replace(host, site=rack.site, rack=rack.rack, nvlink_domain=rack.nvlink_domain))
    return rack, members


def _bmc_address(host: HostSpec, document: Document, path: tuple[str | int, ...]) -> None:
    address, _, port = host.bmc.address.rpartition(":")
    if ":" not in host.bmc.address:
        address, port = host.bmc.address, "1"
    if not (_BMC_HOST.fullmatch(address) and _BMC_PORT.fullmatch(port) and 0 < int(port) < 65536):
        raise Invalid(
            f"`{host.bmc.address}` is not an address",
            remedy="write 10.1.1.1 or 10.1.1.1:8443",
            where=document.where(path),
        )


def _position(
    taken: dict[int, str], position: int, height: int, name: str, document: Document, path: tuple[str | int, ...]
) -> None:
    for unit in range(position, position + height):
        if not 1 <= unit <= MAX_POSITION:
            raise Invalid(f"position U{unit} is not in a rack (1 to {MAX_POSITION})", where=document.where(path))
        if unit in taken:
            raise Invalid(
                f"position U{unit} of `{name}` is taken",
                why=f"`{taken[unit]}` stands there",
                where=document.where(path),
            )
        taken[unit] = name
