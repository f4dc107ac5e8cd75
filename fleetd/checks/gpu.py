"""Is every GPU there, the right one, and sound by its own account? Needs no load; takes seconds of probe time."""

from __future__ import annotations

from collections import Counter

from fleetd.checks.context import Context
from fleetd.checks.judge import Judge, clean
from fleetd.checks.registry import Cause, check
from fleetd.checks.xids import APPLICATION, FATAL, HARMLESS
from fleetd.model.bmc import is_placeholder
from fleetd.model.check import Action
from fleetd.model.proof import NO_GPU
from fleetd.model.report import PciDevice, Report
from fleetd.model.sku import Sku

NVIDIA = "10de"  # PCI vendor id
DISPLAY = ("0300", "0302")  # PCI classes: VGA controller, 3D controller
OFF_THE_BUS = (79, 167)  # Xids

# nvmlDeviceGpuRecoveryAction (field 230): what the driver asks for
RECOVERY = {
    1: ("GPU reset", Action.RESET),
    2: ("host reboot", Action.REBOOT),
    3: ("drain peer-to-peer traffic", Action.RESET),
    4: ("drain and reset", Action.RESET),
    5: ("recover the IMEX domain", Action.CHECK_FABRIC),
    6: ("bus reset", Action.RESET),
    7: ("system reboot", Action.REBOOT),
}

_NO_NVML = "the driver did not start: reboot; if it comes back, write the SKU's image again"

# NVML_CLOCKS_EVENT_REASON_*
REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}
POWER_BRAKE = 0x80


def slot(address: str) -> str:
    """A PCI address as sysfs writes it; NVML writes `00000000:17:00.0` in capitals."""
    domain, _, rest = address.lower().partition(":")
    return f"{domain[-4:].zfill(4)}:{rest}" if rest.count(":") == 1 else address.lower()


def pci_gpus(devices: list[PciDevice]) -> list[PciDevice]:
    """The GPUs among the PCI devices, each address once."""
    gpus = {slot(d.address): d for d in devices if d.vendor.lower() == NVIDIA and d.class_id.lower()[:4] in DISPLAY}
    return list(gpus.values())


