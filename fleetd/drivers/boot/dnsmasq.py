"""dnsmasq's configuration, made from typed settings, and its log lines read back. No text of a person or a host reaches it raw.

Who gets what (DHCP option 93 is the firmware, option 175 tells an iPXE):

* BIOS PXE (arch 0) -> ``undionly.kpxe`` by TFTP; UEFI PXE (arch 7, 9) -> ``snponly.efi`` by TFTP.
* UEFI HTTP boot (arch 16, vendor class HTTPClient) -> the URL of ``snponly.efi``; the answer must say HTTPClient too.
  (Not ``ipxe.efi``: its own drivers take the NIC from the firmware. Measured on OVMF, `exit` then never comes back, and a host
  that is sent to its disk stands still.)
* any iPXE -> the URL of a short script, which asks for the machine's own with MAC, serial, UUID, platform, chip, version.

An iPXE in a NIC's ROM sends option 175 too, and cannot be told from ours by DHCP: measured here, QEMU's pxe-virtio.rom and
Debian's undionly.kpxe send the same features (175 = 23 34 19 17 39 25 41 16 33 21 24 18), the same bus id, user class and
version. But its next request tells the chip: ``virtio-net`` in the ROM, ``undionly`` in ours. So the boot service answers
a BIOS ROM with a script that loads undionly.kpxe by TFTP (`scripts.py`); nothing is remembered and nothing can loop.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable
from typing import Literal

import msgspec

from fleetd.drivers.boot.capabilities import BootHost
from fleetd.drivers.boot.networks import (
    LEASE,
    Range,
    Relayed,
    check_disjoint,
    read_address,
    read_range,
    read_relayed,
    read_router,
)
from fleetd.drivers.boot.scripts import BIOS_LOADER, UEFI_LOADER, read_mac, start_url
from fleetd.kit.errors import Invalid, NotFound

KNOWN = "fleet"  # the tag of a MAC that the inventory has
MAX_BOOTFILE = 127  # bytes of the packet's own field, which is all that a proxy's answer has
MAX_LINE = 1024
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_PROGRAM = re.compile(r"/?[A-Za-z0-9_.+-]+(/[A-Za-z0-9_.+-]+)*")
_PATH = re.compile(r"/[A-Za-z0-9_.@+/-]*")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The DHCP and TFTP of the boot networks, as the boot service runs it.

    Attributes:
        program: dnsmasq itself, by name or absolute path.
        mode: `own` hands out addresses; `proxy` only adds the boot file to the answers of the site's DHCP server.
        interface: where hosts boot, or where their relays' packets come in.
        address: ours on that interface: the TFTP server, and where relays send to.
        range: the network of that interface. Own: `first,last,netmask`; proxy: the network, `10.77.0.0/24`. Empty: no host
            boots there, all are behind relays.
        relayed: networks behind DHCP relays, at most 4096.
        lease: seconds, or with m, h, d. Own mode.
        router: told to hosts of `range`; empty for none. Own mode.
        dns: told to hosts; empty for none. Own mode.
        unknown: `refuse` answers only MACs of the inventory; `serve` answers all.
        rom: `replace` an iPXE of a BIOS NIC's ROM by ours, or `use` it.
    """

    program: str = "dnsmasq"
    mode: Literal["own", "proxy"] = "own"
    interface: str
    address: str
    range: str = ""
    relayed: tuple[Relayed, ...] = ()
    lease: str = "10m"
    router: str = ""
    dns: str = ""
    unknown: Literal["refuse", "serve"] = "refuse"
    rom: Literal["replace", "use"] = "replace"

    @property
    def tftp(self) -> str:
        """Where undionly.kpxe comes from."""
        return f"tftp://{self.address}"


