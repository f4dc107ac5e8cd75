"""Carrying out an order: check everything, journal the intent, act, read back. A return code proves nothing."""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import re
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict
from typing import Any

from . import partition, seed
from .machine import Drive, Machine
from .order import PLACEHOLDERS, Order, Refusal, decode, intent_of, read
from .stream import WriteFailed, said
from .wipe import wipe_drives
from .write import Tally, write_image

Report = dict[str, Any]
Progress = dict[str, Any]
COMMANDS = ("status", "inspect", "wipe", "clear-tpm", "boot-order", "write-image")


def perform(command: str, data: bytes, machine: Machine) -> Generator[Progress, None, Report]:
    """Yields progress, returns the report. Never raises for what an order, the host or a drive does wrong.

    The generator is advanced by its caller, so that a simulator may let time pass between two acts.
    """
    intent = ""
    try:
        if command == "status":
            return _status(decode(data), machine)
        if command not in COMMANDS:
            raise Refusal("bad-order", f"there is no command {command[:40]!r}")
        order = read(command, data)
        intent = order.intent
        drives = check(order, machine)
        if command == "inspect":
            return {"ok": True, "state": "done", "snapshot": machine.inspect()}
        again = _journal(order, machine)
        if again is not None:
            return again
        if command == "wipe":
            report = yield from _wipe(order, drives, machine)
        elif command == "write-image":
            report = yield from _write_image(order, drives, machine)
        elif command == "clear-tpm":
            report = _clear_tpm(order, machine)
        else:
            report = _boot_order(order, drives, machine)
    except Refusal as refusal:
        return _refused(intent, refusal)
    except OSError as error:
        # only reads come this far: what fails on a drive is caught where it fails
        return {"intent": intent, "ok": False, "reason": said(error)}
    machine.ended(intent, {"state": "done", "command": command, "order": order.digest, "report": report})
    return report


def _refused(intent: str, refusal: Refusal) -> Report:
    return {
        "intent": intent,
        "ok": False,
        "state": "refused",
        "refused": {"code": refusal.code, "reason": refusal.reason},
    }


def check(order: Order, machine: Machine) -> list[Drive]:
    """The drives that the order may touch. Raises Refusal: not this boot, not this host, not these drives."""
    marker = machine.marker()
    if not marker:
        raise Refusal("not-deploy", "this system was not booted by fleetd to be wiped or written")
    hashed = hashlib.sha256(order.nonce.encode()).hexdigest()
    written = marker.encode()
    if not any(hmac.compare_digest(written, nonce.encode()) for nonce in (hashed, order.nonce)):
        raise Refusal("other-boot", "the order is for another boot of this host")
    serial = machine.serial()
    if serial.lower() in PLACEHOLDERS:
        raise Refusal("no-serial", "this host's board carries no serial: it cannot prove who it is")
    if serial != order.host_serial:
        raise Refusal("other-host", f"the order is for host {order.host_serial!r}, this is {serial!r}")
    present = {drive.serial: drive for drive in machine.drives()}
    absent = [s for s in order.drives if s not in present]
    if absent:
        raise Refusal("other-drives", f"not in this host: {', '.join(absent[:8])}")
    left = [s for s in present if s not in order.drives]
    if order.command == "wipe" and left:
        raise Refusal("other-drives", f"the order leaves out: {', '.join(sorted(left)[:8])}")
    return [present[s] for s in order.drives] if order.drives else list(present.values())


def _journal(order: Order, machine: Machine) -> Report | None:
    """None when the intent is new and now ours; else what to answer instead of acting again."""
    stood = machine.began(order.intent, {"state": "running", "command": order.command, "order": order.digest})
    if stood is None:
        return None
    if stood.get("order") not in (None, order.digest):
        raise Refusal("intent-reused", "this intent was used here for another order")
    report = stood.get("report")
    if stood.get("state") == "done" and isinstance(report, dict):
        return {**report, "again": True}
    running = stood.get("state") == "running"
    reason = "the same intent is running" if running else "the same intent was cut off in the middle"
    return {"intent": order.intent, "ok": False, "state": "running", "interrupted": not running, "reason": reason}


def _wipe(order: Order, drives: Sequence[Drive], machine: Machine) -> Generator[Progress, None, Report]:
    machine.note("wipe.begin", intent=order.intent, drives=list(order.drives))
    results = yield from wipe_drives(drives, order.intent, machine.lanes)
    ok = all(result["erased"] for result in results)
    machine.note("wipe.done", intent=order.intent, ok=ok, kept=[r["serial"] for r in results if not r["erased"]])
    return {"intent": order.intent, "ok": ok, "state": "done", "drives": results}


def _clear_tpm(order: Order, machine: Machine) -> Report:
    machine.note("tpm.clear", intent=order.intent)
    try:
        tpm = machine.clear_tpm()
    except OSError as error:
        tpm = {"present": True, "cleared": False, "method": "none", "pending_reboot": False, "reason": said(error)}
    ok = not tpm["present"] or bool(tpm["cleared"])
    return {"intent": order.intent, "ok": ok, "state": "done", "tpm": tpm}


