"""The ledger's inventory written back as the files a person would have written: read again they mean the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import yaml

from fleetd.model.host import HostSpec
from fleetd.model.inventory import RackSpec, SiteSpec
from fleetd.model.sku import Sku

_FROM_THE_RACK = frozenset({"site", "rack", "nvlink_domain"})  # of a host: they stand at the head of its file


def _plain(value: Any, leave_out: frozenset[str] = frozenset()) -> Any:
    """Structs as dicts without their defaults, tuples as lists."""
    if isinstance(value, msgspec.Struct):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in msgspec.structs.fields(value)
            if field.name not in leave_out and (field.required or getattr(value, field.name) != _default(field))
        }
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


def _dump(value: Any) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False)
    return text


def export_files(
    sites: Mapping[str, SiteSpec], racks: Mapping[str, RackSpec], skus: Mapping[str, Sku], hosts: Iterable[HostSpec]
) -> dict[str, str]:
    """`{file name: text}` under sites/, racks/<site>/ and skus/."""
    members: dict[str, list[HostSpec]] = {}
    for host in hosts:
        members.setdefault(host.rack, []).append(host)
    files = {f"sites/{name}.yaml": _dump(_plain(site)) for name, site in sorted(sites.items())}
    for name, rack in sorted(racks.items()):
        head = _plain(rack)
        inside = sorted(members.get(name, []), key=lambda host: (host.position, host.name))
        head["hosts"] = [_plain(host, _FROM_THE_RACK) for host in inside]
        files[f"racks/{rack.site}/{name}.yaml"] = _dump(head)
    for name, sku in sorted(skus.items()):
        files[f"skus/{name}.yaml"] = _dump(_plain(sku, frozenset({"digest"})))
    return files
