"""What the trays of one NVL72 rack share: their NVLink fabric's cluster UUID; and what a mis-racked tray shows."""

from __future__ import annotations

import hashlib

HGX = "0" * 32  # an HGX host is its own domain: NVML shows zeros (captured)


def cluster_uuid(site: str, domain: str | None) -> str:
    """32 hex digits without dashes, the same for every tray of a domain; zeros where no domain is."""
    if domain is None:
        return HGX
    return hashlib.sha256(f"nvlink-domain/{site}/{domain}".encode()).hexdigest()[:32]


def foreign_uuid(site: str, domain: str | None, host: str) -> str:
    """What a tray shows that is cabled into another rack's switches: never its own domain's UUID."""
    return hashlib.sha256(f"foreign-domain/{site}/{domain}/{host}".encode()).hexdigest()[:32]