def _ranges(settings: Settings) -> tuple[Range | None, list[Range]]:
    """Of our own network, None when all are behind relays; and of those. Raises Invalid."""
    address, proxy = read_address(settings.address, "address"), settings.mode == "proxy"
    own = None
    if settings.range:
        own = read_range(settings.range, "range", proxy=proxy)
        if address not in own.network:
            raise Invalid(
                "dnsmasq.address is not in the network of dnsmasq.range",
                remedy="a network behind a relay stands in dnsmasq.relayed",
                where="address",
            )
        if own.hands_out(address):
            raise Invalid("dnsmasq.range holds our own address", where="range")
    elif not settings.relayed:
        raise Invalid(
            "dnsmasq serves no network",
            remedy="range: for the one that we are in; relayed: for those behind relays",
            where="range",
        )
    if settings.router:
        if own is None:
            raise Invalid("dnsmasq.router is told in dnsmasq.range, and there is none", where="router")
        read_router(settings.router, "router", own)
    relayed = read_relayed(settings.relayed, address, proxy=proxy)
    named = [(f"relayed.{number}.range", one) for number, one in enumerate(relayed)]
    check_disjoint([("range", own), *named] if own is not None else named)
    return own, relayed


def check(settings: Settings, base_url: str) -> None:
    """Raises Invalid; `where` is the key under `dnsmasq`."""
    for name, pattern in (("interface", _INTERFACE), ("program", _PROGRAM), ("lease", LEASE)):
        value = getattr(settings, name)
        if not pattern.fullmatch(value):
            raise Invalid(f"dnsmasq.{name}: `{value[:60]}` cannot be", where=name)
    if settings.dns:
        read_address(settings.dns, "dns")
    _ranges(settings)
    if len(start_url(base_url)) > MAX_BOOTFILE:
        raise Invalid(f"url is too long for DHCP: {MAX_BOOTFILE} bytes with the path of a script", where="url")


def config_text(settings: Settings, base_url: str, *, state: str, user: str = "") -> str:
    """The whole configuration file.

    Args:
        base_url: as hosts reach the boot listener, without a trailing slash.
        state: absolute directory with `hosts` and `tftp/`; dnsmasq keeps `leases` there.
        user: to drop root to; empty when not started by root: dnsmasq stays who it is.

    Raises:
        Invalid: a value that cannot be; nothing with a comma, a newline or a space gets through.
    """
    check(settings, base_url)
    own, relayed = _ranges(settings)
    if not _PATH.fullmatch(state) or (user and not _INTERFACE.fullmatch(user)):
        raise Invalid("the state directory of the boot service has an unusable name", why=state[:100])
    lines = [
        "# Made by fleetd from boot.yaml, and made again at every start: do not edit.",
        "port=0",
        f"interface={settings.interface}",
        "except-interface=lo",
        "bind-dynamic",
        "no-resolv",
        "no-hosts",
        "no-poll",
        "pid-file=",
        "log-facility=-",
        "log-dhcp",
        *([f"user={user}", f"group={user}"] if user else []),
        "enable-tftp",
        f"tftp-root={state}/tftp",
        "tftp-max=1000",
        *([own.line("", settings.lease)] if own is not None else []),
        *(one.line(_tag(n), settings.relayed[n].lease or settings.lease) for n, one in enumerate(relayed)),
        "dhcp-lease-max=65536",
        f"dhcp-leasefile={state}/leases",
        f"dhcp-hostsfile={state}/hosts",
        "dhcp-match=set:ipxe,175",
        "dhcp-match=set:bios,option:client-arch,0",
        "dhcp-match=set:efi,option:client-arch,7",
        "dhcp-match=set:efi,option:client-arch,9",
        "dhcp-match=set:efihttp,option:client-arch,16",
        "dhcp-vendorclass=set:httpclient,HTTPClient",
        # With our address: an iPXE takes a proxy's file name only beside a next server.
        f"dhcp-boot=tag:ipxe,{start_url(base_url)},,{settings.address}",
    ]
    if settings.unknown == "refuse":
        lines.append(f"dhcp-ignore=tag:!{KNOWN}")
    lines += _proxy(settings) if settings.mode == "proxy" else _own(settings, base_url)
    return "\n".join(lines) + "\n"


def _tag(number: int) -> str:
    """Of a relayed network, by its place in the list."""
    return f"net{number}"


