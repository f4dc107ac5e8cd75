"""A libnvidia-ml.so.1 that does not exist: a Python object that fills the structures which nvidia-ml-py hands it.

The unmodified nvidia-ml-py runs on top, so what is tested is the probe as it runs on metal. Attributes are the
exported symbols; a symbol that is hidden raises AttributeError, as an old driver lacks it. This module is imported by
a process per probe, so it takes nothing but the standard library. A scenario is plain JSON, made by `hardware.py`.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable
from typing import Any

SUCCESS, INVALID, NOT_SUPPORTED, SMALL, LOST, MISMATCH = 0, 2, 3, 7, 15, 25
_FABRIC_VERSIONS = {0x02000024: 36, 0x3000028: 40}
# exported name -> key of the GPU's facts, for calls of the form f(handle, unsigned *value)
_NUMBERS = {
    "nvmlDeviceGetModuleId": "module",
    "nvmlDeviceGetCurrPcieLinkGeneration": "gen",
    "nvmlDeviceGetMaxPcieLinkGeneration": "gen_max",
    "nvmlDeviceGetCurrPcieLinkWidth": "width",
    "nvmlDeviceGetMaxPcieLinkWidth": "width_max",
    "nvmlDeviceGetPcieReplayCounter": "replays",
    "nvmlDeviceGetCurrentClocksEventReasons": "throttle",
    "nvmlDeviceGetEnforcedPowerLimit": "power_mw",
    "nvmlDeviceGetPowerManagementDefaultLimit": "power_default_mw",
    "nvmlDeviceGetPersistenceMode": "persistence",
}
# for calls of the form f(handle, char *buffer, unsigned length)
_STRINGS = {
    "nvmlDeviceGetUUID": "uuid",
    "nvmlDeviceGetSerial": "serial",
    "nvmlDeviceGetName": "name",
    "nvmlDeviceGetBoardPartNumber": "part",
    "nvmlDeviceGetVbiosVersion": "vbios",
    "nvmlDeviceGetInforomImageVersion": "inforom",
}
_SYSTEM = {"nvmlSystemGetDriverVersion": "driver", "nvmlSystemGetNVMLVersion": "library"}


def _put(reference: Any, value: Any) -> int:
    reference._obj.value = value
    return SUCCESS


def _write(buffer: Any, length: Any, text: str) -> int:
    raw = text.encode()
    if len(raw) + 1 > int(length.value):
        return SMALL
    buffer.value = raw
    return SUCCESS


def _plain(number: Any) -> int:
    return int(getattr(number, "value", number))


class FakeNvml:
    """Stands where `ctypes.CDLL("libnvidia-ml.so.1")` stood.

    Args:
        scenario: ``gpus`` (a list of facts), ``driver``, ``library``, ``cuda``; optional ``init`` (code), ``returns``
            (symbol -> code), ``hidden`` (symbols this driver lacks), ``hang`` (symbol -> seconds). A GPU may carry
            its own ``returns``.
    """

    def __init__(self, scenario: dict[str, Any]) -> None:
        self._all: dict[str, Any] = scenario
        self._gpus: list[dict[str, Any]] = scenario["gpus"]

    def __getattr__(self, symbol: str) -> Callable[..., int]:
        if not symbol.startswith("nvml") or symbol in self._all.get("hidden", ()):
            raise AttributeError(symbol)
        call: Callable[..., int]
        if symbol in _NUMBERS:
            call = functools.partial(self._number, _NUMBERS[symbol])
        elif symbol in _STRINGS:
            call = functools.partial(self._string, _STRINGS[symbol])
        elif symbol in _SYSTEM:
            call = functools.partial(self._system, _SYSTEM[symbol])
        else:
            name = _METHODS.get(symbol)
            if name is None:
                raise AttributeError(symbol)
            call = getattr(self, name)
        # a partial takes attributes (restype), as a function pointer does
        found = functools.partial(self._call, symbol, call)
        self.__dict__[symbol] = found
        return found

    def _call(self, symbol: str, call: Callable[..., int], *arguments: Any) -> int:
        if symbol in self._all.get("hang", ()):
            time.sleep(float(self._all["hang"][symbol]))
        if code := self._all.get("returns", {}).get(symbol, 0):
            return int(code)
        if symbol.startswith("nvmlDevice") and isinstance(arguments[0], ctypes._Pointer) and _number_of(arguments[0]):
            gpu = self._gpu(arguments[0])
            if gpu.get("lost"):
                return LOST
            if code := gpu.get("returns", {}).get(symbol, 0):
                return int(code)
        return call(*arguments)

    def _gpu(self, handle: Any) -> dict[str, Any]:
        return self._gpus[_number_of(handle) - 1]

    def _number(self, key: str, handle: Any, reference: Any) -> int:
        return _put(reference, self._gpu(handle)[key])

    def _string(self, key: str, handle: Any, buffer: Any, length: Any) -> int:
        return _write(buffer, length, self._gpu(handle)[key])

    def _system(self, key: str, buffer: Any, length: Any) -> int:
        return _write(buffer, length, self._all[key])

    def _start(self, _flags: Any) -> int:
        return int(self._all.get("init", SUCCESS))

    def _stop(self) -> int:
        return SUCCESS

    def _error(self, code: Any) -> bytes:
        return f"simulated error {_plain(code)}".encode()

    def _cuda(self, reference: Any) -> int:
        return _put(reference, self._all["cuda"])

    def _count(self, reference: Any) -> int:
        return _put(reference, len(self._gpus))

    def _open(self, index: Any, reference: Any) -> int:
        number = _plain(index)
        if number >= len(self._gpus):
            return INVALID
        if self._gpus[number].get("lost"):
            return LOST
        # the handle is opaque to callers: our index plus one, as a pointer that nobody follows
        ctypes.c_void_p.from_buffer(reference._obj).value = number + 1
        return SUCCESS

    def _pci(self, handle: Any, reference: Any) -> int:
        info, address = reference._obj, self._gpu(handle)["pci"]
        domain, bus, rest = address.split(":")
        info.domain, info.bus, info.device = int(domain, 16), int(bus, 16), int(rest.split(".")[0], 16)
        info.busId = address.encode()
        info.busIdLegacy = address[4:].encode()
        info.pciDeviceId = int(self._gpu(handle)["device_id"], 16) << 16 | 0x10DE
        return SUCCESS

    def _inforom(self, _handle: Any) -> int:
        return SUCCESS

    def _gsp(self, handle: Any, buffer: Any) -> int:
        buffer.value = self._gpu(handle)["gsp"].encode()
        return SUCCESS

    def _memory(self, handle: Any, reference: Any) -> int:
        total = self._gpu(handle)["memory_mib"] * 2**20
        reference._obj.total, reference._obj.used = total, 4 * 2**20
        reference._obj.free = total - 4 * 2**20
        return SUCCESS

    def _ecc_both(self, handle: Any, current: Any, pending: Any) -> int:
        return _put(current, self._gpu(handle)["ecc"]) or _put(pending, self._gpu(handle)["ecc"])

    def _errors(self, handle: Any, kind: Any, counter: Any, location: Any, reference: Any) -> int:
        key = f"{_plain(kind)}.{_plain(counter)}.{_plain(location)}"
        return _put(reference, self._gpu(handle).get("errors", {}).get(key, 0))

    def _remapped(self, handle: Any, *references: Any) -> int:
        for reference, value in zip(references, self._gpu(handle)["remapped"], strict=True):
            _put(reference, value)
        return SUCCESS

    def _fields(self, handle: Any, count: Any, reference: Any) -> int:
        gpu = self._gpu(handle)
        for value in list(reference._obj)[: _plain(count)]:
            link, known = value.scopeId, None
            if value.fieldId == 230:
                known = gpu["recovery"]
            elif value.fieldId == 90:
                known = gpu["mb_per_s"]
            elif value.fieldId == 91:
                known = len(gpu["links"])
            elif value.fieldId in (164, 166) and link < len(gpu["links"]) and gpu["links"][link]:
                known = gpu["mb_per_s"] if value.fieldId == 164 else gpu["link_version"]
            value.nvmlReturn = NOT_SUPPORTED if known is None else SUCCESS
            value.valueType = 1
            value.value.uiVal = known or 0
        return SUCCESS

    def _temperature_v(self, handle: Any, reference: Any) -> int:
        reference._obj.temperature = self._gpu(handle)["temperature"]
        return SUCCESS

    def _temperature(self, handle: Any, _sensor: Any, reference: Any) -> int:
        return _put(reference, self._gpu(handle)["temperature"])

    def _mig(self, handle: Any, current: Any, pending: Any) -> int:
        return _put(current, self._gpu(handle)["mig"]) or _put(pending, self._gpu(handle)["mig"])

    def _processes(self, _handle: Any, count: Any, _array: Any) -> int:
        return _put(count, 0)

    def _link(self, handle: Any, link: Any) -> int | None:
        """State of the link, None when this GPU has no such link."""
        states = self._gpu(handle)["links"]
        return int(states[_plain(link)]) if _plain(link) < len(states) else None

    def _link_state(self, handle: Any, link: Any, reference: Any) -> int:
        state = self._link(handle, link)
        return INVALID if state is None else _put(reference, state)

    def _link_version(self, handle: Any, link: Any, reference: Any) -> int:
        return _put(reference, self._gpu(handle)["link_version"]) if self._link(handle, link) else INVALID

    def _link_remote(self, handle: Any, link: Any, reference: Any) -> int:
        if not self._link(handle, link):
            return INVALID
        reference._obj.busId = self._gpu(handle)["remotes"][_plain(link)].encode()
        return SUCCESS

    def _link_remote_type(self, handle: Any, link: Any, reference: Any) -> int:
        return _put(reference, 2) if self._link(handle, link) else INVALID  # a switch

    def _fabric(self, handle: Any, reference: Any) -> int:
        info = reference._obj
        if _FABRIC_VERSIONS.get(info.version) != ctypes.sizeof(info):
            return MISMATCH
        fabric = self._gpu(handle)["fabric"]
        info.healthMask = fabric["mask"]
        if ctypes.sizeof(info) == 40:
            info.healthSummary = 1
        return self._fill_fabric(info, fabric)

    def _fabric_v1(self, handle: Any, reference: Any) -> int:
        return self._fill_fabric(reference._obj, self._gpu(handle)["fabric"])

    def _fill_fabric(self, info: Any, fabric: dict[str, Any]) -> int:
        info.clusterUuid[:] = list(bytes.fromhex(fabric["cluster_uuid"]))
        info.state, info.status, info.cliqueId = fabric["state"], fabric["status"], fabric["clique"]
        return SUCCESS

    def _platform(self, handle: Any, reference: Any) -> int:
        platform = self._gpu(handle)["platform"]
        if platform is None:
            return NOT_SUPPORTED
        info = reference._obj
        info.chassisSerialNumber = platform["chassis"].encode()[:16]
        info.slotNumber, info.trayIndex = bytes([platform["slot"]]), bytes([platform["tray"]])
        info.hostId, info.moduleId = bytes([platform["host"]]), bytes([platform["module"]])
        return SUCCESS

    def _p2p(self, one: Any, other: Any, _index: Any, reference: Any) -> int:
        both = self._gpu(one)["p2p"] and self._gpu(other)["p2p"] and not self._gpu(other).get("lost")
        return _put(reference, 0 if both else 5)

    def _ancestor(self, one: Any, other: Any, reference: Any) -> int:
        return _put(reference, 40 if self._gpu(one)["numa"] == self._gpu(other)["numa"] else 50)


def _number_of(handle: Any) -> int:
    return int(ctypes.c_void_p.from_buffer(handle).value or 0)


_METHODS = {
    "nvmlInitWithFlags": "_start",
    "nvmlShutdown": "_stop",
    "nvmlErrorString": "_error",
    "nvmlSystemGetCudaDriverVersion_v2": "_cuda",
    "nvmlDeviceGetCount_v2": "_count",
    "nvmlDeviceGetHandleByIndex_v2": "_open",
    "nvmlDeviceGetPciInfo_v3": "_pci",
    "nvmlDeviceValidateInforom": "_inforom",
    "nvmlDeviceGetGspFirmwareVersion": "_gsp",
    "nvmlDeviceGetMemoryInfo": "_memory",
    "nvmlDeviceGetEccMode": "_ecc_both",
    "nvmlDeviceGetMemoryErrorCounter": "_errors",
    "nvmlDeviceGetRemappedRows": "_remapped",
    "nvmlDeviceGetFieldValues": "_fields",
    "nvmlDeviceGetTemperatureV": "_temperature_v",
    "nvmlDeviceGetTemperature": "_temperature",
    "nvmlDeviceGetMigMode": "_mig",
    "nvmlDeviceGetComputeRunningProcesses_v3": "_processes",
    "nvmlDeviceGetNvLinkState": "_link_state",
    "nvmlDeviceGetNvLinkVersion": "_link_version",
    "nvmlDeviceGetNvLinkRemotePciInfo_v2": "_link_remote",
    "nvmlDeviceGetNvLinkRemoteDeviceType": "_link_remote_type",
    "nvmlDeviceGetGpuFabricInfoV": "_fabric",
    "nvmlDeviceGetGpuFabricInfo": "_fabric_v1",
    "nvmlDeviceGetPlatformInfo": "_platform",
    "nvmlDeviceGetP2PStatus": "_p2p",
    "nvmlDeviceGetTopologyCommonAncestor": "_ancestor",
}


def loaded(scenario: dict[str, Any]) -> Any:
    """The unmodified pynvml module of this process, with the simulated library loaded into it.

    For in-process probes, one after another: pynvml keeps its library and function pointers in module variables.
    """
    import pynvml

    pynvml._nvmlGetFunctionPointer_cache.clear()
    pynvml.nvmlLib = FakeNvml(scenario)
    return pynvml
