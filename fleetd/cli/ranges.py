"""Host ranges as a person types them: words, `@file`, and `-` for standard input; and one order given to many hosts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fleetd.cli.context import Hand, explain, say
from fleetd.cli.exits import Done, Exit
from fleetd.kit.errors import FleetError, Invalid

if TYPE_CHECKING:
    from fleetd.client.resources import Document, Fleet
    from fleetd.model.resource import HostView

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
MAX_BYTES = 1024 * 1024
WIDTH = 16


def hosts_argument(function: F) -> F:
    """HOSTS: one or more words of a host range."""
    return click.argument("hosts", nargs=-1, required=True, metavar="HOSTS...")(function)


def optional_hosts(function: F) -> F:
    """[HOSTS]: none means all."""
    return click.argument("hosts", nargs=-1, metavar="[HOSTS]...")(function)


def expression(words: Sequence[str]) -> str:
    """One host range of the words; `@file` and `-` are replaced by what they hold (`#` begins a comment).

    Raises:
        Invalid: a file cannot be read, or the range is empty or cannot be read.
    """
    from fleetd.model.hostrange import compile_range

    parts: list[str] = []
    for word in words:
        if word == "-":
            parts += _words(sys.stdin.read(MAX_BYTES + 1), "standard input")
        elif word.startswith("@"):
            try:
                with Path(word[1:]).open(encoding="utf-8") as file:
                    parts += _words(file.read(MAX_BYTES + 1), word[1:])
            except (OSError, UnicodeDecodeError) as error:
                raise Invalid("the file of hosts cannot be read", why=str(error), where=word[1:]) from error
        else:
            parts.append(word)
    text = " ".join(parts)
    compile_range(text)
    return text


def _words(text: str, where: str) -> list[str]:
    if len(text) > MAX_BYTES:
        raise Invalid(f"more than {MAX_BYTES} bytes of hosts", where=where)
    return [word for line in text.splitlines() for word in line.partition("#")[0].split()]


def asked_stdin(words: Sequence[str]) -> bool:
    """Was standard input used up for the hosts?"""
    return "-" in words


def each(
    hand: Hand, hosts: Sequence[HostView], order: Callable[[Fleet, HostView], Document[T]], *, width: int = WIDTH
) -> list[tuple[HostView, Document[T] | FleetError]]:
    """Give the order to every host, `width` at a time; a failure is a value in its host's place."""
    import threading

    fleet = hand.fleet
    local = threading.local()
    opened: list[Fleet] = []

    def one(host: HostView) -> Document[T] | FleetError:
        if not hasattr(local, "fleet"):
            local.fleet = fleet.again()
            opened.append(local.fleet)
        try:
            return order(local.fleet, host)
        except FleetError as error:
            return error

    try:
        if len(hosts) == 1:
            return [(hosts[0], one(hosts[0]))]
        with ThreadPoolExecutor(max_workers=min(width, len(hosts))) as pool:
            return list(zip(hosts, pool.map(one, hosts), strict=True))
    finally:
        for each_fleet in opened:
            each_fleet.close()


def report_failures(results: Sequence[tuple[HostView, object]]) -> None:
    """Name those that failed on stderr. Raises what the only host failed with, or Done: partial, or the failed ones' code."""
    failed = [(host, error) for host, error in results if isinstance(error, FleetError)]
    if not failed:
        return
    if len(results) == 1:
        raise failed[0][1]
    for host, error in failed:
        say(f"{host.name}: {error}")
    say(f"{len(failed)} of {len(results)} hosts failed")
    first = failed[0][1]
    explain(first)
    codes = {error.exit_code for _, error in failed}
    if len(failed) < len(results):
        raise Done(Exit.PARTIAL)
    raise Done(Exit(codes.pop()) if len(codes) == 1 else Exit.FAILED)
