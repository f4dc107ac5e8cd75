"""The one-time boot override by Redfish: the selector differs by vendor, and only the read-back counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleetd.drivers.bmc.quirks import Quirk
from fleetd.drivers.bmc.redfish_answers import Document, at, link, text, words
from fleetd.drivers.bmc.redfish_http import Answer
from fleetd.drivers.bmc.session import Call, Session
from fleetd.kit.errors import Lied, Permanent, Unsupported
from fleetd.model.power import BootDevice

# In order of preference; Supermicro X11/X12 name virtual media UsbCd (sushy resources/system/system.py:255).
_TARGETS: dict[BootDevice, tuple[str, ...]] = {
    BootDevice.NETWORK: ("Pxe", "UefiHttp"),
    BootDevice.DISK: ("Hdd",),
    BootDevice.CD: ("Cd", "UsbCd"),
    BootDevice.BIOS_SETUP: ("BiosSetup",),
}
_TARGET, _ENABLED = "BootSourceOverrideTarget", "BootSourceOverrideEnabled"
_SETTLE = 5.0  # seconds that a BMC may take to show what it accepted
_FIRST_POLL, _LAST_POLL = 0.05, 1.0  # seconds


async def set_boot_once(
    session: Session, call: Call, path: str, system: Document, etag: str, quirks: Sequence[Quirk], device: BootDevice
) -> None:
    """PATCH the system, or its settings resource where the system refuses; then read back.

    Raises:
        Lied: accepted, and the selector does not show it. Unsupported: no such device, or no boot override at all.
    """
    settings = link(system, "@Redfish.Settings", "SettingsObject")
    if at(system, "Boot") is None and not settings:
        raise Unsupported("this BMC has no boot override", where=session.peer.name)
    allowed, pending = await _allowed(session, call, system, settings)
    target = _choose(device, allowed, session.peer.name)
    answer = await _write(session, call, path, at(system, "Boot"), etag, quirks, target)
    places = [path]
    if not answer.ok and settings and answer.status not in (401, 403):
        # iDRAC10, DGX: the system's Boot is read-only, the settings take it (gofish computersystem.go:1066).
        if pending is None:
            pending = await session.get_with_etag(call, settings)
        answer = await _write(session, call, settings, at(pending[0], "Boot"), pending[1], quirks, target)
        places.append(settings)
    if not answer.ok:
        raise session.error(answer, f"setting the next boot to {device}")
    await _read_back(session, call, places, target)


async def _allowed(
    session: Session, call: Call, system: Document, settings: str
) -> tuple[tuple[str, ...] | None, tuple[Document, str] | None]:
    """Targets the BMC lists (DGX lists them only in the settings resource), and that resource if it was read."""
    key = f"{_TARGET}@Redfish.AllowableValues"
    allowed = words(system, "Boot", key)
    if allowed is not None or not settings:
        return allowed, None
    try:
        pending = await session.get_with_etag(call, settings)
    except Permanent:
        return None, None  # a link into nothing: then the list is simply not told
    return words(pending[0], "Boot", key), pending


def _choose(device: BootDevice, allowed: tuple[str, ...] | None, where: str) -> str:
    wanted = _TARGETS[device]
    if allowed is None:
        return wanted[0]
    for name in wanted:
        if name in allowed:
            return name
    raise Unsupported(f"this BMC cannot boot from {device}", why=f"it offers {', '.join(allowed)[:200]}", where=where)


async def _write(
    session: Session, call: Call, path: str, present: Any, etag: str, quirks: Sequence[Quirk], target: str
) -> Answer:
    body: Document = {_TARGET: target, _ENABLED: "Once"}
    for quirk in quirks:
        body = quirk.boot_body(body, present if isinstance(present, dict) else {})
    return await session.patch(call, path, {"Boot": body}, etag)


async def _read_back(session: Session, call: Call, places: Sequence[str], target: str) -> None:
    """The selector must show it. Enabled may read Continuous (seen), but Disabled means that nothing holds."""
    end = min(call.clock.steady() + _SETTLE, call.end - min(0.5, call.timeout * 0.05))
    pause = _FIRST_POLL
    while True:
        for path in places:
            boot = (await session.get(call, path)).get("Boot")
            shown, enabled = text(boot, _TARGET), text(boot, _ENABLED)
            if shown == target and enabled != "Disabled":
                return
        left = end - call.clock.steady()
        if left <= 0:
            break
        await call.clock.sleep(min(pause, left))
        pause = min(pause * 2, _LAST_POLL)
    raise Lied(
        "the BMC confirmed the boot override and did not keep it",
        why=f"asked for {target}, it reads {shown or 'nothing'} ({enabled or 'no state'})",
        where=session.peer.name,
    )
