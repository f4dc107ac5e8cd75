"""The committed schemas are what the structs say, and the example inventory fits them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fleetd.kit.yamlfile import parse
from fleetd.model import schemas

INVENTORY = Path(__file__).resolve().parents[2] / "inventory"
KIND = {"sites": "site", "racks": "rack", "skus": "sku"}
TYPES: dict[str, type[Any] | tuple[type[Any], ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "null": type(None),
}


def misfits(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "") -> list[str]:
    """As much of JSON Schema as our files use; anything else in a schema is an error here."""
    known = {"$schema", "$id", "$defs", "$ref", "title", "description", "default", "type", "properties", "required"}
    assert schema.keys() <= known | {"additionalProperties", "items", "anyOf", "enum"}, schema.keys() - known
    if "$ref" in schema:
        return misfits(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, at)
    if "anyOf" in schema:
        tries = [misfits(value, option, root, at) for option in schema["anyOf"]]
        return [] if any(not found for found in tries) else min(tries, key=len)
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{at}: {value!r} is none of {schema['enum']}"]
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(isinstance(value, TYPES[kind]) for kind in kinds):
        return [f"{at}: {value!r} is no {kinds}"]
    if isinstance(value, list):
        return [bad for i, item in enumerate(value) for bad in misfits(item, schema["items"], root, f"{at}[{i}]")]
    if not isinstance(value, dict):
        return []
    found = [f"{at}: no {key}" for key in schema.get("required", ()) if key not in value]
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for key, item in value.items():
        if key in properties:
            found += misfits(item, properties[key], root, f"{at}.{key}")
        elif others is False:
            found.append(f"{at}: unknown {key}")
        elif isinstance(others, dict):
            found += misfits(item, others, root, f"{at}.{key}")
    return found


def test_the_committed_schemas_are_current() -> None:
    committed = {path.name: path.read_text() for path in (INVENTORY / "schema").glob("*.json")}
    assert committed == schemas.render(), "run: python -m fleetd.model.schemas inventory/schema"


def test_rendering_writes_the_same_files(tmp_path: Path) -> None:
    assert schemas.main([str(tmp_path / "new")]) == 0
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == schemas.render()
    assert schemas.main([]) == 2


@pytest.mark.parametrize("path", sorted(INVENTORY.glob("**/*.yaml")), ids=lambda path: path.stem)
def test_the_example_inventory_fits(path: Path) -> None:
    kind = KIND[path.relative_to(INVENTORY).parts[0]]
    schema = json.loads(schemas.render()[f"{kind}.schema.json"])
    assert misfits(parse(path.read_text(), path.name).value, schema, schema) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"colour": "red"}, "unknown colour"),
        ({"site": None}, ".site: None is no"),
        ({"hosts": [{"name": "a"}]}, "no position"),
        ({"power": {"budget": "1 kW", "fuse": "3"}}, "unknown fuse"),
    ],
)
def test_a_wrong_rack_does_not_fit(change: dict[str, Any], says: str) -> None:
    schema = json.loads(schemas.render()["rack.schema.json"])
    rack = {"rack": "a", "site": "b", "hosts": []} | change
    assert any(says in bad for bad in misfits(rack, schema, schema))


def test_what_fleetd_fills_in_is_not_asked_of_files() -> None:
    rendered = schemas.render()
    host = json.loads(rendered["rack.schema.json"])["$defs"]["HostSpec"]
    assert not {"site", "rack", "nvlink_domain"} & host["properties"].keys()
    assert "digest" not in json.loads(rendered["sku.schema.json"])["properties"]
