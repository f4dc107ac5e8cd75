"""Dell's SerialNumber is the mainboard's; what SMBIOS and the label call the serial is the service tag, in SKU."""

from __future__ import annotations

from typing import Any

from fleetd.drivers.bmc.quirks import Facts, Quirk


class DellSerialIsServiceTag(Quirk):
    name = "dell-serial-is-service-tag"
    evidence = (
        "Dell PowerEdge R750, iDRAC9 6.00.30.00, tree of NVIDIA/libredfish tests/mockups/dell at c094c9e68366: "
        "SerialNumber CNIVC0014M0388, SKU F54P1G3, and the UUID 4c4c4544-0035-3410-8050-c6c04f314733 spells F54P1G3"
    )

    def applies(self, facts: Facts) -> bool:
        return facts.made_by("dell")

    def serial(self, system: dict[str, Any]) -> str | None:
        tag = system.get("SKU")
        return tag if isinstance(tag, str) and tag.strip() else None


QUIRK = DellSerialIsServiceTag()
