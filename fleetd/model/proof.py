"""Making and checking certificates: canonical bytes, fingerprint, Ed25519 signature. Pure, so it verifies offline.

What is signed is the statement as canonical JSON (keys sorted, no spaces, UTF-8). Trust comes only from the keys the
verifier brings: `key_id` in a certificate helps to find one of them, a key inside the file would be ignored.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from fleetd.kit.clock import parse_rfc3339, rfc3339
from fleetd.kit.errors import Invalid, Refused
from fleetd.model.certificate import Certificate, CheckProof, Statement
from fleetd.model.check import Outcome, Verdict
from fleetd.model.report import Report, fingerprint_parts
from fleetd.model.sku import Sku

FORMAT = "fleetd.certificate/1"
NO_GPU = "gpu.absent"  # the check by which a host without GPUs proves that it has none
MAX_FILE = 1024 * 1024
MAX_PEM = 64 * 1024
MAX_KEYS = 64
_BEGIN, _END = b"-----BEGIN ", b"-----END "
_RESIGN = "ask the site for the certificate again: `fleetctl certificate show HOST -o json`"


def canonical(value: Any) -> bytes:
    """JSON with sorted keys, no spaces, UTF-8: one value, one text. Raises Invalid for what JSON cannot say."""
    try:
        return msgspec.json.encode(value, order="sorted")
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise Invalid("this cannot be written as canonical JSON", why=str(error)[:200]) from error


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def fingerprint(parts: Mapping[str, Sequence[str]]) -> str:
    """The digest that stands for this very hardware: compared at every contact, signed in the certificate."""
    return digest({kind: sorted(values) for kind, values in parts.items()})


def build_statement(
    *,
    id: str,  # noqa: A002
    site: str,
    host: str,
    host_name: str,
    sku: Sku,
    suite: str,
    report: Report,
    report_digest: str,
    probe: str,
    verdicts: Iterable[Verdict],
    issued: float,
    lifetime: float | None = None,
) -> Statement:
    """The statement for a suite that passed, from the very report that was judged.

    Args:
        report_digest: sha256 (hex) of the report's bytes as received.
        probe: version and sha256 of the probe that was pushed.
        issued: wall seconds; lifetime: seconds, else the SKU's.

    Raises:
        Refused: a check of the suite is missing, stands twice, is not of the suite, or is not a pass; or the report
            does not show the host's serial, or not the UUID and serial of every GPU.
    """
    told = list(verdicts)
    required = sku.suite(suite)
    given = [verdict.check for verdict in told]
    if not required or sorted(given) != sorted(required):
        odd = ", ".join(sorted(set(required) ^ set(given)) or sorted(set(given)))
        raise Refused("no certificate: the verdicts are not those of the suite", why=odd[:300])
    bad = [verdict.check for verdict in told if verdict.outcome is not Outcome.PASS]
    if bad:
        raise Refused("no certificate: a check did not pass", why=", ".join(bad)[:300])
    parts = fingerprint_parts(report)
    if not report.identity.serial.v or not report.identity.uuid.v:
        raise Refused("no certificate: the report does not show the host's serial and UUID")
    for kind in ("gpu", "gpu-serial"):
        if len(set(parts[kind])) != sku.gpu_count:
            raise Refused(f"no certificate: {len(set(parts[kind]))} of {sku.gpu_count} {kind} values in the report")
    return Statement(
        format=FORMAT,
        id=id,
        site=site,
        host=host,
        host_name=host_name,
        serial=report.identity.serial.v,
        uuid=report.identity.uuid.v,
        sku=sku.sku,
        sku_digest=sku.digest,
        suite=suite,
        fingerprint=fingerprint(parts),
        parts=parts,
        probe=probe,
        report=report_digest,
        boot_id=report.boot_id.v or "",
        nonce=report.nonce,
        verdicts=tuple(
            CheckProof(
                check=v.check,
                outcome=v.outcome.value,
                measured=v.measured,
                expected=v.expected,
                evidence=digest(v.evidence),
            )
            for v in told
        ),
        issued=rfc3339(issued) or "",
        expires=rfc3339(issued + (sku.certificate_seconds if lifetime is None else lifetime)) or "",
    )


def key_id(key: Ed25519PublicKey) -> str:
    """First 16 hex digits of the sha256 of the raw public key."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def sign(statement: Statement, key: Ed25519PrivateKey) -> Certificate:
    """Sign the canonical statement."""
    signature = base64.b64encode(key.sign(canonical(statement))).decode()
    return Certificate(statement=statement, key_id=key_id(key.public_key()), signature=signature)


def verify(
    certificate: Certificate, trusted: Sequence[Ed25519PublicKey], now: float, *, sku: Sku | None = None
) -> list[str]:
    """What is wrong with a certificate at wall second `now`; an empty list means that it holds.

    With `sku` it must also have been judged by exactly that profile, over its whole suite.
    """
    said = certificate.statement
    problems = _signature_problems(certificate, trusted)
    if said.format != FORMAT:
        problems.append(f"the format is {said.format[:60]!r}, not {FORMAT}")
    problems += _time_problems(said, now)
    if not said.verdicts:
        problems.append("it holds no verdict: zero checks are never a pass")
    for proof in said.verdicts:
        if proof.outcome != Outcome.PASS.value:
            problems.append(f"check {proof.check[:60]} is {proof.outcome[:20]!r}, not a pass")
    checks = [proof.check for proof in said.verdicts]
    if len(set(checks)) != len(checks):
        problems.append("a check stands in it twice")
    if said.fingerprint != fingerprint(said.parts):
        problems.append("the fingerprint is not that of its parts")
    # A host names its GPUs, or its suite proved that it has none.
    if bool(said.parts.get("gpu")) == (NO_GPU in checks):
        problems.append("it names GPUs and says that there are none" if said.parts.get("gpu") else "it names no GPU")
    if not said.serial or said.serial not in said.parts.get("board", ()):
        problems.append("the serial is not among its parts")
    if sku is not None:
        if (said.sku, said.sku_digest) != (sku.sku, sku.digest):
            problems.append(f"it was judged by another text of SKU {said.sku[:60]}")
        if said.suite not in ("acceptance", "quick") or set(checks) != set(sku.suite(said.suite)):
            problems.append("its checks are not those of the suite")
    return problems


