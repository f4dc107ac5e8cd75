"""What must hold for any report a host can send: no crash, no verdict lost, and no pass on what was not read."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetd.checks import headline, run_domain, run_suite
from fleetd.model.check import Outcome
from fleetd.model.report import Report

Path = tuple[str | int, ...]

# Which checks need a reading; "*" is any index. A reading that is not here is told for the record only.
NEEDS: dict[str, set[str]] = {
    "identity.serial": {"system.identity"},
    "identity.uuid": {"system.identity"},
    "identity.macs": {"system.identity"},
    "system.bios_version": {"firmware.baseline"},
    "system.sockets": {"system.cpu-memory"},
    "system.cores": {"system.cpu-memory"},
    "system.memory_kib": {"system.cpu-memory"},
    "system.dimms": {"system.cpu-memory"},
    "pci": {"gpu.count", "gpu.identity", "nvlink.switches", "pcie.chain"},
    "xids": {"gpu.xid"},
    "nics": {"network.nics", "pcie.chain", "fleet.duplicates"},
    "nics.*.pci": {"pcie.chain"},
    "nics.*.guid": {"fleet.duplicates"},
    "nics.*.ports.*.state": {"network.nics"},
    "nics.*.ports.*.phys_state": {"network.nics"},
    "nics.*.ports.*.rate_gbps": {"network.nics", "pcie.chain"},
    "nvme": {"storage.nvme", "fleet.duplicates"},
    "nvme.*.serial": {"storage.nvme", "fleet.duplicates"},
    **{
        f"nvme.*.{name}": {"storage.nvme"}
        for name in (
            *("bytes", "state", "critical_warning", "percentage_used", "media_errors"),
            *("available_spare", "available_spare_threshold"),
        )
    },
    "nvml.init": {"gpu.count"},
    "nvml.count": {"gpu.count"},
    "nvml.driver": {"gpu.versions"},
    "nvml.topology": {"nvlink.topology"},
    "nvml.gpus.*.uuid": {"gpu.identity", "fleet.duplicates"},
    "nvml.gpus.*.serial": {"gpu.identity", "fleet.duplicates"},
    "nvml.gpus.*.name": {"gpu.identity"},
    "nvml.gpus.*.pci": {"gpu.identity"},
    "nvml.gpus.*.vbios": {"gpu.versions"},
    "nvml.gpus.*.inforom_valid": {"gpu.inforom"},
    "nvml.gpus.*.memory_mib": {"gpu.memory"},
    "nvml.gpus.*.ecc_current": {"gpu.ecc"},
    "nvml.gpus.*.ecc_pending": {"gpu.ecc"},
    "nvml.gpus.*.dram_uncorrectable_volatile": {"gpu.ecc"},
    "nvml.gpus.*.sram_uncorrectable_aggregate": {"gpu.ecc"},
    "nvml.gpus.*.remapped": {"gpu.row-remap"},
    "nvml.gpus.*.recovery_action": {"gpu.recovery-action"},
    "nvml.gpus.*.pcie_generation_max": {"pcie.link"},
    "nvml.gpus.*.pcie_width": {"pcie.link"},
    "nvml.gpus.*.pcie_width_max": {"pcie.link"},
    "nvml.gpus.*.throttle": {"gpu.throttle"},
    "nvml.gpus.*.temperature_c": {"gpu.temperature"},
    "nvml.gpus.*.power_limit_w": {"gpu.power-limit"},
    "nvml.gpus.*.power_limit_default_w": {"gpu.power-limit"},
    "nvml.gpus.*.processes": {"gpu.idle"},
    "nvml.gpus.*.mig": {"gpu.idle"},
    "nvml.gpus.*.links": {"nvlink.links", "nvlink.speed"},
    "nvml.gpus.*.links.*.active": {"nvlink.links"},
    "nvml.gpus.*.links.*.mb_per_s": {"nvlink.speed"},
    "nvml.gpus.*.links.*.version": {"nvlink.speed"},
    "nvml.gpus.*.fabric": {"nvlink.fabric", "nvlink.domain"},
}
NEEDS["nvml.gpus.*.handle"] = {
    "gpu.count",
    "nvlink.topology",
    *(check for path, checks in NEEDS.items() if path.startswith("nvml.gpus.") for check in checks),
}


def readings(value: Any, path: Path = ()) -> Iterator[Path]:
    """Paths of every reading that has a value."""
    if isinstance(value, dict):
        if set(value) == {"v"}:
            yield path
        for key, inner in value.items():
            yield from readings(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from readings(inner, (*path, i))


def family(path: Path) -> str:
    return ".".join("*" if isinstance(p, int) else p for p in path if p != "v")


def replace(raw: Any, path: Path, value: Any) -> Any:
    """A copy with the value at `path` replaced; only the way there is copied."""
    if not path:
        return value
    fresh = copy.copy(raw)
    fresh[path[0]] = replace(raw[path[0]], path[1:], value)
    return fresh


def run(bench: Any, raw: Any) -> dict[str, Any]:
    facts = msgspec.convert(raw, Report)
    verdicts = run_suite(bench.sku.acceptance, "host-1", facts, bench.sku, bench.context)
    assert [v.check for v in verdicts] == list(bench.sku.acceptance)
    assert not [v.measured for v in verdicts if "the check broke" in v.measured]
    return {v.check: v for v in verdicts}


@pytest.mark.slow
@pytest.mark.parametrize("gone", [{"absent": "NotSupported"}, {}], ids=["absent", "not reported"])
def test_no_check_passes_without_a_reading_it_needs(bench: Any, gone: dict[str, str]) -> None:
    """Every kind of reading, removed once at the first and once at the last place it stands."""
    places: dict[str, list[Path]] = {}
    for path in readings(bench.raw):
        places.setdefault(family(path), []).append(path)
    asked = set()
    for name, paths in places.items():
        needed = NEEDS.get(name, set()) & set(bench.sku.acceptance)
        asked |= needed
        for path in {paths[0], paths[-1]}:
            if not needed or (name == "system.dimms" and bench.sku.cpu.dimms is None):
                continue
            facts = msgspec.convert(replace(bench.raw, path, gone), Report)
            for verdict in run_suite(sorted(needed), "host-1", facts, bench.sku, bench.context):
                assert not verdict.passed, f"{verdict.check} passes without {name}"
                assert verdict.remedy
    assert asked == set(bench.sku.acceptance), "a check that needs no reading proves nothing"


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_one_reading_removed_never_crashes(bench: Any, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(readings(bench.raw), key=str)))
    verdicts = run(bench, replace(bench.raw, path, {"absent": data.draw(st.text(max_size=40))}))
    for check in NEEDS.get(family(path), set()) & set(verdicts):
        if not (check == "system.cpu-memory" and path[1] == "dimms" and bench.sku.cpu.dimms is None):
            assert not verdicts[check].passed


def values(kind: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    """Whatever JSON of this type a host may send."""
    match kind:
        case msgspec.inspect.StructType():
            return st.fixed_dictionaries(
                {f.encode_name: values(f.type) for f in kind.fields if f.required},
                optional={f.encode_name: values(f.type) for f in kind.fields if not f.required},
            )
        case msgspec.inspect.ListType():
            return st.lists(values(kind.item_type), max_size=3)
        case msgspec.inspect.UnionType():
            return st.one_of([values(t) for t in kind.types])
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.IntType():
            return st.one_of(st.integers(0, 20), st.integers(-(2**63), 2**64 - 1))
        case msgspec.inspect.FloatType():
            return st.floats(allow_nan=False, allow_infinity=False)
        case msgspec.inspect.StrType():
            return st.one_of(st.text(max_size=12), st.sampled_from(["GPU-1", "0000:19:00.0", "10de", "NV18", "030200"]))
    raise AssertionError(kind)


REPORTS = values(msgspec.inspect.type_info(Report))


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(raw=REPORTS)
def test_no_check_crashes_on_any_decodable_report(bench: Any, raw: Any) -> None:
    raw = msgspec.json.decode(msgspec.json.encode(raw))
    verdicts = run(bench, raw)
    assert not all(v.passed for v in verdicts.values())
    assert headline(verdicts.values()) is not None
    told = run_domain(bench.sku.acceptance, "rack-1", {"a": msgspec.convert(raw, Report)}, bench.sku, bench.context)
    assert all(len(v) == len(bench.sku.acceptance) for v in told.values())
    assert not any(v.passed for v in told["a"])


def spoil(kind: msgspec.inspect.Type, raw: Any, data: st.DataObject) -> Any:
    """Walk down a healthy report at random and put a value of the same type, but the host's choice, there."""
    if data.draw(st.integers(0, 3)) == 0:
        return data.draw(values(kind))
    match kind:
        case msgspec.inspect.StructType():
            fields = [f for f in kind.fields if f.encode_name in raw]
            if fields:
                field = data.draw(st.sampled_from(fields))
                return {**raw, field.encode_name: spoil(field.type, raw[field.encode_name], data)}
        case msgspec.inspect.ListType() if raw:
            i = data.draw(st.integers(0, len(raw) - 1))
            return [*raw[:i], spoil(kind.item_type, raw[i], data), *raw[i + 1 :]]
        case msgspec.inspect.UnionType() if raw is not None:
            return spoil(next(t for t in kind.types if not isinstance(t, msgspec.inspect.NoneType)), raw, data)
    return data.draw(values(kind))


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_check_crashes_on_a_healthy_report_with_a_hostile_corner(bench: Any, data: st.DataObject) -> None:
    raw = spoil(msgspec.inspect.type_info(Report), bench.raw, data)
    for verdict in run(bench, msgspec.json.decode(msgspec.json.encode(raw))).values():
        assert (verdict.outcome is Outcome.PASS) == (not verdict.remedy)
        assert len(verdict.measured) <= 600
        assert len(verdict.evidence) <= 200
        assert verdict.measured.isprintable()
