"""JSON Schemas of the inventory's files, for editors and linters: generated from the structs that read them.

`python -m fleetd.model.schemas inventory/schema` writes them; a test compares what is committed with this.
A number may be written as text (`"0012"` is a serial), so number fields accept both, as the reader does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fleetd.model.host import HostSpec
from fleetd.model.inventory import RackSpec, SiteSpec
from fleetd.model.sku import Sku

BASE = "https://json-schema.org/draft/2020-12/schema"
_FILLED_IN = {"HostSpec": ("site", "rack", "nvlink_domain"), "Sku": ("digest",)}  # by fleetd, never in a file
_SCALARS = ("integer", "number")
_VERBATIM = frozenset({"default", "enum", "required"})


class RackFile(RackSpec, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One file of inventory/racks/<site>/: the rack and its hosts, lowest position first."""

    hosts: tuple[HostSpec, ...] = ()


FILES: dict[str, type[Any]] = {"site": SiteSpec, "rack": RackFile, "sku": Sku}


def render() -> dict[str, str]:
    """File name to text of every schema, byte for byte as committed."""
    return {f"{name}.schema.json": _text(name, kind) for name, kind in FILES.items()}


def _text(name: str, kind: type[Any]) -> str:
    (reference,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    parts = {part: _tidy(part, body) for part, body in sorted(components.items())}
    root = parts.pop(str(reference["$ref"]).rpartition("/")[2])
    schema: dict[str, Any] = {"$schema": BASE, "$id": f"fleetd/{name}", **root}
    if parts:
        schema["$defs"] = parts
    return msgspec.json.format(msgspec.json.encode(schema), indent=2).decode() + "\n"


def _tidy(part: str, body: dict[str, Any]) -> dict[str, Any]:
    """Without what fleetd fills in itself, and with the reader's leniency about numbers and unset lists."""
    properties = {
        key: _lenient(value) for key, value in body.get("properties", {}).items() if key not in _FILLED_IN.get(part, ())
    }
    return {**body, "properties": properties} if properties else body


def _lenient(value: Any) -> Any:
    """The reader takes numbers for text and text for numbers: YAML words carry no type until a field asks for one."""
    if isinstance(value, list):
        return [_lenient(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: item if key in _VERBATIM else _lenient(item) for key, item in value.items()}
    kind = value.get("type")
    if kind == "string" and "enum" not in value:
        return {**value, "type": ["string", "number"]}
    if kind in _SCALARS:
        return {**value, "type": [kind, "string"]}
    return value


def main(arguments: Sequence[str]) -> int:
    """Write all schemas into the folder named; returns the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m fleetd.model.schemas FOLDER\n")
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in render().items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
