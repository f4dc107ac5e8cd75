"""How the simulated vendors differ on the Redfish wire: what recorded trees and other projects' workarounds show."""

from __future__ import annotations

from typing import Literal

import msgspec


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One vendor's ways."""

    vendor: str  # ServiceRoot.Vendor; empty: absent (Supermicro X13)
    oem: str = ""  # key of ServiceRoot.Oem
    product: str = ""
    manufacturer: str = ""  # of the system; empty: the SKU's vendor
    system: str
    manager: str
    baseboard: bool = False  # a second ComputerSystem and Manager, listed first
    reset_types: tuple[str, ...]
    action_info: bool = False  # ResetTypes only by @Redfish.ActionInfo
    manager_reset_types: tuple[str, ...]  # empty: none told, only `{}` is taken
    service_tag: bool = False  # the serial stands in SKU, SerialNumber is the board's
    uuid_upper: bool = False
    transits: bool = True  # shows PoweringOn and PoweringOff
    on_conflict: bool = False  # `On` answers 409 for a while after power-off, and to a running host
    boot_enabled_unchanged_refused: bool = False
    boot_all_fields: bool = False
    boot_mode: bool = True  # has BootSourceOverrideMode
    boot_in_settings: bool = False  # the system's Boot is read-only, PATCH goes to the settings resource
    boot_targets: tuple[str, ...]
    etag: Literal["none", "required", "weak-refused"] = "none"
    led: Literal["LocationIndicatorActive", "IndicatorLED"] = "LocationIndicatorActive"
    account_ids: Literal["slots", "names"] = "slots"
    first_slot: int = 2
    slots: int = 0  # empty accounts shown beside the real ones, up to this number
    password_max: int = 64
    sessions: int = 8
    full_status: int = 503  # what POST Sessions answers when every slot is taken
    media_slots: tuple[tuple[str, tuple[str, ...]], ...] = (("CD", ("CD", "DVD")),)  # id, MediaTypes
    media_in: Literal["manager", "system"] = "manager"
    # How an image goes in: all fields, the image alone, with its TransferProtocolType, or by PATCH without an action.
    media_way: Literal["full", "image-only", "protocol", "patch"] = "full"
    media_local: frozenset[str] = frozenset()  # slots that eject and take no image from elsewhere
    media_eject_busy: int = 0  # so many requests after an eject are answered with 500


PROFILES: dict[str, Profile] = {
    "dell": Profile(
        vendor="Dell",
        oem="Dell",
        product="Integrated Dell Remote Access Controller",
        manufacturer="Dell Inc.",
        system="System.Embedded.1",
        manager="iDRAC.Embedded.1",
        reset_types=(
            "On",
            "ForceOff",
            "ForceRestart",
            "GracefulRestart",
            "GracefulShutdown",
            "PushPowerButton",
            "Nmi",
            "PowerCycle",
        ),
        manager_reset_types=("GracefulRestart",),
        service_tag=True,
        on_conflict=True,
        boot_enabled_unchanged_refused=True,
        boot_targets=(
            "None",
            "Pxe",
            "Floppy",
            "Cd",
            "Hdd",
            "BiosSetup",
            "Utilities",
            "UefiTarget",
            "SDCard",
            "UefiHttp",
        ),
        slots=16,
        media_slots=(("RemovableDisk", ("USBStick",)), ("CD", ("CD", "DVD"))),  # recorded: R750
        media_eject_busy=1,
    ),
    "supermicro": Profile(
        vendor="",
        oem="Supermicro",
        manufacturer="Supermicro",
        system="1",
        manager="1",
        reset_types=(
            "On",
            "ForceOff",
            "GracefulShutdown",
            "GracefulRestart",
            "ForceRestart",
            "Nmi",
            "ForceOn",
            "PowerCycle",
        ),
        action_info=True,
        manager_reset_types=(),
        uuid_upper=True,
        transits=False,
        boot_all_fields=True,
        boot_targets=("None", "Pxe", "Floppy", "UsbCd", "Usb", "Hdd", "BiosSetup", "UefiBootNext", "UefiHttp"),
        etag="required",
        led="IndicatorLED",
        password_max=20,  # MaxPasswordLength of the recorded SYS-821GE-TNHR
        sessions=16,
        full_status=400,
        media_slots=tuple((f"VirtualMedia{i}", ("CD", "DVD", "Floppy", "USBStick")) for i in (1, 2)),  # recorded
        media_way="image-only",
    ),
    "openbmc": Profile(
        vendor="NVIDIA",
        product="GB NVL",
        system="system",
        manager="bmc",
        baseboard=True,
        reset_types=(
            "On",
            "ForceOff",
            "ForceOn",
            "ForceRestart",
            "GracefulRestart",
            "GracefulShutdown",
            "PowerCycle",
        ),
        action_info=True,
        manager_reset_types=("GracefulRestart", "ForceRestart"),
        boot_mode=False,
        boot_targets=("None", "Pxe", "Hdd", "Cd", "Diags", "BiosSetup", "Usb"),
        etag="weak-refused",
        account_ids="names",
        sessions=8,
        media_slots=tuple((name, ("CD", "USBStick")) for name in ("Slot_0", "USB1")),  # recorded: GB300
        media_local=frozenset({"Slot_0"}),
        media_way="protocol",
    ),
}
