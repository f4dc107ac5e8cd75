"""A lease that ended leaves its hosts dark: who no longer pays no longer computes, from the end until the wipe.

One power-off at the end would be a promise kept once. A BMC that was deaf in that moment, or a tenant who wakes a host over the
network, must find the daemon asking again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fleetd.kit.clock import Clock
from fleetd.kit.errors import FleetError
from fleetd.kit.logs import get
from fleetd.kit.tasks import gather_bounded
from fleetd.lifecycle.hosts import HostDesk
from fleetd.lifecycle.leases import SYSTEM
from fleetd.model.host import Host, State
from fleetd.model.lease import LeaseState
from fleetd.model.power import PowerState, PowerVerb
from fleetd.store import hosts as host_rows
from fleetd.store import leases as lease_rows
from fleetd.store.database import Database

log = get("dark")
EVERY: Final = 10.0  # seconds between rounds
WIDTH: Final = 32  # BMCs asked at once


async def keep_dark(db: Database, clock: Clock, hosts: HostDesk) -> None:
    """Forever: hosts of ended leases that wait for their wipe are powered off, again if need be. Run as a task."""
    while True:
        try:
            await darken(db, hosts)
        except FleetError as error:
            log.warning("dark.later", why=str(error))  # the ledger did not answer: the next round asks again
        await clock.sleep(EVERY)


async def darken(db: Database, hosts: HostDesk) -> int:
    """One round of that. Returns how many hosts were tried; a deaf BMC is tried again next round."""
    ending = {lease.id: lease.request.sku for lease in await lease_rows.every(db, state=LeaseState.ENDING)}
    lit = [
        host
        for sku in sorted(set(ending.values()))
        for host in await host_rows.every(db, sku=sku)
        if host.lease in ending and _shines(host)
    ]

    def off(host: Host) -> Callable[[], Any]:
        return lambda: hosts.power(host.id, PowerVerb.OFF, who=SYSTEM)

    for host, result in zip(lit, await gather_bounded([off(h) for h in lit], width=WIDTH), strict=True):
        if isinstance(result, Exception):
            log.warning("dark.power-off", host=host.name, why=str(result))
    return len(lit)


def _shines(host: Host) -> bool:
    return host.state is State.LEASED and host.run is None and host.status.power is not PowerState.OFF