def _own(settings: Settings, base_url: str) -> list[str]:
    us = settings.address
    return [
        "dhcp-authoritative",
        # One address a MAC: firmware, iPXE and Linux each make up a client id of their own.
        "dhcp-ignore-clid",
        f"dhcp-option=option:router{',' if settings.router else ''}{settings.router}",
        f"dhcp-option=option:dns-server{',' if settings.dns else ''}{settings.dns}",
        # A tagged option goes before the one without a tag, which stands for our own network.
        *(f"dhcp-option=tag:{_tag(n)},option:router,{one.router}" for n, one in enumerate(settings.relayed)),
        *(
            f"dhcp-option=tag:{_tag(n)},option:dns-server,{one.dns}"
            for n, one in enumerate(settings.relayed)
            if one.dns
        ),
        f"dhcp-boot=tag:bios,tag:!ipxe,{BIOS_LOADER},,{us}",
        f"dhcp-boot=tag:efi,tag:!ipxe,{UEFI_LOADER},,{us}",
        "dhcp-option-force=tag:efihttp,tag:httpclient,tag:!ipxe,option:vendor-class,HTTPClient",
        f"dhcp-boot=tag:efihttp,tag:httpclient,tag:!ipxe,{base_url}/boot/{UEFI_LOADER}",
    ]


def _proxy(settings: Settings) -> list[str]:
    """Beside the site's DHCP. PXE only: dnsmasq does not answer HTTPClient as a proxy."""
    us = settings.address
    return [
        f'pxe-service=tag:!ipxe,x86PC,"fleetd",{BIOS_LOADER},{us}',
        f'pxe-service=tag:!ipxe,BC_EFI,"fleetd",{UEFI_LOADER},{us}',
        f'pxe-service=tag:!ipxe,X86-64_EFI,"fleetd",{UEFI_LOADER},{us}',
    ]


def hosts_text(hosts: Iterable[BootHost]) -> str:
    """The `dhcp-hostsfile`: which MACs the inventory has. A MAC that is none is left out."""
    macs = set()
    for host in hosts:
        try:
            macs.add(read_mac(host.mac))
        except NotFound:
            continue
    return "".join(f"{mac},set:{KNOWN}\n" for mac in sorted(macs))


