"""ForceRestart hangs a Lenovo SR675 V3: it is reset by off, ten seconds, on."""

from __future__ import annotations

from fleetd.drivers.bmc.quirks import Facts, Quirk
from fleetd.model.power import PowerVerb


class LenovoSr675ResetByOffOn(Quirk):
    name = "lenovo-sr675-reset-by-off-on"
    evidence = "Lenovo SR675 V3, UEFI 7.10 with XCC 9.10: NVIDIA/libredfish src/lenovo.rs:134,1627 at c094c9e683"

    def applies(self, facts: Facts) -> bool:
        return facts.made_by("lenovo") and "sr675" in facts.model

    def reset_types(self, verb: PowerVerb, types: tuple[str, ...]) -> tuple[str, ...]:
        return () if verb is PowerVerb.RESET else types

    def off_pause(self) -> float:
        return 10.0


QUIRK = LenovoSr675ResetByOffOn()
