"""What the probe finds on a simulated host: a file tree and an NVML, from the SKU and the standing faults.

A healthy host shows exactly the numbers of its SKU. The deploy environment is taken to carry the GPU driver too.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fleetd.model.sku import Sku
from fleetd.sim.boards import GT_PER_S, Board, board, digits, gpu_serial, gpu_uuid, nic_guid
from fleetd.sim.faults import Fault
from fleetd.sim.firmware_tables import health_page, smbios
from fleetd.sim.host import SimHost

# Xids that come with a broken part, besides what the fault `xid` names.
OFF_BUS_XID = 79
_HEALTHY_HGX, _HEALTHY_TRAY = (
    0x01AA,
    0x51AA,
)  # fabric health masks: nothing degraded; a tray also has partition and GFM
_FAULTS = frozenset(
    {
        "gpu-off-bus",
        "nvlink-down",
        "remap-pending",
        "pcie-width",
        "ecc-uncorrectable",
        "throttled",
        "xid",
        "wrong-domain",
        "nic-down",
        "dimm-gone",
    }
)


class Hardware(NamedTuple):
    """`contents` and `links` by absolute path; `nvml` is a scenario of `nvml.FakeNvml` (plain JSON)."""

    contents: dict[str, bytes]
    links: dict[str, str]
    nvml: dict[str, Any]

    def write(self, root: Path) -> None:
        """Lay the tree out below `root`, replacing what stood there under /sys, /proc and /dev. Raises OSError."""
        for top in ("sys", "proc", "dev"):
            shutil.rmtree(root / top, ignore_errors=True)
        made: set[Path] = set()
        for path, data in self.contents.items():
            at = root / path[1:]
            if at.parent not in made:
                at.parent.mkdir(parents=True, exist_ok=True)
                made.add(at.parent)
            at.write_bytes(data)
        for path, target in self.links.items():
            at = root / path[1:]
            at.parent.mkdir(parents=True, exist_ok=True)
            at.symlink_to(target)


def real_serial(host: SimHost) -> str:
    """What SMBIOS says: the host's serial, unless the fault `wrong-serial` (param serial) put another board in."""
    fault = host.fault("wrong-serial", fire=False)
    return str(fault.params.get("serial", f"OTHER{host.serial[-4:]}")) if fault else host.serial


def standing(host: SimHost, *, fire: bool = True) -> list[Fault]:
    """All live faults of the hardware; each counts as shown once."""
    found = [fault for fault in host.faults if fault.kind in _FAULTS and fault.live]
    for fault in found if fire else ():
        fault.fired += 1
        if fault.fired == 1 or fault.count is not None:
            host.log("fault.fired", kind=fault.kind, **fault.told)
    return found


def describe(host: SimHost, *, fire: bool = True) -> Hardware:
    """The host as it stands now. With `fire`, faults with a count are used up by one."""
    faults = standing(host, fire=fire)
    wiring = board(host.sku, len(host.drives))
    gpus = [_gpu(host, wiring, i) for i in range(host.sku.gpu_count)]
    down_nics: set[int] = set()
    missing_dimms = 0
    xids: list[tuple[str, int]] = []
    gone: set[int] = set()
    for fault in faults:
        index = fault.number("gpu") % max(1, len(gpus))
        facts = gpus[index] if gpus else {}
        match fault.kind:
            case "gpu-off-bus":
                xids.append((wiring.gpus[index], OFF_BUS_XID))
                if fault.params.get("mode") == "pci":
                    gone.add(index)
                else:
                    facts["lost"] = True
            case "nvlink-down":
                facts["links"][fault.number("link") % len(facts["links"])] = 0
            case "remap-pending":
                facts["remapped"] = [0, 1, 1, 0]
                facts["recovery"] = 1
            case "pcie-width":
                facts["width"] = fault.number("width", 8)
            case "ecc-uncorrectable":
                facts["errors"]["1.0.2"] = fault.number("count", 1)
            case "throttled":
                facts["throttle"] |= 0x8
            case "xid":
                xids.append((wiring.gpus[index], fault.number("code", 48)))
            case "wrong-domain":
                other = str(fault.params.get("cluster_uuid", digits("elsewhere", host.cluster_uuid, length=32)))
                for each in gpus:
                    each["fabric"]["cluster_uuid"] = other
            case "nic-down":
                down_nics.add(fault.number("nic") % max(1, host.sku.network.count))
            case "dimm-gone":
                missing_dimms += 1
    contents, links = _tree(host, wiring, gpus, gone, down_nics, missing_dimms, xids)
    if host.sku.gpu is None:
        # No driver is loaded: NVML does not start, as on any host without GPUs.
        return Hardware(contents, links, {"init": 9, "driver": "", "library": "", "cuda": 0, "gpus": []})
    driver = _first(host.sku.gpu.driver)
    scenario = {
        "driver": driver,
        "library": f"13.{driver}",
        "cuda": 13000,
        "gpus": [facts for i, facts in enumerate(gpus) if i not in gone],
    }
    return Hardware(contents, links, scenario)


