from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.kit.errors import Garbled
from fleetd.model.power import BootDevice
from fleetd.wire import fru, ipmi
from fleetd.wire.rakp import SUITES


def test_cipher_suite_records_come_back() -> None:
    data = b"".join(
        ipmi.cipher_suite_record(s.id, s.authentication, s.integrity, s.confidentiality) for s in SUITES.values()
    )
    assert ipmi.read_cipher_suites(data) == {3, 17}


def test_oem_records_and_several_algorithms_are_passed_over() -> None:
    data = b"\xc1\x80\x57\x01\x00\x01\x41\x81" + b"\xc0\x03\x01\x41\x42\x81" + b"\xc0\x11\x03\x44\x81"
    assert ipmi.read_cipher_suites(data) == {3, 17}


@given(st.binary(max_size=1024))
def test_any_bytes_make_a_set_of_suites(data: bytes) -> None:
    assert all(0 <= found <= 255 for found in ipmi.read_cipher_suites(data))


@given(st.uuids())
def test_guids_have_smbios_order(value: uuid.UUID) -> None:
    assert ipmi.guid_text(ipmi.guid_bytes(str(value))) == str(value)


def test_the_guid_of_a_dell_as_dmidecode_shows_it() -> None:
    wire = bytes.fromhex("44454c4c350010348050c6c04f314733")
    assert ipmi.guid_text(wire) == "4c4c4544-0035-3410-8050-c6c04f314733"


@given(st.binary(max_size=40).filter(lambda data: len(data) != 16))
def test_a_guid_of_another_length_is_garbled(data: bytes) -> None:
    with pytest.raises(Garbled):
        ipmi.guid_text(data)


def test_every_boot_device_has_a_selector() -> None:
    assert set(ipmi.BOOT_SELECTOR) == set(BootDevice)
    assert all(selector & ~ipmi.SELECTOR_MASK == 0 for selector in ipmi.BOOT_SELECTOR.values())


@pytest.mark.parametrize("code", range(256))
def test_every_code_has_words(code: int) -> None:
    assert f"{code:#04x}" in ipmi.code_text(code)
    assert f"{code:#04x}" in ipmi.status_text(code)


# --- FRU -------------------------------------------------------------------------------------------------------------

printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40)


def areas(whole: bytes) -> tuple[bytes, bytes]:
    layout = fru.read_header(whole)
    board, product = whole[layout.board :], whole[layout.product :]
    return board[: fru.area_size(board)], product[: fru.area_size(product)]


@given(st.builds(fru.Board, *[printable] * 4), st.builds(fru.Product, *[printable] * 5))
def test_fru_areas_come_back(board: fru.Board, product: fru.Product) -> None:
    first, second = areas(fru.build(board, product))
    assert fru.read_board(first) == board
    assert fru.read_product(second) == product


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_one_wrong_byte_makes_an_area_garbled(at: int, flip: int) -> None:
    _, product = areas(fru.build(fru.Board("Acme", "Board", "B1", "P"), fru.Product("Acme", "Box", "P", "1", "SER42")))
    spoiled = bytearray(product)
    spoiled[at % len(spoiled)] ^= flip
    with pytest.raises(Garbled):
        fru.read_product(bytes(spoiled))


def with_sum(body: bytes) -> bytes:
    padded = body + bytes(-(len(body) + 1) % 8)
    padded = padded[:1] + bytes(((len(padded) + 1) // 8,)) + padded[2:]
    return padded + bytes((-sum(padded) & 0xFF,))


def test_other_encodings_are_read() -> None:
    six_bit = bytes((0x29, 0xDC, 0xA6))  # "IPM": the example of FRU 13.3
    body = bytes((1, 0, 25, 0x80 | 3)) + six_bit + bytes((0x42, 0x12, 0x3A, 0x02, 0xAB, 0xCD, 0xC1))
    product = fru.read_product(with_sum(body))
    assert product.manufacturer == "IPMI"[: len(product.manufacturer)]
    assert product.manufacturer.startswith("IPM")
    assert product.name == "123 "[:4].strip()
    assert product.part == "abcd"


@given(st.binary(max_size=200), st.booleans())
def test_garbage_is_garbled_or_text(data: bytes, summed: bool) -> None:
    area = with_sum(b"\x01\x00" + data) if summed else data
    for reader in (fru.read_header, fru.area_size, fru.read_board, fru.read_product):
        try:
            found = reader(area)
        except Garbled:
            continue
        if isinstance(found, tuple):
            assert all(text.isprintable() for text in found if isinstance(text, str))
