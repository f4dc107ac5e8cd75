"""The BMC as the inventory names it, and what it tells of its host."""

from __future__ import annotations

from typing import Literal

import msgspec

from fleetd.model.power import PowerState

Protocol = Literal["redfish", "ipmi"]
STANDARD_PORT: dict[str, int] = {"redfish": 443, "ipmi": 623}


class BmcSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From the inventory. `address` is host or host:port; `credentials` names a set of factory credentials."""

    protocol: Protocol
    address: str
    credentials: str

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0] if ":" in self.address else self.address

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2]) if ":" in self.address else STANDARD_PORT[self.protocol]


class Login(msgspec.Struct, frozen=True):
    """One account. repr hides the password: logs, tracebacks and evidence show it never."""

    username: str
    password: str

    def __repr__(self) -> str:
        return f"Login(username={self.username!r}, password=***)"


MAX_ACCOUNTS = 64  # of one BMC; IPMI counts them with six bits, vendors' tables hold 10 to 32
_LONGEST = 64  # characters of an id, a name, a role


class BmcAccount(msgspec.Struct, frozen=True, kw_only=True):
    """One account as the BMC tells it, made printable by `told`; who made it nobody can tell.

    `id`: the user id (IPMI) or the resource's id (Redfish), both of which may be reused. `role`: lower case:
    `administrator`, `operator`, `user` or `readonly`, `no access`, or the vendor's own. `enabled`: it may log in.
    """

    id: str
    name: str
    role: str
    enabled: bool


def told(text: str) -> str:
    """One printable line of at most 64 characters; what is not printable is escaped, so that two names stay two."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: _LONGEST + 1])
    return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…"


class SystemInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a BMC says of the host behind it. Absent values are empty; a placeholder counts as absent."""

    manufacturer: str = ""
    model: str = ""
    serial: str = ""
    uuid: str = ""  # lower case with dashes
    bios_version: str = ""
    bmc_version: str = ""
    power: PowerState = PowerState.UNKNOWN


_PLACEHOLDERS = frozenset(
    {
        "",
        "none",
        "null",
        "n/a",
        "na",
        "not specified",
        "to be filled by o.e.m.",
        "to be filled",
        "default string",
        "system serial number",
        "0123456789",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "03000200-0400-0500-0006-000700080009",
    }
)


def is_placeholder(text: str) -> bool:
    """True for what boards ship instead of an identity (SMBIOS fields left unprogrammed): it proves nothing."""
    lowered = text.strip().lower()
    return lowered in _PLACEHOLDERS or set(lowered) <= set("0-. xf") or lowered.startswith("to be filled")
