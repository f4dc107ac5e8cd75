"""Lists in pages. A cursor names the last item seen, not a count: a list that grows meanwhile repeats and skips nothing."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from fleetd.kit.errors import Invalid

T = TypeVar("T")
DEFAULT_LIMIT = 200
MAX_CURSOR = 1024

Key = tuple[str | int, ...]


def encode(key: Key) -> str:
    """An opaque word for a sort key."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def decode(cursor: str, shape: Key) -> Key:
    """Back again. Raises Invalid unless it is a key of the same shape as `shape`."""
    bad = Invalid("the cursor is not one of ours", where="cursor", remedy="start again without a cursor")
    if len(cursor) > MAX_CURSOR:
        raise bad
    try:
        values: Any = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (msgspec.DecodeError, binascii.Error, ValueError) as error:
        raise bad from error
    if not isinstance(values, list) or [type(value) for value in values] != [type(part) for part in shape]:
        raise bad
    return tuple(values)


def page(
    items: Sequence[T], key: Callable[[T], Key], *, limit: int, cursor: str | None, descending: bool = False
) -> tuple[list[T], str | None]:
    """Sort by `key`, drop what the cursor has seen, cut at `limit`. Returns the page and the next cursor."""
    ordered = sorted(items, key=key, reverse=descending)
    if cursor is not None and ordered:
        seen = decode(cursor, key(ordered[0]))
        ordered = [item for item in ordered if (key(item) < seen if descending else key(item) > seen)]
    elif cursor is not None and len(cursor) > MAX_CURSOR:
        raise Invalid("the cursor is not one of ours", where="cursor")
    taken = ordered[:limit]
    return taken, encode(key(taken[-1])) if len(ordered) > limit else None
