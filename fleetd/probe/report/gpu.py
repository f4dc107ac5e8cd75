"""GPU facts through NVML. Each value is read on its own, each GPU on its own: a lost GPU costs its own facts only.

Two absences are told apart by their reason: "FunctionNotFound" (the driver is too old to know the call) and
"NotSupported" (this GPU has no such thing). NVLink facts are in `nvlink.py`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from .files import Reading, absent
from .kmsg import pci_address
from .nvlink import fabric, links, topology

MOST_GPUS = 64
RECOVERY_ACTION = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION


class Library:
    """nvidia-ml-py, or what stands in for it, with every call turned into a reading."""

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml

    def error(self, error: Exception) -> str:
        """ "GpuIsLost", "NotSupported" … as NVML names it."""
        name = type(error).__name__
        if isinstance(error, self.nvml.NVMLError):
            prefix = "NVMLError_"
            return name[len(prefix) :] if name.startswith(prefix) else f"NVML error {getattr(error, 'value', '?')}"
        return f"{name}: {error}"[:200]

    def ask(self, name: str, *arguments: Any, decode: Callable[[Any], Any] | None = None) -> Reading:
        """Call `name`; `decode` makes the value. Any failure of NVML or of decoding becomes an absence."""
        try:
            value = getattr(self.nvml, name)(*arguments)
            return {"v": value if decode is None else decode(value)}
        except (
            self.nvml.NVMLError,
            AttributeError,
            ctypes.ArgumentError,
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
        ) as error:
            return absent(self.error(error))


def _printable(raw: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in raw)


def string(value: Any) -> str:
    """NVML strings come as bytes or str, by function and version. Raises ValueError when empty."""
    raw = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    cleaned = _printable(raw.strip()[:256])
    if not cleaned:
        raise ValueError("empty")
    return cleaned


def _field(value: Any) -> int:
    """The unsigned integer of one field value. Raises ValueError with the NVML code of that field."""
    if value.nvmlReturn != 0:
        raise ValueError("NotSupported" if value.nvmlReturn == 3 else f"NVML error {value.nvmlReturn}")
    kinds = {1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
    return int(getattr(value.value, kinds[value.valueType]))


def _recovery(library: Library, handle: Any) -> Reading:
    reading = library.ask("nvmlDeviceGetFieldValues", handle, [RECOVERY_ACTION], decode=lambda v: _field(v[0]))
    if str(reading.get("absent", "")).startswith("ValueError: "):
        return absent(str(reading["absent"])[len("ValueError: ") :])
    return reading


def _inforom_valid(library: Library, handle: Any) -> Reading:
    reading = library.ask("nvmlDeviceValidateInforom", handle, decode=lambda _: True)
    return {"v": False} if reading.get("absent") == "CorruptedInforom" else reading


def _temperature(library: Library, handle: Any) -> Reading:
    """The versioned call where the driver has it: the plain one is deprecated."""
    reading = library.ask("nvmlDeviceGetTemperatureV", handle, 0, decode=int)
    return library.ask("nvmlDeviceGetTemperature", handle, 0, decode=int) if "absent" in reading else reading


def _platform(library: Library, handle: Any) -> Reading:
    try:
        info = library.nvml.c_nvmlPlatformInfo_v2_t()
    except AttributeError:
        return absent("FunctionNotFound")

    def decode(_: Any) -> dict[str, Any]:
        # pynvml turns character fields into text, which bytes above 127 are not: read the structure itself
        raw, kind = bytes(info), type(info)
        serial = raw[kind.chassisSerialNumber.offset :][: kind.chassisSerialNumber.size].split(b"\0", 1)[0]
        return {
            "chassis_serial": _printable(serial.decode("latin-1")),
            "slot": raw[kind.slotNumber.offset],
            "tray": raw[kind.trayIndex.offset],
            "host_id": raw[kind.hostId.offset],
            "module_id": raw[kind.moduleId.offset],
        }

    return library.ask("nvmlDeviceGetPlatformInfo", handle, ctypes.byref(info), decode=decode)


def _pair(reading: Reading, index: int) -> Reading:
    return {"v": bool(reading["v"][index])} if "v" in reading else reading


def gpu(library: Library, index: int, handle: Any) -> dict[str, Any]:
    """All facts of one GPU that opened."""

    def ask(name: str, *arguments: Any, decode: Callable[[Any], Any] | None = None) -> Reading:
        return library.ask(f"nvmlDevice{name}", handle, *arguments, decode=decode)

    ecc = ask("GetEccMode")
    return {
        "index": index,
        "handle": {"v": True},
        "uuid": ask("GetUUID", decode=string),
        "serial": ask("GetSerial", decode=string),
        "name": ask("GetName", decode=string),
        "board_part": ask("GetBoardPartNumber", decode=string),
        "pci": ask("GetPciInfo", decode=lambda info: pci_address(string(info.busId))),
        "module_id": ask("GetModuleId", decode=int),
        "vbios": ask("GetVbiosVersion", decode=string),
        "inforom": ask("GetInforomImageVersion", decode=string),
        "inforom_valid": _inforom_valid(library, handle),
        "gsp": ask("GetGspFirmwareVersion", decode=string),
        "memory_mib": ask("GetMemoryInfo", decode=lambda memory: memory.total // 2**20),
        "ecc_current": _pair(ecc, 0),
        "ecc_pending": _pair(ecc, 1),
        # (uncorrected, volatile, DRAM) and (uncorrected, aggregate, SRAM)
        "dram_uncorrectable_volatile": ask("GetMemoryErrorCounter", 1, 0, 2, decode=int),
        "sram_uncorrectable_aggregate": ask("GetMemoryErrorCounter", 1, 1, 7, decode=int),
        "remapped": ask(
            "GetRemappedRows",
            decode=lambda rows: {
                "correctable": rows[0],
                "uncorrectable": rows[1],
                "pending": bool(rows[2]),
                "failure": bool(rows[3]),
            },
        ),
        "recovery_action": _recovery(library, handle),
        "pcie_generation": ask("GetCurrPcieLinkGeneration", decode=int),
        "pcie_generation_max": ask("GetMaxPcieLinkGeneration", decode=int),
        "pcie_width": ask("GetCurrPcieLinkWidth", decode=int),
        "pcie_width_max": ask("GetMaxPcieLinkWidth", decode=int),
        "pcie_replays": ask("GetPcieReplayCounter", decode=int),
        "throttle": ask("GetCurrentClocksEventReasons", decode=int),
        "temperature_c": _temperature(library, handle),
        "power_limit_w": ask("GetEnforcedPowerLimit", decode=lambda mw: round(mw / 1000)),
        "power_limit_default_w": ask("GetPowerManagementDefaultLimit", decode=lambda mw: round(mw / 1000)),
        "persistence": ask("GetPersistenceMode", decode=bool),
        "mig": ask("GetMigMode", decode=lambda mode: bool(mode[0] or mode[1])),
        "processes": ask("GetComputeRunningProcesses", decode=len),
        "links": links(library, handle),
        "fabric": fabric(library, handle),
        "platform": _platform(library, handle),
    }


def collect(nvml: Any, out: dict[str, Any]) -> None:
    """Fill `out` as it goes, so that a time limit keeps what was read before it.

    Args:
        nvml: the pynvml module, or None to import it here.
        out: the `nvml` part of the report.
    """
    if nvml is None:
        try:
            import pynvml  # here, because the rest of the report must not depend on it

            nvml = pynvml
        except (ImportError, SyntaxError) as error:
            out["init"] = absent(f"nvidia-ml-py cannot be imported: {error}")
            return
    library = Library(nvml)
    out["init"] = library.ask("nvmlInit", decode=lambda _: True)
    if "absent" in out["init"]:
        return
    out["driver"] = library.ask("nvmlSystemGetDriverVersion", decode=string)
    out["library"] = library.ask("nvmlSystemGetNVMLVersion", decode=string)
    out["cuda"] = library.ask("nvmlSystemGetCudaDriverVersion_v2", decode=int)
    out["count"] = library.ask("nvmlDeviceGetCount", decode=int)
    out["gpus"] = []
    handles: list[tuple[Any, str]] = []
    for index in range(min(out["count"].get("v", 0), MOST_GPUS)):
        opened = library.ask("nvmlDeviceGetHandleByIndex", index)
        if "absent" in opened:
            handles.append((None, opened["absent"]))
            out["gpus"].append({"index": index, "handle": opened})
        else:
            handles.append((opened["v"], ""))
            out["gpus"].append(gpu(library, index, opened["v"]))
    active = [sum(bool(link["active"].get("v")) for link in g.get("links", {}).get("v", [])) for g in out["gpus"]]
    out["topology"] = topology(library, handles, active)
    library.ask("nvmlShutdown")
