"""Carrying out an order: check everything, journal the intent, act, read back. A return code proves nothing."""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import json
import time
from collections.abc import Generator, Sequence
from typing import Any

from .machine import Drive, Machine
from .order import PLACEHOLDERS, Order, Refusal, decode, intent_of, read

Report = dict[str, Any]
Progress = dict[str, Any]
SAMPLES, BLOCK = 16, 4096
COMMANDS = ("status", "wipe", "write-image")


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
        again = _journal(order, machine)
        if again is not None:
            return again
        if command == "wipe":
            report = yield from _wipe(order, drives, machine)
        else:
            report = yield from _write_image(order, drives, machine)
    except Refusal as refusal:
        return _refused(intent, refusal)
    except OSError as error:
        # only reads come this far: what fails on a drive is caught where it fails
        return {"intent": intent, "ok": False, "reason": f"{error.strerror or error}"[:300]}
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
    return [present[s] for s in order.drives]


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


def sample_offsets(size: int, intent: str, serial: str) -> list[int]:
    """First and last block and others that nobody can know beforehand but everybody can repeat."""
    blocks = max(1, size // BLOCK)
    chosen = {0, blocks - 1}
    for i in range(SAMPLES - 2):
        chosen.add(int.from_bytes(hashlib.sha256(f"{intent}/{serial}/{i}".encode()).digest()[:8], "big") % blocks)
    return sorted(block * BLOCK for block in chosen)


def _read_back(drive: Drive, intent: str) -> tuple[int, int]:
    """(samples taken, samples that are not zero). Raises OSError."""
    offsets = sample_offsets(drive.size, intent, drive.serial)
    zero = bytes(min(BLOCK, drive.size))
    return len(offsets), sum(drive.read(offset, len(zero)) != zero for offset in offsets)


def _wipe(order: Order, drives: Sequence[Drive], machine: Machine) -> Generator[Progress, None, Report]:
    machine.note("wipe.begin", intent=order.intent, drives=list(order.drives))
    results: list[dict[str, Any]] = []
    for n, drive in enumerate(drives, 1):
        yield {"event": "erasing", "drive": drive.serial, "n": n, "of": len(drives)}
        result: dict[str, Any] = {
            "serial": drive.serial,
            "model": drive.model,
            "method": "",
            "samples": 0,
            "nonzero": 0,
            "seconds": 0.0,
            "erased": False,
            "reason": "",
        }
        results.append(result)
        began = time.monotonic()
        try:
            result["method"] = drive.erase(order.intent)
            result["samples"], result["nonzero"] = _read_back(drive, order.intent)
            result["erased"] = result["samples"] > 0 and result["nonzero"] == 0
            if not result["erased"]:
                result["reason"] = "the drive said erased, and its data is still there"
        except OSError as error:
            result["reason"] = f"{error.strerror or error}"[:300]
        result["seconds"] = round(time.monotonic() - began, 3)
        yield {"event": "erased" if result["erased"] else "kept", "drive": drive.serial, "n": n, "of": len(drives)}
    ok = all(result["erased"] for result in results)
    machine.note("wipe.done", intent=order.intent, ok=ok, kept=[r["serial"] for r in results if not r["erased"]])
    return {"intent": order.intent, "ok": ok, "state": "done", "drives": results}


def choose(rule: str, drives: Sequence[Drive]) -> Drive:
    """The system drive. Raises Refusal when the rule names none, or several."""
    kind, _, pattern = rule.partition(":")
    if rule == "smallest":
        return min(drives, key=lambda d: (d.size, d.serial))
    if kind not in ("serial", "model") or not pattern:
        raise Refusal("bad-order", "`rule` must be smallest, serial:<glob> or model:<glob>")
    found = [d for d in drives if fnmatch.fnmatchcase(d.serial if kind == "serial" else d.model, pattern)]
    if len(found) != 1:
        raise Refusal("no-system-drive", f"{rule!r} fits {len(found)} drives of this host, it must fit one")
    return found[0]


def _write_image(order: Order, drives: Sequence[Drive], machine: Machine) -> Generator[Progress, None, Report]:
    assert order.image is not None
    assert order.seed is not None
    try:
        drive = choose(order.rule, drives)
    except Refusal as refusal:
        # the intent is journalled already: its end is this refusal, and it stays that on every repetition
        return _refused(order.intent, refusal)
    yield {"event": "writing", "drive": drive.serial, "image": order.image["name"]}
    payload = json.dumps({"image": order.image, "seed": order.seed}, sort_keys=True).encode()
    written = hashlib.sha256(payload).hexdigest()
    result: dict[str, Any] = {"serial": drive.serial, "model": drive.model, "written": False, "reason": ""}
    digest = ""
    try:
        drive.write(order.intent, payload)
        back = drive.read(0, len(payload))
        if hashlib.sha256(back).hexdigest() == written:
            digest = str(json.loads(back)["image"]["digest"]) or f"sha256:{written}"
            result["written"] = True
        else:
            result["reason"] = "the drive said written, and reads back something else"
    except OSError as error:
        result["reason"] = f"{error.strerror or error}"[:300]
    yield {"event": "written" if result["written"] else "failed", "drive": drive.serial}
    return {
        "intent": order.intent,
        "ok": result["written"],
        "state": "done",
        "image": order.image["name"],
        "digest": digest,
        "drives": [result],
    }


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
