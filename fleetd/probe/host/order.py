"""The order: JSON on standard input, bounded and checked word by word before anything looks at a drive.

``wipe`` and ``write-image``::

    {"intent": "…",                       the step's intent id; acted on at most once
     "nonce": "…",                        of the boot: its token, or the token's sha256 in hex (all the ledger keeps)
     "host_serial": "…",                  SMBIOS serial that this host must have
     "drives": [{"serial": "…"}, …],      wipe: exactly the drives of this host; write-image: those to choose from
     "rule": "smallest",                  write-image, the system drive: smallest | serial:<glob> | model:<glob>
     "image": {"name": "…", "digest": "…"},            the digest may be left out
     "seed": {"hostname": "…", "authorized_keys": ["…"], "host_key_private": "…", "host_key_public": "…",
              "phone_home_url": "…", "phone_home_token": "…", "user_data": "…"}}

``status`` takes ``{}``, nothing at all, or ``{"intent": "…"}``.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NamedTuple

MAX_ORDER = 256 * 1024
MAX_DRIVES = 256
_INTENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_SEED = ("hostname", "host_key_private", "host_key_public", "phone_home_url", "phone_home_token")
# What boards carry that were never given a serial: no identity.
PLACEHOLDERS = frozenset(
    {"", "0", "none", "n/a", "default string", "system serial number", "to be filled by o.e.m.", "not specified"}
)


class Refusal(Exception):
    """The order is not carried out. `code` is stable, `reason` is for people."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason[:500]


class Order(NamedTuple):
    """A well-formed order; whether it fits this host is for `safety.py`. `digest` covers its every word."""

    command: str
    intent: str
    nonce: str
    host_serial: str
    drives: tuple[str, ...]
    digest: str
    rule: str = "smallest"
    image: dict[str, str] | None = None
    seed: dict[str, Any] | None = None


def _text(source: dict[str, Any], key: str, longest: int = 1024) -> str:
    value = source.get(key)
    if not isinstance(value, str) or not value or len(value) > longest:
        raise Refusal("bad-order", f"`{key}` must be a text of 1 to {longest} characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Refusal("bad-order", f"`{key}` is not text") from error
    return value


def decode(data: bytes) -> dict[str, Any]:
    """Raises Refusal `bad-order`. Empty input is an empty order."""
    if len(data) > MAX_ORDER:
        raise Refusal("bad-order", f"the order is larger than {MAX_ORDER} bytes")
    try:
        value = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError) as error:
        raise Refusal("bad-order", f"the order is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refusal("bad-order", "the order is not an object")
    return value


def intent_of(value: dict[str, Any]) -> str:
    """The intent, safe as a file name. Raises Refusal."""
    intent = _text(value, "intent", 128)
    if not _INTENT.fullmatch(intent):
        raise Refusal("bad-order", "`intent` may hold letters, digits and . _ : - only")
    return intent


def read(command: str, data: bytes) -> Order:
    """An order to `wipe` or `write-image`. Raises Refusal `bad-order` naming the field."""
    value = decode(data)
    drives = value.get("drives")
    if not isinstance(drives, list) or not 0 < len(drives) <= MAX_DRIVES:
        raise Refusal("bad-order", f"`drives` must name 1 to {MAX_DRIVES} drives")
    serials = []
    for drive in drives:
        if not isinstance(drive, dict):
            raise Refusal("bad-order", "`drives` must be objects with a serial")
        serials.append(_text(drive, "serial", 128))
    if len(set(serials)) != len(serials):
        raise Refusal("bad-order", "a drive serial stands twice in the order")
    order = Order(
        command=command,
        intent=intent_of(value),
        nonce=_text(value, "nonce"),
        host_serial=_text(value, "host_serial", 128),
        drives=tuple(serials),
        digest=hashlib.sha256(json.dumps([command, value], sort_keys=True).encode()).hexdigest(),
    )
    return order if command == "wipe" else _with_image(order, value)


def _with_image(order: Order, value: dict[str, Any]) -> Order:
    image, seed = value.get("image"), value.get("seed")
    if not isinstance(image, dict) or not isinstance(seed, dict):
        raise Refusal("bad-order", "`image` and `seed` must be objects")
    keys = seed.get("authorized_keys")
    if not isinstance(keys, list) or len(keys) > 256 or not all(isinstance(k, str) and len(k) < 16384 for k in keys):
        raise Refusal("bad-order", "`seed.authorized_keys` must be a list of texts")
    return order._replace(
        rule=_text(value, "rule", 256) if "rule" in value else "smallest",
        image={
            "name": _text(image, "name", 256),
            "digest": _text(image, "digest", 256) if image.get("digest") else "",
        },
        seed={
            **{key: _text(seed, key, 16384) for key in _SEED},
            "authorized_keys": list(keys),
            "user_data": _text(seed, "user_data", MAX_ORDER) if seed.get("user_data") else "",
        },
    )
