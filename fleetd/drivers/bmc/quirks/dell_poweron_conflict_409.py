"""Dell iDRAC10 refuses `On` for a while after power-off; the same request succeeds seconds later."""

from __future__ import annotations

from fleetd.drivers.bmc.quirks import Facts, Quirk


class DellPowerOnConflict409(Quirk):
    name = "dell-poweron-conflict-409"
    evidence = (
        "Dell iDRAC10, 409 ActionParameterValueConflict: ironic drivers/modules/redfish/power.py:67 at 7bc6aba7dd"
    )

    def applies(self, facts: Facts) -> bool:
        return facts.made_by("dell")

    def power_pause(self, reset_type: str, status: int, message_ids: tuple[str, ...]) -> float | None:
        return 2.0 if reset_type == "On" and status == 409 else None


QUIRK = DellPowerOnConflict409()
