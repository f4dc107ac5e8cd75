"""Power by Redfish: which ResetType a BMC takes for a verb, and a read-back that believes no 204."""

from __future__ import annotations

import itertools
from typing import Protocol

from fleetd.drivers.bmc.quirks import Quirk
from fleetd.drivers.bmc.redfish_answers import messages
from fleetd.drivers.bmc.session import Call, Session
from fleetd.kit.errors import DeadlineExceeded, FleetError, Lied, Temporary, Unsupported
from fleetd.model.power import PowerState, PowerVerb

# In order of preference. PushPowerButton toggles, so it is used only if listed and only from the known other state.
_TYPES: dict[PowerVerb, tuple[str, ...]] = {
    PowerVerb.ON: ("On", "ForceOn", "PushPowerButton"),
    PowerVerb.OFF: ("ForceOff",),
    PowerVerb.SOFT: ("GracefulShutdown", "PushPowerButton"),
    PowerVerb.RESET: ("ForceRestart",),
}
_REFUSED = (400, 404, 405, 409, 422, 501)  # this ResetType not, perhaps the next (sushy's fake driver says 501)
_FIRST_POLL, _LAST_POLL = 0.05, 2.0  # seconds between read-backs, doubling


class Host(Protocol):
    """What power needs of the driver."""

    session: Session
    quirks: tuple[Quirk, ...]

    async def read_power(self, call: Call) -> PowerState: ...

    async def reset_action(self, call: Call) -> tuple[str, tuple[str, ...] | None]: ...


async def set_power(host: Host, call: Call, verb: PowerVerb) -> PowerState:
    """Do a verb; returns the read-back. Raises Lied, Unsupported, DeadlineExceeded and the wire's errors."""
    state = await host.read_power(call)
    if verb is PowerVerb.ON:
        return await _to(host, call, verb, PowerState.ON, state)
    if verb in (PowerVerb.OFF, PowerVerb.SOFT):
        return await _to(host, call, verb, PowerState.OFF, state)
    if verb is PowerVerb.RESET:
        if state is PowerState.OFF:
            return state  # a warm reset does nothing to a host that is off
        types = _types(host, verb, (await host.reset_action(call))[1])
        if types and await _send(host, call, types) is None:
            return await _until(host, call, PowerState.ON, "reset")
    await _to(host, call, PowerVerb.OFF, PowerState.OFF, state)
    await call.clock.sleep(max((quirk.off_pause() for quirk in host.quirks), default=0.0))
    return await _to(host, call, PowerVerb.ON, PowerState.ON, PowerState.OFF)


async def _to(host: Host, call: Call, verb: PowerVerb, goal: PowerState, state: PowerState) -> PowerState:
    if state is goal:
        return state
    if state is PowerState.UNKNOWN and verb is not PowerVerb.OFF:
        # In transit: an `On` sent to a host that is going down is swallowed. Off needs no such care.
        state = await _settled(host, call)
        if state is goal:
            return state
    types = _types(host, verb, (await host.reset_action(call))[1])
    if state is PowerState.UNKNOWN:
        types = tuple(name for name in types if name != "PushPowerButton")
    refusal = await _send(host, call, types)
    if refusal is None:
        return await _until(host, call, goal, f"power {verb}", soft=verb is PowerVerb.SOFT)
    if await host.read_power(call) is goal:
        return goal  # refused because somebody else was faster
    raise refusal


def _types(host: Host, verb: PowerVerb, allowed: tuple[str, ...] | None) -> tuple[str, ...]:
    """What to try: the wanted among the allowed; where nothing is told, the wanted without the toggling button."""
    wanted = _TYPES[verb]
    if allowed is None:
        types = tuple(name for name in wanted if name != "PushPowerButton")
    else:
        types = tuple(name for name in wanted if name in allowed)
    for quirk in host.quirks:
        types = quirk.reset_types(verb, types)
    return types


async def _send(host: Host, call: Call, types: tuple[str, ...]) -> FleetError | None:
    """Send the first ResetType the BMC takes; the refusal of the last one if it took none."""
    session = host.session
    refusal: FleetError = Unsupported("this BMC offers no ResetType for it", where=session.peer.name)
    target, _ = await host.reset_action(call)
    for name in types:
        for tries in itertools.count():
            answer = await session.send(call, "POST", target, {"ResetType": name})
            if answer.ok:
                return None
            ids = tuple(said.rpartition(".")[2] for said, _ in messages(answer))
            pauses = [quirk.power_pause(name, answer.status, ids) for quirk in host.quirks]
            pause = max((p for p in pauses if p is not None), default=None)
            if pause is None or pause >= call.left():
                break
            await call.clock.sleep(min(pause, _FIRST_POLL * 2.0 ** min(tries, 8)))
            if name == "On" and await host.read_power(call) is PowerState.ON:
                return None  # it came on while we waited: the refusal was right
        refusal = session.error(answer, f"power by {name}")
        if answer.status not in _REFUSED:
            raise refusal
    return refusal


async def _settled(host: Host, call: Call) -> PowerState:
    """Wait for a transit to end, at most a third of what is left."""
    end, pause = call.clock.steady() + call.left() / 3, _FIRST_POLL
    while True:
        state = await host.read_power(call)
        if state is not PowerState.UNKNOWN or call.clock.steady() + pause >= end:
            return state
        await call.clock.sleep(pause)
        pause = min(pause * 2, _LAST_POLL)


async def _until(host: Host, call: Call, goal: PowerState, what: str, *, soft: bool = False) -> PowerState:
    """Poll until the state is the goal. Ends a little before the call does, so that the verdict is ours."""
    margin = min(0.5, call.timeout * 0.05)
    pause, state = _FIRST_POLL, PowerState.UNKNOWN
    failure: Temporary | None = None
    while True:
        try:
            state, failure = await host.read_power(call), None
        except Temporary as error:  # some BMCs drop the connection while the host's power changes
            failure = error
        if failure is None and state is goal:
            return state
        left = call.left() - margin
        if left <= 0:
            break
        await call.clock.sleep(min(pause, left))
        pause = min(pause * 2, _LAST_POLL)
    if failure is not None:
        raise failure
    where, why = host.session.peer.name, f"{call.timeout:g} s later the host is still {state}"
    if soft:
        raise DeadlineExceeded(
            "the operating system did not shut down", why=why, remedy="`fleetctl host power off HOST`", where=where
        )
    if state is PowerState.UNKNOWN:
        raise DeadlineExceeded(f"{what} is not finished", why=why, where=where)
    raise Lied(f"the BMC confirmed {what} and did nothing", why=why, where=where)
