"""The FRU storage format: where a BMC keeps maker, product and serial of its host.

"FRU" in a comment is the *IPMI Platform Management FRU Information Storage Definition v1.0, revision 1.3*. Reading is
strict where identity hangs on it: an area whose checksum is wrong counts as absent.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from fleetd.kit.errors import Garbled

HEADER_SIZE: Final = 8
MAX_AREA: Final = 255 * 8  # the length byte counts units of 8 (FRU 11, 12)
MAX_FIELDS: Final = 24

_BCD: Final = "0123456789 -.???"
_FIELD_END: Final = 0xC1


class Layout(NamedTuple):
    """Offsets in bytes of the areas we read, 0 for absent (FRU 8)."""

    board: int
    product: int


class Board(NamedTuple):
    """Board info area (FRU 11)."""

    manufacturer: str = ""
    name: str = ""
    serial: str = ""
    part: str = ""


class Product(NamedTuple):
    """Product info area (FRU 12)."""

    manufacturer: str = ""
    name: str = ""
    part: str = ""
    version: str = ""
    serial: str = ""


def read_header(data: bytes) -> Layout:
    """The common header. Raises Garbled: unknown format or wrong checksum."""
    if len(data) < HEADER_SIZE or data[0] & 0x0F != 1 or sum(data[:HEADER_SIZE]) & 0xFF:
        raise Garbled("the FRU common header is not format 1 or fails its checksum")
    return Layout(data[3] * 8, data[4] * 8)


def area_size(head: bytes) -> int:
    """Bytes of the area that begins so. Raises Garbled."""
    if len(head) < 2 or head[0] & 0x0F != 1 or head[1] == 0:
        raise Garbled("a FRU area is not format 1")
    return head[1] * 8


def read_board(area: bytes) -> Board:
    """Raises Garbled: wrong checksum or shape."""
    fields = _fields(area, 6)
    return Board(*fields[:4])


def read_product(area: bytes) -> Product:
    """Raises Garbled: wrong checksum or shape."""
    fields = _fields(area, 3)
    return Product(*fields[:5])


def _fields(area: bytes, start: int) -> list[str]:
    size = area_size(area)
    if len(area) != size or sum(area) & 0xFF:
        raise Garbled("a FRU area fails its checksum or is cut short")
    english = area[2] in (0, 25)  # language code: 0 and 25 mean English (FRU 15)
    found: list[str] = []
    at = start
    while at < size - 1 and area[at] != _FIELD_END and len(found) < MAX_FIELDS:
        kind, length = area[at] >> 6, area[at] & 0x3F
        if at + 1 + length > size - 1:
            raise Garbled("a FRU field runs out of its area")
        found.append(_text(kind, area[at + 1 : at + 1 + length], english))
        at += 1 + length
    found += [""] * (5 - len(found))
    return found


def _text(kind: int, raw: bytes, english: bool) -> str:
    """One type/length field (FRU 13), printable characters only."""
    if kind == 0:
        text = raw.hex()
    elif kind == 1:
        text = "".join(_BCD[byte >> 4] + _BCD[byte & 0x0F] for byte in raw)
    elif kind == 2:
        bits = int.from_bytes(raw, "little")
        text = "".join(chr(0x20 + (bits >> shift & 0x3F)) for shift in range(0, len(raw) * 8 - 5, 6))
    elif english:
        text = raw.decode("latin-1")
    else:
        text = raw.decode("utf-16-le", "replace")
    return "".join(char for char in text if char.isprintable()).strip()


# --- writing, for the simulator -------------------------------------------------------------------------------------


def build(board: Board, product: Product) -> bytes:
    """A whole FRU of two areas, texts in 8-bit ASCII."""
    first = _area(bytes((1, 0, 0, 0, 0, 0)), (*board, ""))
    second = _area(bytes((1, 0, 0)), (*product, "", ""))
    header = bytes((1, 0, 0, HEADER_SIZE // 8, (HEADER_SIZE + len(first)) // 8, 0, 0))
    return header + bytes((-sum(header) & 0xFF,)) + first + second


def _area(head: bytes, texts: tuple[str, ...]) -> bytes:
    body = bytearray(head)
    for text in texts:
        raw = text.encode("latin-1", "replace")[:63]
        if len(raw) == 1:
            raw += b" "  # C1h would read as the end of the fields (FRU 13)
        body += bytes((0xC0 | len(raw),)) + raw
    body.append(_FIELD_END)
    body += bytes(-(len(body) + 1) % 8)
    body[1] = (len(body) + 1) // 8
    body.append(-sum(body) & 0xFF)
    return bytes(body)
