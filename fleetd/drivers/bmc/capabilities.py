"""What the house may ask of a BMC. Semantics stand here; a driver that passes tests/conformance keeps them.

All calls: `timeout` in seconds bounds the whole call with its retries and read-backs. They raise Unreachable, Busy,
DeadlineExceeded (Temporary), AuthFailed, PinMismatch, Unsupported, Lied, Garbled (Permanent), nothing else.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from fleetd.model.bmc import BmcAccount, Login, SystemInfo
from fleetd.model.bmc import Protocol as WireName
from fleetd.model.power import BootDevice, PowerState, PowerVerb


class BmcTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Where a BMC is and how to log in. `tls_pin`: sha256 hex of its certificate (DER); empty only while enrolling."""

    protocol: WireName
    host: str
    port: int
    login: Login
    tls_pin: str = ""


class PowerControl(Protocol):
    async def power_state(self, *, timeout: float) -> PowerState:
        """Read it now. A transit or null is UNKNOWN, never a guess."""

    async def power(self, verb: PowerVerb, *, timeout: float) -> PowerState:
        """Do it and read back until it is so. Returns the read-back state (ON or OFF).

        `on` of a running host and `off` of a stopped one return at once. CYCLE is off, confirmed, then on.
        Raises Lied when the BMC confirmed and the state never followed within the timeout.
        """


class BootControl(Protocol):
    async def set_boot_once(self, device: BootDevice, *, timeout: float, uefi: bool = True) -> None:
        """The next boot only. Reads the selector back; raises Lied when it did not stick.

        `uefi`: what an IPMI BMC is told of the firmware's mode; a Redfish one keeps the mode its firmware is set to.
        """


class Locate(Protocol):
    async def identify(self, on: bool, *, timeout: float) -> None:
        """The identify LED on or off."""


class Inventory(Protocol):
    async def system(self, *, timeout: float) -> SystemInfo:
        """Identity and versions of the host behind this BMC (never of a GPU baseboard beside it)."""


class Accounts(Protocol):
    async def accounts(self, *, timeout: float) -> tuple[BmcAccount, ...]:
        """Every account that this wire tells, disabled ones too, in the BMC's order; slots that nobody has are left out.

        Never empty, never cut short, at most 64. Raises Unsupported where the BMC keeps no list of its own (none at all,
        or all of them come from a directory), Garbled where it tells more than 64.
        """

    async def set_password(self, password: str, *, timeout: float) -> None:
        """Give our own account this password. The caller stored it before, and proves it after by a new session."""


class Reset(Protocol):
    async def reset_bmc(self, *, timeout: float) -> None:
        """Restart the BMC itself; returns when the command is accepted. The host keeps running."""


class VirtualMedia(Protocol):
    """A CD that is an ISO at a URL. Optional: where wire or BMC has none, both raise Unsupported with the way around it."""

    async def insert_media(self, url: str, *, timeout: float) -> None:
        """Put this ISO (http or https) into the virtual CD drive, in place of what is in it, and read it back.

        Raises Lied when the BMC confirmed and does not show it. The boot itself is `set_boot_once(BootDevice.CD)`.
        """

    async def eject_media(self, *, timeout: float) -> None:
        """Empty the virtual CD drive and read it back; an empty one is left alone."""


class Bmc(PowerControl, BootControl, VirtualMedia, Locate, Inventory, Accounts, Reset, Protocol):
    """One logged-in session with one BMC."""

    async def close(self) -> None:
        """Log out (session slots are few: 4 to 16) and drop the connection. Never raises; safe to call twice."""


class BmcDrivers(Protocol):
    """The factory that the composition root hands to lifecycle; picks the wire by `target.protocol`."""

    async def read_pin(self, target: BmcTarget, *, timeout: float) -> str:
        """sha256 hex of the certificate that the BMC shows now, without logging in; empty for a wire without TLS."""

    async def open(self, target: BmcTarget, *, timeout: float) -> Bmc:
        """Log in. With a pin, no byte of the login is sent to a peer that shows another certificate (PinMismatch)."""

    async def close(self) -> None:
        """Close everything that is kept."""
