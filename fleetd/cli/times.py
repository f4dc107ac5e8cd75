"""Times as a person types them: `4h` from now, or an RFC 3339 time; sent to the API always as the latter."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
_DURATION = re.compile(r"^\d+(\.\d+)?\s*(s|m|min|h|d)$")


def duration(value: str) -> float:
    """Seconds of `90s`, `30m`, `4h`, `2d`. Raises BadParameter."""
    from fleetd.kit.errors import Invalid
    from fleetd.model.units import seconds

    try:
        return seconds(value)
    except Invalid as error:
        raise click.BadParameter(f"{error.what}; {error.remedy}") from error


def moment(value: str) -> str:
    """RFC 3339 of a duration from now or of a time. Raises BadParameter."""
    from fleetd.kit import pause
    from fleetd.kit.clock import parse_rfc3339, rfc3339

    try:
        wall = pause.wall() + duration(value) if _DURATION.match(value) else parse_rfc3339(value)
        return rfc3339(wall) or ""
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{error}; write 4h, 2d or 2026-11-23T04:00:00Z") from error


def moment_option(*names: str, **settings: Any) -> Callable[[F], F]:
    """An option that takes a time."""
    return click.option(*names, metavar="TIME", callback=lambda _c, _p, v: None if v is None else moment(v), **settings)


def duration_option(*names: str, **settings: Any) -> Callable[[F], F]:
    """An option that takes a duration."""
    return click.option(
        *names, metavar="DURATION", callback=lambda _c, _p, v: None if v is None else duration(v), **settings
    )
