"""Supermicro wants Enabled, Mode and Target in every boot override, changed or not."""

from __future__ import annotations

from typing import Any

from fleetd.drivers.bmc.quirks import Facts, Quirk


class SupermicroBootAllFields(Quirk):
    name = "supermicro-boot-all-fields"
    evidence = (
        "Supermicro: ironic drivers/modules/redfish/management.py:168,179 (Enabled always with Target) and :371 "
        "(a changed target falls back to legacy mode, so the mode is sent again) at 7bc6aba7dd"
    )

    def applies(self, facts: Facts) -> bool:
        return facts.made_by("supermicro")

    def boot_body(self, body: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
        if "BootSourceOverrideMode" not in present:
            return body  # OpenBMC-based Supermicro (GB300 tree) has no such property
        return {**body, "BootSourceOverrideMode": present["BootSourceOverrideMode"] or "UEFI"}


QUIRK = SupermicroBootAllFields()
