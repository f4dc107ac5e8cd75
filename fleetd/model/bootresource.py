"""The API's own representation of images and of boots, as `resource.py` has it for the other nouns."""

from __future__ import annotations

import msgspec


class SignatureView(msgspec.Struct, frozen=True, kw_only=True):
    """`key`: the key's id; `value`: base64 of the Ed25519 signature over the manifest's canonical JSON."""

    key: str
    value: str


class ImageView(msgspec.Struct, frozen=True, kw_only=True):
    """An image. Sizes in bytes; `sha256` is of the file as served, `raw_sha256` of the disk as it must read back.

    `signed_by` is the id of the key, empty when it was taken unsigned; `used_by` says who needs it.
    """

    id: str
    name: str
    format: str
    bytes: int
    sha256: str
    raw_bytes: int
    raw_sha256: str
    source_sha256: str
    description: str
    signed_by: str
    signature: SignatureView | None
    added: str
    added_by: str
    used_by: list[str]
    version: int


class ImageOfferView(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon says to a manifest: `needed`: send the file by PUT to `upload`; else `image` is it, already there."""

    name: str
    needed: bool
    upload: str
    image: ImageView | None


class ImageCheckView(msgspec.Struct, frozen=True, kw_only=True):
    """The file, read anew: `problems` is empty when it is what its manifest says."""

    name: str
    good: bool
    problems: list[str]


class OpenBootView(msgspec.Struct, frozen=True, kw_only=True):
    """A boot that fleetd armed and that is not over."""

    id: str
    environment: str
    armed: str
    expires: str
    met: str | None
    source: str


class SightingView(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was seen of a host on its way up; `answer`: what it was told (boot, local, denied)."""

    at: str
    stage: str
    mac: str
    source: str
    detail: str
    answer: str


class BootDoctorView(msgspec.Struct, frozen=True, kw_only=True):
    """Where a host's boot stands: the last stage it reached, what is wrong, and what to do.

    `good`: it came up, or nothing is expected of it, or it is still in time. `remembered_since`: sightings live in
    memory, and begin there.
    """

    host: str
    name: str
    mac: str
    boot: OpenBootView | None
    stage: str
    good: bool
    what: str
    remedy: str
    remembered_since: str
    trail: list[SightingView]
