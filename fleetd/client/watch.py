"""Following: the event stream with resume, and "tell me when something happened" for progress and waiting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from fleetd.client.resources import Fleet
from fleetd.kit import pause
from fleetd.kit.errors import Temporary
from fleetd.kit.retry import backoff
from fleetd.model.resource import EventView

SILENCE = 45.0  # three heartbeats: then the connection is taken for dead
FIRST_PAUSE = 0.2


def follow(fleet: Fleet, *, after: int | None = None, patience: float = 300.0, **wanted: Any) -> Iterator[EventView]:
    """Events for ever, in order, none twice and none missed, across restarts of the daemon.

    Args:
        after: seq to go on from; None starts with what happens from now on.
        patience: seconds to keep trying while nobody answers.

    Raises:
        Unreachable, DeadlineExceeded: when patience is used up; other errors of the API at once.
    """
    last, failures, since = after, 0, pause.steady()
    while True:
        try:
            with fleet.http.stream("/v1/events", query=wanted, last=last, silence=SILENCE) as lines:
                for seq, data in _messages(lines):
                    failures, since = 0, pause.steady()
                    if seq is not None:
                        last = seq
                    if data:
                        yield msgspec.json.decode(data, type=EventView)
        except Temporary:
            if pause.steady() - since > patience:
                raise
        failures += 1
        pause.sleep(backoff(failures, first=FIRST_PAUSE, cap=5.0))


def _messages(lines: Iterator[bytes]) -> Iterator[tuple[int | None, bytes]]:
    """SSE: (id, data) of each message; a heartbeat has an id and no data."""
    seq: int | None = None
    data: list[bytes] = []
    for line in lines:
        if not line:
            yield seq, b"\n".join(data)
            data = []
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"id" and value.isdigit():
            seq = int(value)
        elif name == b"data":
            data.append(value)


def ticks(fleet: Fleet, *, every: float = 0.5, at_least: float = 10.0, **wanted: Any) -> Iterator[list[EventView]]:
    """The first time at once, then whenever events of that kind happened, and at least every `at_least` seconds.

    Yields what happened since. A daemon that restarts in between is waited for.
    """
    after: int | None = None
    yielded, failures = pause.steady(), 0
    while True:
        try:
            if after is None:
                after = _newest(fleet)
                yield []
                yielded = pause.steady()
            found = fleet.events(after, **wanted).items
            failures = 0
        except Temporary:
            failures += 1
            if failures > 60:
                raise
            pause.sleep(backoff(failures, first=every, cap=5.0))
            continue
        if found:
            after = found[-1].seq
        if found or pause.steady() - yielded >= at_least:
            yielded = pause.steady()
            yield found
        else:
            pause.sleep(every)


def _newest(fleet: Fleet) -> int:
    return int(fleet.health().value.database.get("last_event", 0))
