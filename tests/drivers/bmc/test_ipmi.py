"""The driver against a BMC in memory under virtual time: what the wire does wrong, and how long it then takes."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.drivers.bmc.ipmi import IpmiBmc, IpmiDriver, failure
from fleetd.kit.errors import AuthFailed, Busy, Garbled, Lied, Unreachable, Unsupported
from fleetd.kit.tasks import gather_bounded
from fleetd.model.power import BootDevice, PowerState, PowerVerb
from fleetd.sim.bmc_ipmi_memory import MemoryWire
from fleetd.sim.host import SimHost
from fleetd.wire import ipmi, rmcp
from tests.ipmi_hosts import break_it, make_hosts, target

pytestmark = pytest.mark.looptime

Copies = Iterable[tuple[float, bytes]]


class Rig:
    """One host, its BMC in memory, a driver, and what passed between them."""

    def __init__(self, count: int = 1, **options: object) -> None:
        self.hosts = make_hosts(count)
        self.host = next(iter(self.hosts.values()))
        self.wire = MemoryWire(self.hosts.get, latency=0.005, **options)  # type: ignore[arg-type]
        self.driver = IpmiDriver(open_datagrams=self.wire.open)
        self.seen: Counter[str] = Counter()
        self.loop = asyncio.get_running_loop()

    async def open(self, host: SimHost | None = None, *, timeout: float = 30, **login: str) -> IpmiBmc:
        return await self.driver.open(target(host or self.host, **login), timeout=timeout)

    @property
    def sessions(self) -> int:
        return self.wire.responder.sessions(self.host)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    yield made
    stop(made)  # time is real again here, and every session idle for ages: no farewells


async def clean(rig: Rig) -> None:
    rig.wire.mangle = None
    await rig.driver.close()
    stop(rig)


def stop(rig: Rig) -> None:
    rig.wire.close()
    for host in rig.hosts.values():
        host.close()


def what(data: bytes) -> str:
    """The kind of a datagram, for counting and choosing."""
    if data[4] == 0:
        return "plain"
    return {0x10: "open", 0x11: "opened", 0x12: "rakp1", 0x13: "rakp2", 0x14: "rakp3", 0x15: "rakp4"}.get(
        data[5], "sealed"
    )


# --- a wire that loses, repeats and reorders -------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["open", "opened", "rakp1", "rakp2", "rakp3", "rakp4", "sealed"])
async def test_one_lost_datagram_of_each_kind_is_survived(rig: Rig, lost: str) -> None:
    def lose_first(to_bmc: bool, data: bytes) -> Copies:
        rig.seen[what(data)] += 1
        return [] if what(data) == lost and rig.seen[lost] == 1 else [(0, data)]

    rig.wire.mangle = lose_first
    begin = rig.loop.time()
    bmc = await rig.open()
    assert await bmc.power_state(timeout=30) is PowerState.OFF
    assert rig.loop.time() - begin < 3.5
    await bmc.close()


async def test_rakp_messages_are_never_sent_twice(rig: Rig) -> None:
    """The second login begins at Open Session; a resent RAKP 1 would meet new random numbers."""
    sent: Counter[bytes] = Counter()

    def watch(to_bmc: bool, data: bytes) -> Copies:
        if to_bmc and what(data) in ("rakp1", "rakp3"):
            sent[data] += 1
        rig.seen[what(data)] += 1
        return [] if what(data) in ("rakp2", "rakp4") and rig.seen[what(data)] < 2 else [(0, data)]

    rig.wire.mangle = watch
    await rig.open()
    assert max(sent.values()) == 1
    assert rig.seen["open"] == 3


@pytest.mark.parametrize("seed", range(8))
async def test_a_bad_network_only_costs_time(seed: int) -> None:
    rig = Rig(count=16, slots=16)
    dice = random.Random(seed)

    def bad(to_bmc: bool, data: bytes) -> Copies:
        if dice.random() < 0.05:
            return []
        copies = 2 if dice.random() < 0.05 else 1
        return [(dice.random() * 0.2 if dice.random() < 0.1 else 0.0, data) for _ in range(copies)]

    rig.wire.mangle = bad

    async def sweep(host: SimHost) -> PowerState:
        bmc = await rig.open(host, timeout=60)
        state = await bmc.power(PowerVerb.ON, timeout=60)
        await bmc.close()
        return state

    found = await gather_bounded([lambda host=host: sweep(host) for host in rig.hosts.values()], width=16)
    assert found == [PowerState.ON] * 16
    await clean(rig)


async def test_stale_and_repeated_answers_are_not_taken_for_new_ones(rig: Rig) -> None:
    """Every answer of the session comes again later, after the state changed."""
    bmc = await rig.open()
    rig.wire.mangle = lambda to_bmc, data: [(0, data)] if to_bmc else [(0, data), (0.011, data), (0.5, data)]
    for _ in range(10):
        rig.host.power_state = PowerState.ON
        assert await bmc.power_state(timeout=5) is PowerState.ON
        rig.host.power_state = PowerState.OFF
        assert await bmc.power_state(timeout=5) is PowerState.OFF
    await asyncio.sleep(1)
    assert rig.driver.traffic["resent"] == 0


async def test_a_late_answer_to_a_cancelled_request_is_not_the_next_ones(rig: Rig) -> None:
    bmc = await rig.open()
    rig.wire.mangle = lambda to_bmc, data: [(0, data)] if to_bmc else [(0.3, data)]
    rig.host.power_state = PowerState.ON
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await bmc.power_state(timeout=5)
    rig.host.power_state = PowerState.OFF
    assert await bmc.power_state(timeout=5) is PowerState.OFF


async def test_answers_from_another_address_are_dropped(rig: Rig) -> None:
    other = Rig(count=2)
    ends: list[object] = []

    def open_twisted(family: int, deliver):  # type: ignore[no-untyped-def]
        end = other.wire.open(family, lambda data, address: deliver(data, ("127.17.9.9", address[1])))
        ends.append(end)
        return end

    driver = IpmiDriver(open_datagrams=open_twisted)
    with pytest.raises(Unreachable):
        await driver.open(target(other.host), timeout=5)
    assert driver.traffic["dropped"] == driver.traffic["received"] > 0
    await driver.close()
    await clean(other)


async def test_an_answer_with_a_broken_code_is_dropped_and_asked_again(rig: Rig) -> None:
    bmc = await rig.open()

    def spoil(to_bmc: bool, data: bytes) -> Copies:
        rig.seen["all"] += not to_bmc
        return [(0, data[:-1] + bytes((data[-1] ^ 1,)))] if not to_bmc and rig.seen["all"] == 1 else [(0, data)]

    rig.wire.mangle = spoil
    assert await bmc.power_state(timeout=5) is PowerState.OFF
    assert rig.driver.traffic["dropped"] == 1
    assert rig.driver.traffic["resent"] == 1


@given(
    st.lists(st.binary(max_size=80), max_size=10), st.sampled_from([b"", b"\x06\x00\xff\x07", b"\x06\x00\xff\x07\x06"])
)
async def test_garbage_among_the_answers_changes_nothing(garbage: list[bytes], head: bytes) -> None:
    rig = Rig()
    rig.wire.mangle = lambda to_bmc, data: (
        [(0, data)] if to_bmc else [*((0.0, head + junk) for junk in garbage), (0, data)]
    )
    bmc = await rig.open()
    assert await bmc.power_state(timeout=30) is PowerState.OFF
    await clean(rig)


@given(st.data())
async def test_a_hostile_bmc_cannot_crash_a_login(data: st.DataObject) -> None:
    """Set-up answers of the right kind and tag with any content end in a typed error, within the deadline."""
    rig = Rig()

    def lie(to_bmc: bool, packet: bytes) -> Copies:
        if to_bmc or what(packet) not in ("opened", "rakp2", "rakp4") or not data.draw(st.booleans()):
            return [(0, packet)]
        return [(0, rmcp.setup(packet[5], packet[16:17] + data.draw(st.binary(max_size=60))))]

    rig.wire.mangle = lie
    begin = rig.loop.time()
    try:
        await rig.open(timeout=20)
    except (Unreachable, Garbled, AuthFailed, Busy, Unsupported):
        assert rig.loop.time() - begin < 21
    await clean(rig)


# --- logins ----------------------------------------------------------------------------------------------------------


async def test_wrong_password_and_unknown_user_fail_at_once_and_leave_no_slot(rig: Rig) -> None:
    begin = rig.loop.time()
    with pytest.raises(AuthFailed):
        await rig.open(password="wrong")
    with pytest.raises(AuthFailed, match="refused the login"):
        await rig.open(username="nobody", password="x")
    assert rig.loop.time() - begin < 0.1
    assert rig.sessions == 0


async def test_a_dead_bmc_is_unreachable_by_the_deadline(rig: Rig) -> None:
    break_it(rig.host, "deaf-bmc")
    for timeout in (0.2, 3, 60):
        begin = rig.loop.time()
        with pytest.raises(Unreachable):
            await rig.open(timeout=timeout)
        assert rig.loop.time() - begin <= min(timeout, 23) + 0.01


async def test_suite_17_is_taken_where_there_is_a_choice(rig: Rig) -> None:
    algorithms: list[int] = []
    rig.wire.mangle = lambda to_bmc, data: (
        (algorithms.append(data[28]) if what(data) == "open" else None) or [(0, data)]
    )
    await rig.open()
    assert algorithms == [3]


async def test_a_refusal_of_suite_17_leads_to_3_and_is_remembered() -> None:
    rig = Rig(suites=(3,))
    rig.wire.mangle = lambda to_bmc, data: rig.seen.update([what(data)]) or [(0, data)]
    bmc = await rig.open()
    assert await bmc.power_state(timeout=5) is PowerState.OFF
    assert rig.seen["open"] == 2
    await rig.open()
    assert rig.seen["open"] == 3
    await clean(rig)


async def test_a_bmc_that_drops_suite_17_in_silence_is_asked_what_it_speaks() -> None:
    rig = Rig(suites=(3,))
    rig.wire.mangle = lambda to_bmc, data: [] if what(data) == "open" and data[28] == 3 else [(0, data)]
    begin = rig.loop.time()
    bmc = await rig.open()
    assert await bmc.power_state(timeout=5) is PowerState.OFF
    assert rig.loop.time() - begin < 1.5
    await clean(rig)


async def test_no_suite_in_common_says_so() -> None:
    rig = Rig(suites=())
    with pytest.raises(Unsupported, match="neither cipher suite"):
        await rig.open()
    await clean(rig)


async def test_ipmi_1_5_only_says_so(rig: Rig) -> None:
    """It ignores RMCP+ and names no IPMI 2.0 in its capabilities."""

    def old(to_bmc: bool, data: bytes) -> Copies:
        if what(data) != "plain":
            return []
        if to_bmc:
            return [(0, data)]
        asked = rmcp.message(rmcp.request(ipmi.APP, ipmi.CHANNEL_CAPABILITIES, b"", data[18] >> 2))
        return [(0, rmcp.plain(rmcp.response(asked, 0, bytes((1, 0x04, 0x04, 0, 0, 0, 0, 0)))))]

    rig.wire.mangle = old
    with pytest.raises(Unsupported, match=r"1\.5 only"):
        await rig.open()


async def test_a_full_session_table_is_waited_for() -> None:
    rig = Rig(slots=1)
    first = await rig.open()
    second = asyncio.ensure_future(rig.open())
    await asyncio.sleep(2)
    assert not second.done()
    await first.close()
    assert await (await second).power_state(timeout=5) is PowerState.OFF
    with pytest.raises(Busy) as caught:
        await rig.open()
    assert caught.value.retry_after
    await clean(rig)


async def test_an_account_without_administrator_is_refused_with_a_remedy(rig: Rig) -> None:
    bmc = await rig.open()
    access = bytes((0x91, 2, ipmi.OPERATOR))
    await bmc._call(ipmi.APP, ipmi.SET_USER_ACCESS, access, rig.loop.time() + 5)
    with pytest.raises(AuthFailed) as caught:
        await rig.open()
    assert "ADMINISTRATOR" in caught.value.remedy


async def test_secrets_and_names_that_do_not_fit_are_refused_before_a_byte_is_sent(rig: Rig) -> None:
    with pytest.raises(Unsupported):
        await rig.open(password="p" * 21)
    with pytest.raises(Unsupported):
        await rig.open(username="n" * 17, password="x")
    assert rig.driver.traffic == {"sent": 0, "received": 0, "resent": 0, "dropped": 0}


async def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    driver = IpmiDriver()
    spec = target(make_hosts(1)["127.17.0.1"])
    with pytest.raises(Unreachable, match="does not resolve"):
        await driver.open(type(spec)(protocol="ipmi", host="no\0name", port=623, login=spec.login), timeout=1)
    await driver.close()


# --- kept sessions ---------------------------------------------------------------------------------------------------


async def test_an_idle_session_is_opened_again_without_a_pause(rig: Rig) -> None:
    bmc = await rig.open()
    await bmc.power_state(timeout=5)
    await asyncio.sleep(3600)
    begin = rig.loop.time()
    assert await bmc.power_state(timeout=5) is PowerState.OFF
    assert rig.loop.time() - begin < 0.2
    assert rig.sessions == 1


async def test_a_poll_within_a_minute_keeps_its_session(rig: Rig) -> None:
    bmc = await rig.open()
    rig.wire.mangle = lambda to_bmc, data: rig.seen.update([what(data)]) or [(0, data)]
    for _ in range(100):  # rqSeq has six bits and wraps
        await asyncio.sleep(40)
        await bmc.power_state(timeout=5)
    assert rig.seen == {"sealed": 200}


async def test_a_bmc_that_restarted_is_met_again_within_one_call(rig: Rig) -> None:
    bmc = await rig.open()
    await bmc.reset_bmc(timeout=5)
    assert rig.sessions == 0
    assert await bmc.power_state(timeout=20) is PowerState.OFF
    await bmc.reset_bmc(timeout=5)
    other = await rig.open()
    await other.close()
    assert len(list(rig.host.record.of("h1", "bmc.reset"))) == 2


async def test_a_session_that_the_bmc_forgot_is_opened_again(rig: Rig) -> None:
    bmc = await rig.open()
    other = await rig.open()
    await bmc.power_state(timeout=5)
    await other.reset_bmc(timeout=5)
    assert await bmc.power_state(timeout=30) is PowerState.OFF


async def test_a_silent_cold_reset_counts_as_obeyed_and_a_lost_one_is_sent_again(rig: Rig) -> None:
    bmc = await rig.open()
    await bmc.power_state(timeout=5)

    def no_answer_after_reset(to_bmc: bool, data: bytes) -> Copies:
        return [(0, data)] if to_bmc or not list(rig.host.record.of("h1", "bmc.reset")) else []

    rig.wire.mangle = no_answer_after_reset
    await bmc.reset_bmc(timeout=20)
    assert len(list(rig.host.record.of("h1", "bmc.reset"))) == 1


async def test_one_request_is_in_flight_per_bmc(rig: Rig) -> None:
    bmc = await rig.open()
    flying = [0, 0]

    def watch(to_bmc: bool, data: bytes) -> Copies:
        flying[0] += 1 if to_bmc else -1
        flying[1] = max(flying)
        return [(0, data)]

    rig.wire.mangle = watch
    async with asyncio.TaskGroup() as group:
        for _ in range(12):
            group.create_task(bmc.power_state(timeout=5))
            group.create_task(bmc.identify(True, timeout=5))
    assert flying[1] == 1


async def test_a_caller_whose_turn_never_comes_gets_busy(rig: Rig) -> None:
    bmc = await rig.open()
    break_it(rig.host, "slow-bmc", seconds=0.9)
    first = asyncio.ensure_future(bmc.power_state(timeout=5))
    await asyncio.sleep(0)
    with pytest.raises(Busy, match="in flight"):
        await bmc.power_state(timeout=0.3)
    assert await first is PowerState.OFF


async def test_a_closed_bmc_answers_no_more(rig: Rig) -> None:
    bmc = await rig.open()
    await bmc.close()
    assert rig.sessions == 0
    with pytest.raises(Unreachable, match="closed"):
        await bmc.power_state(timeout=5)


async def test_closing_the_driver_logs_out_everywhere() -> None:
    rig = Rig(count=20)
    for host in rig.hosts.values():
        await rig.open(host)
    await rig.driver.close()
    assert [rig.wire.responder.sessions(host) for host in rig.hosts.values()] == [0] * 20
    await clean(rig)


async def test_closing_a_deaf_bmc_does_not_hang(rig: Rig) -> None:
    bmc = await rig.open()
    break_it(rig.host, "deaf-bmc")
    begin = rig.loop.time()
    await bmc.close()
    assert rig.loop.time() - begin <= 3.01


# --- verbs -----------------------------------------------------------------------------------------------------------


async def test_a_liar_is_named_only_after_the_timeout(rig: Rig) -> None:
    bmc = await rig.open()
    break_it(rig.host, "lying-bmc")
    begin = rig.loop.time()
    with pytest.raises(Lied):
        await bmc.power(PowerVerb.ON, timeout=60)
    assert 58 < rig.loop.time() - begin <= 60


async def test_a_stubborn_system_is_no_liar(rig: Rig) -> None:
    bmc = await rig.open()
    await bmc.power(PowerVerb.ON, timeout=5)
    break_it(rig.host, "lying-bmc")
    with pytest.raises(Exception, match="did not shut down") as caught:
        await bmc.power(PowerVerb.SOFT, timeout=60)
    assert caught.value.code == "FLT-1003"  # type: ignore[attr-defined]


async def test_reset_of_a_stopped_host_starts_nothing(rig: Rig) -> None:
    bmc = await rig.open()
    assert await bmc.power(PowerVerb.RESET, timeout=5) is PowerState.OFF
    assert list(rig.host.record.of("h1", "power.")) == []


async def test_busy_is_waited_out_even_at_the_privilege(rig: Rig) -> None:
    bmc = await rig.open()
    break_it(rig.host, "busy-bmc", count=4)
    await bmc.identify(True, timeout=30)
    assert rig.host.identify_led


async def test_boot_choice_outlives_the_minute(rig: Rig) -> None:
    bmc = await rig.open()
    await bmc.set_boot_once(BootDevice.NETWORK, timeout=5)
    asked = bytes((ipmi.BOOT_VALID_CLEARING, 0, 0))
    kept = await bmc._call(ipmi.CHASSIS, ipmi.GET_BOOT_OPTIONS, asked, rig.loop.time() + 5)
    assert kept[2] == ipmi.KEEP_ON_TIMEOUT


async def test_our_own_account_is_found_among_others(rig: Rig) -> None:
    rig.host.accounts = {"root": "r", "monitor": "m", "fleet": "first-password", "zoe": "z"}
    bmc = await rig.open(username="fleet", password="first-password")
    await bmc.set_password("p" * 20, timeout=5)
    assert rig.host.accounts == {"root": "r", "monitor": "m", "fleet": "p" * 20, "zoe": "z"}
    await asyncio.sleep(120)
    assert await bmc.power_state(timeout=5) is PowerState.OFF  # the new login uses the new password
    with pytest.raises(Unsupported):
        await bmc.set_password("p" * 21, timeout=5)


class Cutting(dict[str, str]):
    """Accounts of a BMC that keeps 16 bytes of a password and says nothing."""

    def __setitem__(self, name: str, password: str) -> None:
        super().__setitem__(name, password[:16])


async def test_a_bmc_that_cuts_passwords_gets_the_old_one_back(rig: Rig) -> None:
    rig.host.accounts = Cutting(rig.host.accounts)
    bmc = await rig.open()
    with pytest.raises(Lied, match="holds another"):
        await bmc.set_password("twenty-bytes-exactly", timeout=5)
    assert rig.host.accounts == {"fleet": "first-password"}
    await bmc.set_password("sixteen-bytes-ok", timeout=5)
    assert rig.host.accounts == {"fleet": "sixteen-bytes-ok"}


async def test_the_other_serial_shows(rig: Rig) -> None:
    bmc = await rig.open()
    break_it(rig.host, "wrong-serial", serial="NOT-MINE")
    assert (await bmc.system(timeout=5)).serial == "NOT-MINE"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (0xC0, Busy),
        (0xC3, Busy),
        (0xD1, Busy),
        (0xD2, Busy),
        (0xD5, Busy),
        (0xFF, Busy),
        (0xC1, Unsupported),
        (0xC7, Unsupported),
        (0xCC, Unsupported),
        (0x80, Unsupported),
        (0xD4, AuthFailed),
    ],
)
def test_completion_codes_are_typed(code: int, kind: type[Exception]) -> None:
    error = failure("x", code)
    assert isinstance(error, kind)
    assert f"{code:#04x}" in str(error)
