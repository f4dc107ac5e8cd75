"""Is this the very host we mean, and are its CPUs and memory complete?"""

from __future__ import annotations

from fleetd.checks.context import Context
from fleetd.checks.judge import Judge, clean
from fleetd.checks.registry import Cause, check
from fleetd.model.bmc import is_placeholder
from fleetd.model.check import Action
from fleetd.model.report import Report
from fleetd.model.sku import Sku

KIB_PER_GIB = 1024 * 1024


def _gib(size: float) -> str:
    """Whole numbers where they tell enough; a small host's memory needs its hundredths."""
    return f"{size:.0f}" if size >= 16 else f"{size:.2f}"


@check(
    id="system.identity",
    title="Serial and UUID are those that fleetd expects",
    cause=Cause.IDENTITY,
    source="SMBIOS against the inventory and the BMC",
    why="a report of another host would certify this one",
    action=Action.FIX_INVENTORY,
    remedy=(
        "compare the serial on the pull-out tag with the inventory; correct the inventory and apply it, or swap "
        "the BMC cables back"
    ),
)
def identity(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    wanted = context.expected
    if wanted is None:
        judge.unread("", "fleetd does not know yet who this host has to be")
        return
    judge.expected = f"serial {wanted.serial}, UUID {wanted.uuid.lower()}"
    for what, reading, value in (
        ("serial", facts.identity.serial, wanted.serial),
        ("UUID", facts.identity.uuid, wanted.uuid),
    ):
        if is_placeholder(value):
            judge.unread("", f"fleetd does not know the {what} it has to expect")
        found = judge.read("", what, reading)
        if found is not None:
            judge.must(not is_placeholder(found), "", f"{what} {clean(found)!r} is a placeholder")
            judge.must(found.strip().lower() == value.strip().lower(), "", f"{what} {clean(found)}")
    if wanted.boot_mac:
        macs = judge.read("", "MAC addresses", facts.identity.macs)
        if macs is not None:
            judge.must(
                wanted.boot_mac.lower() in {m.lower() for m in macs}, "", f"no NIC has the boot MAC {wanted.boot_mac}"
            )


@check(
    id="system.cpu-memory",
    title="CPUs, memory and DIMMs are complete",
    cause=Cause.PRESENCE,
    source="lscpu, /proc/meminfo, SMBIOS; NHC check_hw_cpuinfo and check_hw_physmem (AzNHC: within 3 to 5 %)",
    why="a DIMM that dropped out takes a memory channel and its bandwidth with it",
    action=Action.RESEAT,
    remedy="reseat PARTS; if it stays away, swap it with a neighbour and replace what the fault follows",
)
def cpu_memory(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    want = profile.cpu
    floor = want.memory_gib * (1 - want.memory_tolerance)
    dimms = "" if want.dimms is None else f", {want.dimms} DIMMs"
    judge.expected = (
        f"{want.sockets} sockets, {want.cores} cores, {want.memory_gib} GiB (at least {_gib(floor)}){dimms}"
    )
    system = facts.system
    judge.equal("CPU", "sockets", system.sockets, want.sockets)
    judge.equal("CPU", "cores", system.cores, want.cores)
    memory = judge.read("memory", "KiB", system.memory_kib)
    if memory is not None:
        judge.must(memory >= floor * KIB_PER_GIB, "memory", f"{_gib(memory / KIB_PER_GIB)} GiB")
    if want.dimms is not None and system.dimms.v is None:
        judge.unread("DIMM", "DIMMs not read", system.dimms.reason)
    elif want.dimms is not None:
        fitted = [d for d in system.dimms.v or [] if d.mib > 0]
        judge.note("DIMMs", len(fitted))
        judge.must(len(fitted) == want.dimms, "DIMM", f"{len(fitted)} of {want.dimms}")
        fastest = max((d.mt_s for d in fitted), default=0)
        for dimm in fitted[: 4 * want.dimms]:
            slow = 0 < dimm.mt_s < fastest
            judge.must(not slow, f"DIMM {clean(dimm.slot, 16)}", f"runs at {dimm.mt_s} MT/s, the others at {fastest}")
    if system.edac_uncorrected.v is not None:
        judge.note("uncorrected memory errors", system.edac_uncorrected.v)
        judge.must(
            system.edac_uncorrected.v == 0,
            "memory",
            f"{system.edac_uncorrected.v} uncorrected errors since boot",
            Action.RMA,
        )
