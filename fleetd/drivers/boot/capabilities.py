"""The desk that the boot listener asks. The listener is a wire (HTTP); who may boot what is decided in lifecycle.

HTTP, all bounded to 64 KiB:

* ``GET /boot/<mac>.ipxe?uuid=&serial=`` -> 200 text: either a local-boot script (``exit 1``) or one that boots the deploy
  environment with ``fleetd.url=<base>`` and ``fleetd.token=<token>`` on the kernel's command line.
* ``GET /deploy/authorized_keys`` with ``Authorization: Bearer <token>`` -> 200 text, one public key line; 403 otherwise.
* ``POST /deploy/hello`` with the bearer token and a Hello as JSON -> 204; 403 (unknown, used, expired token), 422.
* ``GET /deploy/vmlinuz``, ``/deploy/initrd``, ``/deploy/deploy.iso``, ``/boot/snponly.efi``, ``/boot/ipxe.efi``: files, the same for everybody,
  nothing secret in them; HEAD and Range.
* ``GET /images/<sha256>?ticket=<ticket>`` -> the image file by sendfile; HEAD and Range; 403 without a ticket of an open
  boot for this very image; 503 with Retry-After while the server or the rack is full (the place in the queue is kept).
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
    sees: dict[str, str] = {}  # what else it found (memory, firmware kind, drives …): for people, never for a decision


class BootHost(msgspec.Struct, frozen=True, kw_only=True):
    """A host that may ask the network for a boot: for DHCP reservations and to name a MAC in the trail."""

    name: str
    mac: str
    rack: str
    site: str


class ImageGrant(msgspec.Struct, frozen=True, kw_only=True):
    """Who fetches: `host` and `rack` are what admission counts by. `expires`: wall second of the ticket's own end."""

    host: str
    rack: str
    expires: float | None = None


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """Something the boot service saw of a machine on its way up. `stage`: dhcp, tftp, script, kernel, initrd, iso, image;
    or relay: the `source` is a DHCP relay, for machines that nobody tells.

    `mac` where the wire tells it, else empty; `source` an address; `detail` one line; `at` wall seconds.
    """

    stage: str
    mac: str = ""
    source: str = ""
    detail: str = ""
    at: float


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

    async def grant(self, digest: str, ticket: str, *, source: str) -> ImageGrant:
        """Who may fetch the image with this sha256 now. Raises Denied (audited)."""

    async def hosts(self) -> list[BootHost]:
        """All hosts of the inventory that have a boot MAC and are not retired."""

    async def seen(self, sightings: list[Sighting]) -> None:
        """Add to the trail that `fleetctl boot doctor` reads. Never raises for what a sighting says."""
