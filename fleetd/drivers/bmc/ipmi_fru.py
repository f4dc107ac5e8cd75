"""Reading FRU 0 over the wire, bounded: a BMC that lies about lengths costs a few round trips and no memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from fleetd.kit.errors import Garbled
from fleetd.wire import fru, ipmi

Ask = Callable[[int, int, bytes], Awaitable[tuple[int, bytes]]]  # network function, command, data -> code, data

_CHUNKS: Final = (64, 32, 16, 8)  # bytes a request; the next smaller where the BMC refuses
_REFUSES_LENGTH: Final = frozenset((ipmi.WRONG_LENGTH, ipmi.TOO_LONG, ipmi.OUT_OF_RANGE, ipmi.CANNOT_RETURN_LENGTH))


class _Absent(Exception):
    """This BMC holds no such data."""


async def read_fru(ask: Ask) -> tuple[fru.Board, fru.Product]:
    """Board and product area; one that is absent, unreadable or fails its checksum is empty.

    Raises: what `ask` raises.
    """
    code, info = await ask(ipmi.STORAGE, ipmi.FRU_AREA_INFO, b"\x00")
    if code != ipmi.OK or len(info) < 3:
        return fru.Board(), fru.Product()
    reader = _Reader(ask, size=int.from_bytes(info[:2], "little"), unit=2 if info[2] & 1 else 1)
    try:
        layout = fru.read_header(await reader.read(0, fru.HEADER_SIZE))
    except (Garbled, _Absent):
        return fru.Board(), fru.Product()
    board, product = fru.Board(), fru.Product()
    try:
        if layout.board:
            board = fru.read_board(await reader.area(layout.board))
    except (Garbled, _Absent):
        pass  # an area that cannot be read proves nothing; the product area may still
    try:
        if layout.product:
            product = fru.read_product(await reader.area(layout.product))
    except (Garbled, _Absent):
        pass  # the same
    return board, product


class _Reader:
    def __init__(self, ask: Ask, *, size: int, unit: int) -> None:
        self._ask, self._size, self._unit = ask, size, unit
        self._chunks = list(_CHUNKS)

    async def area(self, offset: int) -> bytes:
        return await self.read(offset, fru.area_size(await self.read(offset, 8)))

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises _Absent."""
        if offset + length > self._size or length > fru.MAX_AREA:
            raise _Absent
        data = b""
        while len(data) < length:
            count = min(self._chunks[0], length - len(data))
            start = (offset + len(data)) // self._unit
            asked = b"\x00" + start.to_bytes(2, "little") + bytes((max(1, count // self._unit),))
            code, reply = await self._ask(ipmi.STORAGE, ipmi.READ_FRU, asked)
            if code in _REFUSES_LENGTH and len(self._chunks) > 1:
                self._chunks.pop(0)
                continue
            got = reply[1 : 1 + count]
            if code != ipmi.OK or not got:
                raise _Absent
            data += got
        return data
