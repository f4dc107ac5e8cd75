"""What one vendor's BMC does against the standard: one file a quirk, found by walking this package.

A quirk module holds a subclass of `Quirk` as `QUIRK`. Adding one touches exactly that one new file; the evidence is
part of it, because a workaround nobody can trace is one nobody dares to remove.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar

import msgspec

from fleetd.model.power import PowerVerb


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a quirk may decide by: service root and host system. Vendor words are lower case, absent ones empty."""

    vendor: str = ""  # ServiceRoot.Vendor
    product: str = ""  # ServiceRoot.Product
    oem: frozenset[str] = frozenset()  # keys of ServiceRoot.Oem, lower case
    manufacturer: str = ""  # ComputerSystem.Manufacturer
    model: str = ""  # ComputerSystem.Model

    def made_by(self, *names: str) -> bool:
        """True if vendor, manufacturer or OEM section is one of these (lower case, compared by their beginning)."""
        said = (self.vendor, self.manufacturer, *self.oem)
        return any(word.startswith(name) for word in said for name in names)


class Quirk:
    """The hook points, each with the standard's behaviour. `evidence` cites vendor, versions and source."""

    name: ClassVar[str]
    evidence: ClassVar[str]

    def applies(self, facts: Facts) -> bool:
        """Whether this BMC has it. The base says no: a quirk without a condition would hit every vendor."""
        return False

    def boot_body(self, body: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
        """The Boot object to PATCH. `present` is what the resource reads now."""
        return body

    def reset_types(self, verb: PowerVerb, types: tuple[str, ...]) -> tuple[str, ...]:
        """The ResetTypes to try for a verb, in order. For RESET an empty one means: off, confirmed, then on."""
        return types

    def off_pause(self) -> float:
        """Seconds to stay off between off and on of a cycle."""
        return 0.0

    def power_pause(self, reset_type: str, status: int, message_ids: tuple[str, ...]) -> float | None:
        """Seconds between tries of the same refused power action (the first sooner); None: the refusal stands."""
        return None

    def serial(self, system: dict[str, Any]) -> str | None:
        """Where the chassis serial really stands; None: SerialNumber."""
        return None

    def busy_ids(self) -> tuple[str, ...]:
        """Message ids (last part) with which this vendor says "not now" under another status than 503."""
        return ()


@cache
def every_quirk() -> tuple[Quirk, ...]:
    """All quirks of this package, by file name."""
    found = []
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        quirk = importlib.import_module(f"{__name__}.{module.name}").QUIRK
        assert isinstance(quirk, Quirk), f"{module.name}.QUIRK is no Quirk"
        found.append(quirk)
    return tuple(found)


def quirks_of(facts: Facts, among: Iterable[Quirk] | None = None) -> tuple[Quirk, ...]:
    """Those that apply to this BMC."""
    return tuple(quirk for quirk in (every_quirk() if among is None else among) if quirk.applies(facts))
