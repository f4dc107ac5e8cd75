"""What a host was before a lease against what it is after it: pure comparison, each difference named before -> after.

A snapshot is what the deploy environment reads and no tenant should be able to change: firmware, board, drives, NICs, PCI
devices, the keys that decide what may boot, the TPM; and the accounts of the BMC, of which a tenant can make one from the
host. Everything in it came from the host or its BMC: bounded and made printable.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from fleetd.checks.judge import clean
from fleetd.kit.errors import Garbled
from fleetd.model.bmc import BmcAccount
from fleetd.model.check import Action

FACT = "snapshot"  # versioned in the ledger: a host that did not change keeps one row through all its leases
MAX_SNAPSHOT = 1024 * 1024  # bytes, unpacked
MAX_ITEMS = 2048
NOTHING = "nothing"
ACCOUNTS, _ACCOUNT = "BMC accounts", "BMC account"  # whether there is a list; the beginning of each part of it
TOLD, NOT_TOLD, NOT_PICTURED = "told", "not told by this BMC", "not in the picture from before the lease"
DBX, SETUP = "Secure Boot key dbx", "Secure Boot setup mode"
_ON_USB = re.compile(r"\d+-\d+(\.\d+)*:\d+\.\d+")  # a USB interface, where a NIC on PCI has its PCI address
_SIZE = re.compile(r", (\d{1,10}) bytes")


class Difference(NamedTuple):
    """One part that is not as it was. `action`: what it asks for."""

    part: str
    before: str
    after: str
    action: Action

    def __str__(self) -> str:
        return f"{self.part}: {self.before} -> {self.after}"


Parts = dict[str, tuple[str, Action]]  # part -> (what it reads, what a change of it asks for)


def digest(now: Parts) -> str:
    """sha256 hex of what is compared."""
    return hashlib.sha256(msgspec.json.encode(now, order="deterministic")).hexdigest()


def pack(now: Parts) -> str:
    """The compared parts as one word for the ledger."""
    told = {part: value for part, (value, _) in now.items()}
    raw = msgspec.json.encode(told, order="deterministic")
    return base64.b64encode(zlib.compress(raw, 6)).decode("ascii")


def unpack(word: str) -> dict[str, str]:
    """Part to value. Raises Garbled."""
    try:
        inflated = zlib.decompressobj()
        raw = inflated.decompress(base64.b64decode(word, validate=True), MAX_SNAPSHOT)
        if inflated.unconsumed_tail or not inflated.eof:
            raise Garbled("the stored snapshot is truncated or too large")
        return msgspec.json.decode(raw, type=dict[str, str])
    except (binascii.Error, ValueError, zlib.error, msgspec.DecodeError) as error:
        raise Garbled("the stored snapshot cannot be read", why=str(error)[:200]) from error


def parts(snapshot: Mapping[str, Any], accounts: Sequence[BmcAccount] | None) -> Parts:
    """The comparable parts of an inspect report, by name; what it does not hold is missing here too.

    `accounts`: what the BMC lists; None where it tells none, which stands here as that and equals no list.
    """
    found: Parts = {ACCOUNTS: (NOT_TOLD if accounts is None else TOLD, Action.CONFIGURE)}
    for account in accounts or ():
        name = account.name.replace("\\", "\\\\").replace('"', '\\"')
        told = f'"{name}", {account.role}, {"enabled" if account.enabled else "disabled"}'
        _add(found, f"{_ACCOUNT} {clean(account.id, 64)}", clean(told, 256), Action.CONFIGURE)
    for group, label in (("bios", "BIOS"), ("board", "board")):
        for key, value in _items(snapshot.get(group)):
            action = Action.REFLASH if group == "bios" else Action.FIX_INVENTORY
            found[f"{label} {clean(key, 32)}"] = (clean(value, 128), action)
    for drive in _list(snapshot.get("drives")):
        told = f"{_word(drive, 'model')}, firmware {_word(drive, 'firmware')}, {_word(drive, 'bytes')} bytes"
        sector = f", {_word(drive, 'sector')}-byte sectors" if drive.get("sector") else ""
        _add(found, f"drive {_word(drive, 'serial')}", told + sector, Action.RESEAT)
    for nic in _list(snapshot.get("nics")):
        # A port on USB is the BMC's own way to the host: many make up its MAC at each of their starts.
        if not _ON_USB.fullmatch(_word(nic, "pci")):
            _add(found, f"NIC {_port(_word(nic, 'mac').lower())}", "present", Action.RESEAT)
    for device in _list(snapshot.get("pci")):
        told = _word(device, "id") + (f", subsystem {_word(device, 'subsystem')}" if device.get("subsystem") else "")
        _add(found, f"PCI device {_word(device, 'address')}", told, Action.RESEAT)
    efi = snapshot.get("efi")
    if isinstance(efi, dict):
        found["EFI"] = (_state(efi.get("present")), Action.CONFIGURE)
        for key, name in (("secure_boot", "Secure Boot"), ("setup_mode", SETUP)):
            found[name] = (_state(efi.get(key)), Action.CONFIGURE)
        sizes = efi.get("sizes")
        for key, value in _items(efi.get("keys")):
            size = sizes.get(key) if isinstance(sizes, dict) else None
            told = clean(value, 80) + (f", {size} bytes" if isinstance(size, int) and 0 < size < 2**31 else "")
            found[f"Secure Boot key {clean(key, 16)}"] = (told, Action.CONFIGURE)
    tpm = snapshot.get("tpm")
    if isinstance(tpm, dict):
        told = f"{_word(tpm, 'vendor')} {_word(tpm, 'version')}".strip() if tpm.get("present") else "absent"
        found["TPM"] = (told or "present", Action.RESEAT)
    return found


def complete(snapshot: Mapping[str, Any]) -> list[str]:
    """Groups that a snapshot must hold and this one does not: a picture of nothing would match any other."""
    must = ("bios", "board", "drives", "nics", "pci", "efi", "tpm")
    missing = [group for group in must if not isinstance(snapshot.get(group), dict | list)]
    return missing + [group for group in ("drives", "nics", "pci") if group not in missing and not snapshot.get(group)]


def compare(before: Mapping[str, str], now: Parts) -> list[Difference]:
    """What differs, in the order of the names; a part on one side only is a difference too.

    Where only one side has a list of the BMC's accounts, that is the one difference, and names them all: nobody has seen
    yet which of them are the site's.
    """
    found = []
    listed = before.get(ACCOUNTS) == now.get(ACCOUNTS, ("",))[0]
    for part in sorted(before.keys() | now.keys()):
        if not listed and of_account(part):
            if part == ACCOUNTS:
                was = _listing(before) or before.get(ACCOUNTS, NOT_PICTURED)
                reads = _listing({name: value for name, (value, _) in now.items()}) or NOT_TOLD
                found.append(Difference(part, was, reads, Action.CONFIGURE))
            continue
        was, (reads, action) = before.get(part, NOTHING), now.get(part, (NOTHING, _action_of(part)))
        if was != reads:
            if was == NOTHING and not of_account(part):
                action = Action.FIX_INVENTORY  # something that was not there
            found.append(Difference(part, was, reads, action))
    return found


def signed_update(differences: Iterable[Difference], now: Parts) -> Difference | None:
    """The ban list (dbx) that grew, where nothing else of Secure Boot changed; None for any other picture.

    A system with updates on brings the firmware a longer list, which it takes only with a signature by its KEK. That is
    no tenant's doing and cannot be put back. A list that shrank, or one taken in setup mode or with other keys, is.
    """
    of_boot = [one for one in differences if one.part.startswith(("Secure Boot", "EFI"))]
    if len(of_boot) != 1 or of_boot[0].part != DBX or now.get(SETUP, ("",))[0] != "off":
        return None
    before, after = (_SIZE.search(value) for value in of_boot[0][1:3])
    return of_boot[0] if before and after and int(after[1]) > int(before[1]) else None


def of_account(part: str) -> bool:
    """True for a part that is an account of the BMC, or their list."""
    return part.startswith(_ACCOUNT)


def _listing(told: Mapping[str, str]) -> str:
    each = (f"{part[len(_ACCOUNT) + 1 :]} {value}" for part, value in told.items() if part.startswith(f"{_ACCOUNT} "))
    return clean("; ".join(each), 1024)


def _port(mac: str) -> str:
    """What stays of a port's address: of InfiniBand's 20 bytes only the GUID, the queue pair before it is the driver's."""
    return mac[-23:] if len(mac) == 59 else mac


def _action_of(part: str) -> Action:
    if of_account(part):
        return Action.CONFIGURE
    return Action.RESEAT if part.startswith(("drive", "NIC", "PCI", "TPM")) else Action.REFLASH


def _items(value: object) -> Iterable[tuple[object, object]]:
    return sorted(value.items())[:64] if isinstance(value, dict) else ()


def _list(value: object) -> list[dict[str, Any]]:
    return [item for item in value[:MAX_ITEMS] if isinstance(item, dict)] if isinstance(value, list) else []


def _word(item: Mapping[str, Any], key: str) -> str:
    return clean(item.get(key) or "", 128)


def _state(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not known" if value is None else clean(value)


def _add(found: Parts, part: str, told: str, action: Action) -> None:
    """Two of the same name are both told, as one value: none may hide behind the other."""
    known = found.get(part)
    found[part] = (told if known is None else f"{known[0]}; {told}", action)
