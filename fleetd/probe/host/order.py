"""The order: JSON on standard input, bounded and checked word by word before anything looks at a drive.

All but ``status`` and ``inspect`` act, and name ``intent``, ``nonce``, ``host_serial``::

    {"intent": "…",                       the step's intent id; acted on at most once
     "nonce": "…",                        of the boot: its token, or the token's sha256 in hex (all the ledger keeps)
     "host_serial": "…",                  SMBIOS serial that this host must have
     "drives": [{"serial": "…"}, …],      wipe: exactly the drives of this host; write-image: those to choose from
     "rule": "smallest",                  write-image, boot-order: smallest | serial:<glob> | model:<glob> | size:<GB>-<GB>
     "prefer": "disk",                    boot-order
     "image": {"name", "format": "raw"|"raw.gz"|"raw.zst", "bytes", "sha256", "raw_bytes", "raw_sha256", "urls": ["…"]},
     "seed": {"hostname": "…", "instance_id": "…", "authorized_keys": ["…"], "host_key_private": "…",
              "host_key_public": "…", "phone_home_url": "…", "phone_home_token": "…", "user_data": "…", "network": "…",
              "boot_mac": "…"}}           user_data, network and boot_mac may be left out

``inspect`` needs nonce and serial only; ``status`` takes ``{}``, nothing at all, or ``{"intent": "…"}``.
"""

from __future__ import annotations

import hashlib
import json
import re
import urllib.parse
from typing import Any, NamedTuple

MAX_ORDER = 256 * 1024
MAX_DRIVES = 256
MAX_URLS = 16
MAX_IMAGE = 64 * 1024**3  # bytes, as served
MAX_DISK = 1024**4  # bytes, as written
FORMATS = ("raw", "raw.gz", "raw.zst")
_INTENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,1024}")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
# What boards carry that were never given a serial: no identity.
PLACEHOLDERS = frozenset(
    {"", "0", "none", "n/a", "default string", "system serial number", "to be filled by o.e.m.", "not specified"}
)


