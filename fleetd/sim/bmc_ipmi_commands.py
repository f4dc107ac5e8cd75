"""What a simulated BMC does when an IPMI command reaches it: the table of commands, acting on the SimHost machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

from fleetd.model.power import PowerState
from fleetd.sim.host import SimHost
from fleetd.wire import fru, ipmi, rmcp
from fleetd.wire.rakp import SUITES

USERS: Final = 10  # user ids; 1 is the nameless one, disabled
MAX_READ: Final = 64  # bytes of FRU data in one answer
_MANUFACTURER: Final = 343  # an enterprise number, shown by `mc info`

_LEVELS: Final = {"Operator": ipmi.OPERATOR, "ReadOnly": ipmi.USER}  # of the roles that another wire shows

Answer = tuple[int, bytes]  # completion code, data
_NO_ARGUMENT: Final[Answer] = (ipmi.WRONG_LENGTH, b"")
_INVALID: Final[Answer] = (ipmi.INVALID_FIELD, b"")


class Controller:
    """The state of one BMC that outlives sessions. `deaf_until` in loop seconds."""

    __slots__ = ("boot_efi", "boot_keep", "deaf_until", "host", "limits", "suites", "timer", "users")

    def __init__(self, host: SimHost, suites: tuple[int, ...]) -> None:
        self.host, self.suites = host, suites
        self.deaf_until = 0.0
        self.users: dict[int, str] = {}
        self.limits: dict[str, int] = {}
        self.boot_efi, self.boot_keep = False, 0
        self.timer: asyncio.TimerHandle | None = None

    def limit(self, name: str) -> int:
        """The highest privilege level of this user."""
        return self.limits.get(name, _LEVELS.get(self.host.roles.get(name, ""), ipmi.ADMINISTRATOR))

    def names(self) -> dict[int, str]:
        """User id -> name. Accounts that another wire made get the next free id."""
        self.users = {user: name for user, name in self.users.items() if name in self.host.accounts}
        known = set(self.users.values())
        for name in self.host.accounts:
            free = next((user for user in range(2, USERS + 1) if user not in self.users), None)
            if name not in known and free is not None:
                self.users[free] = name
        return self.users

    def close(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


Handler = Callable[[Controller, bytes], Answer]


class _Command(NamedTuple):
    privilege: int  # 0: also without a session (IPMI appendix G)
    handler: Handler


_TABLE: dict[tuple[int, int], _Command] = {}


def _command(network_function: int, command: int, privilege: int) -> Callable[[Handler], Handler]:
    def enter(handler: Handler) -> Handler:
        _TABLE[network_function, command] = _Command(privilege, handler)
        return handler

    return enter


def answer(controller: Controller, asked: rmcp.Message, privilege: int | None) -> Answer:
    """Do it. `privilege` None: the request came outside any session."""
    known = _TABLE.get((asked.network_function, asked.command))
    if known is None:
        return ipmi.INVALID_COMMAND, b""
    if known.privilege > (privilege or 0):
        return ipmi.NO_PRIVILEGE, b""
    return known.handler(controller, asked.data)


# --- without a login ------------------------------------------------------------------------------------------------


@_command(ipmi.APP, ipmi.CHANNEL_CAPABILITIES, 0)
def _capabilities(_: Controller, data: bytes) -> Answer:
    if len(data) != 2:
        return _NO_ARGUMENT
    # RMCP+ only: no 1.5 authentication type, users with names, IPMI 2.0 (IPMI 22.13)
    return ipmi.OK, bytes((1, 0x80, 0x04, 0x02, 0, 0, 0, 0))


@_command(ipmi.APP, ipmi.CIPHER_SUITES, 0)
def _cipher_suites(controller: Controller, data: bytes) -> Answer:
    if len(data) != 3:
        return _NO_ARGUMENT
    records = b"".join(
        ipmi.cipher_suite_record(suite.id, suite.authentication, suite.integrity, suite.confidentiality)
        for suite in SUITES.values()
        if suite.id in controller.suites
    )
    at = (data[2] & 0x3F) * 16
    return ipmi.OK, b"\x01" + records[at : at + 16]


@_command(ipmi.APP, ipmi.GET_SYSTEM_GUID, 0)
def _system_guid(controller: Controller, _: bytes) -> Answer:
    return ipmi.OK, ipmi.guid_bytes(controller.host.uuid)


# --- the BMC itself -------------------------------------------------------------------------------------------------


@_command(ipmi.APP, ipmi.GET_DEVICE_ID, ipmi.USER)
def _device_id(controller: Controller, _: bytes) -> Answer:
    parts = [int(part) if part.isdecimal() else 0 for part in controller.host.bmc_version.split(".")]
    major, minor, *rest = [*parts, 0, 0]
    minor_bcd = int(f"{minor % 100:02d}", 16)
    auxiliary = bytes(part & 0xFF for part in rest[:4]).ljust(4, b"\0")
    head = bytes((0x20, 0x01, major & 0x7F, minor_bcd, 0x02, 0x8C))  # FRU and SEL devices, chassis
    return ipmi.OK, head + _MANUFACTURER.to_bytes(3, "little") + b"\x01\x00" + auxiliary


@_command(ipmi.APP, ipmi.COLD_RESET, ipmi.ADMINISTRATOR)
def _cold_reset(controller: Controller, _: bytes) -> Answer:
    controller.host.log("bmc.reset")
    return ipmi.OK, b""


@_command(ipmi.APP, ipmi.GET_SYSTEM_INFO, ipmi.USER)
def _system_info(controller: Controller, data: bytes) -> Answer:
    if len(data) != 4:
        return _NO_ARGUMENT
    if data[1] != ipmi.SYSTEM_FIRMWARE_VERSION or data[2] > 1:
        return 0x80, b""  # parameter not supported (IPMI 22.14b)
    text = controller.host.bios_version.encode()[:30]
    blocks = bytes((0, len(text))) + text  # encoding ASCII
    return ipmi.OK, bytes((0x11, data[2])) + blocks.ljust(32, b"\0")[data[2] * 16 : data[2] * 16 + 16]


@_command(ipmi.STORAGE, ipmi.FRU_AREA_INFO, ipmi.USER)
def _fru_info(controller: Controller, data: bytes) -> Answer:
    if len(data) != 1:
        return _NO_ARGUMENT
    if data[0]:
        return ipmi.NOT_PRESENT, b""
    return ipmi.OK, len(_fru(controller)).to_bytes(2, "little") + b"\x00"


@_command(ipmi.STORAGE, ipmi.READ_FRU, ipmi.USER)
def _read_fru(controller: Controller, data: bytes) -> Answer:
    if len(data) != 4:
        return _NO_ARGUMENT
    whole, at, count = _fru(controller), data[1] | data[2] << 8, data[3]
    if data[0]:
        return ipmi.NOT_PRESENT, b""
    if count > MAX_READ:
        return ipmi.CANNOT_RETURN_LENGTH, b""
    if at >= len(whole):
        return ipmi.OUT_OF_RANGE, b""
    part = whole[at : at + count]
    return ipmi.OK, bytes((len(part),)) + part


def _fru(controller: Controller) -> bytes:
    host = controller.host
    wrong = host.fault("wrong-serial", fire=False)
    serial = host.serial if wrong is None else str(wrong.params.get("serial", f"OTHER{host.serial[-4:]}"))
    return fru.build(
        fru.Board(host.sku.vendor, f"{host.sku.model} board", f"B{serial}", "SIM-BOARD"),
        fru.Product(host.sku.vendor, host.sku.model, "SIM-PART", "1", serial),
    )


# --- chassis --------------------------------------------------------------------------------------------------------


@_command(ipmi.CHASSIS, ipmi.CHASSIS_STATUS, ipmi.USER)
def _status(controller: Controller, _: bytes) -> Answer:
    host = controller.host
    power = 0x40 | (host.power_state is PowerState.ON)  # policy: restore what was before (IPMI 28.2)
    identify = 0x40 | (0x20 if host.identify_led else 0)
    return ipmi.OK, bytes((power, 0, identify, 0))


@_command(ipmi.CHASSIS, ipmi.CHASSIS_CONTROL, ipmi.OPERATOR)
def _control(controller: Controller, data: bytes) -> Answer:
    if len(data) != 1:
        return _NO_ARGUMENT
    host, verb = controller.host, data[0] & 0x0F
    if verb > ipmi.SOFT_DOWN or verb == ipmi.DIAGNOSTIC:
        return _INVALID
    if verb == ipmi.POWER_CYCLE and host.power_state is not PowerState.ON:
        return ipmi.NOT_NOW, b""
    if host.fault("lying-bmc") is not None:
        return ipmi.OK, b""
    if verb == ipmi.POWER_UP:
        host.power_on()
    elif verb == ipmi.HARD_RESET:
        host.reset()
    else:
        host.power_off()
        if verb == ipmi.POWER_CYCLE:
            loop = asyncio.get_running_loop()
            controller.timer = loop.call_later(2 * host.timings.power, host.power_on)
    return ipmi.OK, b""


@_command(ipmi.CHASSIS, ipmi.CHASSIS_IDENTIFY, ipmi.OPERATOR)
def _identify(controller: Controller, data: bytes) -> Answer:
    if len(data) > 2:
        return _NO_ARGUMENT
    controller.host.set_identify(data[:1] != b"\x00" or data[1:] == b"\x01")
    return ipmi.OK, b""


@_command(ipmi.CHASSIS, ipmi.SET_BOOT_OPTIONS, ipmi.OPERATOR)
def _set_boot(controller: Controller, data: bytes) -> Answer:
    if not data:
        return _NO_ARGUMENT
    parameter, value = data[0] & 0x7F, data[1:]
    if parameter in (0, 4):  # set in progress, boot initiator acknowledge: accepted, nothing hangs on them
        return ipmi.OK, b""
    if parameter == ipmi.BOOT_VALID_CLEARING and len(value) == 1:
        controller.boot_keep = value[0]
        return ipmi.OK, b""
    if parameter != ipmi.BOOT_FLAGS:
        return 0x80, b""  # parameter not supported (IPMI 28.12)
    if len(value) != 5:
        return _NO_ARGUMENT
    device = ipmi.BOOT_DEVICE.get(value[1] & ipmi.SELECTOR_MASK)
    if device is None and value[1] & ipmi.SELECTOR_MASK:
        return _INVALID
    if controller.host.fault("lying-bmc") is not None:
        return ipmi.OK, b""
    controller.boot_efi = bool(value[0] & ipmi.FLAGS_EFI)
    if device is not None and value[0] & ipmi.FLAGS_VALID:
        controller.host.set_boot_once(device)
    else:
        controller.host.boot_once = None
    return ipmi.OK, b""


@_command(ipmi.CHASSIS, ipmi.GET_BOOT_OPTIONS, ipmi.OPERATOR)
def _get_boot(controller: Controller, data: bytes) -> Answer:
    if len(data) != 3:
        return _NO_ARGUMENT
    parameter = data[0] & 0x7F
    if parameter == ipmi.BOOT_FLAGS:
        device = controller.host.boot_once
        flags = 0 if device is None else ipmi.FLAGS_VALID | (ipmi.FLAGS_EFI if controller.boot_efi else 0)
        value = bytes((flags, 0 if device is None else ipmi.BOOT_SELECTOR[device], 0, 0, 0))
    elif parameter == ipmi.BOOT_VALID_CLEARING:
        value = bytes((controller.boot_keep,))
    elif parameter in (0, 4):
        value = bytes(1 if parameter == 0 else 2)
    else:
        return 0x80, b""
    return ipmi.OK, bytes((1, parameter)) + value


# --- users ----------------------------------------------------------------------------------------------------------


@_command(ipmi.APP, ipmi.GET_USER_ACCESS, ipmi.OPERATOR)
def _get_access(controller: Controller, data: bytes) -> Answer:
    if len(data) != 2 or not 1 <= data[1] & 0x3F <= USERS:
        return _INVALID
    name = controller.names().get(data[1] & 0x3F)
    rights = 0 if name is None else 0x10 | controller.limit(name)
    enabled = 0x40 if name is not None and controller.host.may_log_in(name) else 0x80
    return ipmi.OK, bytes((USERS, enabled | len(controller.users), 1, rights))


@_command(ipmi.APP, ipmi.SET_USER_ACCESS, ipmi.ADMINISTRATOR)
def _set_access(controller: Controller, data: bytes) -> Answer:
    if len(data) < 3:
        return _NO_ARGUMENT
    name = controller.names().get(data[1] & 0x3F)
    if name is None:
        return _INVALID
    controller.limits[name] = data[2] & 0x0F
    return ipmi.OK, b""


@_command(ipmi.APP, ipmi.GET_USER_NAME, ipmi.OPERATOR)
def _get_name(controller: Controller, data: bytes) -> Answer:
    if len(data) != 1 or not 1 <= data[0] & 0x3F <= USERS:
        return _INVALID
    name = controller.names().get(data[0] & 0x3F, "").encode()
    return ipmi.OK, name[:16].ljust(16, b"\0")


@_command(ipmi.APP, ipmi.SET_USER_NAME, ipmi.ADMINISTRATOR)
def _set_name(controller: Controller, data: bytes) -> Answer:
    if len(data) != 17 or not 2 <= data[0] & 0x3F <= USERS:
        return _INVALID
    user, name = data[0] & 0x3F, data[1:].rstrip(b"\0").decode("latin-1")
    names, accounts = controller.names(), controller.host.accounts
    if names.get(user) == name:
        return ipmi.OK, b""
    if name in accounts:
        return _INVALID
    password = accounts.pop(names.pop(user, ""), "")
    if name:
        names[user], accounts[name] = name, password
    controller.host.log("account.name", user=user, username=name)
    return ipmi.OK, b""


@_command(ipmi.APP, ipmi.SET_USER_PASSWORD, ipmi.ADMINISTRATOR)
def _set_password(controller: Controller, data: bytes) -> Answer:
    if len(data) < 2:
        return _NO_ARGUMENT
    name, operation = controller.names().get(data[0] & 0x3F), data[1] & 0x03
    if name is None:
        return _INVALID
    if operation in (ipmi.PASSWORD_DISABLE, ipmi.PASSWORD_ENABLE):
        (controller.host.disabled.add if operation == ipmi.PASSWORD_DISABLE else controller.host.disabled.discard)(name)
        return ipmi.OK, b""
    if len(data) - 2 != (20 if data[0] & ipmi.PASSWORD_20_BYTES else 16):
        return _NO_ARGUMENT
    password = data[2:].rstrip(b"\0").decode("utf-8", "replace")
    if operation == ipmi.PASSWORD_TEST:
        return (ipmi.OK if controller.host.accounts[name] == password else ipmi.PASSWORD_WRONG), b""
    controller.host.set_password(name, password)
    return ipmi.OK, b""
