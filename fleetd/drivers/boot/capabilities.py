"""The desk that the boot listener asks. The listener is a wire (HTTP); who may boot what is decided in lifecycle.

HTTP, all bounded to 64 KiB:

* ``GET /boot/<mac>.ipxe?uuid=&serial=`` -> 200 text: either a local-boot script (``exit 1``) or one that boots the deploy
  environment with ``fleetd.url=<base>`` and ``fleetd.token=<token>`` on the kernel's command line.
* ``GET /deploy/authorized_keys`` with ``Authorization: Bearer <token>`` -> 200 text, one public key line; 403 otherwise.
* ``POST /deploy/hello`` with the bearer token and a Hello as JSON -> 204; 403 (unknown, used, expired token), 422.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """What a booted host says of itself. `environment`: deploy (RAM) or disk (its own OS, seeded by write-image)."""

    environment: Literal["deploy", "disk"]
    mac: str
    serial: str
    uuid: str
    boot_id: str
    host_key: str  # "ssh-ed25519 AAAA… comment"
    ssh_port: int = 22


class BootScript(msgspec.Struct, frozen=True, kw_only=True):
    """`token` None: boot from the local disk."""

    host: str = ""
    token: str | None = None


class BootDesk(Protocol):
    async def script(self, mac: str, *, uuid: str, serial: str, source: str) -> BootScript:
        """What this MAC boots now. Unknown or unarmed: local boot, never an installer by accident."""

    async def authorized_keys(self, token: str, *, source: str) -> str:
        """The public key line of this boot. Raises Denied."""

    async def hello(self, token: str, hello: Hello, *, source: str) -> None:
        """A host came up; `source` is the address it called from. Raises Denied (audited) or Invalid."""
