"""What a request finds in the app: the services of lifecycle and a few facts the composition root hands in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from litestar.connection import ASGIConnection
from prometheus_client import CollectorRegistry

from fleetd.api.peers import SocketPolicy
from fleetd.lifecycle.services import Services


class Desks:
    """One per app.

    `engine_age` tells the seconds since the engine's last heartbeat, None before the first; `clock_status` what the clock
    brake thinks: `why` is not empty while expiries are suspended. `heartbeat` is the seconds between beats of a stream.
    """

    def __init__(
        self,
        services: Services,
        *,
        socket_policy: SocketPolicy,
        engine_age: Callable[[], float | None],
        clock_status: Callable[[], Mapping[str, Any]],
        registries: tuple[CollectorRegistry, ...],
        stopping: asyncio.Event,
        heartbeat: float,
    ) -> None:
        self.services = services
        self.socket_policy = socket_policy
        self.engine_age = engine_age
        self.clock_status = clock_status
        self.registries = registries
        self.stopping = stopping
        self.heartbeat = heartbeat
        self.watchers = 0
        self.in_flight: set[tuple[str, str, str]] = set()  # idempotency keys being worked on


def desks(connection: ASGIConnection[Any, Any, Any, Any]) -> Desks:
    """The one of this app."""
    found: Desks = connection.app.state.desks
    return found
