"""A tenant's request is hostile until this has read it: every field bounded, every key of a known kind, one line."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Callable

import msgspec

from fleetd.kit.clock import parse_rfc3339
from fleetd.kit.errors import Invalid
from fleetd.model.lease import LeaseRequest

MAX_COUNT = 10_000
MAX_KEYS = 64
MAX_KEY = 8192
MAX_USER_DATA = 64 * 1024
MAX_SEED = (
    192 * 1024
)  # bytes of keys and user_data as JSON: the host takes an order of 256 KiB, and there is more in it
MAX_TERM = 10 * 366 * 86_400.0
KEY_TYPES = frozenset(
    {
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    }
)
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


def end_of(text: str, now: float) -> float:
    """Wall seconds of a lease's end. Raises Invalid when it is no RFC 3339 time, past, or over ten years away."""
    try:
        end = parse_rfc3339(text)
    except (ValueError, OverflowError) as error:
        raise Invalid("the end of the lease cannot be read", why=str(error)[:200], where="ends_at") from error
    return checked_end(end, now)


def checked_end(end: float, now: float) -> float:
    """The same for an end in wall seconds."""
    if not now < end <= now + MAX_TERM:  # also false for NaN
        raise Invalid(
            "the end of the lease is not in the future" if not end > now else "a lease is at most ten years long",
            where="ends_at",
            remedy="write a time like 2026-11-23T04:00:00Z",
        )
    return end


def check_key(key: str, where: str) -> None:
    """One public key as in authorized_keys, without options. Raises Invalid; the message never holds the key."""
    if len(key) > MAX_KEY:
        raise Invalid(f"the SSH key is longer than {MAX_KEY} characters", where=where)
    if not key.isprintable():
        raise Invalid("the SSH key is not one printable line", where=where)
    kind, _, rest = key.strip().partition(" ")
    if kind not in KEY_TYPES:
        raise Invalid(
            "this kind of SSH key is not known",
            why="a key begins with its type, without options: " + ", ".join(sorted(KEY_TYPES)),
            where=where,
        )
    try:
        blob = base64.b64decode(rest.strip().split(" ")[0], validate=True)
        (length,) = struct.unpack_from(">I", blob)
    except (binascii.Error, ValueError, struct.error) as error:
        raise Invalid("the SSH key is not base64", where=where) from error
    if blob[4 : 4 + length] != kind.encode() or len(blob) <= 4 + length:
        raise Invalid("the SSH key is damaged", why="what is inside is not the type it begins with", where=where)


def _check_seed(request: LeaseRequest) -> None:
    """Keys and user_data travel to the host as JSON, which may be six times as long. Raises Invalid."""
    try:
        size = len(msgspec.json.encode((request.ssh_keys, request.user_data)))
    except UnicodeEncodeError as error:
        raise Invalid("user_data is not text", why="half a surrogate pair", where="user_data") from error
    if size > MAX_SEED:
        raise Invalid(
            "SSH keys and user_data are too large together",
            why=f"{size} bytes as they travel to the host, at most {MAX_SEED}",
            where="ssh_keys" if len(msgspec.json.encode(request.ssh_keys)) > MAX_SEED // 2 else "user_data",
            remedy="shorten the keys' comments; let user_data fetch what is large",
        )


def check_request(request: LeaseRequest, now: float, known_image: Callable[[str], bool]) -> float:
    """Judge all but SKU and site, which stand in the ledger. Returns the end in wall seconds. Raises Invalid."""
    if not _TENANT.match(request.tenant):
        raise Invalid("the tenant's name cannot be read", why="letters, digits, . _ -, up to 63", where="tenant")
    if not 1 <= request.count <= MAX_COUNT:
        raise Invalid(f"a lease is of 1 to {MAX_COUNT} hosts", where="count")
    end = end_of(request.ends_at, now)
    if len(request.ssh_keys) > MAX_KEYS:
        raise Invalid(f"at most {MAX_KEYS} SSH keys", where="ssh_keys")
    for i, key in enumerate(request.ssh_keys):
        check_key(key, f"ssh_keys[{i}]")
    if request.user_data is not None:
        if len(request.user_data.encode(errors="surrogatepass")) > MAX_USER_DATA:
            raise Invalid(f"user_data is larger than {MAX_USER_DATA} bytes", where="user_data")
        if "\0" in request.user_data:
            raise Invalid("user_data holds a NUL", where="user_data")
    _check_seed(request)
    if request.image is not None and not known_image(request.image):
        raise Invalid(
            f"image `{request.image[:80]}` is not known", where="image", remedy="leave it out for the SKU's image"
        )
    return end
