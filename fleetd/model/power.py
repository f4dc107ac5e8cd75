"""Power, as the wires report it and as a technician asks for it."""

from __future__ import annotations

from enum import StrEnum


class PowerState(StrEnum):
    """What a read-back said. `unknown` also stands for a transit (PoweringOn, null): poll again, never guess."""

    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"


class PowerVerb(StrEnum):
    """What may be asked. Each is idempotent: `on` of a running host is no error."""

    ON = "on"
    OFF = "off"  # hard, at once
    SOFT = "soft"  # ask the operating system
    CYCLE = "cycle"  # off, confirmed, then on: devices lose power
    RESET = "reset"  # warm


class BootDevice(StrEnum):
    """Where the next boot comes from, once."""

    NETWORK = "network"
    DISK = "disk"
    CD = "cd"
    BIOS_SETUP = "bios-setup"
