"""`fleetctl site`, `sku`, `playbook`, `check`: what the house knows, to list and to show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from fleetd.cli.context import Hand, output_option, pass_hand
from fleetd.cli.output import Column, emit, emit_one

Pairs = Callable[[Any], list[tuple[str, object]]]


def _noun(
    name: str, help_text: str, path: str, view: str, columns: list[Column[Any]], pairs: Pairs, key: str
) -> click.Group:
    """A group with `list` and `show`."""

    def kind() -> type[Any]:
        from fleetd.model import resource

        found: type[Any] = getattr(resource, view)
        return found

    group = click.Group(name, help=help_text)

    @group.command("list", help=f"List {path}.")
    @output_option
    @pass_hand
    def list_all(hand: Hand) -> None:
        found = hand.fleet.all(f"/v1/{path}", kind())
        emit(hand, found.raw, found.items, columns, lambda x: str(getattr(x, key)), empty=f"no {path}")

    @group.command("show", help=f"Show one {name}.")
    @click.argument("ref", metavar=name.upper())
    @output_option
    @pass_hand
    def show(hand: Hand, ref: str) -> None:
        from fleetd.client.http import segment

        found = hand.fleet.get(f"/v1/{path}/{segment(ref)}", kind())
        emit_one(hand, found.raw, pairs(found.value), str(getattr(found.value, key)))

    return group


def _flat(profile: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for key, value in profile.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, value if value != 0 else "0"))
    return pairs


site = _noun(
    "site",
    "Sites: list, show.",
    "sites",
    "SiteView",
    [
        Column("NAME", lambda s: s.name),
        Column("HALLS", lambda s: s.halls),
        Column("RACKS", lambda s: s.racks),
        Column("HOSTS", lambda s: s.hosts),
        Column("PDUS", lambda s: len(s.pdus)),
    ],
    lambda s: [
        ("name", s.name),
        ("halls", s.halls),
        ("racks", str(s.racks)),
        ("hosts", str(s.hosts)),
        ("pdus", s.pdus),
    ],
    "name",
)
sku = _noun(
    "sku",
    "SKUs: list, show.",
    "skus",
    "SkuView",
    [
        Column("NAME", lambda s: s.name),
        Column("GPUS", lambda s: s.gpus),
        Column("GPU", lambda s: s.gpu),
        Column("HOSTS", lambda s: s.hosts),
        Column("IMAGE", lambda s: s.image),
        Column("DIGEST", lambda s: s.digest, wide=True),
    ],
    lambda s: [("name", s.name), ("hosts", str(s.hosts)), *_flat(s.profile)],
    "name",
)
playbook = _noun(
    "playbook",
    "Playbooks: list, show.",
    "playbooks",
    "PlaybookView",
    [
        Column("NAME", lambda p: p.name),
        Column("STEPS", lambda p: len(p.steps)),
        Column("SEQUENCE", lambda p: " > ".join(s.name for s in p.steps), wide=True),
        Column("DESCRIPTION", lambda p: p.description),
    ],
    lambda p: [
        ("name", p.name),
        ("description", p.description),
        ("steps", "\n".join(f"{s.name}@{s.version}" + (f" {s.params}" if s.params else "") for s in p.steps)),
        ("strategy", "\n".join(f"{k}: {v}" for k, v in p.strategy.items())),
    ],
    "name",
)
check = _noun(
    "check",
    "Checks: list, show.",
    "checks",
    "CheckView",
    [
        Column("ID", lambda c: c.id),
        Column("SUBJECT", lambda c: c.subject),
        Column("SOURCE", lambda c: c.source, wide=True),
        Column("TITLE", lambda c: c.title),
    ],
    lambda c: [("id", c.id), ("title", c.title), ("subject", c.subject), ("why", c.why), ("source", c.source)],
    "id",
)
