"""Where a boot ends with its host's power: else its keys and image tickets stay good, and the doctor says that it is up.

One rule for people and steps. It closes the boot that was open before the wire was asked, by its id: an answer may take
minutes, and what was armed meanwhile is another boot.
"""

from __future__ import annotations

from fleetd.drivers.bmc.capabilities import Bmc
from fleetd.kit.clock import Clock
from fleetd.model.power import PowerState, PowerVerb
from fleetd.store import boots as boot_rows
from fleetd.store.database import Database


def stops(verb: PowerVerb | None, state: PowerState) -> bool:
    """Whether what ran is over, by an order (None: a mere look) and what was read back after it."""
    return state is PowerState.OFF or verb not in (None, PowerVerb.ON)


def ends_boot(verb: PowerVerb | None, state: PowerState, *, in_run: bool) -> bool:
    """The same for the open boot. A mere look ends none that a run may work in: one wrong answer of a BMC must not take
    the boot from under a write, and a host that is truly gone the run finds out by itself.
    """
    return stops(verb, state) and not (verb is None and in_run)


async def switch_off(db: Database, clock: Clock, host: str, bmc: Bmc, *, timeout: float) -> PowerState:
    """Off, for a step that has the host; the boot that ran is closed. Returns the read-back.

    `host` is an id, `timeout` in seconds. Raises what the BMC raises; then no boot is closed.
    """
    before = await boot_rows.open_of(db, host)
    state = await bmc.power(PowerVerb.OFF, timeout=timeout)
    if before is not None and ends_boot(PowerVerb.OFF, state, in_run=True):
        await db.commit([boot_rows.close(before.id, clock.wall())])
    return state
