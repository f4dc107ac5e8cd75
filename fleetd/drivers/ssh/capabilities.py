"""What the house may ask of a host over SSH: run one of our zipapps, with an order on its standard input.

Raises: Unreachable, DeadlineExceeded, Busy (the host side carries out another order) (Temporary); PinMismatch (host key is not
the one phoned home), AuthFailed, Garbled (too much or unreadable output), Refused (the host side refused the order), Permanent
with the exit code and stderr's tail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import msgspec

Environment = Literal["deploy", "disk"]
Progress = Callable[[dict[str, Any]], None]


class ShellTarget(msgspec.Struct, frozen=True, kw_only=True):
    """A host that phoned home. `host_key` is its public key line ("ssh-ed25519 AAAA…"), `private_key` ours (OpenSSH PEM).

    `environment` is what the phone-home proved: "deploy" only for a boot that fleetd armed with a nonce.
    """

    host: str  # host id, for messages
    address: str
    port: int
    host_key: str
    private_key: str
    environment: Environment
    username: str = "root"

    def __repr__(self) -> str:
        return f"ShellTarget({self.host}, {self.address}:{self.port}, {self.environment})"


class Zipapp(msgspec.Struct, frozen=True):
    """A host-side program: `name` ("report", "host"), its bytes and their sha256 hex."""

    name: str
    data: bytes
    digest: str


class Shell(Protocol):
    async def run(
        self,
        app: Zipapp,
        arguments: tuple[str, ...],
        *,
        stdin: bytes = b"",
        timeout: float,
        max_output: int,
        progress: Progress | None = None,
        outlives_us: bool = False,
    ) -> bytes:
        """Push the zipapp if this host lacks it (by digest), run `python3 -I APP ARGUMENTS`, return its stdout.

        stderr lines that are JSON objects go to `progress`; the rest is kept for the error message (bounded).
        Whoever stops waiting (a deadline, a cancelled task) kills the program, unless it `outlives_us`.
        """

    async def close(self) -> None:
        """Drop the connection; never raises."""


class Shells(Protocol):
    async def connect(self, target: ShellTarget, *, timeout: float) -> Shell:
        """Connect with exactly this host key and this client key; no agent, no known_hosts, no password."""

    async def close(self) -> None:
        """Drop all kept connections."""
