"""Between structs and rows: JSON by msgspec, and an unreadable row that says which one it is."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from fleetd.kit.errors import Garbled, Invalid

T = TypeVar("T")
_encode: Final = msgspec.json.Encoder().encode
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def pack(value: object) -> str:
    """JSON text of a struct, dict or list.

    Raises:
        Invalid: it holds what JSON cannot say, such as half a surrogate pair from a hostile host.
    """
    try:
        return _encode(value).decode()
    except (UnicodeEncodeError, TypeError, ValueError, OverflowError) as error:
        raise Invalid("the value cannot be stored as JSON", why=str(error)) from error


def unpack(kind: type[T], text: str, table: str, key: object) -> T:
    """The struct of a row's JSON text.

    Raises:
        Garbled: the text is not what this version of fleetd understands; `where` names table and row.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        return decoder.decode(text)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise unreadable(table, key, error) from error


def unreadable(table: str, key: object, why: object) -> Garbled:
    """The error for a row that cannot be read back."""
    return Garbled(
        "a row of the ledger cannot be read",
        why=str(why),
        where=f"{table}/{key}",
        remedy="if fleetd was downgraded, run the newer version again; if not, restore the ledger from its backup",
    )


def plain(text: str) -> str:
    """Text from a host's mouth without NUL, which PostgreSQL cannot keep in a text column."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
