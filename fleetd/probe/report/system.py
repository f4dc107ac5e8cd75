"""The machine itself: SMBIOS identity, CPUs, memory and its DIMMs, kernel."""

from __future__ import annotations

import re
from typing import Any

from .files import Files, Reading, attempt, line, text

DMI = "/sys/class/dmi/id"
CPU = "/sys/devices/system/cpu"
_SECRET = re.compile(r"(fleetd\.token=)\S+")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
MOST_CPUS = 4096


def identity(files: Files) -> dict[str, Reading]:
    def macs() -> list[str]:
        found = set()
        for name in files.names("/sys/class/net")[:256]:
            # only real devices: bridges, bonds and the loopback have no `device`
            if files.exists(f"/sys/class/net/{name}/device"):
                address = files.read(f"/sys/class/net/{name}/address").decode("ascii", "replace").strip().lower()
                if _MAC.fullmatch(address) and address != "00:00:00:00:00:00":
                    found.add(address)
        return sorted(found)

    return {
        "serial": line(files, f"{DMI}/product_serial"),
        "uuid": attempt(lambda: text(files.read(f"{DMI}/product_uuid")).lower()),
        "vendor": line(files, f"{DMI}/sys_vendor"),
        "product": line(files, f"{DMI}/product_name"),
        "board_serial": line(files, f"{DMI}/board_serial"),
        "macs": attempt(macs),
    }


def without_token(cmdline: str) -> str:
    """The boot token stands on the deploy kernel's command line and must not travel on into the ledger."""
    return _SECRET.sub(r"\1***", cmdline)


def cpu_list(raw: str) -> list[int]:
    """ "0-3,8" -> [0, 1, 2, 3, 8]. Raises ValueError."""
    cpus: list[int] = []
    for part in raw.split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
        if match is None:
            raise ValueError(f"not a CPU list: {raw[:40]}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or len(cpus) + last - first + 1 > MOST_CPUS:
            raise ValueError(f"not a CPU list: {raw[:40]}")
        cpus.extend(range(first, last + 1))
    return cpus


def cpus_of_cpuinfo(raw: str) -> tuple[int, int]:
    """(sockets, cores) of x86 /proc/cpuinfo. Raises ValueError where it names no sockets (ARM)."""
    cores: dict[str, int] = {}
    socket = ""
    for entry in raw.splitlines():
        name, _, value = entry.partition(":")
        if name.strip() == "physical id":
            socket = value.strip()
        elif name.strip() == "cpu cores" and socket:
            cores[socket] = int(value)
    if not cores:
        raise ValueError("no sockets named")
    return len(cores), sum(cores.values())


def cpus_of_sysfs(files: Files) -> tuple[int, int]:
    """(sockets, cores) by walking from CPU to CPU that no earlier socket or core held."""

    def groups(name: str) -> int:
        seen: set[int] = set()
        count = 0
        for cpu in online:
            if cpu not in seen:
                seen.update(cpu_list(text(files.read(f"{CPU}/cpu{cpu}/topology/{name}"))))
                count += 1
        return count

    online = cpu_list(text(files.read(f"{CPU}/online")))
    try:
        threads = text(files.read(f"{CPU}/smt/active")) != "0"
    except OSError:
        threads = True
    return groups("package_cpus_list"), groups("core_cpus_list") if threads else len(online)


def _cpus(files: Files) -> tuple[int, int]:
    try:
        return cpus_of_cpuinfo(files.read("/proc/cpuinfo", 4 * 1024 * 1024).decode("utf-8", "replace"))
    except ValueError:
        return cpus_of_sysfs(files)


def dimms(table: bytes) -> list[dict[str, Any]]:
    """Populated memory devices (type 17) of an SMBIOS table. Raises ValueError when the table is cut or loops."""
    found: list[dict[str, Any]] = []
    at = 0
    while at + 4 <= len(table):
        kind, length = table[at], table[at + 1]
        if length < 4 or at + length > len(table):
            raise ValueError("SMBIOS table is cut short")
        end = table.find(b"\0\0", at + length)
        if end < 0:
            raise ValueError("SMBIOS table is cut short")
        if kind == 17 and length >= 0x15:
            size = int.from_bytes(table[at + 0x0C : at + 0x0E], "little")
            if size == 0x7FFF and length >= 0x20:
                mib = int.from_bytes(table[at + 0x1C : at + 0x20], "little") & 0x7FFFFFFF
            elif size & 0x8000:
                mib = (size & 0x7FFF) // 1024  # in KiB
            else:
                mib = size
            if size not in (0, 0xFFFF) and len(found) < 1024:
                strings = table[at + length : end].split(b"\0")
                named = table[at + 0x10]
                slot = strings[named - 1] if 0 < named <= len(strings) else b""
                fast = int.from_bytes(table[at + 0x20 : at + 0x22], "little") if length >= 0x22 else 0
                name = "".join(c if c.isprintable() else "?" for c in slot.decode("latin-1")[:64])
                found.append({"slot": name, "mib": mib, "mt_s": fast if fast != 0xFFFF else 0})
        if kind == 127:
            break
        at = end + 2
    return found


def _memory(raw: str) -> int:
    match = re.search(r"^MemTotal:\s+(\d{1,15}) kB", raw, re.MULTILINE)
    if match is None:
        raise ValueError("no MemTotal")
    return int(match[1])


def _edac(files: Files) -> int:
    at = "/sys/devices/system/edac/mc"
    controllers = [n for n in files.names(at) if re.fullmatch(r"mc\d{1,4}", n)]
    if not controllers:
        raise ValueError("no memory controller reports errors")
    return sum(int(text(files.read(f"{at}/{n}/ue_count"))) for n in controllers)


def _uptime(raw: str) -> float:
    match = re.match(r"\d{1,12}(\.\d{1,6})?", raw)  # float() would take "nan", which is no JSON
    if match is None:
        raise ValueError("not seconds")
    return float(match[0])


def system(files: Files) -> dict[str, Reading]:
    cpus = attempt(lambda: _cpus(files))
    return {
        "kernel": line(files, "/proc/sys/kernel/osrelease"),
        "cmdline": attempt(lambda: without_token(text(files.read("/proc/cmdline", 4096), 4096))),
        "bios_version": line(files, f"{DMI}/bios_version"),
        "sockets": {"v": cpus["v"][0]} if "v" in cpus else cpus,
        "cores": {"v": cpus["v"][1]} if "v" in cpus else cpus,
        "memory_kib": attempt(lambda: _memory(files.read("/proc/meminfo").decode("utf-8", "replace"))),
        "dimms": attempt(lambda: files.read("/sys/firmware/dmi/tables/DMI", 1024 * 1024), dimms),
        "modules": attempt(
            lambda: sorted(
                entry.split(" ", 1)[0][:64]
                for entry in files.read("/proc/modules", 512 * 1024).decode("utf-8", "replace").splitlines()[:2048]
                if entry
            )
        ),
        "edac_uncorrected": attempt(lambda: _edac(files)),
        "uptime_s": attempt(lambda: _uptime(text(files.read("/proc/uptime")))),
    }