def _first(allowed: tuple[str, ...], otherwise: str = "590.48.01") -> str:
    """The first of the versions a SKU allows; some version where it allows any."""
    return allowed[0] if allowed else otherwise


def _gpu(host: SimHost, wiring: Board, index: int) -> dict[str, Any]:
    profile, site, name = host.sku.gpus, host.site, host.name
    tray = host.sku.domain is not None
    return {
        "uuid": gpu_uuid(site, name, index),
        "serial": gpu_serial(site, name, index),
        "name": profile.name,
        "part": f"699-{profile.pci_id.upper()}-0200-000",
        "device_id": profile.pci_id,
        "pci": f"0000{wiring.gpus[index]}".upper(),
        "module": wiring.modules[index],
        "numa": wiring.numa(index, profile.count),
        "vbios": _first(profile.vbios),
        "inforom": f"G520.{profile.pci_id}.00.05",
        "gsp": _first(profile.driver),
        "memory_mib": profile.memory_mib,
        "ecc": 1,
        "errors": {},
        "remapped": [0, 0, 0, 0],
        "recovery": 0,
        "gen": profile.pcie.generation,
        "gen_max": profile.pcie.generation,
        "width": profile.pcie.width,
        "width_max": profile.pcie.width,
        "replays": 0,
        "throttle": 0x1,  # idle
        "temperature": 29 + index,
        "power_mw": profile.power_limit_w * 1000,
        "power_default_mw": profile.power_limit_w * 1000,
        "persistence": 1,
        "mig": 0,
        "links": [1] * profile.nvlink.links,
        "mb_per_s": profile.nvlink.mb_per_s,
        "link_version": profile.nvlink.version,
        "remotes": list(wiring.remotes),
        "p2p": True,
        "fabric": {
            "state": 3,
            "status": 0,
            "clique": 0,
            "cluster_uuid": host.cluster_uuid.replace("-", "").lower(),
            "mask": _HEALTHY_TRAY if tray else _HEALTHY_HGX,
        },
        "platform": {
            "chassis": f"182{int(digits(host.cluster_uuid, 'chassis', length=10), 16) % 10**10:010d}",
            "slot": _tray_number(host),
            "tray": _tray_number(host) - 1,
            "host": 1,
            "module": wiring.modules[index],
        }
        if tray
        else None,
    }


def _tray_number(host: SimHost) -> int:
    """The digits at the end of the name: trays are named by their place."""
    tail = host.name[len(host.name.rstrip("0123456789")) :]
    return min(255, max(1, int(tail))) if tail else 1


