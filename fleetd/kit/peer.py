"""Who is at the other end of a unix socket. The kernel says it, not the caller."""

from __future__ import annotations

import socket
import struct
from typing import Any, NamedTuple

_SO_PEERGROUPS = 59  # linux/socket.h; Python 3.11 has no name for it
_MAX_GROUPS = 1024


class Peer(NamedTuple):
    """The process at the other end of a unix socket, as the kernel says."""

    pid: int
    uid: int
    gids: frozenset[int]


def peer_of(sock: Any) -> Peer | None:
    """SO_PEERCRED and SO_PEERGROUPS of a connected unix socket; None for any other socket."""
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
    except OSError:  # more groups than fit: the primary one alone still counts
        raw = b""
    return Peer(pid, uid, frozenset({gid, *struct.unpack(f"{len(raw) // 4}I", raw)}))
