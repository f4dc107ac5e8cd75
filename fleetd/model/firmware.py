"""Which firmware a host of a SKU may carry: `firmware/baselines/<sku>.yaml` typed, and what drifted from it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fleetd.kit.errors import Invalid
from fleetd.kit.yamlfile import Document, decode


class Baseline(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`components`: allowed versions by component ("bios", "bmc"); the first one is what a flash aims at."""

    sku: str
    components: dict[str, tuple[str, ...]]


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """One component that is not at its baseline. `observed` is empty when nobody could say the version."""

    component: str
    observed: str
    allowed: tuple[str, ...]

    @property
    def target(self) -> str:
        """The version a flash aims at."""
        return self.allowed[0]


def read_baseline(document: Document) -> Baseline:
    """Decode. Raises Invalid with file:line for an unknown key, no component, or a component that allows nothing."""
    baseline = decode(document, Baseline)
    if not baseline.sku:
        raise Invalid("a baseline names its SKU", where=document.where(("sku",)))
    if not baseline.components:
        raise Invalid("a baseline names at least one component", where=document.where(("components",)))
    for component, versions in baseline.components.items():
        if not versions or not all(version.strip() for version in versions):
            raise Invalid(f"`{component}` allows no version", where=document.where(("components", component)))
    return baseline


def compare(baseline: Baseline, observed: Mapping[str, str]) -> list[Drift]:
    """What drifted, in the order of the baseline. A component nobody observed counts as drifted (observed empty)."""
    return [
        Drift(component=component, observed=observed.get(component, "").strip(), allowed=allowed)
        for component, allowed in baseline.components.items()
        if observed.get(component, "").strip() not in allowed
    ]
