"""HPE iLO answers 400 while the host is in POST; the same request succeeds minutes later."""

from __future__ import annotations

from fleetd.drivers.bmc.quirks import Facts, Quirk


class HpeBusyDuringPost(Quirk):
    name = "hpe-busy-during-post"
    evidence = (
        "HPE iLO: 400 UnableToModifyDuringSystemPOST: ironic drivers/modules/redfish/management.py:131 @7bc6aba7; "
        "400 InvalidOperationForSystemState, sushy connector.py:107 at 820c32f22c"
    )

    def applies(self, facts: Facts) -> bool:
        return facts.made_by("hpe", "hewlett")

    def busy_ids(self) -> tuple[str, ...]:
        return ("UnableToModifyDuringSystemPOST", "InvalidOperationForSystemState")


QUIRK = HpeBusyDuringPost()
