"""NVIDIA's Xid numbers and what each asks for: a table of the protocol, kept apart from the check that reads it.

Source: NVIDIA's Xid catalogue as generated in gpud (2025-10-29) and the classes of AWS for driver r590; where they
differ the stronger remedy stands, because a host under acceptance has no tenant who would suffer from it.
"""

from __future__ import annotations

from typing import NamedTuple

from fleetd.model.check import Action


class Meaning(NamedTuple):
    """What the driver says, and what it asks for."""

    text: str
    action: Action


FATAL: dict[int, Meaning] = {
    # off the bus
    79: Meaning("GPU has fallen off the bus", Action.POWER_CYCLE),
    167: Meaning("PCIe fatal timeout", Action.POWER_CYCLE),
    # mechanical
    54: Meaning("auxiliary power is not connected", Action.RESEAT),
    # memory
    48: Meaning("double-bit ECC error", Action.RESET),
    63: Meaning("row remap recorded: reset before use", Action.RESET),
    64: Meaning("row remap failed", Action.RMA),
    92: Meaning("high single-bit ECC error rate", Action.RETEST),
    94: Meaning("contained memory error: reset before use", Action.RESET),
    95: Meaning("uncontained memory error", Action.RESET),
    140: Meaning("unrecovered ECC error", Action.RESET),
    156: Meaning("resource retirement event", Action.RESET),
    157: Meaning("resource retirement failure", Action.RMA),
    168: Meaning("reduced memory capacity", Action.RMA),
    171: Meaning("detail of an uncorrectable DRAM error", Action.RESET),
    172: Meaning("detail of an uncorrectable SRAM error", Action.RESET),
    # GSP and other firmware on the GPU
    62: Meaning("internal micro-controller halt", Action.RESET),
    119: Meaning("GSP RPC timeout", Action.RESET),
    120: Meaning("GSP error", Action.RESET),
    143: Meaning("GPU initialisation error", Action.RESET),
    169: Meaning("internal firmware failure", Action.RESET),
    # NVLink
    74: Meaning("NVLink error", Action.RESET),
    136: Meaning("NVLink training failed", Action.RESET),
    144: Meaning("NVLink 5 SAW error", Action.RESET),
    145: Meaning("NVLink 5 RLW error", Action.RESET),
    146: Meaning("NVLink 5 TLW error", Action.RESET),
    147: Meaning("NVLink 5 TREX error", Action.RESET),
    148: Meaning("NVLink 5 NVLPW_CTRL error", Action.RESET),
    149: Meaning("NVLink 5 NETIR error", Action.RESET),
    150: Meaning("NVLink 5 MSE error", Action.RESET),
    155: Meaning("NVLink: software-defined error", Action.RESET),
    # engines that hang
    46: Meaning("GPU stopped processing", Action.RESET),
    109: Meaning("context switch timeout", Action.RESET),
    110: Meaning("security fault", Action.RESET),
    158: Meaning("GPU fatal timeout", Action.RESET),
    # hints and others
    154: Meaning("the recovery action changed: do what gpu.recovery-action says", Action.RESET),
    159: Meaning("C2C link: check UVM", Action.REBOOT),
    165: Meaning("power smoothing lifetime exhausted", Action.RMA),
}

# Faults of an application, which say nothing about the metal unless they come in crowds on an idle host.
APPLICATION = frozenset({13, 31, 43, 45, 68, 69})

# Told for the record: NVIDIA says ignore or monitor (121 C2C, 137 NVLink, 162 to 164 power smoothing).
HARMLESS = frozenset({121, 137, 162, 163, 164})