# --- what it says -------------------------------------------------------------------------------------------------------


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One thing dnsmasq said: of a machine (`stage` dhcp or tftp), of a relay at `source`, or of itself (`server`).

    `remedy`: what a person is to do; empty when nothing is wrong with the service.
    """

    stage: Literal["dhcp", "tftp", "relay", "server"]
    mac: str = ""
    source: str = ""
    detail: str = ""
    remedy: str = ""


_LINE = re.compile(r"dnsmasq-(dhcp|tftp)(?:\[\d+\])?: (?:(\d{1,10}) )?(.*)")
_DHCP = re.compile(
    r"(DHCP[A-Z]{3,10}|PXE|BOOTP)\([^)]{1,40}\) (?:(\d{1,3}(?:\.\d{1,3}){3}) )?([0-9a-f]{2}(?::[0-9a-f]{2}){5})(?: (.*))?"
)
_CLASS = re.compile(r"(vendor class|user class): (.{0,200})")
_SENT = re.compile(r"sent (?:\S*/)?([A-Za-z0-9_.-]{1,64}) to (\d{1,3}(?:\.\d{1,3}){3})")
_FAILED = re.compile(
    r"(?:failed sending (?:\S*/)?(?P<f>[A-Za-z0-9_.-]{1,64}) to|file (?:\S*/)?(?P<n>[A-Za-z0-9_.-]{1,64}) not found for)"
    r" (?P<ip>\d{1,3}(?:\.\d{1,3}){3})"
)
_IP = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
_WHO = (
    ("iPXE", "iPXE"),
    ("HTTPClient:Arch:00016", "UEFI HTTP firmware"),
    ("PXEClient:Arch:00000", "BIOS firmware"),
    ("PXEClient:Arch:00007", "UEFI firmware"),
    ("PXEClient:Arch:00009", "UEFI firmware"),
    ("PXEClient:", "firmware that we have no loader for"),
)
# It names no machine: the network is unknown before the packet is looked into.
_NO_RANGE = re.compile(r"no address range available for DHCP request (?:via|with subnet selector) (\S{1,64})")
_CANNOT = (
    (re.compile(r"Error sending DHCP packet to "), "has the boot server a route to the networks of dnsmasq.relayed?"),
    (re.compile(r"DHCP packet received on \S{1,64} which has no address"), "give the interface dnsmasq.address"),
    (re.compile(r"failed to write "), "make room in the `state` directory of boot.yaml"),
    (
        re.compile(r"ARP-cache injection failed"),
        "start it by its unit (`fleetd unit --service boot`): CAP_NET_ADMIN is missing",
    ),
)
_WHY = re.compile(r"[A-Za-z -]{1,40}")
_TOLD = {"DHCPDISCOVER", "DHCPACK", "DHCPNAK", "DHCPDECLINE", "PXE", "BOOTP"}


class LogReader:
    """Turns dnsmasq's log lines (log-dhcp) into what was seen of machines; remembers a bounded number of exchanges."""

    def __init__(self) -> None:
        self._classes: OrderedDict[str, str] = OrderedDict()  # xid -> vendor and user class
        self._macs: OrderedDict[str, str] = OrderedDict()  # address -> MAC

    def read(self, line: str) -> Seen | None:
        """What the line says of a machine, None when nothing."""
        found = _LINE.match(line[:MAX_LINE])
        if found is None:
            return None
        room, xid, text = found.group(1), found.group(2) or "", found.group(3).strip()
        return self._tftp(text) if room == "tftp" else self._dhcp(xid, text)

    def _dhcp(self, xid: str, text: str) -> Seen | None:
        if said := _CLASS.match(text):
            self._remember(self._classes, xid, f"{self._classes.get(xid, '')} {said.group(2)}"[-400:])
            return None
        found = _DHCP.match(text)
        if found is None:
            return self._trouble(text)
        kind, address, mac, more = found.group(1), found.group(2) or "", found.group(3), found.group(4) or ""
        if kind == "DHCPACK":
            self._remember(self._macs, address, mac)
        if kind not in _TOLD:
            return None
        classes = self._classes.get(xid, "")
        who = next((name for mark, name in _WHO if mark in classes), "a system")
        what = {"DHCPACK": f"{who} got {address}", "PXE": f"{who} was told its boot file"}.get(kind, f"{who} asks")
        if kind in ("DHCPNAK", "DHCPDECLINE"):
            what = f"{who}: {kind} {address}"
            trouble = more if _WHY.fullmatch(more) else ""
        elif more in ("ignored", "proxy-ignored"):
            what, trouble = f"{who} asks", "ignored: the inventory does not have this MAC"
        else:
            trouble = more if more == "no address available" else ""
        return Seen(
            stage="dhcp",
            mac=mac,
            source=address if kind == "DHCPACK" else "",
            detail=f"{what}; {trouble}" if trouble else what,
        )

    @staticmethod
    def _trouble(text: str) -> Seen | None:
        """What it cannot do, whatever machine asks."""
        if lost := _NO_RANGE.match(text):
            via = lost.group(1)
            if _IP.fullmatch(via):
                return Seen(
                    stage="relay",
                    source=via,
                    detail="a DHCP relay hands on requests of a network that the boot service does not have",
                    remedy="add the network of this relay to dnsmasq.relayed in boot.yaml, and reload fleetd-boot",
                )
            return Seen(
                stage="server",
                detail=f"hosts ask on {via} itself, and boot.yaml has no network there",
                remedy="name it in dnsmasq.range, if hosts boot there; dnsmasq.address must be one of the interface",
            )
        for pattern, remedy in _CANNOT:
            if pattern.match(text):
                return Seen(stage="server", detail=text[:180], remedy=remedy)
        return None

    def _tftp(self, text: str) -> Seen | None:
        if sent := _SENT.match(text):
            return Seen(stage="tftp", mac=self._macs.get(sent.group(2), ""), source=sent.group(2), detail=sent.group(1))
        if failed := _FAILED.match(text):
            name = failed["f"] or failed["n"]
            what = "was cut off" if failed["f"] else "is not there"
            ip = failed["ip"]
            return Seen(stage="tftp", mac=self._macs.get(ip, ""), source=ip, detail=f"{name} {what}")
        return None

    @staticmethod
    def _remember(table: OrderedDict[str, str], key: str, value: str) -> None:
        table[key] = value
        table.move_to_end(key)
        if len(table) > 4096:
            table.popitem(last=False)
