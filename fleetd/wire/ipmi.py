"""The numbers and layouts of the IPMI commands that fleetd uses, and what a BMC's codes mean in words.

Both sides need the same table: the driver asks by it, the simulator answers by it.
"""

from __future__ import annotations

import uuid
from typing import Final, NamedTuple

from fleetd.kit.errors import Garbled
from fleetd.model.power import BootDevice

# Network functions (IPMI 5.1)
CHASSIS: Final = 0x00
APP: Final = 0x06
STORAGE: Final = 0x0A

# Commands of CHASSIS (IPMI 28)
CHASSIS_STATUS: Final = 0x01
CHASSIS_CONTROL: Final = 0x02
CHASSIS_IDENTIFY: Final = 0x04
SET_BOOT_OPTIONS: Final = 0x08
GET_BOOT_OPTIONS: Final = 0x09

# Commands of APP (IPMI 20, 22)
GET_DEVICE_ID: Final = 0x01
COLD_RESET: Final = 0x02
GET_DEVICE_GUID: Final = 0x08
GET_SYSTEM_GUID: Final = 0x37
CHANNEL_CAPABILITIES: Final = 0x38
SET_PRIVILEGE: Final = 0x3B
CLOSE_SESSION: Final = 0x3C
GET_CHANNEL_ACCESS: Final = 0x41
GET_CHANNEL_INFO: Final = 0x42
SET_USER_ACCESS: Final = 0x43
GET_USER_ACCESS: Final = 0x44
SET_USER_NAME: Final = 0x45
GET_USER_NAME: Final = 0x46
SET_USER_PASSWORD: Final = 0x47
CIPHER_SUITES: Final = 0x54
GET_SYSTEM_INFO: Final = 0x59

# Commands of STORAGE (IPMI 34)
FRU_AREA_INFO: Final = 0x10
READ_FRU: Final = 0x11

# Privilege levels (IPMI 6.8)
USER: Final = 2
OPERATOR: Final = 3
ADMINISTRATOR: Final = 4

THIS_CHANNEL: Final = 0x0E

# Get User Access (IPMI 22.27): the low four bits of byte 4, by channel
USER_LEVELS: Final = {1: "callback", 2: "user", 3: "operator", 4: "administrator", 5: "oem", 15: "no access"}
NO_ACCESS: Final = 15
USER_DISABLED: Final = 2  # bits 7:6 of byte 2; 0 is "not told", which is no "disabled"
MESSAGING: Final = 0x10  # byte 4: the user may send IPMI messages, that is, log in over this channel

# Chassis Control (IPMI 28.3)
POWER_DOWN, POWER_UP, POWER_CYCLE, HARD_RESET, DIAGNOSTIC, SOFT_DOWN = range(6)

# Set User Password operations (IPMI 22.30)
PASSWORD_DISABLE, PASSWORD_ENABLE, PASSWORD_SET, PASSWORD_TEST = range(4)
PASSWORD_20_BYTES: Final = 0x80
PASSWORD_WRONG: Final = 0x80  # completion code of a test
PASSWORD_WRONG_SIZE: Final = 0x81

# Boot flags, parameter 5 (IPMI 28.13, table 28-14)
BOOT_FLAGS: Final = 5
BOOT_VALID_CLEARING: Final = 3  # parameter 3; bit 3: do not forget the flags 60 s after they were set
KEEP_ON_TIMEOUT: Final = 0x08
FLAGS_VALID: Final = 0x80
FLAGS_PERSISTENT: Final = 0x40
FLAGS_EFI: Final = 0x20
SELECTOR_MASK: Final = 0x3C
BOOT_SELECTOR: Final = {
    BootDevice.NETWORK: 0x04,
    BootDevice.DISK: 0x08,
    BootDevice.CD: 0x14,
    BootDevice.BIOS_SETUP: 0x18,
}
BOOT_DEVICE: Final = {selector: device for device, selector in BOOT_SELECTOR.items()}

SYSTEM_FIRMWARE_VERSION: Final = 1  # Get System Info parameter (IPMI 22.14)

# Completion codes (IPMI 5.2)
OK: Final = 0x00
NODE_BUSY: Final = 0xC0
INVALID_COMMAND: Final = 0xC1
WRONG_LENGTH: Final = 0xC7
TOO_LONG: Final = 0xC8
OUT_OF_RANGE: Final = 0xC9
CANNOT_RETURN_LENGTH: Final = 0xCA
NOT_PRESENT: Final = 0xCB
INVALID_FIELD: Final = 0xCC
NO_PRIVILEGE: Final = 0xD4
NOT_NOW: Final = 0xD5

CODE_TEXT: Final = {
    0xC0: "node busy",
    0xC1: "invalid command",
    0xC2: "command invalid for this LUN",
    0xC3: "timeout while processing the command",
    0xC4: "out of space",
    0xC5: "reservation cancelled",
    0xC6: "request data truncated",
    0xC7: "request data length invalid",
    0xC8: "request data field length limit exceeded",
    0xC9: "parameter out of range",
    0xCA: "cannot return that many bytes",
    0xCB: "sensor, data or record not present",
    0xCC: "invalid data field in request",
    0xCD: "command illegal for this sensor or record",
    0xCE: "response could not be provided",
    0xCF: "cannot execute a duplicated request",
    0xD0: "the SDR repository is being updated",
    0xD1: "the BMC is in firmware update mode",
    0xD2: "the BMC is initialising",
    0xD3: "destination unavailable",
    0xD4: "insufficient privilege level",
    0xD5: "not supported in the present state",
    0xD6: "the function is disabled",
    0xFF: "unspecified error",
}

