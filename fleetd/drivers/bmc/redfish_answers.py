"""Reading what a BMC says without trusting any of it: bounded JSON, tolerant fields, status codes to typed errors."""

from __future__ import annotations

from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from fleetd.drivers.bmc.redfish_http import Answer
from fleetd.kit.errors import AuthFailed, Busy, FleetError, Garbled, Unsupported
from fleetd.model.power import PowerState

Document = dict[str, Any]

MAX_DEPTH = 48  # the deepest recorded resource nests 14 levels
_MAX_MESSAGES, _MAX_MESSAGE = 3, 200
_MAX_RETRY_AFTER = 600.0  # seconds; a BMC that says more is told that we come anyway

# Message ids that mean "not now" whatever the status. SYS518: Dell "iDRAC not ready" (sushy connector.py:103).
ALWAYS_BUSY = ("SYS518", "ServiceTemporarilyUnavailable", "ServiceInUnknownState")


class PowerOnly(msgspec.Struct):
    """The hot poll decodes this and skips the other 4 KB: 5 us instead of 20."""

    power: Any = msgspec.field(default=None, name="PowerState")


_power_decoder = msgspec.json.Decoder(PowerOnly)
_any_decoder = msgspec.json.Decoder()

_POWER_WORDS = {"On": PowerState.ON, "Off": PowerState.OFF}


def power_word(value: object) -> PowerState:
    """On and Off; null, PoweringOn, PoweringOff, Paused and nonsense are UNKNOWN: poll again."""
    return _POWER_WORDS.get(value, PowerState.UNKNOWN) if isinstance(value, str) else PowerState.UNKNOWN


def decode_power(body: bytes, where: str) -> PowerState:
    """PowerState of a ComputerSystem. Raises Garbled."""
    try:
        return power_word(_power_decoder.decode(body).power)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _not_json(error, where) from None


def decode(body: bytes, where: str) -> Document:
    """A JSON object, at most MAX_DEPTH deep. Raises Garbled."""
    try:
        value = _any_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _not_json(error, where) from None
    if not isinstance(value, dict):
        raise Garbled("the BMC answered no JSON object", why=f"but a {type(value).__name__}", where=where)
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return value
    raise Garbled("the BMC's answer nests too deep", why=f"more than {MAX_DEPTH} levels", where=where)


def _not_json(error: Exception, where: str) -> Garbled:
    return Garbled("the BMC's answer is not JSON", why=str(error)[:200], where=where)


def at(document: object, *path: str) -> Any:
    """The value under a path of keys, None where anything on the way is absent or of another type."""
    for key in path:
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document


def text(document: object, *path: str) -> str:
    """A string under a path, stripped and at most 256 characters; empty for everything else (vendors mix types)."""
    value = at(document, *path)
    return value.strip()[:256] if isinstance(value, str) else ""


def words(document: object, *path: str) -> tuple[str, ...] | None:
    """A list of strings such as AllowableValues; None if absent or no list."""
    value = at(document, *path)
    return tuple(item for item in value[:64] if isinstance(item, str)) if isinstance(value, list) else None


def link(document: object, *path: str) -> str:
    """The @odata.id under a path (first of a list); empty if there is none. Whoever follows it checks the path."""
    value = at(document, *path)
    if isinstance(value, list):
        value = value[0] if value else None
    return text(value, "@odata.id")


def etag_of(answer: Answer, document: Document | None = None) -> str:
    """The ETag header, else @odata.etag; empty strings and control characters do not count (seen: ETag: "")."""
    value = answer.headers.get("etag", "") or text(document, "@odata.etag")
    return value if 2 < len(value) <= 128 and value.isprintable() else ""


def messages(answer: Answer) -> list[tuple[str, str]]:
    """(MessageId, text) of ExtendedInfo: few, short and printable, from a body that may be anything."""
    try:
        document = decode(answer.body, "")
    except Garbled:
        return []
    error = at(document, "error")
    listed = at(error, "@Message.ExtendedInfo") or at(document, "@Message.ExtendedInfo")
    items = listed[:_MAX_MESSAGES] if isinstance(listed, list) else [listed]
    found = [(text(item, "MessageId"), _plain(text(item, "Message"))) for item in items if isinstance(item, dict)]
    if not found and isinstance(error, dict):
        found = [(text(error, "code"), _plain(text(error, "message")))]
    return found


def _plain(line: str) -> str:
    return "".join(c if c.isprintable() else " " for c in line)[:_MAX_MESSAGE]


def says(answer: Answer, ids: Iterable[str]) -> bool:
    """True if an error answer carries one of these message ids (compared by their last part)."""
    if answer.status < 400 or not answer.body:
        return False
    said = {name.rpartition(".")[2] for name, _ in messages(answer)}
    return not said.isdisjoint(ids)


def retry_after(answer: Answer, *, now: float | None = None) -> float | None:
    """Seconds of a Retry-After header; dates count from `now` (wall seconds) if given. None if absent or nonsense."""
    value = answer.headers.get("retry-after", "").strip()
    if value.isdecimal() and len(value) < 8:
        return min(float(value), _MAX_RETRY_AFTER)
    if value and now is not None:
        try:
            return min(max(0.0, parsedate_to_datetime(value).timestamp() - now), _MAX_RETRY_AFTER)
        except (ValueError, OverflowError):
            return None
    return None


def is_busy(answer: Answer, busy_ids: Iterable[str] = ALWAYS_BUSY) -> bool:
    """The BMC asks to come again: 503, 429, or a message that means it."""
    return answer.status in (429, 503) or says(answer, busy_ids)


def error_of(
    answer: Answer, what: str, where: str, *, secret: str = "", busy_ids: Iterable[str] = ALWAYS_BUSY
) -> FleetError:
    """The typed error of an unwanted status. `secret` is blanked wherever the BMC echoes it."""
    said = "; ".join(f"{name.rpartition('.')[2]}: {line}" if name else line for name, line in messages(answer))
    why = f"HTTP {answer.status}" + (f", {said}" if said else "")
    if secret:
        why = why.replace(secret, "***")
    status = answer.status
    if is_busy(answer, busy_ids):
        return Busy(f"{what}: the BMC is busy", why=why, where=where, retry_after=retry_after(answer))
    if status in (401, 403):
        return AuthFailed(f"{what}: the BMC refused our login", why=why, where=where)
    if status in (409, 412, 423, 428) or (500 <= status < 600 and status != 501):
        return Busy(f"{what}: the BMC cannot do it in its present state", why=why, where=where)
    if 400 <= status < 600:
        return Unsupported(f"{what}: the BMC refused the request", why=why, where=where)
    return Garbled(f"{what}: an answer outside the protocol", why=why, where=where)
