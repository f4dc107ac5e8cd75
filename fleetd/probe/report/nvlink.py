"""NVLink facts: the links of a GPU, the fabric it joined, and the matrix that `nvidia-smi topo -m` would print."""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

from .files import Reading, absent
from .kmsg import pci_address

MOST_LINKS = 36  # NVML_NVLINK_MAX_LINKS
SPEED_COMMON, SPEED, VERSION = 90, 164, 166  # NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON, _GET_SPEED, _GET_VERSION
P2P_NVLINK = 2  # pynvml's own constant for READ is a tuple by mistake: plain integers are passed
_ANCESTORS = {0: "INT", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
_INTEGERS = {1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}


class _Library(Protocol):
    nvml: Any

    def ask(self, name: str, *arguments: Any, decode: Any = None) -> Reading: ...


def _fields(library: _Library, handle: Any, count: int) -> dict[tuple[int, int], Reading]:
    """Speed and version of all links in one call, by (field, link)."""
    wanted: list[Any] = [(field, link) for link in range(count) for field in (SPEED, VERSION)]
    wanted.append((SPEED_COMMON, 0))
    answer = library.ask("nvmlDeviceGetFieldValues", handle, wanted)
    found: dict[tuple[int, int], Reading] = {}
    for i, key in enumerate(wanted):
        if "absent" in answer:
            found[key] = answer
            continue
        value = answer["v"][i]
        kind = _INTEGERS.get(value.valueType)
        if value.nvmlReturn != 0:
            found[key] = absent("NotSupported" if value.nvmlReturn == 3 else f"NVML error {value.nvmlReturn}")
        elif kind is None:
            found[key] = absent(f"value type {value.valueType}")
        else:
            found[key] = {"v": int(getattr(value.value, kind))}
    return found


def _address(info: Any) -> str:
    raw = info.busId
    return pci_address(raw.decode("latin-1")[:32] if isinstance(raw, bytes) else str(raw)[:32])


def links(library: _Library, handle: Any) -> Reading:
    """Every link that this GPU has. InvalidArgument or NotSupported ends the count; at link 0 it is the reading."""
    states: list[Reading] = []
    for link in range(MOST_LINKS):
        state = library.ask("nvmlDeviceGetNvLinkState", handle, link, decode=bool)
        if state.get("absent") in ("InvalidArgument", "NotSupported", "FunctionNotFound"):
            if link == 0:
                return state
            break
        states.append(state)
    fields = _fields(library, handle, len(states))
    common = fields[SPEED_COMMON, 0]
    found = []
    for link, state in enumerate(states):
        speed, version = fields[SPEED, link], fields[VERSION, link]
        if state.get("v"):
            speed = speed if speed.get("v") else common
            if "absent" in version:
                version = library.ask("nvmlDeviceGetNvLinkVersion", handle, link, decode=int)
            remote = library.ask("nvmlDeviceGetNvLinkRemotePciInfo", handle, link, decode=_address)
        else:
            speed = version = remote = absent("inactive")
        found.append({"link": link, "active": state, "mb_per_s": speed, "version": version, "remote": remote})
    return {"v": found}


def fabric(library: _Library, handle: Any) -> Reading:
    """Version 3 of the structure, then 2, then the unversioned call: the driver says which one it knows."""
    for name, call in (
        ("c_nvmlGpuFabricInfo_v3_t", "nvmlDeviceGetGpuFabricInfoV"),
        ("c_nvmlGpuFabricInfo_v2_t", "nvmlDeviceGetGpuFabricInfoV"),
        ("c_nvmlGpuFabricInfo_t", "nvmlDeviceGetGpuFabricInfo"),
    ):
        kind = getattr(library.nvml, name, None)
        if kind is None:
            continue
        info = kind()
        reading = library.ask(call, handle, ctypes.byref(info))
        if "v" in reading:
            return {
                "v": {
                    "state": int(info.state),
                    "status": int(info.status),
                    "cluster_uuid": bytes(info.clusterUuid).hex(),
                    "clique_id": int(info.cliqueId),
                    "health_mask": int(getattr(info, "healthMask", 0)),
                }
            }
        if reading["absent"] not in ("ArgumentVersionMismatch", "FunctionNotFound"):
            return reading
    return absent("FunctionNotFound")


def topology(library: _Library, handles: list[tuple[Any, str]], active: list[int]) -> Reading:
    """X on the diagonal, NV# where the pair talks over NVLink, else the common ancestor, else the error of that pair.

    Through NVSwitches every link of a GPU leads to every other GPU, so # is the smaller number of active links.
    """

    def cell(i: int, j: int) -> str:
        if i == j:
            return "X"
        (one, lost), (other, lost_too) = handles[i], handles[j]
        if lost or lost_too:
            return lost or lost_too
        joined = min(active[i], active[j])
        if joined and library.ask("nvmlDeviceGetP2PStatus", one, other, P2P_NVLINK).get("v") == 0:
            return f"NV{joined}"
        level = library.ask("nvmlDeviceGetTopologyCommonAncestor", one, other)
        return _ANCESTORS.get(level["v"], "?") if "v" in level else str(level["absent"])

    if not handles:
        return absent("no GPU")
    every = range(len(handles))
    return {"v": [[cell(i, j) for j in every] for i in every]}
