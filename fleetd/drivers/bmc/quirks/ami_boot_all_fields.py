"""AMI MegaRAC (NVIDIA DGX, ASRock Rack) wants Mode, Enabled and Target together even if they are the same."""

from __future__ import annotations

from typing import Any

from fleetd.drivers.bmc.quirks import Facts, Quirk


class AmiBootAllFields(Quirk):
    name = "ami-boot-all-fields"
    evidence = (
        "AMI MegaRAC, ASRock Rack: ironic drivers/modules/redfish/management.py:175,428 at 7bc6aba7dd; DGX H100 says "
        "Vendor AMI and Oem.Ami in its service root (NVIDIA/libredfish tests/mockups/nvidia_viking at c094c9e68366)"
    )

    def applies(self, facts: Facts) -> bool:
        return facts.made_by("ami", "american megatrends", "megarac", "asrock")

    def boot_body(self, body: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
        return {**body, "BootSourceOverrideMode": present.get("BootSourceOverrideMode") or "UEFI"}


QUIRK = AmiBootAllFields()
