"""The signed, expiring proof that all of a suite passed on this very hardware."""

from __future__ import annotations

import msgspec


class CheckProof(msgspec.Struct, frozen=True, kw_only=True):
    """One verdict in a certificate. `evidence` is the sha256 of the canonical JSON of its readings."""

    check: str
    outcome: str
    measured: str
    expected: str
    evidence: str


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed, as canonical JSON (sorted keys, no spaces, UTF-8). Times are RFC 3339."""

    format: str  # "fleetd.certificate/1"
    id: str
    site: str
    host: str
    host_name: str
    serial: str
    uuid: str
    sku: str
    sku_digest: str
    suite: str
    fingerprint: str  # sha256 of `parts`
    parts: dict[str, tuple[str, ...]]  # "gpu": uuids, "gpu-serial", "nic", "nvme", "board"
    probe: str  # version and sha256 of the probe that read the facts
    report: str  # sha256 of the report
    boot_id: str
    nonce: str
    verdicts: tuple[CheckProof, ...]
    issued: str
    expires: str


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """Statement, signature (base64 of Ed25519 over the canonical statement) and the id of the key that made it.

    `key_id` is the first 16 hex digits of the sha256 of the raw public key. It only helps to find the key: a key that
    came with the file is never trusted.
    """

    statement: Statement
    key_id: str
    signature: str