class Refusal(Exception):
    """The order is not carried out. `code` is stable, `reason` is for people."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason[:500]


class Image(NamedTuple):
    """As its signed manifest has it. Sizes in bytes, digests sha256 in hex; `raw_…`: of the disk it unpacks to."""

    name: str
    format: str
    bytes: int
    sha256: str
    raw_bytes: int
    raw_sha256: str
    urls: tuple[str, ...]


class Seed(NamedTuple):
    """What the written system finds at its first boot."""

    hostname: str
    instance_id: str
    authorized_keys: tuple[str, ...]
    host_key_private: str
    host_key_public: str
    phone_home_url: str
    phone_home_token: str
    user_data: str = ""
    network: str = ""
    boot_mac: str = ""

    def __repr__(self) -> str:
        return "Seed(***)"


class Order(NamedTuple):
    """A well-formed order; whether it fits this host is for `work.check`. `digest` covers its every word."""

    command: str
    intent: str
    nonce: str
    host_serial: str
    drives: tuple[str, ...]
    digest: str
    rule: str = ""
    image: Image | None = None
    seed: Seed | None = None


def _text(source: dict[str, Any], key: str, longest: int = 1024) -> str:
    value = source.get(key)
    if not isinstance(value, str) or not value or len(value) > longest:
        raise Refusal("bad-order", f"`{key}` must be a text of 1 to {longest} characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Refusal("bad-order", f"`{key}` is not text") from error
    return value


def _line(source: dict[str, Any], key: str, longest: int = 1024) -> str:
    value = _text(source, key, longest)
    if not value.isprintable():
        raise Refusal("bad-order", f"`{key}` must be one line of printable characters")
    return value


def _fits(source: dict[str, Any], key: str, pattern: re.Pattern[str], what: str) -> str:
    value = _text(source, key, 2048)
    if not pattern.fullmatch(value):
        raise Refusal("bad-order", f"`{key}` must be {what}")
    return value


def _number(source: dict[str, Any], key: str, most: int) -> int:
    value = source.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise Refusal("bad-order", f"`{key}` must be a number from 1 to {most}")
    return value


def _url(value: object, key: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 2048 or not value.isascii() or not value.isprintable():
        raise Refusal("bad-order", f"`{key}` must be a URL of printable ASCII, at most 2048 characters")
    try:
        parts = urllib.parse.urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise Refusal("bad-order", f"`{key}` is no URL") from error
    good = parts.scheme in ("http", "https") and parts.hostname and port != 0 and not parts.fragment
    if not good or "@" in parts.netloc or " " in value:
        raise Refusal("bad-order", f"`{key}` must be an http or https URL without a login")
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
    """An order to do `command`. Raises Refusal `bad-order` naming the field."""
    value = decode(data)
    order = Order(
        command=command,
        intent=intent_of(value) if command != "inspect" or "intent" in value else "",
        nonce=_text(value, "nonce"),
        host_serial=_text(value, "host_serial", 128),
        drives=_drives(value) if "drives" in value or command in ("wipe", "write-image") else (),
        digest=hashlib.sha256(json.dumps([command, value], sort_keys=True).encode()).hexdigest(),
        rule=_line(value, "rule", 256) if "rule" in value else "",
    )
    if command == "boot-order" and value.get("prefer", "disk") != "disk":
        raise Refusal("bad-order", "`prefer` must be disk")
    if command != "write-image":
        return order
    image, seed = value.get("image"), value.get("seed")
    if not isinstance(image, dict) or not isinstance(seed, dict):
        raise Refusal("bad-order", "`image` and `seed` must be objects")
    return order._replace(rule=order.rule or "smallest", image=_image(image), seed=_seed(seed))


def _drives(value: dict[str, Any]) -> tuple[str, ...]:
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
    return tuple(serials)


def _image(image: dict[str, Any]) -> Image:
    urls = image.get("urls")
    if not isinstance(urls, list) or not 0 < len(urls) <= MAX_URLS:
        raise Refusal("bad-order", f"`image.urls` must hold 1 to {MAX_URLS} URLs")
    raw_bytes = _number(image, "raw_bytes", MAX_DISK)
    if raw_bytes % 512:
        raise Refusal("bad-order", "`raw_bytes` must be whole sectors of 512 bytes")
    if image.get("format") not in FORMATS:
        raise Refusal("bad-order", f"`image.format` must be one of {', '.join(FORMATS)}")
    return Image(
        name=_line(image, "name", 256),
        format=image["format"],
        bytes=_number(image, "bytes", MAX_IMAGE),
        sha256=_fits(image, "sha256", _DIGEST, "64 hex digits"),
        raw_bytes=raw_bytes,
        raw_sha256=_fits(image, "raw_sha256", _DIGEST, "64 hex digits"),
        urls=tuple(_url(url, "image.urls") for url in urls),
    )


def _seed(seed: dict[str, Any]) -> Seed:
    hostname = _text(seed, "hostname", 253)
    if not all(_LABEL.fullmatch(label) for label in hostname.split(".")):
        raise Refusal("bad-order", "`seed.hostname` must be RFC 1123 labels: letters, digits and hyphens")
    keys = seed.get("authorized_keys")
    if not isinstance(keys, list) or len(keys) > 256:
        raise Refusal("bad-order", "`seed.authorized_keys` must be a list of at most 256 keys")
    private = _text(seed, "host_key_private", 16384)
    if not all(line.isprintable() for line in private.splitlines()) or "\r" in private:
        raise Refusal("bad-order", "`seed.host_key_private` must be a PEM text")
    return Seed(
        hostname=hostname,
        instance_id=_fits(seed, "instance_id", _INTENT, "letters, digits and . _ : -"),
        authorized_keys=tuple(_line({"seed.authorized_keys": key}, "seed.authorized_keys", 16384) for key in keys),
        host_key_private=private,
        host_key_public=_line(seed, "host_key_public", 16384),
        phone_home_url=_url(seed.get("phone_home_url"), "seed.phone_home_url"),
        phone_home_token=_fits(seed, "phone_home_token", _TOKEN, "one word without spaces"),
        user_data=_text(seed, "user_data", MAX_ORDER) if seed.get("user_data") else "",
        network=_text(seed, "network", 64 * 1024) if seed.get("network") else "",
        boot_mac=_fits(seed, "boot_mac", _MAC, "six pairs of hex digits with colons").lower()
        if seed.get("boot_mac")
        else "",
    )
