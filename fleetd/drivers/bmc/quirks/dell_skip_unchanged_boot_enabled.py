"""Dell refuses a boot override that repeats the present BootSourceOverrideEnabled."""

from __future__ import annotations

from typing import Any

from fleetd.drivers.bmc.quirks import Facts, Quirk


class DellSkipUnchangedBootEnabled(Quirk):
    name = "dell-skip-unchanged-boot-enabled"
    evidence = "Dell iDRAC9 and others: OpenStack ironic drivers/modules/redfish/management.py:165 at 7bc6aba7dd"

    def applies(self, facts: Facts) -> bool:
        return facts.made_by("dell")

    def boot_body(self, body: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
        key = "BootSourceOverrideEnabled"
        return {k: v for k, v in body.items() if k != key or present.get(key) != v}


QUIRK = DellSkipUnchangedBootEnabled()
