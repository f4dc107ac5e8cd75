"""The cable of a machine whose network ROM is not iPXE: frames pass between QEMU and a tap unchanged, but for one lie.

QEMU has no PXE ROM for BIOS other than iPXE, and iPXE says so in its DHCP requests, so that no server hands it a network boot
program over TFTP. Until the machine has asked TFTP for its program, this cable takes those two options (77 and 175) out of its
requests: the server meets a plain PXE ROM, as servers have. What TFTP brings then is on its own.

Usage: wire.py TAP OWN_SOCKET QEMU_SOCKET (unix datagram sockets, one frame each). Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys

_TUNSETIFF, _TAP, _BARE = 0x400454CA, 0x0002, 0x1000
_IPV4, _UDP, _DHCP, _TFTP = b"\x08\x00", 17, 67, 69
_OPTIONS = 240  # where the options of a DHCP message begin
_TELLTALE = {77: 254, 175: 253}  # user class "iPXE" and the iPXE features: under codes that mean nothing
_FRAME = 65536


def udp_of(frame: bytes) -> tuple[int, int] | None:
    """(destination port, offset of the payload) of an IPv4 UDP frame."""
    if len(frame) < 42 or frame[12:14] != _IPV4 or frame[23] != _UDP:
        return None
    start = 14 + (frame[14] & 15) * 4
    if len(frame) < start + 8:
        return None
    return int.from_bytes(frame[start + 2 : start + 4], "big"), start + 8


def plain(frame: bytes, payload: int) -> bytes:
    """A DHCP request without the two options; its UDP checksum is 0, which means none (RFC 768)."""
    data = bytearray(frame)
    at = payload + _OPTIONS
    while at + 1 < len(data) and data[at] != 255:
        if data[at] == 0:
            at += 1
            continue
        data[at] = _TELLTALE.get(data[at], data[at])
        at += 2 + data[at + 1]
    data[payload - 2 : payload] = b"\0\0"
    return bytes(data)


class Cable:
    """Passes frames; `asked` turns true when the machine has asked TFTP for a file."""

    def __init__(self) -> None:
        self.asked = False

    def outward(self, frame: bytes) -> bytes:
        """A frame from the machine, as the network gets it."""
        if self.asked:
            return frame
        found = udp_of(frame)
        if found is None:
            return frame
        port, payload = found
        if port == _TFTP and frame[payload : payload + 2] == b"\0\1":
            self.asked = True
            name = frame[payload + 2 :].split(b"\0", 1)[0].decode("ascii", "replace")
            print(f"TFTP read request: {name}", flush=True)  # noqa: T201 -- the log of this program
        return plain(frame, payload) if port == _DHCP else frame


def main(tap_name: str, own: str, peer: str) -> None:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH", tap_name.encode(), _TAP | _BARE))
    qemu = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if os.path.exists(own):
        os.unlink(own)
    qemu.bind(own)
    cable = Cable()
    while True:
        ready, _, _ = select.select([tap, qemu.fileno()], [], [])
        if tap in ready:
            frame = os.read(tap, _FRAME)
            try:
                qemu.sendto(frame, peer)
            except (FileNotFoundError, ConnectionRefusedError):
                continue  # the machine is not there yet: nobody is plugged in
        if qemu.fileno() in ready:
            os.write(tap, cable.outward(qemu.recv(_FRAME)))


if __name__ == "__main__":
    main(*sys.argv[1:])