def _tree(
    host: SimHost,
    wiring: Board,
    gpus: list[dict[str, Any]],
    gone: set[int],
    down_nics: set[int],
    missing_dimms: int,
    xids: list[tuple[str, int]],
) -> tuple[dict[str, bytes], dict[str, str]]:
    sku = host.sku
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    raw: dict[str, bytes] = {}

    def pci(
        address: str, vendor: str, device: str, kind: str, numa: int, speed: float, width: int, widest: int = 0
    ) -> None:
        at = f"/sys/bus/pci/devices/{address}"
        files[f"{at}/vendor"], files[f"{at}/device"], files[f"{at}/class"] = f"0x{vendor}", f"0x{device}", f"0x{kind}"
        files[f"{at}/numa_node"] = str(numa)
        files[f"{at}/current_link_speed"] = files[f"{at}/max_link_speed"] = f"{speed} GT/s PCIe"
        files[f"{at}/current_link_width"], files[f"{at}/max_link_width"] = str(width), str(widest or width)

    for i, address in enumerate(wiring.gpus):
        if i not in gone:
            numa = gpus[i]["numa"]
            profile = sku.gpus
            speed = GT_PER_S[profile.pcie.generation]
            pci(address, "10de", profile.pci_id, "030200", numa, speed, gpus[i]["width"], gpus[i]["width_max"])
    for address in wiring.switches:
        pci(address, "10de", sku.gpus.nvlink.switch_pci_id, "068000", 0, 32.0, 2)
    for i, address in enumerate(wiring.nics):
        pci(address, "15b3", "1021", "020700", wiring.numa(i, len(wiring.nics)), 32.0, 16)
        _nic(host, i, address, i in down_nics, files, links)
    for i, drive in enumerate(host.drives):
        pci(wiring.nvmes[i], "1344", "51c3", "010802", wiring.numa(i, len(host.drives)), 16.0, 4)
        at = f"/sys/class/nvme/{drive.name}"
        files |= {
            f"{at}/serial": drive.serial,
            f"{at}/model": drive.model,
            f"{at}/firmware_rev": "GDC7502Q",
            f"{at}/state": "live",
            f"{at}/{drive.name}n1/size": str(drive.bytes // 512),
        }
        raw[f"/dev/{drive.name}.smart"] = health_page(used=1)
    installed = sku.cpu.dimms or sku.cpu.sockets
    mib = sku.cpu.memory_gib * 1024 // installed
    present = max(0, installed - missing_dimms)
    started = host.running.started if host.running else asyncio.get_running_loop().time()
    uptime = asyncio.get_running_loop().time() - started
    files |= {
        "/proc/sys/kernel/osrelease": "6.8.0-49-generic",
        "/proc/sys/kernel/random/boot_id": host.running.boot_id if host.running else "0" * 32,
        "/proc/cmdline": _cmdline(host),
        "/proc/meminfo": f"MemTotal:       {present * mib * 1024 * 99 // 100} kB",
        "/proc/modules": "".join(f"{m} 1 0 - Live 0x0\n" for m in _modules(sku)),
        "/proc/uptime": f"{uptime:.2f} {uptime:.2f}",
        "/sys/class/dmi/id/product_serial": real_serial(host),
        "/sys/class/dmi/id/product_uuid": host.uuid,
        "/sys/class/dmi/id/sys_vendor": sku.vendor,
        "/sys/class/dmi/id/product_name": sku.model,
        "/sys/class/dmi/id/board_serial": f".{real_serial(host)}.{digits(host.site, host.name, 'board', length=12)}.",
        "/sys/class/dmi/id/bios_version": host.bios_version,
        "/sys/class/net/eth0/address": host.mac,
        **_cpus(sku),
    }
    links["/sys/class/net/eth0/device"] = "../../../0000:00:1f.6"
    for i in range(sku.cpu.sockets):
        files[f"/sys/devices/system/edac/mc/mc{i}/ue_count"] = "0"
    contents = {path: text.encode() + b"\n" for path, text in files.items()}
    contents |= raw
    contents["/sys/firmware/dmi/tables/DMI"] = smbios(present, mib, _mt_s(sku))
    contents["/dev/kmsg"] = _kernel_log(xids)
    return contents, links


def _nic(host: SimHost, i: int, address: str, down: bool, files: dict[str, str], links: dict[str, str]) -> None:
    at, rate = f"/sys/class/infiniband/mlx5_{i}", host.sku.network.rate_gbps
    lanes = {100: "4X EDR", 200: "4X HDR", 400: "4X NDR", 800: "4X XDR"}.get(rate, "4X")
    files |= {
        f"{at}/board_id": "MT_0000000838",
        f"{at}/fw_ver": _first(host.sku.network.firmware, "28.41.1000"),
        f"{at}/hca_type": "MT4129",
        f"{at}/node_guid": nic_guid(host.site, host.name, i),
        f"{at}/ports/1/state": "1: DOWN" if down else "4: ACTIVE",
        f"{at}/ports/1/phys_state": "2: Polling" if down else "5: LinkUp",
        f"{at}/ports/1/rate": "10 Gb/sec (4X SDR)" if down else f"{rate} Gb/sec ({lanes})",
        f"{at}/ports/1/link_layer": "InfiniBand",
    }
    links[f"{at}/device"] = f"../../../{address}"


def _cpus(sku: Sku) -> dict[str, str]:
    sockets, cores = sku.cpu.sockets, sku.cpu.cores
    each = cores // sockets
    if sku.domain is not None:  # Grace: /proc/cpuinfo names no sockets, sysfs does
        at = "/sys/devices/system/cpu"
        found = {f"{at}/online": f"0-{cores - 1}", f"{at}/smt/active": "0", "/proc/cpuinfo": "processor\t: 0"}
        for s in range(sockets):
            found[f"{at}/cpu{s * each}/topology/package_cpus_list"] = f"{s * each}-{(s + 1) * each - 1}"
        return found
    entry = "processor\t: {n}\nphysical id\t: {s}\ncpu cores\t: {each}\n"
    return {"/proc/cpuinfo": "\n".join(entry.format(n=s, s=s, each=each) for s in range(sockets))}


def _cmdline(host: SimHost) -> str:
    if host.running is not None and host.running.environment == "deploy":
        return f"initrd=initrd console=ttyS0 fleetd.token={host.running.token}"
    return "root=PARTUUID=0f1e2d3c-02 ro console=ttyS0 iommu=pt"


def _modules(sku: Sku) -> list[str]:
    fabric = ["mlx5_core", "mlx5_ib"] if sku.network.count else []
    return [*fabric, *(["nvidia", "nvidia_peermem", "nvidia_uvm"] if sku.gpu is not None else []), "nvme"]


def _mt_s(sku: Sku) -> int:
    return 8533 if sku.domain is not None else 4800


def _kernel_log(xids: list[tuple[str, int]]) -> bytes:
    lines = ["6,900,1000000,-;Linux version 6.8.0-49-generic", "6,901,9100000,-;nvidia: loading module"]
    for n, (address, code) in enumerate(xids):
        said = "GPU has fallen off the bus." if code == OFF_BUS_XID else "simulated"
        slot = address.rpartition(".")[0]
        lines.append(
            f"3,{910 + n},{12_000_000 + n * 1000},-;"
            f"NVRM: Xid (PCI:{slot}): {code}, pid='<unknown>', name=<unknown>, {said}"
        )
    return "\n".join(lines).encode() + b"\n"


def scenario_file(hardware: Hardware, path: Path) -> None:
    """The NVML half for `nvml_runner`. Raises OSError."""
    path.write_bytes(msgspec.json.encode(hardware.nvml))