# Codes after which the same request may succeed a moment later.
CODES_BUSY: Final = frozenset((0xC0, 0xC3, 0xC4, 0xC5, 0xCE, 0xCF, 0xD0, 0xD1, 0xD2, 0xD5, 0xFF))

# RMCP+ and RAKP status codes (IPMI 13.24, table 13-15)
STATUS_OK: Final = 0x00
STATUS_NO_RESOURCES: Final = 0x01
STATUS_BAD_SESSION: Final = 0x02
STATUS_BAD_AUTHENTICATION: Final = 0x04
STATUS_BAD_INTEGRITY: Final = 0x05
STATUS_BAD_ROLE: Final = 0x09
STATUS_NO_PRIVILEGE: Final = 0x0A
STATUS_NO_RESOURCES_AT_ROLE: Final = 0x0B
STATUS_BAD_NAME: Final = 0x0D
STATUS_BAD_CODE: Final = 0x0F
STATUS_BAD_CONFIDENTIALITY: Final = 0x10
STATUS_NO_SUITE: Final = 0x11

STATUS_TEXT: Final = {
    0x01: "insufficient resources to create a session",
    0x02: "invalid session id",
    0x03: "invalid payload type",
    0x04: "invalid authentication algorithm",
    0x05: "invalid integrity algorithm",
    0x06: "no matching authentication payload",
    0x07: "no matching integrity payload",
    0x08: "inactive session id",
    0x09: "invalid role",
    0x0A: "unauthorised role or privilege level",
    0x0B: "insufficient resources for a session of this role",
    0x0C: "invalid name length",
    0x0D: "unauthorised name",
    0x0E: "unauthorised GUID",
    0x0F: "invalid integrity check value",
    0x10: "invalid confidentiality algorithm",
    0x11: "no cipher suite match",
    0x12: "illegal or unrecognised parameter",
}

# Statuses of an Open Session response that mean: propose other algorithms.
STATUSES_OTHER_SUITE: Final = frozenset((0x03, 0x04, 0x05, 0x06, 0x07, 0x10, 0x11, 0x12))


def code_text(code: int) -> str:
    """`node busy (0xc0)`."""
    return f"{CODE_TEXT.get(code, 'a code of this command or vendor')} ({code:#04x})"


def status_text(status: int) -> str:
    """`unauthorised name (0x0d)`."""
    return f"{STATUS_TEXT.get(status, 'an unknown status')} ({status:#04x})"


# --- Get User Access (IPMI 22.27) -----------------------------------------------------------------------------------


class UserAccess(NamedTuple):
    """What one user may do on the channel that was asked about. `users`: how many ids this BMC has (six bits)."""

    users: int
    level: int
    enabled: bool

    @property
    def role(self) -> str:
        """Its privilege limit in the standard's word."""
        return USER_LEVELS.get(self.level, f"level {self.level}")


def read_user_access(data: bytes) -> UserAccess:
    """The four bytes after the completion code. Raises Garbled."""
    if len(data) < 4:
        raise Garbled(f"a user access of {len(data)} bytes")
    enabled = data[1] >> 6 != USER_DISABLED and bool(data[3] & MESSAGING)
    return UserAccess(data[0] & 0x3F, data[3] & 0x0F, enabled)


# --- Get Channel Cipher Suites (IPMI 22.15) -------------------------------------------------------------------------


def cipher_suite_record(suite_id: int, authentication: int, integrity: int, confidentiality: int) -> bytes:
    """One standard record: start tag C0h, id, then algorithm bytes tagged by their two top bits (IPMI 22.15.1)."""
    return bytes((0xC0, suite_id, authentication, 0x40 | integrity, 0x80 | confidentiality))


def read_cipher_suites(data: bytes) -> frozenset[int]:
    """Ids of the standard suites in a list of records. Anything we cannot follow ends the list."""
    found: set[int] = set()
    at = 0
    while at + 1 < len(data):
        tag = data[at]
        if tag == 0xC0:
            found.add(data[at + 1])
            at += 2
        elif tag == 0xC1:  # OEM: id and three bytes of enterprise number
            at += 5
        else:
            break
        while at < len(data) and data[at] not in (0xC0, 0xC1):
            at += 1
    return frozenset(found)


# --- GUIDs ----------------------------------------------------------------------------------------------------------


def guid_bytes(text: str) -> bytes:
    """A UUID in the byte order that BMCs send: SMBIOS order, the first three fields little-endian (SMBIOS 7.2.1)."""
    return uuid.UUID(text).bytes_le


def guid_text(data: bytes) -> str:
    """Lower case with dashes, as `dmidecode -s system-uuid` prints it on the same host.

    IPMI 20.8 draws another order, but BMCs copy the SMBIOS record; guessing by the version nibble would make a
    UUID without one look different on some hosts. A vendor that differs is a quirk.

    Raises:
        Garbled: not 16 bytes.
    """
    if len(data) != 16:
        raise Garbled(f"a GUID of {len(data)} bytes")
    return str(uuid.UUID(bytes_le=data))
