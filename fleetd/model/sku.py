"""The SKU: the profile a host must match. All numbers a check compares with stand here, none in code."""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import msgspec

from fleetd.kit.errors import Invalid
from fleetd.kit.yamlfile import Document, decode
from fleetd.model.units import seconds


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class NvlinkProfile(_Part, frozen=True, kw_only=True):
    """Per GPU. `mb_per_s`: one way per link (field NVLINK_SPEED_MBPS_COMMON), Hopper 26562, Blackwell 53125."""

    links: int
    mb_per_s: int
    version: int
    topology: str = "NV18"  # what `nvidia-smi topo -m` shows between every pair of GPUs of the host
    switch_pci_id: str = ""  # NVSwitch that the host itself sees (10de:22a3 on Hopper); empty where it sees none
    switches: int = 0


class FabricProfile(_Part, frozen=True, kw_only=True):
    """`cluster_uuid`: an NVL72 tray must show one that is not zero; HGX shows zero."""

    required: bool = True
    cluster_uuid: bool = False
    healthy_mask_required: bool = False


class PcieProfile(_Part, frozen=True, kw_only=True):
    generation: int
    width: int


class GpuProfile(_Part, frozen=True, kw_only=True):
    count: int
    name: str
    pci_id: str  # device id, four hex digits
    memory_mib: int
    memory_tolerance: float = 0.005
    vbios: tuple[str, ...]  # allowed versions
    driver: tuple[str, ...]
    power_limit_w: int
    pcie: PcieProfile
    nvlink: NvlinkProfile
    fabric: FabricProfile = FabricProfile()
    remapped_rows_max: int = 2
    sram_uncorrectable_max: int = 0
    temperature_max_c: int = 85
    app_xids_max: int = 8  # Xids of applications (13, 31, 43 …) in one boot, before they count as a symptom
    forbidden_throttle: int = 0xE8  # HW slowdown 0x8, SW thermal 0x20, HW thermal 0x40, power brake 0x80


class NetworkProfile(_Part, frozen=True, kw_only=True):
    count: int = 0  # compute ports; 0: none is rented with the host, and none is looked at
    rate_gbps: int = 0
    firmware: tuple[str, ...] = ()


class StorageProfile(_Part, frozen=True, kw_only=True):
    nvme_count: int  # all of them, the system drive included
    nvme_min_gb: int  # each data drive
    system_min_gb: int = 400  # the system drive: the one that takes the image
    used_max_percent: int = 80
    system_serial_rule: str = "smallest"  # which drive takes the image: smallest | serial:<glob> | model:<glob>


class CpuProfile(_Part, frozen=True, kw_only=True):
    sockets: int
    cores: int  # all sockets together
    memory_gib: int
    memory_tolerance: float = 0.03
    dimms: int | None = None


class DomainProfile(_Part, frozen=True, kw_only=True):
    """An NVLink domain of several hosts. `trays` is a whole one; below `min_trays` the domain is no domain."""

    trays: int
    min_trays: int
    switch_trays: int = 0


class RepairProfile(_Part, frozen=True, kw_only=True):
    """How often the same remedy may be asked for the same part before the next stronger one is."""

    retest: int = 1
    reset: int = 1
    reboot: int = 2
    power_cycle: int = 2
    reseat: int = 1


BootVia = Literal["network", "virtual-media"]


