"""The last look before data is destroyed. One place, because it is the one that must not be wrong.

A step asks right before each destructive call, not when it began: between the two a person may have frozen the rack, cancelled
the run or taken the host, a lease may have been handed over, and another daemon may have claimed the host.
"""

from __future__ import annotations

from typing import Final

import msgspec

from fleetd.kit.errors import Held, Refused, StaleClaim
from fleetd.lifecycle.brakes import BrakeDesk
from fleetd.model.boot import Claim
from fleetd.model.host import Host, State
from fleetd.model.lease import LeaseState
from fleetd.model.run import RunState
from fleetd.store import claims
from fleetd.store import hosts as host_rows
from fleetd.store import leases as lease_rows
from fleetd.store import runs as run_rows
from fleetd.store.database import Database

DESTRUCTIBLE: Final = frozenset({State.PREPARING, State.RECLAIMING, State.DELIVERING})
MARGIN: Final = 60.0  # seconds that the claim outlasts the call


async def permit(
    db: Database, brakes: BrakeDesk, host: Host, claim: Claim, *, run: str, now: float, seconds: float
) -> Claim:
    """Read claim, state, lease, run and brakes again, and renew the claim for a call of so many seconds.

    Args:
        host: as the caller knows it; what it says of the state is not believed.
        now: wall seconds.

    Returns:
        The claim, which outlasts the call.

    Raises:
        StaleClaim: another owner has the host.
        Held: a brake went on.
        Refused: the run was cancelled, or the host is not in a state, or under a lease, in which its data may be destroyed.
    """
    current = await claims.current(db, host.id)
    if current is None or current.token != claim.token or current.owner != claim.owner:
        raise StaleClaim(f"the claim on host {host.name} was lost")
    ttl = seconds + MARGIN
    await db.commit([claims.renew(claim, now=now, ttl=ttl)])
    host = await host_rows.get(db, host.id)
    lease = await lease_rows.of_host(db, host.id)
    state = (await run_rows.get(db, run)).state
    forbidden = {
        f"it is {host.state}": host.state not in DESTRUCTIBLE,
        "a person has it in maintenance": host.status.maintenance is not None,
        f"lease {lease.id if lease else ''} was handed over": lease is not None and lease.state is LeaseState.ACTIVE,
        f"run {run} was cancelled": state is RunState.CANCELLED,
    }
    if why := [reason for reason, holds in forbidden.items() if holds]:
        raise Refused(
            f"the data of host {host.name} may not be destroyed now",
            why="; ".join(why),
            remedy=f"fleetctl host release {host.name}, when that is over",
        )
    if (reason := await brakes.blocked(host)) is not None:
        raise Held(f"the freeze to be lifted: {reason}")
    return msgspec.structs.replace(claim, expires=now + ttl)
