"""The router of the lab's network, as far as IPv6 goes: it answers that there are no addresses to be had.

Without an answer the PXE ROM of a machine waits for one, 13 seconds at every boot. Standard library only; runs inside the lab.
Usage: router.py INTERFACE
"""

from __future__ import annotations

import socket
import struct
import sys

_SOLICITATION, _ADVERTISEMENT = 133, 134
_ALL_ROUTERS, _ALL_NODES = "ff02::2", "ff02::1"
_HOPS = 255  # RFC 4861: anything else came from outside


def main(interface: str) -> None:
    index = socket.if_nametoindex(interface)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as wire:
        group = socket.inet_pton(socket.AF_INET6, _ALL_ROUTERS) + struct.pack("@i", index)
        wire.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        wire.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOPS)
        wire.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        # No prefix, no DHCPv6, and no way out through us (lifetime 0). The kernel fills in the checksum.
        answer = struct.pack("!BBHBBHII", _ADVERTISEMENT, 0, 0, 64, 0, 0, 0, 0)
        while True:
            asked, _ = wire.recvfrom(1500)
            if asked[:1] == bytes((_SOLICITATION,)):
                wire.sendto(answer, (_ALL_NODES, 0, 0, index))


if __name__ == "__main__":
    main(*sys.argv[1:])