class Sku(_Part, frozen=True, kw_only=True):
    """One file of inventory/skus. `digest` names the exact text a certificate was judged by."""

    sku: str
    vendor: str
    model: str
    height: int = 1  # rack units
    image: str
    boot_mode: Literal["uefi", "bios"] = "uefi"
    boot_via: BootVia = "network"  # how the deploy environment reaches the host; a playbook's step may say otherwise
    boot_patience: str = "15m"  # from power-on to the phone-home; memory tests of a big server take minutes
    gpu: GpuProfile | None = None  # null: a host without GPUs, which then must show none (check `gpu.absent`)
    network: NetworkProfile = NetworkProfile()
    storage: StorageProfile
    cpu: CpuProfile
    domain: DomainProfile | None = None
    repair: RepairProfile = RepairProfile()
    acceptance: tuple[str, ...]  # check ids; closed: each must give a verdict
    quick: tuple[str, ...]
    certificate_ttl: str = "30d"
    digest: str = ""

    @property
    def certificate_seconds(self) -> float:
        return seconds(self.certificate_ttl)

    @property
    def boot_seconds(self) -> float:
        return seconds(self.boot_patience)

    @property
    def gpus(self) -> GpuProfile:
        """The GPU profile, for what was asked only of hosts with GPUs. Raises Invalid when the SKU has none."""
        if self.gpu is None:
            raise Invalid(f"SKU `{self.sku}` has no GPUs")
        return self.gpu

    @property
    def gpu_count(self) -> int:
        """GPUs of one host; 0 where the SKU has none."""
        return 0 if self.gpu is None else self.gpu.count

    def suite(self, name: str) -> tuple[str, ...]:
        """Check ids of `acceptance` or `quick`. Raises Invalid for another name."""
        if name not in ("acceptance", "quick"):
            raise Invalid(f"there is no suite `{name}`", remedy="use acceptance or quick")
        return self.acceptance if name == "acceptance" else self.quick


BOOT_SECONDS = (30.0, 1200.0)  # a boot step with a slow BMC beside it ends within its deadline
_Fault = tuple[bool, tuple[str, ...], str]


def _gpu_faults(gpu: GpuProfile | None) -> tuple[_Fault, ...]:
    if gpu is None:
        return ()
    return (
        (gpu.count < 1, ("gpu", "count"), "a host with a GPU profile has at least one GPU: leave `gpu` out for none"),
        (not gpu.vbios, ("gpu", "vbios"), "no VBIOS version is allowed"),
        (not gpu.driver, ("gpu", "driver"), "no driver version is allowed"),
    )


def read_sku(document: Document) -> Sku:
    """Decode and digest. Raises Invalid with file:line."""
    sku = decode(document, Sku)
    for bad, path, what in (
        (not 1 <= sku.height <= 64, ("height",), "the height is 1 to 64 rack units"),
        (not sku.image, ("image",), "the image is empty"),
        (sku.network.count < 0, ("network", "count"), "there are 0 compute ports or more"),
        (
            sku.network.count > 0 and sku.network.rate_gbps < 1,
            ("network", "count"),
            "compute ports have a rate: add `rate_gbps`",
        ),
        (sku.storage.nvme_count < 1, ("storage", "nvme_count"), "a host has at least the drive that takes its image"),
        (sku.cpu.memory_gib < 1, ("cpu", "memory_gib"), "the memory is 1 GiB or more"),
        (not 0 <= sku.cpu.memory_tolerance < 1, ("cpu", "memory_tolerance"), "a tolerance is 0 to below 1"),
        (sku.domain is not None and sku.gpu is None, ("domain",), "an NVLink domain is made of GPUs: add `gpu`"),
        *_gpu_faults(sku.gpu),
        (
            sku.domain is not None and not 1 <= sku.domain.min_trays <= sku.domain.trays,
            ("domain", "min_trays"),
            "min_trays is 1 to trays",
        ),
    ):
        if bad:
            raise Invalid(what, where=document.where(path))
    for key, text, (least, most), what in (
        ("certificate_ttl", sku.certificate_ttl, (0.001, math.inf), "a certificate must live longer than that"),
        ("boot_patience", sku.boot_patience, BOOT_SECONDS, "a boot is waited for 30 s to 20 minutes"),
    ):
        try:
            if not least <= seconds(text) <= most:
                raise Invalid(what)
        except Invalid as error:
            raise Invalid(error.what, remedy=error.remedy, where=document.where((key,))) from error
    for name in ("acceptance", "quick"):
        checks = sku.suite(name)
        if not checks:
            raise Invalid(f"the {name} suite is empty: zero checks are never a pass", where=document.where((name,)))
        if len(set(checks)) != len(checks):
            raise Invalid(f"a check stands twice in `{name}`", where=document.where((name,)))
    canonical = msgspec.json.encode(msgspec.structs.replace(sku, digest=""), order="deterministic")
    return msgspec.structs.replace(sku, digest=hashlib.sha256(canonical).hexdigest())
