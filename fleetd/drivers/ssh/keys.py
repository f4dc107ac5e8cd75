"""Key pairs for one boot or one seeded image: Ed25519, in the forms that OpenSSH reads."""

from __future__ import annotations

import re

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


def new_key_pair(comment: str = "fleetd") -> tuple[str, str]:
    """(private key as OpenSSH PEM, public key line). The comment is reduced to one harmless line."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode("ascii")
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
    said = re.sub(r"[^A-Za-z0-9 ._@-]", "?", comment)[:100]
    return private, f"{public} {said}".rstrip()
