"""Small signed images for the tests, and the way into a world's ledger."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleetd.lifecycle.images import ImageDesk
from fleetd.model import proof
from fleetd.model.access import Principal, Role
from fleetd.model.image import Image, ImageFormat, Manifest, SignedManifest, sign
from fleetd.sim.image import tiny_image

WHO = Principal(name="builder", role=Role.OPERATOR)


def manifest_of(name: str, served: bytes, raw: bytes, **changes: Any) -> Manifest:
    """What `fleetctl image sign` would write."""
    fields: dict[str, Any] = {
        "name": name,
        "format": ImageFormat.RAW_GZ,
        "bytes": len(served),
        "sha256": hashlib.sha256(served).hexdigest(),
        "raw_bytes": len(raw),
        "raw_sha256": hashlib.sha256(raw).hexdigest(),
    }
    return Manifest(**fields | changes)


def signed_image(name: str, key: Ed25519PrivateKey) -> tuple[SignedManifest, bytes]:
    """A tiny raw.gz image and its manifest."""
    served, raw = tiny_image(name)
    return sign(manifest_of(name, served, raw), key), served


def as_qcow2(folder: Path, disk: bytes, *options: str) -> bytes:
    """The disk as a qcow2 file, made by qemu-img."""
    (folder / "disk.raw").write_bytes(disk)
    path = folder / "disk.qcow2"
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, str(folder / "disk.raw"), str(path)]
    subprocess.run(command, check=True, timeout=60)
    return path.read_bytes()


def image_key(folder: Path) -> Ed25519PrivateKey:
    """The key of this folder, made on first use; `image-key.pem.pub` beside it is for `images.trust`."""
    path = folder / "image-key.pem"
    if not path.exists():
        key = proof.new_key()
        path.touch(mode=0o600)
        path.write_bytes(proof.private_pem(key))
        (folder / "image-key.pem.pub").write_bytes(proof.public_pem(key.public_key()))
    return proof.load_private_key(path.read_bytes(), str(path))


def header_of(signed: SignedManifest) -> dict[str, str]:
    """The manifest as an upload carries it."""
    return {"Fleetd-Manifest": base64.urlsafe_b64encode(msgspec.json.encode(signed)).decode().rstrip("=")}


async def stream(data: bytes, piece: int = 10_000) -> AsyncIterator[bytes]:
    """As the API hands a body on."""
    for at in range(0, len(data), piece):
        yield data[at : at + piece]


async def add_images(desk: ImageDesk, key: Ed25519PrivateKey, names: Iterable[str]) -> list[Image]:
    """Tiny images of these names, through the desk; `key` is one that it trusts."""
    added = []
    for name in sorted(set(names)):
        signed, served = signed_image(name, key)
        added.append(await desk.add(signed, stream(served), who=WHO))
    return added
