"""The probe's report: raw facts of one boot of one host. The contract between probe, simulator and checks.

Every fact is a `Reading`: a value, or the reason it could not be read. Absence is a fact for the daemon to judge: a
check that needs an absent reading gives `not_run`, never a pass. Sizes in bytes or MiB as named, rates in the unit of
the name. Decoding is strict and bounded: `read_report` refuses what is huge, truncated, not JSON or misshapen.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from fleetd.kit.errors import Garbled

T = TypeVar("T")
MAX_REPORT = 4 * 1024 * 1024


class Reading(msgspec.Struct, Generic[T], frozen=True, kw_only=True, omit_defaults=True):
    """`v` when it was read, else `absent` says why ("NotSupported", "no such file", …). Neither counts as absent."""

    v: T | None = None
    absent: str | None = None

    @property
    def known(self) -> bool:
        return self.v is not None

    @property
    def reason(self) -> str:
        return self.absent or ("" if self.known else "not reported")


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Identity(_Facts, frozen=True, kw_only=True):
    """SMBIOS, as /sys/class/dmi/id or the DMI table tell."""

    serial: Reading[str] = Reading()
    uuid: Reading[str] = Reading()
    vendor: Reading[str] = Reading()
    product: Reading[str] = Reading()
    board_serial: Reading[str] = Reading()
    macs: Reading[list[str]] = Reading()


class Dimm(_Facts, frozen=True, kw_only=True):
    slot: str
    mib: int
    mt_s: int = 0


class System(_Facts, frozen=True, kw_only=True):
    kernel: Reading[str] = Reading()
    cmdline: Reading[str] = Reading()
    bios_version: Reading[str] = Reading()
    sockets: Reading[int] = Reading()
    cores: Reading[int] = Reading()
    memory_kib: Reading[int] = Reading()  # MemTotal
    dimms: Reading[list[Dimm]] = Reading()
    modules: Reading[list[str]] = Reading()
    edac_uncorrected: Reading[int] = Reading()
    uptime_s: Reading[float] = Reading()


class PciDevice(_Facts, frozen=True, kw_only=True):
    """sysfs. ids: four hex digits, `class_id` six; speeds in GT/s, 0: unknown; numa -1 where the BIOS gives none."""

    address: str  # 0000:17:00.0
    vendor: str
    device: str
    class_id: str
    numa: int = -1
    speed: float = 0.0
    max_speed: float = 0.0
    width: int = 0
    max_width: int = 0


class Link(_Facts, frozen=True, kw_only=True):
    """One NVLink of one GPU. `mb_per_s` one way; `remote` is the PCI address of the other end."""

    link: int
    active: Reading[bool] = Reading()
    mb_per_s: Reading[int] = Reading()
    version: Reading[int] = Reading()
    remote: Reading[str] = Reading()


class RemappedRows(_Facts, frozen=True, kw_only=True):
    correctable: int
    uncorrectable: int
    pending: bool
    failure: bool


class Fabric(_Facts, frozen=True, kw_only=True):
    """nvmlGpuFabricInfo. state: 0 not supported, 1 not started, 2 in progress, 3 completed; status: an nvmlReturn."""

    state: int
    status: int
    cluster_uuid: str  # 32 hex digits without dashes; zeros on HGX
    clique_id: int
    health_mask: int = 0


class Platform(_Facts, frozen=True, kw_only=True):
    """nvmlPlatformInfo (NVL72)."""

    chassis_serial: str = ""
    slot: int = 0
    tray: int = 0
    host_id: int = 0
    module_id: int = 0


class Gpu(_Facts, frozen=True, kw_only=True):
    """One NVML index. `handle` is the error when the index did not open (GPU_IS_LOST …): then the rest is absent."""

    index: int
    handle: Reading[bool] = Reading()
    uuid: Reading[str] = Reading()
    serial: Reading[str] = Reading()
    name: Reading[str] = Reading()
    board_part: Reading[str] = Reading()
    pci: Reading[str] = Reading()
    module_id: Reading[int] = Reading()
    vbios: Reading[str] = Reading()
    inforom: Reading[str] = Reading()
    inforom_valid: Reading[bool] = Reading()
    gsp: Reading[str] = Reading()
    memory_mib: Reading[int] = Reading()
    ecc_current: Reading[bool] = Reading()
    ecc_pending: Reading[bool] = Reading()
    dram_uncorrectable_volatile: Reading[int] = Reading()
    sram_uncorrectable_aggregate: Reading[int] = Reading()
    remapped: Reading[RemappedRows] = Reading()
    recovery_action: Reading[int] = Reading()
    pcie_generation: Reading[int] = Reading()
    pcie_generation_max: Reading[int] = Reading()
    pcie_width: Reading[int] = Reading()
    pcie_width_max: Reading[int] = Reading()
    pcie_replays: Reading[int] = Reading()
    throttle: Reading[int] = Reading()  # mask of CurrentClocksEventReasons
    temperature_c: Reading[int] = Reading()
    power_limit_w: Reading[int] = Reading()
    power_limit_default_w: Reading[int] = Reading()
    persistence: Reading[bool] = Reading()
    mig: Reading[bool] = Reading()
    processes: Reading[int] = Reading()
    links: Reading[list[Link]] = Reading()
    fabric: Reading[Fabric] = Reading()
    platform: Reading[Platform] = Reading()


class Nvml(_Facts, frozen=True, kw_only=True):
    """`init` is absent with the NVML error when it did not start. topology[i][j]: X, NV18, PIX, NODE, SYS …"""

    init: Reading[bool] = Reading()
    driver: Reading[str] = Reading()
    library: Reading[str] = Reading()
    cuda: Reading[int] = Reading()
    count: Reading[int] = Reading()
    gpus: list[Gpu] = []
    topology: Reading[list[list[str]]] = Reading()


class Port(_Facts, frozen=True, kw_only=True):
    """InfiniBand or RoCE port, sysfs words: state "4: ACTIVE", phys_state "5: LinkUp", rate in Gb/s."""

    port: int
    state: Reading[str] = Reading()
    phys_state: Reading[str] = Reading()
    rate_gbps: Reading[float] = Reading()
    link_layer: Reading[str] = Reading()


class Nic(_Facts, frozen=True, kw_only=True):
    name: str  # mlx5_0
    pci: Reading[str] = Reading()
    guid: Reading[str] = Reading()
    board_id: Reading[str] = Reading()
    firmware: Reading[str] = Reading()
    ports: list[Port] = []


class Nvme(_Facts, frozen=True, kw_only=True):
    name: str  # nvme0
    serial: Reading[str] = Reading()
    model: Reading[str] = Reading()
    firmware: Reading[str] = Reading()
    bytes: Reading[int] = Reading()
    state: Reading[str] = Reading()  # "live"
    critical_warning: Reading[int] = Reading()
    percentage_used: Reading[int] = Reading()
    available_spare: Reading[int] = Reading()
    available_spare_threshold: Reading[int] = Reading()
    media_errors: Reading[int] = Reading()


class Xid(_Facts, frozen=True, kw_only=True):
    """One NVRM Xid of this boot's kernel log. `seconds` since boot."""

    code: int
    pci: str
    seconds: float


