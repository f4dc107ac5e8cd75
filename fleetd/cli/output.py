"""Data on stdout: tables for people, the API's own representation for programs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import click

from fleetd.cli.context import Hand, colour

T = TypeVar("T")
_GIB = 1024**3
_STATE_COLOUR = {
    "available": "green",
    "leased": "green",
    "active": "green",
    "passed": "green",
    "pass": "green",
    "quarantined": "red",
    "failed": "red",
    "fail": "red",
    "stopped": "red",
    "finding": "red",
    "maintenance": "yellow",
    "cancelled": "yellow",
    "held": "yellow",
    "alert": "yellow",
}


class Column(NamedTuple, Generic[T]):
    """A column of a table; `wide` ones show with -o wide only."""

    title: str
    show: Callable[[T], object]
    wide: bool = False


def emit(
    hand: Hand, raw: Any, rows: Sequence[T], columns: Sequence[Column[T]], name: Callable[[T], str], empty: str = ""
) -> None:
    """Print a list in the format that was asked for. `empty` is said, on stderr, when a table has no rows."""
    if _as_data(hand, raw):
        return
    if hand.format == "name":
        for row in rows:
            click.echo(name(row))
        return
    if not rows and empty:
        click.echo(empty, err=True)
        return
    shown = [c for c in columns if hand.format == "wide" or not c.wide]
    click.echo(table([c.title for c in shown], [[text(c.show(row)) for c in shown] for row in rows]), nl=False)


def emit_one(hand: Hand, raw: Any, pairs: Sequence[tuple[str, object]], name: str) -> None:
    """Print one resource: `key  value` lines; empty values are left out."""
    if _as_data(hand, raw):
        return
    if hand.format == "name":
        click.echo(name)
        return
    kept = [(key, text(value)) for key, value in pairs if value not in (None, "", [], {}, ())]
    width = max((len(key) for key, _ in kept), default=0)
    for key, value in kept:
        lines = value.splitlines() or [""]
        click.echo(f"{key:<{width}}  {paint(lines[0])}")
        for line in lines[1:]:
            click.echo(f"{'':<{width}}  {line}")


def _as_data(hand: Hand, raw: Any) -> bool:
    if hand.format == "json":
        click.echo(json.dumps(raw, indent=2, ensure_ascii=False))
        return True
    if hand.format == "yaml":
        import yaml

        click.echo(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), nl=False)
        return True
    return False


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns. On a terminal the last column is cut at the edge; in a pipe nothing is ever cut."""
    widths = [max([len(title), *(len(row[i]) for row in rows)]) for i, title in enumerate(titles)]
    edge = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    lines = []
    for number, row in enumerate([titles, *rows]):
        before = sum(widths[:-1]) + 2 * (len(widths) - 1)
        last = row[-1]
        if edge and before + len(last) > edge > before + 8:
            last = last[: edge - before - 1] + "…"
        cells = [_pad(cell, width, paint_it=number > 0) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        lines.append("  ".join([*cells, paint(last) if number else last]).rstrip())
    return "\n".join(lines) + "\n"


def _pad(cell: str, width: int, *, paint_it: bool) -> str:
    return (paint(cell) if paint_it else cell) + " " * (width - len(cell))


def paint(word: str) -> str:
    """Colour a word that names a state, where colour is wanted."""
    shade = _STATE_COLOUR.get(word)
    return click.style(word, fg=shade) if shade and colour(sys.stdout) else word


def text(value: object) -> str:
    """A value as one cell: None is `-`, control characters of hostile names never reach the terminal."""
    if value is None or value == "":
        return "-"
    if value is True or value is False:
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "-"
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in str(value))


def age(moment: str | None) -> str | None:
    """`12 m`: how long ago."""
    from fleetd.kit import pause
    from fleetd.kit.clock import human_duration, parse_rfc3339

    return None if moment is None else human_duration(pause.wall() - parse_rfc3339(moment))


def left(moment: str | None) -> str | None:
    """`in 3 h 05 m`, or `12 m over`: how long until."""
    from fleetd.kit import pause
    from fleetd.kit.clock import human_duration, parse_rfc3339

    if moment is None:
        return None
    rest = parse_rfc3339(moment) - pause.wall()
    return f"in {human_duration(rest)}" if rest >= 0 else f"{human_duration(rest)} over"


def sized(count: int) -> str:
    """Bytes for people: `2.10 GiB`, `33 KiB`."""
    return f"{count / _GIB:.2f} GiB" if count >= _GIB / 100 else f"{count / 1024:.0f} KiB"


def interactive() -> bool:
    """Is a person at both ends? CI never is."""
    return sys.stdin.isatty() and sys.stderr.isatty() and not os.environ.get("CI")
