from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fleetd.drivers.bmc.ipmi_fru import read_fru
from fleetd.wire import fru, ipmi

WHOLE = fru.build(fru.Board("Acme", "Board", "B1", "P"), fru.Product("Acme", "Box", "PN", "1", "SER42"))
EMPTY = (fru.Board(), fru.Product())


class Device:
    """A FRU device with its whims: how much it gives at once, how it refuses more, words or bytes."""

    def __init__(self, data: bytes, *, most: int = 64, refusal: int = ipmi.WRONG_LENGTH, words: bool = False) -> None:
        self.data, self.most, self.refusal, self.unit = data, most, refusal, 2 if words else 1
        self.asked = 0

    async def __call__(self, function: int, command: int, data: bytes) -> tuple[int, bytes]:
        self.asked += 1
        if command == ipmi.FRU_AREA_INFO:
            return 0, len(self.data).to_bytes(2, "little") + bytes((self.unit - 1,))
        at, count = int.from_bytes(data[1:3], "little") * self.unit, data[3] * self.unit
        if count > self.most:
            return self.refusal, b""
        part = self.data[at : at + count]
        return 0, bytes((len(part) // self.unit,)) + part


async def test_a_generous_device() -> None:
    board, product = await read_fru(Device(WHOLE))
    assert (board.serial, product.serial, product.manufacturer) == ("B1", "SER42", "Acme")


async def test_devices_that_give_little_or_count_words() -> None:
    for refusal in (ipmi.WRONG_LENGTH, ipmi.TOO_LONG, ipmi.OUT_OF_RANGE, ipmi.CANNOT_RETURN_LENGTH):
        assert (await read_fru(Device(WHOLE, most=8, refusal=refusal)))[1].serial == "SER42"
    assert (await read_fru(Device(WHOLE, words=True)))[1].serial == "SER42"


async def test_a_device_that_refuses_everything_is_empty() -> None:
    assert await read_fru(Device(WHOLE, most=0)) == EMPTY
    assert await read_fru(Device(b"")) == EMPTY


async def test_a_spoiled_board_area_does_not_hide_the_product() -> None:
    layout = fru.read_header(WHOLE)
    spoiled = bytearray(WHOLE)
    spoiled[layout.board + 10] ^= 1
    board, product = await read_fru(Device(bytes(spoiled)))
    assert board == fru.Board()
    assert product.serial == "SER42"


async def test_the_longest_lie_is_bounded() -> None:
    area = b"\x01\xff" + bytes(255 * 8 - 2)
    device = Device(b"\x01\0\0\x01\x01\0\0\xfd" + area, most=8)
    await read_fru(device)
    assert device.asked < 2 * (255 + 8)


@given(
    st.lists(st.tuples(st.sampled_from([0, 0, 0, 0xC7, 0xC9, 0xCB]), st.binary(max_size=70)), min_size=1, max_size=12)
)
async def test_any_answers_end_in_areas(answers: list[tuple[int, bytes]]) -> None:
    turn = 0

    async def ask(function: int, command: int, data: bytes) -> tuple[int, bytes]:
        nonlocal turn
        turn += 1
        assert turn < 2000
        return answers[turn % len(answers)]

    board, product = await read_fru(ask)
    assert isinstance(board, fru.Board)
    assert isinstance(product, fru.Product)
