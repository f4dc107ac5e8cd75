"""Are the compute ports there, up and at their rate?"""

from __future__ import annotations

from fleetd.checks.context import Context
from fleetd.checks.judge import Judge, clean
from fleetd.checks.registry import Cause, check
from fleetd.model.check import Action
from fleetd.model.report import Port, Report
from fleetd.model.sku import Sku


def word(text: str) -> str:
    """The word of a sysfs state: `4: ACTIVE` -> ACTIVE."""
    return text.partition(":")[2].strip() or text.strip()


def _fault(port: Port, rate: int) -> str:
    """What is not as it must be; empty when the port is good. All three readings are known here."""
    state, physical = word(port.state.v or ""), word(port.phys_state.v or "")
    if state.upper() != "ACTIVE" or physical.upper() != "LINKUP":
        return f"{clean(state, 24)}, {clean(physical, 24)}"
    found = port.rate_gbps.v or 0.0
    return "" if found >= rate else f"{found:g} Gb/s"


@check(
    id="network.nics",
    title="All compute ports are up and at their rate",
    needs="network",
    cause=Cause.LINK,
    source="sysfs infiniband ports; AzNHC check_hw_ib, gpud at_least_ports and at_least_rate",
    why="a port that is down or slow cuts the GPU beside it off from the other hosts",
    action=Action.RESEAT,
    remedy="reseat the optic and the cable of PARTS at both ends, look at the switch port, retest after five minutes",
)
def nics(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    want = profile.network
    judge.expected = f"{want.count} ports ACTIVE, LinkUp, {want.rate_gbps} Gb/s"
    cards = facts.nics.v
    if cards is None:
        judge.unread("", "NICs not read", facts.nics.reason)
        return
    up: set[str] = set()
    down: dict[str, str] = {}
    slow: dict[str, str] = {}
    for nic in cards[: 16 * want.count]:
        compute = False
        for port in nic.ports[:4]:
            part = clean(f"{nic.name} port {port.port}", 32)
            missing = [(w, r) for w, r in _readings(port) if r]
            for what, reason in missing:
                judge.unread(part, f"{what} not read", reason)
            if missing:
                continue
            fault = _fault(port, want.rate_gbps)
            judge.note(part, f"{port.state.v}, {port.phys_state.v}, {port.rate_gbps.v} Gb/s, {port.link_layer.v}")
            if not fault:
                up.add(part)
                compute = True
            else:
                (slow if fault.endswith("Gb/s") else down)[part] = fault
        if compute and want.firmware:
            version = judge.read(nic.name, "firmware", nic.firmware)
            if version is not None:
                judge.must(
                    version in want.firmware, nic.name, f"firmware {clean(version)}", Action.REFLASH, "flash PARTS"
                )
    good = len(up)
    short = want.count - good
    judge.must(
        short <= 0 or bool(down or slow),
        "",
        f"{good} of {want.count} compute ports in the report",
        Action.POWER_CYCLE,
    )
    if short > 0:
        # A storage port may be slower by right: blame it only when the ports that are down do not explain it.
        blamed = down if len(down) >= short else {**down, **slow}
        for part, fault in blamed.items():
            judge.must(False, part, fault)
    judge.measured = f"{good} ports up at {want.rate_gbps} Gb/s"


def _readings(port: Port) -> tuple[tuple[str, str], ...]:
    """Name and reason of absence (empty when known) of the three readings that a port needs."""
    return (
        ("state", port.state.reason),
        ("physical state", port.phys_state.reason),
        ("rate", port.rate_gbps.reason),
    )
