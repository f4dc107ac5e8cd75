"""Did the firmware of the board drift from the SKU's baseline?"""

from __future__ import annotations

from fleetd.checks.context import Context
from fleetd.checks.judge import Judge, clean
from fleetd.checks.registry import Cause, check
from fleetd.model.check import Action
from fleetd.model.firmware import compare
from fleetd.model.report import Report
from fleetd.model.sku import Sku


@check(
    id="firmware.baseline",
    title="BIOS and BMC are at the SKU's baseline",
    cause=Cause.CONFIGURATION,
    source="firmware/baselines/<sku>.yaml; SMBIOS for the BIOS, the BMC for itself",
    why="two hosts of one lease with different firmware do not behave alike, and a lessee may have changed it",
    action=Action.REFLASH,
    remedy="bring the firmware to the baseline with the vendor's tool, then retest",
)
def baseline(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    allowed = context.baseline
    if allowed is None:
        judge.unread("", "there is no baseline for this SKU")
        return
    judge.must(allowed.sku == profile.sku, "", f"the baseline is for {clean(allowed.sku)}", Action.CONFIGURE)
    judge.expected = "; ".join(f"{name} {' or '.join(versions)}" for name, versions in allowed.components.items())
    seen = {name: version for name, version in context.versions.items() if version.strip()}
    if "bios" in allowed.components:
        told = judge.read("", "BIOS", facts.system.bios_version)
        if told is not None:
            if "bios" in seen:
                judge.must(
                    told.strip() == seen["bios"].strip(),
                    "bios",
                    f"SMBIOS says {clean(told)}, the BMC {clean(seen['bios'])}",
                )
            seen["bios"] = told
    for name, version in seen.items():
        judge.note(name, version)
    drifted = {drift.component: drift for drift in compare(allowed, seen)}
    judge.measured = "; ".join(f"{name} {clean(seen[name])}" for name in allowed.components if name in seen)
    for name in allowed.components:
        if name not in seen:
            judge.unread(name, "nobody could tell its version")
        else:
            judge.must(name not in drifted, name, f"version {clean(seen[name])}")
