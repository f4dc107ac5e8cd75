"""The TPM after a tenant: cleared, and seen to be clear. Raw TPM 2.0 commands, so that no tool has to be there.

Numbers are of the TCG's TPM 2.0 Library specification, parts 2 (structures) and 3 (commands), and of the Physical
Presence Interface specification 1.3 for the request that only the firmware can carry out, at the next boot.
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from . import devices

Transmit = Callable[[bytes], bytes]
NO_SESSIONS, SESSIONS = 0x8001, 0x8002
CLEAR, CLEAR_CONTROL, GET_CAPABILITY = 0x126, 0x127, 0x17A
LOCKOUT, PLATFORM, PASSWORD_SESSION = 0x4000000A, 0x4000000C, 0x40000009
_HANDLES, _PROPERTIES = 1, 6  # TPM_CAP
_PERMANENT, _MANUFACTURER = 0x200, 0x105  # TPM_PT
_PERSISTENT, _OWNERS_END = 0x81000000, 0x81800000  # behind that lie the platform's own
_OWNER, _ENDORSEMENT, _LOCKOUT, _DISABLE_CLEAR, _IN_LOCKOUT = 1, 2, 4, 1 << 8, 1 << 9  # TPMA_PERMANENT
MAX_ANSWER, ANSWER_TIME = 4096, 180.0  # bytes, s: a clear makes a new storage seed
_CLASS = "/sys/class/tpm/tpm0"
_PPI_CLEAR = 22  # enable, activate and clear; of a TPM 2.0: lift the ban on clearing, and clear
_CODES = {
    0x120: "disabled: clearing is forbidden until the platform allows it",
    0x12F: "its authorization is not available",
    0x921: "in lockout after too many wrong passwords",
    0x100: "not started by the firmware",
}


class Refused(OSError):
    """The TPM answered no. `code` is its response code."""

    def __init__(self, what: str, code: int) -> None:
        # format-one codes carry the parameter or session number in their upper bits (part 2, section 6.6)
        plain = code & 0x0BF if code & 0x080 else code
        why = "wrong authorization, a password is set" if plain in (0x08E, 0x0A2) else _CODES.get(code, "refused")
        super().__init__(5, f"{what}: {why} (0x{code:03x})")
        self.code = code


class State(NamedTuple):
    """TPMA_PERMANENT, and the persistent objects that an owner made."""

    attributes: int
    owned: tuple[int, ...]

    @property
    def clean(self) -> bool:
        return not self.attributes & (_OWNER | _ENDORSEMENT | _LOCKOUT) and not self.owned

    def left(self) -> str:
        """What of an owner is still there, for a reason."""
        names = {_OWNER: "owner password", _ENDORSEMENT: "endorsement password", _LOCKOUT: "lockout password"}
        found = [name for bit, name in names.items() if self.attributes & bit]
        if self.owned:
            found.append(f"{len(self.owned)} persistent objects")
        if self.attributes & _DISABLE_CLEAR:
            found.append("clearing disabled")
        if self.attributes & _IN_LOCKOUT:
            found.append("in lockout")
        return ", ".join(found)


def command(code: int, body: bytes, tag: int = NO_SESSIONS) -> bytes:
    """Part 1, section 18: tag, size, command code, then handles, sessions and parameters."""
    return struct.pack(">HII", tag, 10 + len(body), code) + body


def with_password(code: int, handle: int, parameters: bytes = b"", password: bytes = b"") -> bytes:
    """A command on a handle that is authorized by a password session (part 1, section 19.4)."""
    session = struct.pack(">IHBH", PASSWORD_SESSION, 0, 0, len(password)) + password
    return command(code, struct.pack(">II", handle, len(session)) + session + parameters, SESSIONS)


def answer(transmit: Transmit, what: str, sent: bytes) -> bytes:
    """What follows the header. Raises Refused; OSError for an answer that is none."""
    got = transmit(sent)
    if len(got) < 10:
        raise OSError(5, f"{what}: the TPM's answer is too short")
    _, size, code = struct.unpack_from(">HII", got)
    if size != len(got):
        raise OSError(5, f"{what}: the TPM's answer is malformed")
    if code:
        raise Refused(what, code)
    return got[10:]


def _capability(transmit: Transmit, kind: int, first: int, count: int) -> bytes:
    """TPM2_GetCapability; returns the list without its kind. Raises OSError."""
    body = answer(transmit, "TPM2_GetCapability", command(GET_CAPABILITY, struct.pack(">III", kind, first, count)))
    if len(body) < 9 or struct.unpack_from(">I", body, 1)[0] != kind:
        raise OSError(5, "TPM2_GetCapability: the TPM's answer is malformed")
    return body[5:]


def _property(transmit: Transmit, which: int) -> int:
    body = _capability(transmit, _PROPERTIES, which, 1)
    if len(body) < 12:
        raise OSError(5, "TPM2_GetCapability: the TPM's answer is malformed")
    count, name, value = struct.unpack_from(">III", body)
    if count != 1 or name != which:
        raise OSError(5, f"TPM2_GetCapability: the TPM does not tell property 0x{which:x}")
    return int(value)


def _persistent(transmit: Transmit) -> tuple[int, ...]:
    body = _capability(transmit, _HANDLES, _PERSISTENT, 254)
    count = struct.unpack_from(">I", body)[0]
    if len(body) < 4 + 4 * count:
        raise OSError(5, "TPM2_GetCapability: the TPM's answer is malformed")
    return tuple(h for h in struct.unpack_from(f">{count}I", body, 4) if _PERSISTENT <= h < _OWNERS_END)


def state(transmit: Transmit) -> State:
    """Raises OSError."""
    return State(_property(transmit, _PERMANENT), _persistent(transmit))


def vendor(transmit: Transmit) -> str:
    """The manufacturer's four letters (`IFX`, `NTC`, `IBM`). Raises OSError."""
    letters = struct.pack(">I", _property(transmit, _MANUFACTURER))
    return "".join(chr(c) for c in letters if 32 < c < 127)


