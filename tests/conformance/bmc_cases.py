"""What every BMC driver must keep, whatever its wire: plain async functions that a wire's own test file runs.

A case gets an opened `Bmc`, the `SimHost` behind it (off, no faults, power follows within `timings.power`), and
`reopen`, which logs in anew with a given password. What happened is judged by the machine and its record, never by
the driver. `ALL` holds them in order; a driver's file parametrises over it::

    @pytest.mark.parametrize("case", bmc_cases.ALL, ids=lambda case: case.__name__)
    async def test_conformance(case, rig): await case(rig.bmc, rig.host, rig.reopen)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from fleetd.drivers.bmc.capabilities import Bmc
from fleetd.kit.errors import AuthFailed, Lied, Temporary, Unsupported
from fleetd.model.power import BootDevice, PowerState, PowerVerb
from fleetd.sim.faults import Fault
from fleetd.sim.host import SimHost

Reopen = Callable[[str], Awaitable[Bmc]]
Case = Callable[[Bmc, SimHost, Reopen], Awaitable[None]]

WITHIN = 10.0  # seconds a call may take when nothing is wrong
SHORT = 0.25  # seconds given to a call that must fail


def _count(host: SimHost, what: str) -> int:
    return sum(1 for _ in host.record.of(host.name, what))


def _break(host: SimHost, kind: str, *, count: int | None = None, **params: int | str | float) -> None:
    host.faults.append(Fault(kind=kind, count=count, params=params))


# --- power ----------------------------------------------------------------------------------------------------------


async def power_state_is_read(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    assert await bmc.power_state(timeout=WITHIN) is PowerState.OFF
    host.power_state = PowerState.ON
    assert await bmc.power_state(timeout=WITHIN) is PowerState.ON


async def on_returns_when_the_machine_is_on(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    assert await bmc.power(PowerVerb.ON, timeout=WITHIN) is PowerState.ON
    assert host.power_state is PowerState.ON


async def on_of_a_running_host_sends_nothing(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    await bmc.power(PowerVerb.ON, timeout=WITHIN)
    before = _count(host, "power.")
    assert await bmc.power(PowerVerb.ON, timeout=WITHIN) is PowerState.ON
    assert _count(host, "power.") == before


async def off_returns_when_the_machine_is_off(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    await bmc.power(PowerVerb.ON, timeout=WITHIN)
    assert await bmc.power(PowerVerb.OFF, timeout=WITHIN) is PowerState.OFF
    assert host.power_state is PowerState.OFF


async def off_of_a_stopped_host_sends_nothing(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    assert await bmc.power(PowerVerb.OFF, timeout=WITHIN) is PowerState.OFF
    assert _count(host, "power.") == 0


async def soft_ends_off(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    await bmc.power(PowerVerb.ON, timeout=WITHIN)
    assert await bmc.power(PowerVerb.SOFT, timeout=WITHIN) is PowerState.OFF
    assert host.power_state is PowerState.OFF


async def cycle_really_cuts_the_power(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    await bmc.power(PowerVerb.ON, timeout=WITHIN)
    offs = _count(host, "power.off")
    assert await bmc.power(PowerVerb.CYCLE, timeout=WITHIN) is PowerState.ON
    assert _count(host, "power.off") == offs + 1
    assert _count(host, "power.on") == 2
    assert host.power_state is PowerState.ON


async def cycle_of_a_stopped_host_starts_it(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    assert await bmc.power(PowerVerb.CYCLE, timeout=WITHIN) is PowerState.ON
    assert host.power_state is PowerState.ON


async def reset_restarts_without_losing_power(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    await bmc.power(PowerVerb.ON, timeout=WITHIN)
    offs = _count(host, "power.off")
    assert await bmc.power(PowerVerb.RESET, timeout=WITHIN) is PowerState.ON
    assert _count(host, "power.reset") == 1
    assert _count(host, "power.off") == offs


async def a_liar_about_power_is_named(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    _break(host, "lying-bmc")
    with pytest.raises(Lied) as caught:
        await bmc.power(PowerVerb.ON, timeout=SHORT)
    assert caught.value.remedy
    assert host.power_state is PowerState.OFF


async def slow_power_is_no_lie_within_the_timeout(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    host.timings = type(host.timings)(power=0.08, post=0.01, boot=0.01)
    assert await bmc.power(PowerVerb.ON, timeout=WITHIN) is PowerState.ON


# --- boot, identify -------------------------------------------------------------------------------------------------


async def each_boot_device_sticks(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    for device in BootDevice:
        await bmc.set_boot_once(device, timeout=WITHIN)
        assert host.boot_once is device


async def boot_choice_is_for_one_boot(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    await bmc.set_boot_once(BootDevice.NETWORK, timeout=WITHIN)
    await bmc.power(PowerVerb.ON, timeout=WITHIN)
    async with asyncio.timeout(WITHIN):
        while host.boot_once is not None:  # consumed at the end of POST
            await bmc.power_state(timeout=WITHIN)


async def a_liar_about_boot_is_named(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    _break(host, "lying-bmc")
    with pytest.raises(Lied):
        await bmc.set_boot_once(BootDevice.NETWORK, timeout=WITHIN)
    assert host.boot_once is None


ISO, OTHER_ISO = "http://10.0.0.1:8680/deploy/deploy.iso", "http://10.0.0.9/rescue.iso"


async def virtual_media_goes_in_and_out(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    """Optional: a wire without it says so and names the way around it, both for insert and eject."""
    if host.behaviour == "ipmi":
        for call in (bmc.insert_media(ISO, timeout=WITHIN), bmc.eject_media(timeout=WITHIN)):
            with pytest.raises(Unsupported) as caught:
                await call
            assert "boot_via: network" in caught.value.remedy
        return
    await bmc.insert_media(ISO, timeout=WITHIN)
    assert list(host.media.values()) == [ISO]
    await bmc.set_boot_once(BootDevice.CD, timeout=WITHIN)
    assert host.boot_once is BootDevice.CD
    await bmc.eject_media(timeout=WITHIN)
    assert host.media == {}


async def virtual_media_replaces_what_is_in(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    with suppress(Unsupported):
        await bmc.insert_media(OTHER_ISO, timeout=WITHIN)
        for _ in range(2):  # also our own: what is mounted there may be a dead connection
            await bmc.insert_media(ISO, timeout=WITHIN)
            assert list(host.media.values()) == [ISO]


async def an_empty_virtual_drive_is_left_alone(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    with suppress(Unsupported):
        await bmc.eject_media(timeout=WITHIN)
    assert _count(host, "media.") == 0


async def a_liar_about_virtual_media_is_named(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    _break(host, "lying-bmc")
    with pytest.raises(Unsupported if host.behaviour == "ipmi" else Lied) as caught:
        await bmc.insert_media(ISO, timeout=WITHIN)
    assert caught.value.remedy
    assert host.media == {}


async def identify_lights_and_darkens(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    await bmc.identify(True, timeout=WITHIN)
    assert host.identify_led
    await bmc.identify(False, timeout=WITHIN)
    assert not host.identify_led


# --- inventory ------------------------------------------------------------------------------------------------------


async def system_tells_who_the_host_is(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    host.power_state = PowerState.ON
    info = await bmc.system(timeout=WITHIN)
    assert info.serial == host.serial
    assert info.uuid == host.uuid
    assert info.model
    assert info.manufacturer
    assert info.bios_version == host.bios_version
    assert host.bmc_version.startswith(info.bmc_version)
    assert info.bmc_version
    assert info.power is PowerState.ON


async def a_placeholder_serial_counts_as_absent(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    host.serial = "To be filled by O.E.M."
    assert "fill" not in (await bmc.system(timeout=WITHIN)).serial.lower()


# --- accounts, reset, sessions --------------------------------------------------------------------------------------


async def a_new_password_is_the_only_one(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    username, old = next(iter(host.accounts.items()))
    await bmc.set_password("another-One-42", timeout=WITHIN)
    assert host.accounts[username] == "another-One-42"
    await bmc.close()
    again = await reopen("another-One-42")
    assert await again.power_state(timeout=WITHIN) is PowerState.OFF
    await again.close()
    with pytest.raises(AuthFailed):
        await reopen(old)


async def accounts_are_told_and_a_strangers_shows(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    ours = next(iter(host.accounts))
    (before,) = await bmc.accounts(timeout=WITHIN)
    assert (before.name, before.role, before.enabled) == (ours, "administrator", True)
    await bmc.set_password("another-One-42", timeout=WITHIN)
    assert await bmc.accounts(timeout=WITHIN) == (before,)
    host.accounts |= {"mallory": "m", "guest": "g"}
    host.roles["guest"] = "Operator"
    host.disabled.add("guest")
    first, *others = await bmc.accounts(timeout=WITHIN)
    assert first == before
    assert [(a.name, a.role, a.enabled) for a in others] == [
        ("mallory", "administrator", True),
        ("guest", "operator", False),
    ]
    assert len({first.id, *(a.id for a in others)}) == 3


async def a_wrong_password_is_refused(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    with pytest.raises(AuthFailed):
        await reopen("not-the-password")
    assert await bmc.power_state(timeout=WITHIN) is PowerState.OFF


async def a_bmc_reset_is_accepted_and_spares_the_host(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    host.power_state = PowerState.ON
    await bmc.reset_bmc(timeout=WITHIN)
    assert _count(host, "bmc.reset") == 1
    assert host.power_state is PowerState.ON


async def close_is_safe_to_repeat(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    await bmc.close()
    await bmc.close()
    again = await reopen(next(iter(host.accounts.values())))
    assert await again.power_state(timeout=WITHIN) is PowerState.OFF
    await again.close()


async def many_sessions_one_after_another_leak_no_slot(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    for _ in range(20):
        again = await reopen(next(iter(host.accounts.values())))
        await again.close()
    assert await bmc.power_state(timeout=WITHIN) is PowerState.OFF


# --- trouble --------------------------------------------------------------------------------------------------------


async def a_deaf_bmc_ends_with_the_deadline(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    _break(host, "deaf-bmc")
    loop = asyncio.get_running_loop()
    begin = loop.time()
    with pytest.raises(Temporary):
        await bmc.power_state(timeout=SHORT)
    assert loop.time() - begin < SHORT + 1.0
    await bmc.close()


async def a_busy_bmc_is_waited_out(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    _break(host, "busy-bmc", count=1)
    with suppress(Temporary):  # a driver may leave the next try to its caller, but must say that one is due
        assert await bmc.power_state(timeout=WITHIN) is PowerState.OFF
    assert await bmc.power_state(timeout=WITHIN) is PowerState.OFF


async def a_bmc_busy_for_ever_is_temporary(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    _break(host, "busy-bmc")
    with pytest.raises(Temporary):
        await bmc.power(PowerVerb.ON, timeout=SHORT)
    assert _count(host, "power.on") == 0


async def a_slow_bmc_is_served(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    _break(host, "slow-bmc", seconds=0.02)
    assert await bmc.power(PowerVerb.ON, timeout=WITHIN) is PowerState.ON


async def concurrent_calls_do_not_mix(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    async with asyncio.TaskGroup() as group:
        states = [group.create_task(bmc.power_state(timeout=WITHIN)) for _ in range(8)]
        infos = [group.create_task(bmc.system(timeout=WITHIN)) for _ in range(2)]
    assert {task.result() for task in states} == {PowerState.OFF}
    assert {task.result().serial for task in infos} == {host.serial}


async def a_cancelled_call_leaves_the_session_usable(bmc: Bmc, host: SimHost, reopen: Reopen) -> None:
    _break(host, "slow-bmc", seconds=0.2, count=1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):  # the caller's, not ours
            await bmc.power_state(timeout=WITHIN)
    host.faults.clear()
    assert await bmc.power_state(timeout=WITHIN) is PowerState.OFF


ALL: tuple[Case, ...] = (
    power_state_is_read,
    on_returns_when_the_machine_is_on,
    on_of_a_running_host_sends_nothing,
    off_returns_when_the_machine_is_off,
    off_of_a_stopped_host_sends_nothing,
    soft_ends_off,
    cycle_really_cuts_the_power,
    cycle_of_a_stopped_host_starts_it,
    reset_restarts_without_losing_power,
    a_liar_about_power_is_named,
    slow_power_is_no_lie_within_the_timeout,
    each_boot_device_sticks,
    boot_choice_is_for_one_boot,
    a_liar_about_boot_is_named,
    virtual_media_goes_in_and_out,
    virtual_media_replaces_what_is_in,
    an_empty_virtual_drive_is_left_alone,
    a_liar_about_virtual_media_is_named,
    identify_lights_and_darkens,
    system_tells_who_the_host_is,
    a_placeholder_serial_counts_as_absent,
    a_new_password_is_the_only_one,
    accounts_are_told_and_a_strangers_shows,
    a_wrong_password_is_refused,
    a_bmc_reset_is_accepted_and_spares_the_host,
    close_is_safe_to_repeat,
    many_sessions_one_after_another_leak_no_slot,
    a_deaf_bmc_ends_with_the_deadline,
    a_busy_bmc_is_waited_out,
    a_bmc_busy_for_ever_is_temporary,
    a_slow_bmc_is_served,
    concurrent_calls_do_not_mix,
    a_cancelled_call_leaves_the_session_usable,
)