@check(
    id="gpu.count",
    title="All GPUs are there, counted three ways",
    needs="gpu",
    cause=Cause.PRESENCE,
    source="AzNHC check_gpu_count, gpud gpu-counts; the three-way comparison finds a GPU off the bus",
    why="a tenant who pays for eight GPUs and gets seven loses the whole job at its first collective",
    action=Action.POWER_CYCLE,
    remedy=(
        "power-cycle the host at the outlet; if PARTS stays away, take the host out, reseat the GPU board and its "
        "cables, then RMA"
    ),
)
def count(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    wanted = profile.gpus.count
    judge.expected = f"{wanted} GPUs on PCI, in NVML and openable"
    nvml = facts.nvml
    lost = {slot(x.pci) for x in facts.xids.v or [] if x.code in OFF_THE_BUS}
    devices = facts.pci.v
    seen = None
    if devices is None:
        judge.unread("", "PCI devices not read", facts.pci.reason)
    else:
        on_bus = pci_gpus(devices)
        seen = len(on_bus)
        judge.note("PCI count", seen)
        known = {slot(g.pci.v) for g in nvml.gpus if g.pci.v}
        if seen < wanted:
            gone = sorted(address for address in lost if address not in {slot(d.address) for d in on_bus})
            part = f"GPU at {gone[0]}" if len(gone) == 1 else "GPU"
            judge.must(False, part, f"{seen} of {wanted} GPUs on the PCI bus")
        elif seen > wanted:
            judge.must(
                False, "", f"{seen} GPUs on the PCI bus", Action.FIX_INVENTORY, "give the host the SKU it really is"
            )
        else:
            judge.must(True, "", "")
        hidden = [slot(d.address) for d in on_bus if slot(d.address) not in known]
        if nvml.init.v and len(nvml.gpus) < seen and len(hidden) == seen - len(known):
            for address in hidden:
                judge.must(False, f"GPU at {address}", "on the PCI bus, not in NVML", Action.REBOOT)
    if nvml.init.v is None:
        judge.later("", f"NVML did not start ({nvml.init.reason})", _NO_NVML)
        return
    judge.must(nvml.init.v is True, "", "NVML did not start", Action.REBOOT)
    number = judge.read("", "NVML count", nvml.count)
    if number is not None:
        judge.must(number == wanted, "", f"NVML counts {number}, must be {wanted}")
    openable = 0
    for gpu in nvml.gpus[: 4 * wanted]:
        part = f"GPU {gpu.index}"
        if gpu.handle.v is True:
            openable += 1
        elif gpu.handle.v is None and not gpu.handle.absent:
            judge.unread(part, "handle not read", gpu.handle.reason)
        else:
            off = "lost" in gpu.handle.reason.lower() or slot(gpu.pci.v or "") in lost
            text = f"does not open ({gpu.handle.reason or 'refused'})"
            judge.must(False, part, text, Action.POWER_CYCLE if off else Action.REBOOT)
    judge.note("openable", openable)
    if len({gpu.index for gpu in nvml.gpus}) != len(nvml.gpus):
        judge.unread("", "a GPU index stands in the report twice")
    judge.must(openable == wanted or len(nvml.gpus) == wanted, "", f"{openable} of {wanted} GPUs open")
    judge.measured = f"PCI {seen}, NVML {number}, openable {openable}"


@check(
    id="gpu.identity",
    title="Every GPU is of the right kind and has an identity of its own",
    needs="gpu",
    cause=Cause.KIND,
    source="NVML GetUUID, GetSerial, GetName; PCI ids from DCGM diag-skus and captures",
    why="a certificate names these serials; a GPU of another kind makes the host another product",
    action=Action.FIX_INVENTORY,
    remedy=(
        "compare PARTS with the packing list: either the wrong GPU was fitted, or the host has the wrong SKU in "
        "the inventory"
    ),
)
def identity(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    gpu = profile.gpus
    judge.expected = f"{gpu.count} x {gpu.name}, PCI id 10de:{gpu.pci_id}, distinct UUIDs and serials"
    by_slot = {slot(d.address): d for d in facts.pci.v or []}
    if facts.pci.v is None:
        judge.unread("", "PCI devices not read", facts.pci.reason)
    uuids: Counter[str] = Counter()
    serials: Counter[str] = Counter()
    for part, one in judge.gpus(facts, profile):
        judge.equal(part, "name", one.name, gpu.name)
        for what, reading, tally in (("UUID", one.uuid, uuids), ("serial", one.serial, serials)):
            value = judge.read(part, what, reading)
            if value is not None:
                judge.must(not is_placeholder(value), part, f"{what} {clean(value)!r} is none", Action.RMA)
                tally[value] += 1
                judge.must(tally[value] == 1, part, f"{what} {clean(value)} stands in this host twice", Action.RMA)
        address = judge.read(part, "PCI address", one.pci)
        if address is not None and facts.pci.v is not None:
            device = by_slot.get(slot(address))
            if device is None:
                judge.unread(part, f"no PCI device at {clean(address)}")
            else:
                found = f"{device.vendor}:{device.device}".lower()
                judge.must(found == f"{NVIDIA}:{gpu.pci_id.lower()}", part, f"PCI id {found}")


@check(
    id="gpu.versions",
    title="Driver, VBIOS and GSP firmware are allowed and uniform",
    needs="gpu",
    cause=Cause.CONFIGURATION,
    source="imbue VBIOS check, gcm VBIOS mismatch; GSP firmware comes with the driver and equals it",
    why="one GPU with another VBIOS runs at other limits and slows the other seven",
    action=Action.REFLASH,
    remedy="flash the VBIOS of the baseline on PARTS, then power-cycle",
)
def versions(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    gpu = profile.gpus
    judge.expected = f"driver {' or '.join(gpu.driver)}; VBIOS {' or '.join(gpu.vbios)}, the same on all"
    image = f"write the image {profile.image} again: the driver comes with it"
    driver = judge.read("", "driver", facts.nvml.driver)
    if driver is not None:
        judge.must(driver in gpu.driver, "", f"driver {clean(driver)}", Action.CONFIGURE, image)
    read = [(part, one, judge.read(part, "VBIOS", one.vbios)) for part, one in judge.gpus(facts, profile)]
    usual = Counter(v for _, _, v in read if v is not None).most_common(1)
    for part, one, vbios in read:
        if vbios is not None:
            good = judge.must(vbios in gpu.vbios, part, f"VBIOS {clean(vbios)}")
            if good and usual:
                judge.must(vbios == usual[0][0], part, f"VBIOS {clean(vbios)}, the others have {clean(usual[0][0])}")
        if one.gsp.v is not None and driver is not None:
            judge.note(f"{part} GSP", one.gsp.v)
            judge.must(
                one.gsp.v == driver, part, f"GSP {clean(one.gsp.v)}, driver {clean(driver)}", Action.CONFIGURE, image
            )


@check(
    id="gpu.inforom",
    title="The InfoROM of every GPU is valid",
    needs="gpu",
    cause=Cause.FATAL,
    source="nvmlDeviceValidateInforom; NVSentinel: DCGM_FR_CORRUPT_INFOROM asks for a reset",
    why="a corrupt InfoROM loses the record of bad memory",
    action=Action.RESET,
    remedy="reset PARTS; if it stays corrupt, RMA",
)
def inforom(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    judge.expected = "valid on every GPU"
    for part, gpu in judge.gpus(facts, profile):
        judge.equal(part, "InfoROM valid", gpu.inforom_valid, True)


@check(
    id="gpu.memory",
    title="Every GPU shows its full memory",
    needs="gpu",
    cause=Cause.FATAL,
    source="NVML GetMemoryInfo v1 total, captured per model",
    why="missing memory means retired rows beyond the reserve (Xid 168), and jobs that do not fit",
    action=Action.RMA,
    remedy="replace PARTS: its memory shrank or it is another model",
)
def memory(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    wanted, slack = profile.gpus.memory_mib, profile.gpus.memory_tolerance
    judge.expected = f"{wanted} MiB within {slack:.1%}"
    for part, gpu in judge.gpus(facts, profile):
        size = judge.read(part, "memory MiB", gpu.memory_mib)
        if size is not None:
            judge.must(abs(size - wanted) <= wanted * slack, part, f"{size} MiB")


@check(
    id="gpu.ecc",
    title="ECC is on and counts no uncorrectable error",
    needs="gpu",
    cause=Cause.FATAL,
    source="AzNHC check_gpu_ecc, gcm, gpud ecc; DCGM_FR_ECC_DISABLED",
    why="an uncorrectable error ends the job that meets it; without ECC it silently spoils the result",
    action=Action.RESET,
    remedy="reset PARTS, then retest; the second time send it to field diagnosis",
)
def ecc(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    most = profile.gpus.sram_uncorrectable_max
    judge.expected = f"ECC on, no change pending; DRAM uncorrectable 0, SRAM uncorrectable at most {most}"
    switch_on = "switch ECC on for PARTS (`nvidia-smi -e 1`) and reboot"
    for part, gpu in judge.gpus(facts, profile):
        for what, mode in (("ECC now", gpu.ecc_current), ("ECC after reboot", gpu.ecc_pending)):
            value = judge.read(part, what, mode)
            if value is not None:
                judge.must(value, part, f"{what} off", Action.CONFIGURE, switch_on)
        judge.equal(part, "DRAM uncorrectable", gpu.dram_uncorrectable_volatile, 0)
        sram = judge.read(part, "SRAM uncorrectable", gpu.sram_uncorrectable_aggregate)
        if sram is not None:
            judge.must(0 <= sram <= most, part, f"{sram} SRAM uncorrectable in its life", Action.RMA, "replace PARTS")


@check(
    id="gpu.row-remap",
    title="No row remap failed, none waits, few were needed",
    needs="gpu",
    cause=Cause.FATAL,
    source="AzNHC and DCGM remapped rows; NVSentinel: DCGM_FR_PENDING_ROW_REMAP asks for a reset",
    why="a pending remap means the bad row is still in use",
    action=Action.RESET,
    remedy="reset PARTS, so that the pending remap takes effect, then retest",
)
def row_remap(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    most = profile.gpus.remapped_rows_max
    judge.expected = f"no failure, none pending, at most {most} rows remapped for uncorrectable errors"
    replace = "replace PARTS: it has no good rows left to remap to, or needed too many"
    for part, gpu in judge.gpus(facts, profile):
        rows = judge.read(part, "remapped rows", gpu.remapped)
        if rows is not None:
            judge.must(not rows.failure, part, "a row remap failed", Action.RMA, replace)
            judge.must(not rows.pending, part, "a row remap is pending")
            judge.must(
                0 <= rows.uncorrectable <= most, part, f"{rows.uncorrectable} rows remapped", Action.RMA, replace
            )


@check(
    id="gpu.recovery-action",
    title="No GPU asks for recovery",
    needs="gpu",
    cause=Cause.FATAL,
    source="NVML_FI_DEV_GET_GPU_RECOVERY_ACTION (230), driver R570 and later; the same as Xid 154",
    why="the driver itself says that this GPU is not fit until recovered",
    action=Action.RESET,
    remedy="do what the driver asks for PARTS, then retest",
)
def recovery_action(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    judge.expected = "none on every GPU"
    for part, gpu in judge.gpus(facts, profile):
        asked = judge.read(part, "recovery action", gpu.recovery_action)
        if asked is not None:
            text, action = RECOVERY.get(asked, (f"unknown action {asked}", Action.RETEST))
            judge.must(asked == 0, part, f"asks for {text}", action)


@check(
    id="gpu.xid",
    title="The driver logged no fatal Xid in this boot",
    needs="gpu",
    cause=Cause.FATAL,
    source="kernel log; NVIDIA's Xid catalogue (checks/xids.py)",
    why="an Xid of this list in an idle host comes back under load",
    action=Action.RESET,
    remedy="reset PARTS, then retest",
)
def xid(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    judge.expected = "no fatal Xid since boot or the last repair"
    told = judge.read("", "Xids", facts.xids)
    if told is None:
        return
    names = {slot(g.pci.v): f"GPU {g.index}" for g in facts.nvml.gpus if g.pci.v}
    applications = 0
    worst: dict[tuple[str, int], int] = Counter()
    for one in told:
        if one.seconds >= context.repaired_at:
            address = slot(one.pci)
            worst[(names.get(address) or names.get(f"{address}.0") or f"GPU at {clean(address, 16)}", one.code)] += 1
    judge.must(True, "", "")  # an empty log is a comparison too: the log was read
    remedies = {
        Action.POWER_CYCLE: "power-cycle the host at the outlet; if it comes back, reseat PARTS",
        Action.RESEAT: "take the host out and check the power connectors of PARTS",
        Action.RMA: "replace PARTS",
        Action.REBOOT: "reboot, then retest",
        Action.RETEST: "retest; if it comes back, look the Xid up in NVIDIA's catalogue and open a case",
    }
    for (part, code), times in worst.items():
        judge.note(f"{part} Xid {code}", f"{times}x")
        if code in APPLICATION:
            applications += times
        elif code not in HARMLESS:
            text, action = FATAL.get(
                code, (f"not in the table of fleetd {'' if code else '(0)'}".strip(), Action.RETEST)
            )
            judge.must(False, part, f"Xid {code} {text}, {times}x", action, remedies.get(action, ""))
    if applications:
        most = profile.gpus.app_xids_max
        judge.must(
            applications <= most,
            "",
            f"{applications} application Xids in one boot",
            Action.RETEST,
            remedies[Action.RETEST],
        )


@check(
    id="gpu.throttle",
    title="No GPU is slowed down by heat or power",
    needs="gpu",
    cause=Cause.STATE,
    source="NVML clocks event reasons; AzNHC, gpud hw-slowdown",
    why="one slow GPU sets the pace of all",
    action=Action.RESEAT,
    remedy="check heat sink or cold plate, and the air or water flow, of PARTS",
)
def throttle(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    forbidden = profile.gpus.forbidden_throttle
    judge.expected = "none of: " + ", ".join(text for bit, text in REASONS.items() if bit & forbidden)
    read = [(part, judge.read(part, "event reasons", gpu.throttle)) for part, gpu in judge.gpus(facts, profile)]
    masks = [mask for _, mask in read if mask is not None]
    supply = "the power brake holds all GPUs: check the power supplies, the PDU and the rack's power cap"
    whole = bool(masks) and len(masks) == profile.gpus.count and all(mask & POWER_BRAKE for mask in masks)
    for part, mask in read:
        if mask is not None:
            bad = [text for bit, text in REASONS.items() if bit & mask & forbidden]
            other = mask & forbidden & ~sum(REASONS)
            words = ", ".join(bad + ([f"reason {other:#x}"] if other else []))
            judge.must(not mask & forbidden, part, words, remedy=supply if whole else "")


@check(
    id="gpu.temperature",
    title="No idle GPU is hot",
    needs="gpu",
    cause=Cause.STATE,
    source="NVML temperature; vessl: warn at 85, critical at 95 degrees Celsius",
    why="a GPU that is hot without work has lost its cooling",
    action=Action.RESEAT,
    remedy="check heat sink or cold plate of PARTS, fans and coolant",
)
def temperature(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    most = profile.gpus.temperature_max_c
    judge.expected = f"at most {most} C"
    for part, gpu in judge.gpus(facts, profile):
        value = judge.read(part, "temperature C", gpu.temperature_c)
        if value is not None:
            judge.must(value <= most, part, f"{value} C")


@check(
    id="gpu.power-limit",
    title="The power limit is the factory's",
    needs="gpu",
    cause=Cause.STATE,
    source="NVML enforced and default power limit; DCGM target_power",
    why="a limit left low by the last user makes the GPU slow and nothing says why",
    action=Action.CONFIGURE,
    remedy="set the power limit of PARTS to the SKU's (`nvidia-smi -pl`)",
)
def power_limit(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    wanted = profile.gpus.power_limit_w
    judge.expected = f"enforced = default = {wanted} W"
    for part, gpu in judge.gpus(facts, profile):
        judge.equal(part, "power limit W", gpu.power_limit_w, wanted)
        judge.equal(part, "default power limit W", gpu.power_limit_default_w, wanted)


@check(
    id="gpu.idle",
    title="No leftover process, MIG off",
    needs="gpu",
    cause=Cause.STATE,
    source="NVML processes and MIG mode; gcm, DCGM r1 (severity: configuration, never hardware)",
    why="a leftover process holds memory and may read the next tenant's",
    action=Action.CONFIGURE,
    remedy="end what runs on PARTS and switch MIG off (`nvidia-smi -mig 0`), or reboot",
)
def idle(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    judge.expected = "0 processes, MIG off"
    for part, gpu in judge.gpus(facts, profile):
        judge.equal(part, "processes", gpu.processes, 0)
        mig = judge.read(part, "MIG", gpu.mig)
        if mig is not None:
            judge.must(not mig, part, "MIG is on")


@check(
    id=NO_GPU,
    title="A host without GPUs shows none",
    needs="no-gpu",
    cause=Cause.KIND,
    source="sysfs PCI devices of vendor 10de, classes 0300 and 0302",
    why="a GPU that nobody rents out is unproven hardware in a tenant's hands, and the host is another SKU",
    action=Action.FIX_INVENTORY,
    remedy="give the host the SKU it really is, or take PARTS out",
)
def absent(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    judge.expected = "no NVIDIA display or 3D controller on the PCI bus"
    devices = facts.pci.v
    if devices is None:
        judge.unread("", "PCI devices not read", facts.pci.reason)
        return
    judge.must(bool(devices), "", "not one PCI device in the report", Action.RETEST, "retest: the listing is empty")
    found = pci_gpus(devices)
    judge.note("PCI devices", len(devices))
    for device in found[:16]:
        judge.must(
            False, f"GPU at {clean(slot(device.address), 16)}", f"PCI id {clean(device.vendor)}:{clean(device.device)}"
        )
    judge.measured = f"{len(devices)} PCI devices, no GPU"