def _boot_order(order: Order, drives: Sequence[Drive], machine: Machine) -> Report:
    machine.note("boot.order", intent=order.intent)
    try:
        drive = choose(order.rule, drives) if order.rule else _bootable(drives)
        set_to = machine.boot_order(drive)
    except Refusal as refusal:
        return _refused(order.intent, refusal)
    except OSError as error:
        return {"intent": order.intent, "ok": False, "state": "done", "reason": said(error)}
    # what failed was raised; a `reason` here only tells why nothing could come first, as on drives just wiped
    return {"intent": order.intent, "ok": True, "state": "done", **set_to}


def _bootable(drives: Sequence[Drive]) -> Drive | None:
    """The only drive with an EFI system partition; None when there is none, or several. Raises OSError."""
    found = []
    for drive in drives:
        with drive.open() as blocks:
            if partition.system_partition(blocks) is not None:
                found.append(drive)
    return found[0] if len(found) == 1 else None


def choose(rule: str, drives: Sequence[Drive]) -> Drive:
    """The system drive. Raises Refusal when the rule names none, or several."""
    kind, _, wanted = rule.partition(":")
    if rule == "smallest":
        least = min((drive.size for drive in drives), default=0)
        found = [d for d in drives if d.size == least]
    elif kind in ("serial", "model") and wanted:
        found = [d for d in drives if fnmatch.fnmatchcase(d.serial if kind == "serial" else d.model, wanted)]
    elif kind == "size" and (span := re.fullmatch(r"(\d{1,9})-(\d{1,9})", wanted, re.ASCII)):
        found = [d for d in drives if int(span[1]) * 10**9 <= d.size <= int(span[2]) * 10**9]
    else:
        raise Refusal("bad-order", "`rule` must be smallest, serial:<glob>, model:<glob> or size:<GB>-<GB>")
    if len(found) != 1:
        raise Refusal("no-system-drive", f"{rule!r} fits {len(found)} drives of this host, it must fit one")
    return found[0]


def _write_image(order: Order, drives: Sequence[Drive], machine: Machine) -> Generator[Progress, None, Report]:
    assert order.image is not None
    assert order.seed is not None
    image = order.image
    try:
        drive = choose(order.rule, drives)
    except Refusal as refusal:
        # the intent is journalled already: its end is this refusal, and it stays that on every repetition
        return _refused(order.intent, refusal)
    machine.note("drive.write", intent=order.intent, drive=drive.serial, image=image.name, bytes=image.raw_bytes)
    yield {"event": "writing", "drive": drive.serial, "image": image.name}
    tally, began = Tally(), time.monotonic()
    digest, code, reason = "", "", ""
    efi: dict[str, Any] = {}
    try:
        digest = "sha256:" + (yield from write_image(image, seed.render(order.seed), drive, machine, tally))
    except WriteFailed as failure:
        code, reason = failure.code, failure.reason
        machine.note("image.failed", intent=order.intent, drive=drive.serial, image=image.name, code=code)
    else:
        machine.note("image.write", intent=order.intent, drive=drive.serial, image=image.name)
        efi = _first_to_boot(drive, machine)
    result = {
        "name": drive.name,
        "serial": drive.serial,
        "model": drive.model,
        "bytes": drive.size,
        "written": not code,
        "reason": reason,
        "seconds": round(time.monotonic() - began, 3),
        **asdict(tally),
    }
    yield {"event": "failed" if code else "written", "drive": drive.serial}
    return {
        "intent": order.intent,
        "ok": not code,
        "state": "done",
        "image": image.name,
        "digest": digest,
        "code": code,
        "drives": [result],
        "efi": efi,
    }


def _first_to_boot(drive: Drive, machine: Machine) -> dict[str, Any]:
    """The firmware's order with this drive first. The disk is good either way: what fails here is told beside the order
    as it stands, and the daemon judges it."""
    try:
        return machine.boot_order(drive)
    except (OSError, Refusal) as error:  # also: another drive came meanwhile, and cannot be told from one of these
        return {"efi": _firmware(machine), "removed": [], "first": "", "reason": said(error)}


def _firmware(machine: Machine) -> dict[str, Any]:
    """The `efi` part of the snapshot; empty where even that cannot be read."""
    try:
        view: dict[str, Any] = machine.inspect()["efi"]
    except (OSError, Refusal):
        return {}
    return view


def _status(value: dict[str, Any], machine: Machine) -> Report:
    """The host and its drives; of an intent that ended here, its report instead, with `state` done."""
    report: Report = {
        "ok": True,
        "state": "unknown",
        "deploy": bool(machine.marker()),
        "host_serial": machine.serial(),
        "drives": [{"name": d.name, "serial": d.serial, "model": d.model, "bytes": d.size} for d in machine.drives()],
    }
    if "intent" in value:
        report["intent"] = intent_of(value)
        entry = machine.entry(report["intent"])
        if entry is not None and isinstance(entry.get("report"), dict):
            return {**entry["report"], "state": "done"}
        if entry is not None:
            report["state"], report["interrupted"] = "running", entry.get("state") != "running"
    return report
