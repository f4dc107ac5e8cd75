"""A boot that fleetd started: armed with a nonce before power-on, proven by the phone-home that returns it."""

from __future__ import annotations

from typing import Literal

import msgspec

Environment = Literal["deploy", "disk"]


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """One armed boot. Only `token_hash` (sha256 hex) is stored; the token itself lives in the boot script.

    `private_key` is the sealed client key of this boot (it lives as long as the boot). Times in wall seconds.
    """

    id: str
    host: str
    environment: Environment
    token_hash: str
    public_key: str
    private_key: str  # sealed
    armed: float
    expires: float
    intent: str  # of the step that started it
    expected_host_key: str = ""  # disk boots: the key that was seeded; empty for deploy
    met: float | None = None
    source: str = ""  # address the hello came from
    ssh_port: int = 0
    host_key: str = ""
    boot_id: str = ""
    serial: str = ""
    uuid: str = ""
    mac: str = ""
    contested: str = ""  # a second machine came as this host while this boot was up: which of them is real nobody knows
    closed: float | None = None  # a newer boot or a power-off ended it
    version: int = 1


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A daemon's hold on a host's worker. Every write of the worker carries `token` and is refused when stale."""

    host: str
    owner: str
    token: int
    expires: float
