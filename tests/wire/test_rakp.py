from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.kit.errors import Garbled, Unsupported
from fleetd.wire.rakp import SUITES, Exchange, Keys, Suite, Window, name_bytes, password_bytes, suite_of

suites = pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: str(suite.id))
session_key = b"k" * 20


@suites
@given(payload=st.binary(max_size=255), sid=st.binary(min_size=4, max_size=4), sequence=st.integers(1, 2**32 - 1))
def test_sealed_is_opened(suite: Suite, payload: bytes, sid: bytes, sequence: int) -> None:
    data = Keys(suite, session_key).seal(sid, sequence, payload)
    assert data[6:10] == sid
    assert payload not in data or len(payload) < 16
    assert (len(data) - 4 - suite.check) % 4 == 0  # IPMI 13.28.4
    assert Keys(suite, session_key).unseal(data) == (sequence, payload)


@suites
@given(at=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_one_flipped_byte_is_garbled(suite: Suite, at: int, flip: int) -> None:
    data = bytearray(Keys(suite, session_key).seal(b"abcd", 9, b"hello IPMI"))
    at = 4 + at % (len(data) - 4)  # the RMCP header itself is not covered
    data[at] ^= flip
    with pytest.raises(Garbled):
        Keys(suite, session_key).unseal(bytes(data))


@suites
def test_other_keys_open_nothing(suite: Suite) -> None:
    data = Keys(suite, session_key).seal(b"abcd", 9, b"hello")
    with pytest.raises(Garbled):
        Keys(suite, b"other").unseal(data)


@suites
@given(data=st.binary(max_size=300), head=st.booleans())
def test_garbage_is_garbled(suite: Suite, data: bytes, head: bool) -> None:
    with pytest.raises(Garbled):
        Keys(suite, session_key).unseal((b"\x06\x00\xff\x07\x06\xc0" if head else b"") + data)


@suites
@given(length=st.integers(0, 65535), body=st.binary(min_size=32, max_size=120))
def test_a_holder_of_the_keys_with_wrong_lengths_is_garbled_at_worst(suite: Suite, length: int, body: bytes) -> None:
    """The peer itself may be hostile: a good code over nonsense must not crash us either."""
    k1 = hmac.digest(session_key, b"\x01" * 20, suite.hash)
    inner = b"\x06\xc0abcd\x01\0\0\0" + length.to_bytes(2, "little") + body
    data = b"\x06\x00\xff\x07" + inner + hmac.digest(k1, inner, suite.hash)[: suite.check]
    try:
        Keys(suite, session_key).unseal(data)
    except Garbled:
        return


@suites
def test_the_codes_are_those_of_the_specification(suite: Suite) -> None:
    """Spelled out from IPMI 13.21 to 13.32 with plain hashlib, against the packed form we use."""
    made = Exchange(suite, b"CONS", b"BMC!", b"m" * 16, b"c" * 16, b"g" * 16, 0x14, b"fleet")
    key = b"first-password"

    def mac(secret: bytes, text: bytes) -> bytes:
        return hmac.new(secret, text, getattr(hashlib, suite.hash)).digest()

    who = b"\x14\x05fleet"
    assert made.rakp2_code(key) == mac(key, b"CONS" + b"BMC!" + b"m" * 16 + b"c" * 16 + b"g" * 16 + who)
    assert made.rakp3_code(key) == mac(key, b"c" * 16 + b"CONS" + who)
    sik = mac(key, b"m" * 16 + b"c" * 16 + who)
    assert made.session_key(key) == sik
    assert made.rakp4_code(sik) == mac(sik, b"m" * 16 + b"BMC!" + b"g" * 16)[: suite.check]


def test_suites_are_found_by_their_algorithms() -> None:
    assert suite_of(1, 1, 1) is SUITES[3]
    assert suite_of(3, 4, 1) is SUITES[17]
    assert suite_of(1, 1, 0) is None  # suite 2: no encryption
    assert suite_of(0, 0, 0) is None  # suite 0: no password at all


def test_names_and_passwords_that_do_not_fit_are_refused_without_showing_them() -> None:
    assert name_bytes("a" * 16) == b"a" * 16
    assert password_bytes("p" * 20) == b"p" * 20
    with pytest.raises(Unsupported):
        name_bytes("a" * 17)
    with pytest.raises(Unsupported) as caught:
        password_bytes("hunter2-hunter2-hunter2")
    assert "hunter2" not in f"{caught.value} {caught.value.why} {caught.value.remedy}"
    with pytest.raises(Unsupported):
        password_bytes("a\0b")


@given(st.lists(st.integers(0, 80), max_size=120))
def test_the_window_takes_each_number_once(numbers: list[int]) -> None:
    window, highest, seen = Window(), 0, {0}
    for number in numbers:
        expected = number not in seen and number >= highest - Window.BEHIND
        assert window.accept(number) is expected
        if expected:
            seen.add(number)
            highest = max(highest, number)


def test_the_window_survives_a_long_silence() -> None:
    window = Window()
    assert window.accept(1)
    assert window.accept(4_000_000_000)
    assert not window.accept(1)
    assert not window.accept(4_000_000_000)
