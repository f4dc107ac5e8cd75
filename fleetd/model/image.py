"""An image: what is written to a host's system drive, and the signed manifest that says exactly what that is.

The manifest names the file as it is served (`bytes`, `sha256`) and the disk as it must read back (`raw_bytes`,
`raw_sha256`): both are pinned, so that "which hash is meant" is never a question. It is signed with Ed25519 over its
canonical JSON; an unsigned one is refused unless the configuration says otherwise.
"""

from __future__ import annotations

import base64
import hashlib
import re
from enum import StrEnum
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleetd.kit.errors import Invalid

MAX_MANIFEST: Final = 16 * 1024
MAX_IMAGE: Final = 64 * 1024**3  # bytes, as served
MAX_DISK: Final = 1024**4  # bytes, as written
NAME: Final = re.compile(r"[a-z0-9][a-z0-9.+_-]{0,63}")
DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class ImageFormat(StrEnum):
    """As served to hosts. qcow2 is converted once, when it is added, to raw.zst."""

    RAW = "raw"
    RAW_ZST = "raw.zst"
    RAW_GZ = "raw.gz"


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes in bytes; digests are sha256 in hex. `source_sha256`: of the file this one was converted from, else empty."""

    name: str
    format: ImageFormat
    bytes: int
    sha256: str
    raw_bytes: int
    raw_sha256: str
    source_sha256: str = ""
    description: str = ""


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`key`: first 16 hex digits of the sha256 of the raw public key; `value`: base64 of the Ed25519 signature."""

    key: str
    value: str


class SignedManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file beside an image: `{"manifest": {…}, "signature": {…}}`."""

    manifest: Manifest
    signature: Signature | None = None


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image in the ledger. Times in wall seconds; `signed_by` is the key's id, empty when it was taken unsigned."""

    id: str
    manifest: Manifest
    signature: Signature | None = None
    signed_by: str = ""
    added: float
    added_by: str = ""
    removed: float | None = None
    version: int = 1


def canonical(manifest: Manifest) -> bytes:
    """What is signed: the JSON of all fields, keys sorted, no spaces, after a word that keeps it from meaning anything else."""
    return b"fleetd.image/1\n" + msgspec.json.encode(manifest, order="sorted")


def key_id(key: Ed25519PublicKey) -> str:
    """First 16 hex digits of the sha256 of the raw public key."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def sign(manifest: Manifest, key: Ed25519PrivateKey) -> SignedManifest:
    """The manifest with its signature."""
    value = base64.b64encode(key.sign(canonical(manifest))).decode("ascii")
    return SignedManifest(manifest=manifest, signature=Signature(key=key_id(key.public_key()), value=value))


def verify(signed: SignedManifest, trusted: dict[str, Ed25519PublicKey]) -> str:
    """The id of the trusted key that signed it.

    Raises:
        Invalid: unsigned, signed by a key that is not trusted, or the signature does not fit the manifest.
    """
    name = signed.manifest.name
    if signed.signature is None:
        raise Invalid(f"the manifest of image {name} is not signed", remedy="fleetctl image sign FILE --key KEY")
    key = trusted.get(signed.signature.key)
    if key is None:
        raise Invalid(
            f"the manifest of image {name} is signed by a key that is not trusted",
            why=f"key {signed.signature.key[:16]}; trusted: {', '.join(sorted(trusted)) or 'none'}",
            remedy="put the signer's public key under images.trust in fleetd.yaml, if you trust it",
        )
    try:
        key.verify(base64.b64decode(signed.signature.value, validate=True), canonical(signed.manifest))
    except (InvalidSignature, ValueError) as error:
        raise Invalid(
            f"the signature of image {name} does not fit its manifest",
            why="the manifest was changed after it was signed, or the signature is damaged",
            remedy="fetch image and manifest again from where they were built",
        ) from error
    return signed.signature.key


def read_manifest(data: bytes) -> SignedManifest:
    """Decode and bound every field; the signature is for `verify`. Raises Invalid naming the field."""
    if len(data) > MAX_MANIFEST:
        raise Invalid("the image manifest is too large", why=f"{len(data)} bytes, at most {MAX_MANIFEST}")
    try:
        signed = msgspec.json.decode(data, type=SignedManifest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Invalid("the image manifest cannot be read", why=str(error)[:200]) from error
    return msgspec.structs.replace(signed, manifest=checked(signed.manifest))


def checked(manifest: Manifest) -> Manifest:
    """The same, with every field within its bounds. Raises Invalid naming the field."""
    for bad, field, what in (
        (not NAME.fullmatch(manifest.name), "name", "letters, digits and . + _ - (lower case, at most 64)"),
        (not DIGEST.fullmatch(manifest.sha256), "sha256", "64 hex digits"),
        (not DIGEST.fullmatch(manifest.raw_sha256), "raw_sha256", "64 hex digits"),
        (
            bool(manifest.source_sha256) and not DIGEST.fullmatch(manifest.source_sha256),
            "source_sha256",
            "64 hex digits",
        ),
        (not 0 < manifest.bytes <= MAX_IMAGE, "bytes", f"1 to {MAX_IMAGE}"),
        (not 0 < manifest.raw_bytes <= MAX_DISK, "raw_bytes", f"1 to {MAX_DISK}"),
        (manifest.raw_bytes % 512 != 0, "raw_bytes", "whole sectors of 512 bytes"),
        (
            len(manifest.description) > 500 or not manifest.description.isprintable(),
            "description",
            "one line, at most 500 characters",
        ),
    ):
        if bad:
            raise Invalid(f"the image manifest has an unusable `{field}`", why=f"allowed: {what}", where=field)
    return manifest
