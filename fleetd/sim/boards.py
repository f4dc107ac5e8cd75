"""How the chassis of a SKU are wired: PCI addresses, NUMA halves, where NVLinks end; as captured, where it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fleetd.model.sku import Sku

GT_PER_S = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}
VIRTUAL_SWITCH = "FFFFFFFF:FF:FF.0"  # what a B200 shows as the other end of its links
# One NVSwitch each of a Hopper board takes 4, 5, 5, 4 links of every GPU.
_SPREAD = (4, 5, 5, 4)
_HGX_MODULES = (2, 4, 1, 3, 7, 5, 6, 8)  # NVML's order is not the board's order (captured on an H200)


class Board(NamedTuple):
    """Addresses as sysfs writes them; `numa` gives the NUMA node of part i of n."""

    gpus: tuple[str, ...]
    nics: tuple[str, ...]
    nvmes: tuple[str, ...]
    switches: tuple[str, ...]
    modules: tuple[int, ...]
    remotes: tuple[str, ...]  # of link 0, 1, …, as NVML writes them

    @staticmethod
    def numa(i: int, n: int) -> int:
        return 0 if i < (n + 1) // 2 else 1


def _buses(prefixes: Sequence[str], count: int, spare: Callable[[int], str]) -> tuple[str, ...]:
    return tuple(prefixes[i] if i < len(prefixes) else spare(i) for i in range(count))


def _xe9680(offset: int) -> list[str]:
    """lspci of a PowerEdge XE9680: NVMe, GPU and NIC of a PCIe switch stand at neighbouring buses."""
    return [f"0000:{bus + offset:02x}:00.0" for bus in (0x18, 0x3A, 0x4B, 0x5C, 0x9A, 0xBA, 0xCA, 0xDA)]


def board(sku: Sku, drives: int) -> Board:
    """The wiring of this SKU, long enough for its counts."""
    gpu = sku.gpu
    if sku.domain is not None:  # a tray: each GPU is alone in its PCI domain, behind a Grace
        gpus = [f"{domain:04x}:01:00.0" for domain in (0x08, 0x09, 0x18, 0x19)]
        nics = [f"{domain:04x}:03:00.0" for domain in (0x00, 0x02, 0x10, 0x12)]
        nvmes = [f"{domain:04x}:01:00.0" for domain in (0x04, 0x05, 0x14, 0x15)]
        modules: Sequence[int] = (1, 2, 3, 4)
    else:
        nvmes, gpus, nics = _xe9680(0), _xe9680(1), _xe9680(2)
        modules = _HGX_MODULES
    nics_there = _buses(nics, sku.network.count, lambda i: f"0002:{i:02x}:00.0")
    nvmes_there = _buses(nvmes, drives, lambda i: f"0003:{i:02x}:00.0")
    if gpu is None:
        return Board(gpus=(), nics=nics_there, nvmes=nvmes_there, switches=(), modules=(), remotes=())
    switches = tuple(f"0000:{0x83 + i:02x}:00.0" for i in range(gpu.nvlink.switches))
    remotes: list[str] = []
    for i, address in enumerate(switches):
        share = _SPREAD[i % 4] if len(switches) == 4 else gpu.nvlink.links // len(switches)
        remotes.extend([f"0000{address}".upper()] * share)
    remotes.extend([VIRTUAL_SWITCH] * (gpu.nvlink.links - len(remotes)))
    return Board(
        gpus=_buses(gpus, gpu.count, lambda i: f"0001:{i:02x}:00.0"),
        nics=nics_there,
        nvmes=nvmes_there,
        switches=switches,
        modules=tuple(modules[i] if i < len(modules) else i + 1 for i in range(gpu.count)),
        remotes=tuple(remotes[: gpu.nvlink.links]),
    )


def digits(*parts: object, length: int) -> str:
    """Hex digits that follow from the parts: serials and ids unique per host, the same at every start."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:length]


def gpu_uuid(site: str, host: str, index: int) -> str:
    d = digits(site, host, "gpu", index, length=32)
    return f"GPU-{d[:8]}-{d[8:12]}-{d[12:16]}-{d[16:20]}-{d[20:]}"


def gpu_serial(site: str, host: str, index: int) -> str:
    """13 digits, as NVIDIA prints them."""
    return f"165{int(digits(site, host, 'serial', index, length=12), 16) % 10**10:010d}"


def nic_guid(site: str, host: str, index: int) -> str:
    d = digits(site, host, "nic", index, length=12)
    return f"a088:{d[:4]}:{d[4:8]}:{d[8:]}"