class Report(_Facts, frozen=True, kw_only=True):
    """`nonce`, `host` are echoed from the command line; `boot_id` is read from the kernel."""

    format: str  # "fleetd.report/1"
    probe: str  # version of the probe
    nonce: str
    host: str
    boot_id: Reading[str] = Reading()
    identity: Identity = Identity()
    system: System = System()
    pci: Reading[list[PciDevice]] = Reading()
    nvml: Nvml = Nvml()
    nics: Reading[list[Nic]] = Reading()
    nvme: Reading[list[Nvme]] = Reading()
    xids: Reading[list[Xid]] = Reading()
    seconds: float = 0.0  # how long the probe took


def read_report(data: bytes) -> Report:
    """Decode. Raises Garbled when it is huge, truncated, not JSON or not a report."""
    if len(data) > MAX_REPORT:
        raise Garbled("the probe's report is too large", why=f"{len(data)} bytes, at most {MAX_REPORT}")
    try:
        report = msgspec.json.decode(data, type=Report)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Garbled("the probe's report cannot be read", why=str(error)[:200]) from error
    if report.format != "fleetd.report/1":
        raise Garbled("the probe's report has an unknown format", why=report.format[:60])
    return report


def fingerprint_parts(report: Report) -> dict[str, tuple[str, ...]]:
    """The serials and UUIDs that make this very hardware, sorted, by kind; unreadable ones are left out."""
    gpus = report.nvml.gpus
    return {
        "board": tuple(v for v in (report.identity.serial.v, report.identity.uuid.v) if v),
        "gpu": tuple(sorted(g.uuid.v for g in gpus if g.uuid.v)),
        "gpu-serial": tuple(sorted(g.serial.v for g in gpus if g.serial.v)),
        "nic": tuple(sorted(n.guid.v for n in report.nics.v or [] if n.guid.v)),
        "nvme": tuple(sorted(d.serial.v for d in report.nvme.v or [] if d.serial.v)),
    }
