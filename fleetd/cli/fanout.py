"""Lists over several ledgers: each context is asked for itself, and what could not be reached is named, never left out silently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from fleetd.cli.context import Hand, say
from fleetd.cli.exits import Done, Exit
from fleetd.cli.output import Column, emit
from fleetd.kit.errors import FleetError, NotFound

if TYPE_CHECKING:
    from fleetd.client.resources import Fleet, Listing


def gather(
    hand: Hand,
    ask: Callable[[Fleet], Listing[Any]],
    columns: Sequence[Column[Any]],
    name: Callable[[Any], str],
    *,
    empty: str,
) -> None:
    """Print one list, of one context or of all that were named.

    Raises:
        Done: partial, when some contexts did not answer. FleetError: when none did, or the only one.
    """
    endpoints = hand.endpoints()
    if len(endpoints) == 1:
        found = ask(hand.connect(endpoints[0]))
        emit(hand, found.raw, found.items, columns, name, empty=empty)
        return

    def one(endpoint: Any) -> Listing[Any] | FleetError:
        try:
            return ask(hand.connect(endpoint))
        except FleetError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(8, len(endpoints))) as pool:
        answers = list(zip(endpoints, pool.map(one, endpoints), strict=True))
    items: list[dict[str, Any]] = []
    rows: list[tuple[str, Any]] = []
    failed: list[tuple[str, FleetError]] = []
    for endpoint, answer in answers:
        if isinstance(answer, FleetError):
            failed.append((str(endpoint), answer))
            continue
        items += [{"context": str(endpoint), **item} for item in answer.raw["items"]]
        rows += [(str(endpoint), item) for item in answer.items]
    # A range that names hosts of one ledger only names nothing in the others: that is no failure of theirs.
    real = [(n, e) for n, e in failed if not isinstance(e, NotFound)]
    if len(failed) == len(answers):
        raise (real or failed)[0][1]
    shown = [Column[Any]("CONTEXT", lambda r: r[0]), *(Column(c.title, _second(c.show), c.wide) for c in columns)]
    raw = {"items": items, "next": None, "unreachable": [{"context": n, "error": str(e)} for n, e in real]}
    emit(hand, raw, rows, shown, lambda r: name(r[1]), empty=empty)
    if real:
        for context, error in real:
            say(f"error: {context}: {error}")
        raise Done(Exit.PARTIAL)


def _second(show: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda row: show(row[1])
