"""Every way fleetd can fail, as one tree. A caller needs to know two words: Temporary and Permanent.

::

    FleetError
    ├── Temporary                 the same call may succeed later
    │   ├── Unreachable           nobody answered on the wire
    │   ├── Busy                  it answered: not now (503, node busy, session table full)
    │   ├── DeadlineExceeded      it did not finish in the time it was given
    │   └── Held                  a brake is on; it goes on when that is lifted
    └── Permanent                 repeating the call changes nothing
        ├── AuthFailed            the login was refused
        ├── PinMismatch           the TLS certificate or SSH host key is not the one we pinned
        ├── Unsupported           the device cannot do this
        ├── Lied                  the device said yes, the read-back says no
        ├── Garbled               an answer outside the protocol, too large, or not parseable
        ├── IdentityUnproven      this peer is not proven to be the host we mean
        ├── Refused               a safety rule forbids it (frozen, leased, maintenance, real drive)
        ├── StaleClaim            another worker owns this host now
        ├── Conflict              the ledger holds something that contradicts the request
        ├── Invalid               the input is wrong; `where` names file:line or the field
        ├── NotFound              nothing of that name
        ├── Ambiguous             more than one thing of that name
        └── Denied                the principal may not do this

``what`` says what failed, ``why`` the cause as far as known, ``remedy`` what a person can do, best a command.
Each class carries a stable ``code`` (API problem, logs, docs/reference/errors.md) and the exit code of the hand.
"""

from __future__ import annotations

from typing import ClassVar


class FleetError(Exception):
    """Root of the tree. Raise a leaf, not this."""

    code: ClassVar[str] = "FLT-0001"
    title: ClassVar[str] = "fleetd failed"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    default_remedy: ClassVar[str] = "read `journalctl -u fleetd` around this time"

    def __init__(self, what: str, *, why: str = "", remedy: str = "", where: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.remedy = remedy or self.default_remedy
        self.where = where

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what}" + (f": {self.why}" if self.why else "")


class Temporary(FleetError):
    """The same call may succeed later. ``retry_after`` is in seconds, where the device told one."""

    code = "FLT-1000"
    title = "not now"
    status = 503
    retryable = True
    default_remedy = "wait; fleetd tries again by itself"

    def __init__(
        self, what: str, *, why: str = "", remedy: str = "", where: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(what, why=why, remedy=remedy, where=where)
        self.retry_after = retry_after


class Unreachable(Temporary):
    """Nobody answered on the wire."""

    code = "FLT-1001"
    title = "no answer on the wire"
    default_remedy = "check cable, switch port and power of the device; then `fleetctl host why HOST`"


class Busy(Temporary):
    """The device answered that it cannot serve now."""

    code = "FLT-1002"
    title = "the device is busy"


class DeadlineExceeded(Temporary):
    """Not finished in the time it was given."""

    code = "FLT-1003"
    title = "deadline exceeded"
    status = 504
    exit_code = 7


class Held(Temporary):
    """A brake is on: a destructive step waits for it, however long, within its state's deadline."""

    code = "FLT-1004"
    title = "held by a brake"
    default_remedy = "fleetctl thaw, when the reason for the freeze is gone"


class Permanent(FleetError):
    """Repeating the call changes nothing; a person or another step must act."""

    code = "FLT-2000"
    title = "cannot be done"


class AuthFailed(Permanent):
    """The device refused our login."""

    code = "FLT-2001"
    title = "login refused"
    default_remedy = (
        "check the credentials named in the inventory; at the BMC, reset the account to its factory password"
    )


class PinMismatch(Permanent):
    """The key a device shows is not the key that was pinned."""

    code = "FLT-2002"
    title = "the pinned key changed"
    default_remedy = "if the board was replaced: `fleetctl host maintenance HOST`, then bring it up again; if not: treat as an attack"


class Unsupported(Permanent):
    """The device does not have this function."""

    code = "FLT-2003"
    title = "the device cannot do this"
    status = 501


class Lied(Permanent):
    """The device confirmed, and the read-back shows that nothing happened."""

    code = "FLT-2004"
    title = "the device confirmed and did nothing"
    default_remedy = (
        "reset the BMC (`ipmitool mc reset cold` or its web page); if it lies again, update its firmware or RMA"
    )


class Garbled(Permanent):
    """An answer outside the protocol: too large, truncated, or not parseable."""

    code = "FLT-2005"
    title = "the answer makes no sense"


class IdentityUnproven(Permanent):
    """The peer is not proven to be the host we mean; nothing destructive may be done to it."""

    code = "FLT-2006"
    title = "identity not proven"
    default_remedy = "compare serial, UUID and MAC at the rack with the inventory; correct the inventory and apply it"


class Refused(Permanent):
    """A safety rule forbids it now."""

    code = "FLT-2007"
    title = "refused by a safety rule"
    status = 409
    exit_code = 6


class StaleClaim(Permanent):
    """Another worker owns this host now; what this one wanted to write is void."""

    code = "FLT-2008"
    title = "stale claim"
    status = 409
    exit_code = 6


class Conflict(Permanent):
    """The ledger holds something that contradicts the request."""

    code = "FLT-3001"
    title = "conflict"
    status = 409
    exit_code = 6


class Invalid(Permanent):
    """The input is wrong. ``where`` names file:line or the field."""

    code = "FLT-3002"
    title = "invalid input"
    status = 422
    exit_code = 2
    default_remedy = "correct the named place and run the same command again; nothing was changed"


class NotFound(Permanent):
    """Nothing of that name."""

    code = "FLT-3003"
    title = "not found"
    status = 404
    exit_code = 5
    default_remedy = "list what exists: `fleetctl host list`"


class Ambiguous(Permanent):
    """More than one thing of that name."""

    code = "FLT-3004"
    title = "ambiguous"
    status = 409
    exit_code = 5


class Denied(Permanent):
    """The principal may not do this."""

    code = "FLT-3005"
    title = "denied"
    status = 403
    exit_code = 4
    default_remedy = "use a token with the role this needs: `fleetd token create --role ROLE`"


def every_error() -> list[type[FleetError]]:
    """All leaves and branches, root first: docs and tests walk it."""
    found: list[type[FleetError]] = []
    queue: list[type[FleetError]] = [FleetError]
    while queue:
        cls = queue.pop(0)
        found.append(cls)
        queue.extend(cls.__subclasses__())
    return found
