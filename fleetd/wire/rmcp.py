"""RMCP frames: what stands in a UDP datagram between a console and a BMC, in both directions.

The driver builds requests and reads replies with it, the simulator does the opposite. Every reader bounds what it
accepts and raises Garbled for the rest, never anything else: whatever comes from the network may be hostile.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from fleetd.kit.errors import Garbled
from fleetd.wire.rakp import Suite

MAX_DATAGRAM: Final = 1024  # bytes; IPMI payloads over LAN stay below 255, RMCP+ messages of ours far below this

_ASF: Final = b"\x06\x00\xff\x06"  # RMCP version 1.0, no acknowledgement, class ASF (IPMI 13.1.3)
_IPMI: Final = b"\x06\x00\xff\x07"  # the same, class IPMI
_V15: Final = _IPMI + bytes(9)  # authentication none, sequence 0, session 0 (IPMI 13.6)

# Payload types of RMCP+ (IPMI 13.27.3)
IPMI_MESSAGE: Final = 0x00
OPEN_REQUEST: Final = 0x10
OPEN_RESPONSE: Final = 0x11
RAKP1: Final = 0x12
RAKP2: Final = 0x13
RAKP3: Final = 0x14
RAKP4: Final = 0x15
_SETUP: Final = frozenset(range(0x10, 0x16))
_SETUP_REPLY: Final = frozenset((OPEN_RESPONSE, RAKP2, RAKP4))

# What `peek` and `read` call a datagram
PING, PLAIN, PLAIN_V2, SETUP, SEALED, OTHER = range(6)


class Message(NamedTuple):
    """One IPMI message. In a response `network_function` is odd and `data` begins with the completion code."""

    network_function: int
    command: int
    sequence: int  # rqSeq, 0 to 63
    data: bytes
    requester: int = 0x81  # software id of a remote console (IPMI 5.5)
    responder: int = 0x20  # the BMC


class Datagram(NamedTuple):
    """A datagram as far as it can be read without keys. `payload` of SEALED is all of it, for `Keys.unseal`."""

    kind: int
    payload: bytes
    payload_type: int = IPMI_MESSAGE
    session: bytes = bytes(4)


class OpenRequest(NamedTuple):
    """IPMI 13.17: what the console proposes."""

    tag: int
    privilege: int
    console: bytes
    authentication: int
    integrity: int
    confidentiality: int


class OpenResponse(NamedTuple):
    """IPMI 13.18. With a status other than 0 the rest may be missing and is zero."""

    tag: int
    status: int
    console: bytes
    bmc: bytes = bytes(4)
    authentication: int = 0
    integrity: int = 0
    confidentiality: int = 0


class Rakp1(NamedTuple):
    """IPMI 13.20. `role` as sent, with the name-only bit."""

    tag: int
    bmc: bytes
    random: bytes
    role: int
    name: bytes


class Rakp2(NamedTuple):
    """IPMI 13.21."""

    tag: int
    status: int
    console: bytes
    random: bytes = b""
    guid: bytes = b""
    code: bytes = b""


class Rakp3(NamedTuple):
    """IPMI 13.22."""

    tag: int
    status: int
    bmc: bytes
    code: bytes


class Rakp4(NamedTuple):
    """IPMI 13.23."""

    tag: int
    status: int
    console: bytes
    code: bytes = b""


# --- datagrams ------------------------------------------------------------------------------------------------------


def peek(data: bytes) -> tuple[int, bytes, int]:
    """Where a datagram that reached the console belongs: (kind, session id, number). OTHER is dropped.

    The number of PLAIN is the rqSeq, that of SETUP the payload type times 256 plus the message tag.

    The hot path of the driver: one call a datagram, nothing is copied but the session id.
    """
    size = len(data)
    if size < 16 or size > MAX_DATAGRAM or data[:4] != _IPMI:
        return OTHER, b"", 0
    if data[4] == 6:
        what = data[5]
        if what == 0xC0:  # encrypted and authenticated IPMI message; anything less inside a session is refused
            return SEALED, data[6:10], 0
        if what in _SETUP_REPLY and size >= 18:
            return SETUP, b"", what << 8 | data[16]
    elif data[4] == 0 and size >= 21:
        return PLAIN, b"", data[18] >> 2
    return OTHER, b"", 0


def read(data: bytes) -> Datagram:
    """Any datagram that reached a BMC.

    Raises:
        Garbled: not RMCP, not a class or payload we know, or lengths that contradict each other.
    """
    size = len(data)
    if size < 8 or size > MAX_DATAGRAM:
        raise Garbled(f"an RMCP datagram of {size} bytes")
    if data[:4] == _ASF:
        if data[4:9] == b"\x00\x00\x11\xbe\x80" and size >= 12:
            return Datagram(PING, data[9:10])
        raise Garbled("an ASF message that is not a presence ping")
    if data[:4] != _IPMI:
        raise Garbled("not RMCP")
    if data[4] == 0:
        return Datagram(PLAIN, plain_payload(data))
    if data[4] != 6 or size < 16:
        raise Garbled(f"authentication type {data[4]:#x}", why="only none and RMCP+ are spoken here")
    what = data[5]
    if what in _SETUP:
        return Datagram(SETUP, setup_payload(data), what)
    if what == IPMI_MESSAGE:  # outside any session, in the newer frame: ipmitool asks for cipher suites so
        return Datagram(PLAIN_V2, setup_payload(data))
    if what == 0xC0:
        return Datagram(SEALED, data, IPMI_MESSAGE, data[6:10])
    raise Garbled(f"payload type {what:#x}", why="not encrypted and authenticated, or unknown")


def plain(payload: bytes) -> bytes:
    """A message outside any session (IPMI 13.6)."""
    return b"".join((_V15, bytes((len(payload),)), payload))


def plain_payload(data: bytes) -> bytes:
    """The message of `plain`. Raises Garbled."""
    if len(data) < 14 or data[:13] != _V15 or data[13] != len(data) - 14:
        # One pad byte may follow where the total would be a length some chips dislike (IPMI 13.6, legacy pad)
        if len(data) < 15 or data[:13] != _V15 or data[13] != len(data) - 15:
            raise Garbled("a message outside any session with a wrong header or length")
        return data[14:-1]
    return data[14:]


def setup(payload_type: int, payload: bytes) -> bytes:
    """RMCP+ with session 0, sequence 0, neither encrypted nor authenticated: Open Session, RAKP, or a PLAIN_V2."""
    return b"".join((_IPMI, b"\x06", bytes((payload_type,)), bytes(8), len(payload).to_bytes(2, "little"), payload))


def setup_payload(data: bytes) -> bytes:
    """The payload of `setup`. Raises Garbled."""
    if len(data) < 16 or data[6:14] != bytes(8) or int.from_bytes(data[14:16], "little") != len(data) - 16:
        raise Garbled("an RMCP+ set-up message with a wrong header or length")
    return data[16:]


def ping(tag: int) -> bytes:
    """ASF presence ping (ASF 3.2.4.2)."""
    return _ASF + b"\x00\x00\x11\xbe\x80" + bytes((tag & 0xFF, 0, 0))


def pong(tag: int) -> bytes:
    """The answer: IPMI supported, ASF 1.0 (ASF 3.2.4.3; IPMI 13.2.4)."""
    return (
        _ASF
        + b"\x00\x00\x11\xbe\x40"
        + bytes((tag & 0xFF, 0, 16))
        + b"\x00\x00\x11\xbe"
        + bytes(4)
        + b"\x81"
        + bytes(7)
    )


# --- IPMI messages over LAN (IPMI 13.8) -----------------------------------------------------------------------------


def request(network_function: int, command: int, data: bytes, sequence: int) -> bytes:
    """A request to the BMC with both checksums (two's complement of the sum)."""
    second = network_function << 2
    rq = sequence << 2
    tail = -(0x81 + rq + command + sum(data)) & 0xFF
    return b"".join((bytes((0x20, second, -(0x20 + second) & 0xFF, 0x81, rq, command)), data, bytes((tail,))))


def response(asked: Message, code: int, data: bytes = b"") -> bytes:
    """The answer to a request."""
    second = (asked.network_function | 1) << 2
    head = bytes((asked.requester, second, -(asked.requester + second) & 0xFF))
    body = bytes((asked.responder, asked.sequence << 2, asked.command, code)) + data
    return b"".join((head, body, bytes((-sum(body) & 0xFF,))))


def message(payload: bytes) -> Message:
    """A request or a response, checksums proven. Raises Garbled."""
    size = len(payload)
    if size < 7 or size > 255:
        raise Garbled(f"an IPMI message of {size} bytes")
    if (payload[0] + payload[1] + payload[2]) & 0xFF or sum(payload[3:]) & 0xFF:
        raise Garbled("an IPMI message with a wrong checksum")
    network_function = payload[1] >> 2
    if network_function & 1:
        if size < 8:
            raise Garbled("an IPMI response without completion code")
        return Message(network_function, payload[5], payload[4] >> 2, payload[6:-1], payload[0], payload[3])
    return Message(network_function, payload[5], payload[4] >> 2, payload[6:-1], payload[3], payload[0])


# --- Open Session ---------------------------------------------------------------------------------------------------


def open_request(tag: int, privilege: int, console: bytes, suite: Suite) -> bytes:
    """IPMI 13.17: three algorithm proposals of 8 bytes each."""
    return b"".join(
        (
            bytes((tag, privilege, 0, 0)),
            console,
            bytes((0, 0, 0, 8, suite.authentication, 0, 0, 0)),
            bytes((1, 0, 0, 8, suite.integrity, 0, 0, 0)),
            bytes((2, 0, 0, 8, suite.confidentiality, 0, 0, 0)),
        )
    )


def read_open_request(payload: bytes) -> OpenRequest:
    """Raises Garbled."""
    if len(payload) != 32 or (payload[8], payload[16], payload[24]) != (0, 1, 2):
        raise Garbled("an Open Session request of another shape")
    return OpenRequest(
        payload[0], payload[1] & 0x0F, payload[4:8], payload[12] & 0x3F, payload[20] & 0x3F, payload[28] & 0x3F
    )


def open_response(asked: OpenRequest, status: int, bmc: bytes = bytes(4)) -> bytes:
    """IPMI 13.18; an error carries no more than the console's session id.

    A console that proposes privilege 0 asks for the highest and wants to read which (FreeIPMI insists).
    """
    head = bytes((asked.tag, status, asked.privilege or 4, 0)) + asked.console
    if status:
        return head
    return b"".join(
        (
            head,
            bmc,
            bytes((0, 0, 0, 8, asked.authentication, 0, 0, 0)),
            bytes((1, 0, 0, 8, asked.integrity, 0, 0, 0)),
            bytes((2, 0, 0, 8, asked.confidentiality, 0, 0, 0)),
        )
    )


def read_open_response(payload: bytes) -> OpenResponse:
    """Raises Garbled."""
    size = len(payload)
    if size < 2:
        raise Garbled("an Open Session response of under 2 bytes")
    if payload[1]:
        return OpenResponse(payload[0], payload[1], payload[4:8].ljust(4, b"\0"))
    if size != 36:
        raise Garbled(f"an Open Session response of {size} bytes")
    return OpenResponse(
        payload[0], 0, payload[4:8], payload[8:12], payload[16] & 0x3F, payload[24] & 0x3F, payload[32] & 0x3F
    )


# --- RAKP -----------------------------------------------------------------------------------------------------------


def rakp1(tag: int, bmc: bytes, random: bytes, role: int, name: bytes) -> bytes:
    return b"".join((bytes((tag, 0, 0, 0)), bmc, random, bytes((role, 0, 0, len(name))), name))


def read_rakp1(payload: bytes) -> Rakp1:
    """Raises Garbled; the name is at most 16 bytes."""
    if len(payload) < 28 or payload[27] > 16 or len(payload) < 28 + payload[27]:
        raise Garbled("a RAKP message 1 of another shape")
    return Rakp1(payload[0], payload[4:8], payload[8:24], payload[24], payload[28 : 28 + payload[27]])


def rakp2(tag: int, status: int, console: bytes, random: bytes = b"", guid: bytes = b"", code: bytes = b"") -> bytes:
    return b"".join((bytes((tag, status, 0, 0)), console, random, guid, code))


def read_rakp2(payload: bytes) -> Rakp2:
    """Raises Garbled."""
    if len(payload) < 2:
        raise Garbled("a RAKP message 2 of under 2 bytes")
    if payload[1]:
        return Rakp2(payload[0], payload[1], payload[4:8].ljust(4, b"\0"))
    if not 40 <= len(payload) <= 72:
        raise Garbled(f"a RAKP message 2 of {len(payload)} bytes")
    return Rakp2(payload[0], 0, payload[4:8], payload[8:24], payload[24:40], payload[40:])


def rakp3(tag: int, status: int, bmc: bytes, code: bytes = b"") -> bytes:
    return b"".join((bytes((tag, status, 0, 0)), bmc, code))


def read_rakp3(payload: bytes) -> Rakp3:
    """Raises Garbled."""
    if not 8 <= len(payload) <= 40:
        raise Garbled(f"a RAKP message 3 of {len(payload)} bytes")
    return Rakp3(payload[0], payload[1], payload[4:8], payload[8:])


def rakp4(tag: int, status: int, console: bytes, code: bytes = b"") -> bytes:
    return b"".join((bytes((tag, status, 0, 0)), console, code))


def read_rakp4(payload: bytes) -> Rakp4:
    """Raises Garbled."""
    if len(payload) < 2:
        raise Garbled("a RAKP message 4 of under 2 bytes")
    if payload[1]:
        return Rakp4(payload[0], payload[1], payload[4:8].ljust(4, b"\0"))
    if not 8 <= len(payload) <= 40:
        raise Garbled(f"a RAKP message 4 of {len(payload)} bytes")
    return Rakp4(payload[0], 0, payload[4:8], payload[8:])