def _signature_problems(certificate: Certificate, trusted: Sequence[Ed25519PublicKey]) -> list[str]:
    if not trusted:
        return ["no trusted key was given"]
    named = [key for key in trusted if key_id(key) == certificate.key_id]
    if not named:
        return [f"it names key {certificate.key_id[:32]!r}, which is not among the trusted keys"]
    try:
        signature = base64.b64decode(certificate.signature, validate=True)
        if base64.b64encode(signature).decode() != certificate.signature:
            return ["the signature is not base64"]  # bits that decode to nothing could be changed unseen
        payload = canonical(certificate.statement)
    except (binascii.Error, ValueError, Invalid):
        return ["the signature is not base64"]
    for key in named:
        try:
            key.verify(signature, payload)
        except InvalidSignature:
            continue
        return []
    return ["the signature is wrong: the certificate was changed after it was signed"]


def _time_problems(said: Statement, now: float) -> list[str]:
    try:
        issued, expires = parse_rfc3339(said.issued), parse_rfc3339(said.expires)
    except (ValueError, OverflowError):
        return ["its times cannot be read"]
    problems = []
    if issued > now:
        problems.append(f"it was issued in the future ({said.issued})")
    if expires <= now:
        problems.append(f"it expired {said.expires}")
    if expires <= issued:
        problems.append("it expires before it was issued")
    return problems


def write_certificate(certificate: Certificate) -> bytes:
    """As a file: JSON a person can read."""
    return msgspec.json.format(msgspec.json.encode(certificate), indent=2) + b"\n"


def read_certificate(data: bytes, name: str = "certificate") -> Certificate:
    """Decode a certificate file. It says nothing about trust: verify it.

    Raises:
        Invalid: too large, not JSON, not a certificate, a key twice, or a key that is not signed.
    """
    if len(data) > MAX_FILE:
        raise Invalid(f"the certificate is larger than {MAX_FILE} bytes", where=name, remedy=_RESIGN)
    try:
        raw = json.loads(data, object_pairs_hook=_once)
        certificate = msgspec.convert(raw, Certificate)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise Invalid("this is not a certificate", why=str(error)[:200], where=name, remedy=_RESIGN) from error
    if canonical(raw) != canonical(certificate):
        raise Invalid("the certificate holds keys that nobody signed", where=name, remedy=_RESIGN)
    return certificate


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def new_key() -> Ed25519PrivateKey:
    """A fresh signing key for a site."""
    return Ed25519PrivateKey.generate()


def private_pem(key: Ed25519PrivateKey) -> bytes:
    """PKCS#8 PEM, not encrypted: it belongs into systemd credentials or a file of mode 0600."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key: Ed25519PublicKey) -> bytes:
    """What goes into a trust file."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def load_private_key(pem: bytes, name: str = "signing key") -> Ed25519PrivateKey:
    """The site's signing key. Raises Invalid when it is too large, garbage, encrypted or not Ed25519."""
    if len(pem) > MAX_PEM:
        raise Invalid("the signing key file is too large", where=name)
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Invalid("this is not a PEM private key", why=str(error)[:200], where=name) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Invalid(
            "the signing key is not Ed25519", where=name, remedy="make one: `openssl genpkey -algorithm ed25519`"
        )
    return key


def load_public_keys(pem: bytes, name: str = "trust file") -> list[Ed25519PublicKey]:
    """All Ed25519 public keys of a trust file, in order.

    Raises:
        Invalid: too large, no key, a block that is no Ed25519 public key (a private key does not belong there).
    """
    if len(pem) > MAX_PEM:
        raise Invalid("the trust file is too large", where=name)
    blocks = [_BEGIN + block for block in pem.split(_BEGIN)[1:]]
    if not blocks or len(blocks) > MAX_KEYS:
        raise Invalid(f"the trust file holds {len(blocks)} PEM blocks, must be 1 to {MAX_KEYS}", where=name)
    keys = []
    for number, block in enumerate(blocks, 1):
        if b"PRIVATE" in block.split(b"\n", 1)[0]:
            raise Invalid(
                f"block {number} is a private key", where=name, remedy="take it out; a trust file holds public keys"
            )
        try:
            key = load_pem_public_key(block[: block.find(b"\n", block.find(_END)) + 1 or None])
        except (ValueError, UnsupportedAlgorithm) as error:
            raise Invalid(f"block {number} is no PEM public key", why=str(error)[:200], where=name) from error
        if not isinstance(key, Ed25519PublicKey):
            raise Invalid(f"block {number} is not an Ed25519 key", where=name)
        keys.append(key)
    return keys