def clear(transmit: Transmit, request: Callable[[], str] | None = None) -> dict[str, Any]:
    """TPM2_Clear by the lockout hierarchy, else by the platform's, else `request` it of the firmware; then look.

    `request` returns why the firmware cannot be asked, or nothing when it was. Never raises: the reason says it.
    """
    report: dict[str, Any] = {
        "present": True,
        "cleared": False,
        "method": "none",
        "pending_reboot": False,
        "reason": "",
    }
    reasons = []
    for name, handle in (("lockout", LOCKOUT), ("platform", PLATFORM)):
        try:
            if handle == PLATFORM:  # an owner may have forbidden to clear, the platform may lift that
                answer(transmit, "TPM2_ClearControl(platform)", with_password(CLEAR_CONTROL, handle, b"\0"))
            answer(transmit, f"TPM2_Clear({name})", with_password(CLEAR, handle))
            now = state(transmit)
        except OSError as error:
            reasons.append(error.strerror or str(error))
            continue
        report["method"] = f"TPM2_Clear({name})"
        if now.clean:
            report["cleared"] = True
            return report
        reasons.append(f"TPM2_Clear({name}) said done, and there is still: {now.left()}")
    why = request() if request is not None else "the firmware takes no requests here"
    if why:
        reasons.append(why)
    else:
        report |= {"method": "ppi", "pending_reboot": True}
    try:
        left = state(transmit).left()
    except OSError as error:
        left = error.strerror or str(error)
    remedy = "the firmware clears it at the next boot" if not why else "remedy: clear the TPM in the BIOS setup"
    report["reason"] = "; ".join(filter(None, (left and f"left: {left}", *reasons, remedy)))[:500]
    return report


def ask_firmware(directory: str = _CLASS + "/ppi") -> str:
    """Request the clear by physical presence, where the firmware does it without a person at the console."""
    path = os.path.join(directory, "request")
    try:
        with open(os.path.join(directory, "tcg_operations"), encoding="ascii", errors="replace") as file:
            listed = [line.split() for line in file.read(16384).splitlines()]
        # 4: allowed, no user needed; 3 would stop the boot at a question
        if not any(len(w) > 1 and w[0] == str(_PPI_CLEAR) and w[1].rstrip(":") == "4" for w in listed):
            return "the firmware asks a person at the console before it clears the TPM"
        with open(path, "w", encoding="ascii") as file:
            file.write(str(_PPI_CLEAR))
    except OSError as error:
        return f"the firmware takes no request to clear the TPM: {error.strerror or error}"
    return "" if devices.text(path).split()[:1] == [str(_PPI_CLEAR)] else "the firmware did not keep the request"


class Chip:
    """`/dev/tpmrm0` (the kernel's resource manager), else `/dev/tpm0`; one command at a time, closed by its owner."""

    def __init__(self, paths: tuple[str, ...] = ("/dev/tpmrm0", "/dev/tpm0")) -> None:
        path = next((p for p in paths if os.path.exists(p)), paths[0])
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def __call__(self, sent: bytes) -> bytes:
        os.write(self._fd, sent)
        ready, _, _ = select.select([self._fd], [], [], ANSWER_TIME)
        if not ready:
            raise OSError(110, f"the TPM did not answer within {ANSWER_TIME:.0f} s")
        return os.read(self._fd, MAX_ANSWER)

    def close(self) -> None:
        os.close(self._fd)


def version(directory: str = _CLASS) -> str:
    """`2.0`, `1.2`, or empty for a host without a TPM."""
    if not os.path.exists(directory):
        return ""
    return "1.2" if devices.text(f"{directory}/tpm_version_major") == "1" else "2.0"


def clear_host() -> dict[str, Any]:
    """The `tpm` part of the report for this host. Raises OSError when the TPM cannot be opened."""
    kind = version()
    if not kind:
        return {"present": False, "cleared": False, "method": "none", "pending_reboot": False, "reason": ""}
    if kind == "1.2":
        why = ask_firmware()
        reason = why or "a TPM 1.2: the firmware clears it at the next boot"
        state_now = {"present": True, "cleared": False, "method": "none" if why else "ppi"}
        return {**state_now, "pending_reboot": not why, "reason": reason}
    chip = Chip()
    try:
        return clear(chip, ask_firmware)
    finally:
        chip.close()


def snapshot() -> dict[str, Any]:
    """The `tpm` part of the snapshot; what cannot be read is empty."""
    kind = version()
    found = {"present": bool(kind), "version": kind, "vendor": ""}
    if kind == "2.0":
        try:
            chip = Chip()
            try:
                found["vendor"] = vendor(chip)
            finally:
                chip.close()
        except OSError:
            found["vendor"] = ""
    return found
