"""A certificate of its own for each simulated BMC: lazy, cheap, and the same after a restart of the simulator.

Keys are derived from the host's name and a generation, signatures are deterministic where OpenSSL can, so a pin that
was read yesterday still matches. `rotate` gives the host another one: a replaced board, or somebody in between.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
import tempfile
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256 (SEC 2)
_START = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
_LIFE = datetime.timedelta(days=3650)


class _Identity(NamedTuple):
    context: ssl.SSLContext
    pin: str


class Certificates:
    """One identity a host, made when its first connection comes (about a millisecond)."""

    def __init__(self, seed: str = "fleetd-sim") -> None:
        self._seed = seed
        self._generation: dict[str, int] = {}
        self._known: dict[str, _Identity] = {}

    def context(self, host: str, address: str) -> ssl.SSLContext:
        """The server context of a host."""
        return self._identity(host, address).context

    def pin(self, host: str, address: str) -> str:
        """sha256 hex of its certificate (DER)."""
        return self._identity(host, address).pin

    def rotate(self, host: str) -> None:
        """From the next connection on it shows another certificate."""
        self._generation[host] = self._generation.get(host, 0) + 1
        self._known.pop(host, None)

    def _identity(self, host: str, address: str) -> _Identity:
        known = self._known.get(host)
        if known is None:
            known = self._known[host] = self._make(host, address)
        return known

    def _make(self, host: str, address: str) -> _Identity:
        digest = hashlib.sha256(f"{self._seed}/{host}/{self._generation.get(host, 0)}".encode()).digest()
        key = ec.derive_private_key(int.from_bytes(digest, "big") % (_ORDER - 1) + 1, ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(int.from_bytes(digest[:16], "big") >> 1 or 1)
            .not_valid_before(_START)
            .not_valid_after(_START + _LIFE)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        )
        try:
            certificate = builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)
        except UnsupportedAlgorithm:  # OpenSSL before 3.2: stable while the simulator lives
            certificate = builder.sign(key, hashes.SHA256())
        pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0  # a BMC client keeps its connection; tickets are work for nothing
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:  # the ssl module loads from files only
            file.write(pem)
            file.flush()
            context.load_cert_chain(file.name)
        return _Identity(context, hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest())
