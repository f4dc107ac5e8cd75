from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.kit.errors import Garbled
from fleetd.wire import rmcp
from fleetd.wire.rakp import SUITES

byte = st.integers(0, 255)
session_id = st.binary(min_size=4, max_size=4)
random16 = st.binary(min_size=16, max_size=16)
suite = st.sampled_from(list(SUITES.values()))
name = st.binary(max_size=16)


@given(st.integers(0, 31).map(lambda n: n * 2), byte, st.integers(0, 63), st.binary(max_size=200))
def test_a_request_and_its_response_come_back(function: int, command: int, sequence: int, data: bytes) -> None:
    asked = rmcp.message(rmcp.request(function, command, data, sequence))
    assert (asked.network_function, asked.command, asked.sequence, asked.data) == (function, command, sequence, data)
    reply = rmcp.message(rmcp.response(asked, 0xC0, data))
    assert (reply.network_function, reply.command, reply.sequence) == (function | 1, command, sequence)
    assert reply.data == b"\xc0" + data


@given(st.binary(max_size=40), st.data())
def test_one_wrong_byte_never_passes_the_checksums(data: bytes, draw: st.DataObject) -> None:
    good = bytearray(rmcp.request(6, 1, data, 5))
    at = draw.draw(st.integers(0, len(good) - 1))
    good[at] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(Garbled):
        rmcp.message(bytes(good))


@given(st.binary(max_size=255))
def test_plain_messages_come_back(payload: bytes) -> None:
    data = rmcp.plain(payload)
    assert rmcp.plain_payload(data) == payload
    assert rmcp.plain_payload(data + b"\0") == payload  # the legacy pad
    got = rmcp.read(data)
    assert (got.kind, got.payload) == (rmcp.PLAIN, payload)


@given(byte, session_id, suite)
def test_open_session_comes_back(tag: int, console: bytes, chosen: object) -> None:
    picked = next(s for s in SUITES.values() if s == chosen)
    asked = rmcp.read_open_request(rmcp.open_request(tag, 4, console, picked))
    assert (asked.tag, asked.privilege, asked.console) == (tag, 4, console)
    assert asked[3:] == picked[1:4]
    agreed = rmcp.read_open_response(rmcp.open_response(asked, 0, b"abcd"))
    assert (agreed.status, agreed.console, agreed.bmc) == (0, console, b"abcd")
    assert agreed[4:] == picked[1:4]
    refused = rmcp.read_open_response(rmcp.open_response(asked, 0x11))
    assert (refused.tag, refused.status, refused.console) == (tag, 0x11, console)


@given(byte, session_id, random16, byte, name, random16, st.binary(max_size=32))
def test_rakp_messages_come_back(
    tag: int, sid: bytes, random: bytes, role: int, who: bytes, guid: bytes, code: bytes
) -> None:
    assert rmcp.read_rakp1(rmcp.rakp1(tag, sid, random, role, who)) == (tag, sid, random, role, who)
    assert rmcp.read_rakp2(rmcp.rakp2(tag, 0, sid, random, guid, code)) == (tag, 0, sid, random, guid, code)
    assert rmcp.read_rakp2(rmcp.rakp2(tag, 13, sid))[:3] == (tag, 13, sid)
    assert rmcp.read_rakp3(rmcp.rakp3(tag, 0, sid, code)) == (tag, 0, sid, code)
    assert rmcp.read_rakp4(rmcp.rakp4(tag, 0, sid, code)) == (tag, 0, sid, code)
    assert rmcp.read_rakp4(rmcp.rakp4(tag, 15, sid))[:3] == (tag, 15, sid)


@given(st.sampled_from([rmcp.OPEN_RESPONSE, rmcp.RAKP2, rmcp.RAKP4]), byte, st.binary(min_size=1, max_size=60))
def test_peek_finds_the_tag_and_read_the_payload(kind: int, tag: int, rest: bytes) -> None:
    data = rmcp.setup(kind, bytes((tag,)) + rest)
    assert rmcp.peek(data) == (rmcp.SETUP, b"", kind << 8 | tag)
    assert rmcp.read(data)[:3] == (rmcp.SETUP, bytes((tag,)) + rest, kind)


def test_peek_finds_sequence_and_session() -> None:
    asked = rmcp.message(rmcp.request(6, 0x38, b"\x8e\x04", 41))
    assert rmcp.peek(rmcp.plain(rmcp.response(asked, 0))) == (rmcp.PLAIN, b"", 41)
    sealed = b"\x06\x00\xff\x07\x06\xc0abcd" + bytes(60)
    assert rmcp.peek(sealed) == (rmcp.SEALED, b"abcd", 0)


@pytest.mark.parametrize("flags", [0x00, 0x40, 0x80])  # with a session id that is not 0
def test_a_session_packet_that_is_not_both_encrypted_and_authenticated_goes_nowhere(flags: int) -> None:
    data = bytearray(b"\x06\x00\xff\x07\x06\xc0abcd" + bytes(60))
    data[5] = flags
    assert rmcp.peek(bytes(data))[0] == rmcp.OTHER
    with pytest.raises(Garbled):
        rmcp.read(bytes(data))


def test_a_message_outside_any_session_may_come_in_the_newer_frame() -> None:
    got = rmcp.read(rmcp.setup(rmcp.IPMI_MESSAGE, b"payload"))
    assert (got.kind, got.payload) == (rmcp.PLAIN_V2, b"payload")


def test_ping_is_read_and_pong_is_of_the_right_shape() -> None:
    got = rmcp.read(rmcp.ping(7))
    assert (got.kind, got.payload) == (rmcp.PING, b"\x07")
    pong = rmcp.pong(7)
    assert (len(pong), pong[8], pong[9]) == (28, 0x40, 7)
    assert rmcp.peek(pong)[0] == rmcp.OTHER


READERS: list[Callable[[bytes], object]] = [
    rmcp.read,
    rmcp.message,
    rmcp.plain_payload,
    rmcp.setup_payload,
    rmcp.read_open_request,
    rmcp.read_open_response,
    rmcp.read_rakp1,
    rmcp.read_rakp2,
    rmcp.read_rakp3,
    rmcp.read_rakp4,
]
near = st.one_of(
    st.binary(max_size=1100),
    st.binary(max_size=80).map(lambda tail: b"\x06\x00\xff\x07" + tail),
    st.binary(max_size=80).map(lambda tail: b"\x06\x00\xff\x06" + tail),
    st.binary(max_size=80).map(lambda tail: b"\x06\x00\xff\x07\x06" + tail),
)


@given(near)
def test_garbage_is_garbled_and_nothing_else(data: bytes) -> None:
    rmcp.peek(data)
    for reader in READERS:
        try:
            reader(data)
        except Garbled:
            continue
