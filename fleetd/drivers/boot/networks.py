"""The networks that hosts boot in, judged and written as dnsmasq's ranges: our own, and those behind the relay of a rack.

A hall has a network per rack or row; its top-of-rack switch hands the hosts' requests on, with its own address in that
network (`giaddr`), and by that dnsmasq picks the range. So no two networks may share an address: the host of one rack would
be given the address, and the router, of another. Each relayed range carries a tag of its own, for its router and its DNS.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from fleetd.kit.errors import Invalid

MAX_RELAYED = 4096
LEASE = re.compile(r"[1-9][0-9]{0,5}[mhd]?")


class Relayed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A boot network that is not ours: a relay (the rack's switch) hands its hosts' DHCP requests on to our `address`.

    Attributes:
        range: as that of `dnsmasq`; the relay's own addresses lie in the network and outside of what is handed out.
        router: told to hosts; required in own mode: they reach us through it.
        dns: told to hosts; empty: that of `dnsmasq`. Own mode.
        lease: empty: that of `dnsmasq`. Own mode.
    """

    range: str
    router: str = ""
    dns: str = ""
    lease: str = ""


class Range(NamedTuple):
    """`first`, `last`: what is handed out; both None beside the site's DHCP."""

    network: ipaddress.IPv4Network
    first: ipaddress.IPv4Address | None
    last: ipaddress.IPv4Address | None

    def hands_out(self, address: ipaddress.IPv4Address) -> bool:
        return self.first is not None and self.last is not None and self.first <= address <= self.last

    def line(self, tag: str, lease: str) -> str:
        """`dhcp-range`. `tag`: of this range; empty for none."""
        head = f"dhcp-range={f'set:{tag},' if tag else ''}"
        if self.first is None:
            return f"{head}{self.network.network_address},proxy,{self.network.netmask}"
        return f"{head}{self.first},{self.last},{self.network.netmask},{lease}"


def read_address(text: str, where: str) -> ipaddress.IPv4Address:
    """Raises Invalid; `where` is the key under `dnsmasq`, its parts with dots between."""
    try:
        return ipaddress.IPv4Address(text)
    except ValueError as error:
        raise Invalid(f"dnsmasq.{where}: `{text[:60]}` is not an IPv4 address", where=where) from error


def read_range(text: str, where: str, *, proxy: bool) -> Range:
    """`first,last,netmask`, or a network beside the site's DHCP. Raises Invalid."""
    if proxy:
        try:
            return Range(ipaddress.IPv4Network(text), None, None)
        except ValueError as error:
            raise Invalid(
                f"dnsmasq.{where}: in proxy mode a network: 10.77.0.0/24", why=str(error)[:200], where=where
            ) from error
    parts = text.split(",")
    if len(parts) != 3:
        raise Invalid(f"dnsmasq.{where}: `first,last,netmask`: 10.77.0.50,10.77.0.99,255.255.255.0", where=where)
    first, last, mask = (read_address(part.strip(), where) for part in parts)
    try:
        network = ipaddress.IPv4Network(f"{first}/{mask}", strict=False)
    except ValueError as error:
        raise Invalid(f"dnsmasq.{where}: {mask} is no netmask", where=where) from error
    # `0.0.0.255` is read as the hostmask of a /24: dnsmasq would not.
    if network.netmask != mask:
        raise Invalid(f"dnsmasq.{where}: {mask} is no netmask", where=where)
    if last not in network or last < first:
        raise Invalid(f"dnsmasq.{where}: {last} does not follow {first} in {network}", where=where)
    if first == network.network_address or last == network.broadcast_address:
        raise Invalid(
            f"dnsmasq.{where}: no host can have the first or the last address of {network}",
            remedy=f"at most {network.network_address + 1},{network.broadcast_address - 1},{mask}"
            if network.prefixlen < 31
            else "a larger network",
            where=where,
        )
    return Range(network, first, last)


def read_router(text: str, where: str, served: Range) -> None:
    """Raises Invalid when hosts of `served` could not reach it, or could be given its address."""
    router = read_address(text, where)
    if router not in served.network:
        raise Invalid(f"dnsmasq.{where}: {router} is not in {served.network}", where=where)
    if served.hands_out(router):
        raise Invalid(
            f"dnsmasq.{where}: {router} lies in the range, so a host could be given it",
            remedy="leave it, and the relay's own addresses, out of the range",
            where=where,
        )


def read_relayed(networks: Sequence[Relayed], address: ipaddress.IPv4Address, *, proxy: bool) -> list[Range]:
    """In the given order. Raises Invalid."""
    if len(networks) > MAX_RELAYED:
        raise Invalid(f"dnsmasq.relayed: at most {MAX_RELAYED} networks, not {len(networks)}", where="relayed")
    found = []
    for number, one in enumerate(networks):
        at = f"relayed.{number}"
        served = read_range(one.range, f"{at}.range", proxy=proxy)
        found.append(served)
        if address in served.network:
            raise Invalid(
                f"dnsmasq.{at}.range holds our own address {address}",
                remedy="the network that we are in is not relayed: put it in dnsmasq.range",
                where=f"{at}.range",
            )
        if proxy:
            for name in ("router", "dns", "lease"):
                if getattr(one, name):
                    raise Invalid(
                        f"dnsmasq.{at}.{name}: in proxy mode the site's DHCP server tells it", where=f"{at}.{name}"
                    )
            continue
        if not one.router:
            raise Invalid(
                f"dnsmasq.{at} names no router: its hosts could not reach us",
                remedy="router: the switch's address there",
                where=f"{at}.router",
            )
        read_router(one.router, f"{at}.router", served)
        if one.dns:
            read_address(one.dns, f"{at}.dns")
        if one.lease and not LEASE.fullmatch(one.lease):
            raise Invalid(f"dnsmasq.{at}.lease: `{one.lease[:60]}` cannot be", where=f"{at}.lease")
    return found


def check_disjoint(ranges: Sequence[tuple[str, Range]]) -> None:
    """`ranges`: with the key of each. Raises Invalid when two share an address, at the one that stands later."""
    # Networks are nested or apart: sorted, one that overlaps any overlaps its neighbour too.
    order = sorted(range(len(ranges)), key=lambda n: (int(ranges[n][1].network[0]), ranges[n][1].network.prefixlen))
    for left, right in itertools.pairwise(order):
        one, other = ranges[min(left, right)], ranges[max(left, right)]
        if one[1].network.overlaps(other[1].network):
            raise Invalid(
                f"dnsmasq.{other[0]}: {other[1].network} overlaps {one[1].network} of dnsmasq.{one[0]}",
                remedy="a network stands here once, with one range",
                where=other[0],
            )
