"""YAML as people at the rack mean it: `off` is a word, `0012` is a serial, and every value remembers its file:line.

Only `true`, `false` and `null` are resolved here; a number stays text until a typed field asks for a number, so that a
serial is never one. Anchors, aliases, tags, duplicate keys, deep nesting and huge files are refused (hostile until parsed).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, TypeVar

import msgspec
import yaml

from fleetd.kit.errors import Invalid

T = TypeVar("T")
MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 24
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}
_OPENS = (
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
)
_CLOSES = (yaml.BlockEndToken, yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken)
_PATH_PART = re.compile(r"\.([A-Za-z_][\w-]*)|\[(\.\.\.|\d+)\]")


class Document(NamedTuple):
    """A parsed file: `value` of dict, list, str, bool and None; `lines` maps a path of keys to its line (from 1)."""

    name: str
    value: Any
    lines: dict[tuple[str | int, ...], int]

    def where(self, path: tuple[str | int, ...] = ()) -> str:
        """`file:line` of the value at `path`, or of its nearest known parent."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}:{self.lines.get(path, 1)}"


def parse(text: str, name: str) -> Document:
    """Parse one YAML document. Raises Invalid with file:line."""
    if len(text) > MAX_BYTES:
        raise Invalid(f"the file is larger than {MAX_BYTES} bytes", where=name)
    try:
        depth = 0
        for token in yaml.scan(text, Loader=yaml.CSafeLoader):
            # The C composer recurses without a limit and takes the process down with it: depth is judged before it.
            depth += isinstance(token, _OPENS) - isinstance(token, _CLOSES)
            if depth > MAX_DEPTH:
                raise Invalid(f"nested deeper than {MAX_DEPTH}", where=f"{name}:{token.start_mark.line + 1}")
            if isinstance(token, yaml.AliasToken | yaml.AnchorToken | yaml.TagToken):
                kind = type(token).__name__.removesuffix("Token").lower()
                raise Invalid(f"YAML {kind} is not allowed here", where=f"{name}:{token.start_mark.line + 1}")
        root = yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        raise Invalid("not YAML", why=str(getattr(error, "problem", error)), where=f"{name}:{line}") from error
    except UnicodeError as error:
        raise Invalid("not text", why=str(error)[:200], where=f"{name}:1") from error
    lines: dict[tuple[str | int, ...], int] = {}
    value = None if root is None else _build(root, (), lines, name)
    return Document(name, value, lines)


def _build(node: yaml.Node, path: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int], name: str) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if len(path) > MAX_DEPTH:
        raise Invalid(f"nested deeper than {MAX_DEPTH}", where=f"{name}:{line}")
    if isinstance(node, yaml.ScalarNode):
        if node.style in ("'", '"', "|", ">"):
            return node.value
        return _WORDS.get(node.value, node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, i), lines, name) for i, item in enumerate(node.value)]
    built: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise Invalid("a key must be a plain word", where=f"{name}:{key_node.start_mark.line + 1}")
        key = key_node.value
        if key in built:
            raise Invalid(f"key `{key}` stands here twice", where=f"{name}:{key_node.start_mark.line + 1}")
        lines[(*path, key)] = key_node.start_mark.line + 1
        built[key] = _build(value_node, (*path, key), lines, name)
    return built


def decode(document: Document, kind: type[T], *, at: tuple[str | int, ...] = ()) -> T:
    """The value (at a path) as a typed msgspec struct. Unknown keys are refused by structs with forbid_unknown_fields.

    Raises:
        Invalid: with file:line of the offending key or value.
    """
    value = document.value
    for part in at:
        value = value[part]
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        message, _, raw = str(error).partition(" - at `")
        path = _locate(value, raw.rstrip("`"), kind, str(error))
        unknown = re.search(r"unknown field `([^`]+)`", message)
        if unknown:
            path = (*path, unknown.group(1))
            message = f"unknown key `{unknown.group(1)}`"
        raise Invalid(message, where=document.where((*at, *path))) from error


def _locate(value: Any, raw: str, kind: Any, said: str) -> tuple[str | int, ...]:
    """The path that msgspec names. It writes `[...]` for any element of a list or a mapping; which one is found again
    by asking how much of the container must be there for the same complaint."""
    path: list[str | int] = []
    here = value
    for match in _PATH_PART.finditer(raw):
        key, index = match.groups()
        if key is not None:
            step: str | int | None = key
        elif index != "...":
            step = int(index)
        else:
            step = _offender(value, path, here, kind, said)
        if step is None:
            break
        path.append(step)
        try:
            here = here[step]
        except (KeyError, IndexError, TypeError):
            break
    return tuple(path)


def _offender(value: Any, path: list[str | int], container: Any, kind: Any, said: str) -> str | int | None:
    """Key or index of the first element of `container` (at `path` of `value`) that makes msgspec say `said`."""
    if not isinstance(container, list | dict) or not container:
        return None
    keys: list[Any] = list(container) if isinstance(container, dict) else list(range(len(container)))

    def complains(count: int) -> bool:
        kept = container[:count] if isinstance(container, list) else {key: container[key] for key in keys[:count]}
        try:
            msgspec.convert(_with(value, path, kept), kind, strict=False)
        except msgspec.ValidationError as error:
            return str(error) == said
        return False

    low, high = 1, len(keys)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if complains(middle) else (middle + 1, high)
    found: str | int = keys[low - 1]
    return found


def _with(value: Any, path: list[str | int], new: Any) -> Any:
    """A copy of `value` with `new` at `path`; only the way there is copied."""
    if not path:
        return new
    fresh = value.copy()
    fresh[path[0]] = _with(value[path[0]], path[1:], new)
    return fresh
