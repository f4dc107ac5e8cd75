"""Did the PCIe links of GPUs and compute NICs train as wide and as fast as they can?"""

from __future__ import annotations

from fleetd.checks.context import Context
from fleetd.checks.gpu import pci_gpus, slot
from fleetd.checks.judge import Judge, clean
from fleetd.checks.registry import Cause, check
from fleetd.model.check import Action
from fleetd.model.report import Report
from fleetd.model.sku import Sku


@check(
    id="pcie.link",
    title="The PCIe link of every GPU is wide and new enough",
    needs="gpu",
    cause=Cause.LINK,
    source="NVML link generation and width; DCGM min_pci_generation; captures: Gen 5 x16 on HGX H100, H200, B200",
    why="a GPU at x8, or in a Gen 4 path, feeds data at half the speed",
    action=Action.RESEAT,
    remedy="power-cycle; if it trains the same, reseat PARTS and its riser, look for a bent pin",
)
def link(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    want = profile.gpus.pcie
    judge.expected = f"Gen {want.generation} possible (an idle link may drop), x{want.width} always"
    for part, gpu in judge.gpus(facts, profile):
        most = judge.read(part, "generation possible", gpu.pcie_generation_max)
        if most is not None:
            judge.must(most >= want.generation, part, f"Gen {most} is the most its path can do")
        if gpu.pcie_generation.v is not None:
            judge.note(f"{part} generation now", gpu.pcie_generation.v)
        for what, reading in (("width now", gpu.pcie_width), ("width possible", gpu.pcie_width_max)):
            width = judge.read(part, what, reading)
            if width is not None:
                judge.must(width >= want.width, part, f"{what} x{width}")


@check(
    id="pcie.chain",
    title="GPUs and compute NICs trained at their own full width",
    needs="gpu-or-network",
    cause=Cause.LINK,
    source="sysfs current_link_width against max_link_width; kernel: 'limited by ... x8 link'",
    why="NVML tells nothing of the NIC beside the GPU, whose lost lanes cut the network in half",
    action=Action.RESEAT,
    remedy="power-cycle; if it trains the same, reseat PARTS and its riser",
)
def chain(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    judge.expected = "current width = the width the device can do"
    devices = facts.pci.v
    nics = facts.nics.v
    if devices is None or nics is None:
        judge.unread("", "PCI devices or NICs not read", facts.pci.reason or facts.nics.reason)
        return
    here = {slot(d.address): d for d in devices}
    wanted: dict[str, str] = {}
    names = {slot(g.pci.v): f"GPU {g.index}" for g in facts.nvml.gpus if g.pci.v}
    gpus = pci_gpus(devices)
    if len(gpus) < profile.gpu_count:
        judge.unread("", f"{len(gpus)} of {profile.gpu_count} GPUs on the PCI bus")
    for device in gpus:
        wanted[slot(device.address)] = names.get(slot(device.address), f"GPU at {slot(device.address)}")
    compute = [n for n in nics if any((p.rate_gbps.v or 0) >= profile.network.rate_gbps for p in n.ports)]
    if len(compute) < profile.network.count and sum(len(n.ports) for n in compute) < profile.network.count:
        judge.unread("", f"{len(compute)} of {profile.network.count} compute NICs at their rate")
    for nic in compute:
        address = nic.pci.v
        if address is None:
            judge.unread(nic.name, "PCI address not read", nic.pci.reason)
        else:
            wanted[slot(address)] = clean(nic.name, 16)
    for address, part in list(wanted.items())[: 4 * (profile.gpu_count + profile.network.count)]:
        found = here.get(address)
        if found is None:
            judge.unread(part, f"no PCI device at {clean(address)}")
        elif found.width <= 0 or found.max_width <= 0:
            judge.unread(part, "link width not read")
        else:
            judge.note(
                f"{part} width", f"x{found.width} of x{found.max_width}, {found.speed:g} of {found.max_speed:g} GT/s"
            )
            judge.must(found.width >= found.max_width, part, f"x{found.width}, it can do x{found.max_width}")
