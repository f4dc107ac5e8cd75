"""A DHCP client without an address, as firmware is one: `dhcp_client.py IFACE MAC ARCH KIND`, one JSON answer on stdout.

KIND: pxe, http, ipxe or plain. Run inside a network namespace. Prints null when nobody answers. With `ADDRESS SERVER`
besides: the second question of a PXE firmware beside the site's DHCP, from the address it got to port 4011 of SERVER.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from typing import Any

MAGIC = b"\x63\x82\x53\x63"
VENDOR = {
    "pxe": b"PXEClient:Arch:%05d:UNDI:003000",
    "ipxe": b"PXEClient:Arch:%05d:UNDI:003010",
    "http": b"HTTPClient:Arch:%05d:UNDI:003000",
}


def option(code: int, value: bytes) -> bytes:
    return bytes((code, len(value))) + value


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def request(mac: bytes, xid: int, options: bytes, own: bytes = b"") -> bytes:
    """`own`: the address that the client has already; without one it asks for a broadcast."""
    flags = 0 if own else 0x8000
    dhcp = struct.pack(">BBBBIHH4s4s4s4s16s64s128s", 1, 1, 6, 0, xid, 0, flags, own, b"", b"", b"", mac, b"", b"")
    return dhcp + MAGIC + options + b"\xff"


def packet(mac: bytes, xid: int, options: bytes) -> bytes:
    """One broadcast frame from 0.0.0.0:68 to 255.255.255.255:67."""
    dhcp = request(mac, xid, options)
    udp = struct.pack(">HHHH", 68, 67, 8 + len(dhcp), 0) + dhcp
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, b"\0" * 4, b"\xff" * 4)
    head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
    return b"\xff" * 6 + mac + b"\x08\x00" + head + udp


def read(frame: bytes, xid: int) -> dict[str, Any] | None:
    if frame[12:14] != b"\x08\x00" or frame[23] != 17:
        return None
    udp = 14 + (frame[14] & 15) * 4
    if frame[udp : udp + 4] != struct.pack(">HH", 67, 68):
        return None
    return answer(frame[udp + 8 :], xid)


def answer(dhcp: bytes, xid: int) -> dict[str, Any] | None:
    if struct.unpack(">I", dhcp[4:8])[0] != xid:
        return None
    options, at = {}, 240
    while at < len(dhcp) and dhcp[at] != 255:
        if dhcp[at] == 0:
            at += 1
            continue
        options[dhcp[at]] = dhcp[at + 2 : at + 2 + dhcp[at + 1]]
        at += 2 + dhcp[at + 1]
    return {
        "type": options[53][0],
        "address": socket.inet_ntoa(dhcp[16:20]),
        "next_server": socket.inet_ntoa(dhcp[20:24]),
        "file": (options.get(67) or dhcp[108:236]).split(b"\0")[0].decode(),
        "vendor": options.get(60, b"").decode(),
        "server": options.get(54, b"").hex(),
        "router": socket.inet_ntoa(options[3]) if 3 in options else "",
        "dns": socket.inet_ntoa(options[6]) if 6 in options else "",
    }


def main() -> None:
    interface, mac_text, arch, kind = sys.argv[1:5]
    mac = bytes.fromhex(mac_text.replace(":", ""))
    xid = int.from_bytes(os.urandom(4), "big")
    common = option(57, b"\x05\xc0") + option(55, bytes((1, 3, 6, 60, 66, 67)))
    if kind in VENDOR:
        common += option(93, struct.pack(">H", int(arch))) + option(94, b"\x01\x03\x00")
        common += option(60, VENDOR[kind] % int(arch)) + option(97, b"\0" * 17)
    if kind == "ipxe":
        common += option(77, b"iPXE") + option(175, bytes.fromhex("b105011af41000eb03010000" + "170101220101130101"))

    if len(sys.argv) > 5:
        own, server = sys.argv[5:7]
        menu = option(43, option(71, b"\x80\0\0\0") + b"\xff") if arch == "0" else b""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind((own, 68))
            udp.settimeout(4)
            udp.sendto(request(mac, xid, option(53, b"\3") + common + menu, socket.inet_aton(own)), (server, 4011))
            sys.stdout.write(json.dumps(answer(udp.recv(65535), xid)) + "\n")
        return
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    sock.bind((interface, 0))

    def ask(kind: int, more: bytes = b"", seconds: float = 4.0) -> dict[str, Any] | None:
        end = time.monotonic() + seconds
        sock.send(packet(mac, xid, option(53, bytes((kind,))) + more + common))
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                found = read(sock.recv(65535), xid)
            except TimeoutError:
                break
            if found is not None:
                return found
        return None

    found = ask(1)
    if found is not None and found["address"] != "0.0.0.0":
        more = option(54, bytes.fromhex(found["server"])) + option(50, socket.inet_aton(found["address"]))
        found = ask(3, more)
    sys.stdout.write(json.dumps(found) + "\n")


main()
