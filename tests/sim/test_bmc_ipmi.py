"""The simulated BMC judged from outside: with packets built here, and from addresses that matter."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.sim.bmc_ipmi import IpmiResponder, IpmiServer
from fleetd.sim.host import SimHost
from fleetd.wire import ipmi, rmcp
from fleetd.wire.rakp import SUITES, Exchange, Keys
from tests.ipmi_hosts import PASSWORD, USERNAME, break_it, make_hosts

BMC = "127.17.0.1"


class Console:
    """A console made of nothing but the wire room: it sends what it likes, twice if it likes."""

    def __init__(self, hosts: dict[str, SimHost], **options: int) -> None:
        self.answers: list[bytes] = []
        self.responder = IpmiResponder(hosts.get, lambda data, local, peer: self.answers.append(data), **options)
        self.keys: Keys | None = None
        self.session, self.sequence = b"", 0

    def send(self, data: bytes, to: str = BMC) -> bytes | None:
        self.answers.clear()
        self.responder.datagram(data, to, ("peer",))
        return self.answers[-1] if self.answers else None

    def setup(self, kind: int, payload: bytes) -> bytes:
        answer = self.send(rmcp.setup(kind, payload))
        assert answer is not None
        return rmcp.setup_payload(answer)

    def open(self, suite: int = 17) -> rmcp.OpenResponse:
        return rmcp.read_open_response(self.setup(rmcp.OPEN_REQUEST, rmcp.open_request(1, 4, b"CONS", SUITES[suite])))

    def log_in(self, suite: int = 17, *, password: str = PASSWORD, name: str = USERNAME, role: int = 0x14) -> int:
        """The status at which it ended, 0 for logged in."""
        opened = self.open(suite)
        if opened.status:
            return opened.status
        who = name.encode()
        second = rmcp.read_rakp2(self.setup(rmcp.RAKP1, rmcp.rakp1(2, opened.bmc, b"m" * 16, role, who)))
        if second.status:
            return second.status
        made = Exchange(SUITES[suite], b"CONS", opened.bmc, b"m" * 16, second.random, second.guid, role, who)
        code = made.rakp3_code(password.encode())
        fourth = rmcp.read_rakp4(self.setup(rmcp.RAKP3, rmcp.rakp3(3, 0, opened.bmc, code)))
        if fourth.status:
            return fourth.status
        sik = made.session_key(password.encode())
        assert made.rakp4_code(sik) == fourth.code
        self.keys, self.session, self.sequence = Keys(SUITES[suite], sik), opened.bmc, 0
        return 0

    def packet(self, function: int, command: int, data: bytes = b"", *, rq: int = 1) -> bytes:
        assert self.keys is not None
        self.sequence += 1
        return self.keys.seal(self.session, self.sequence, rmcp.request(function, command, data, rq))

    def ask(self, function: int, command: int, data: bytes = b"", *, rq: int = 1) -> bytes | None:
        answer = self.send(self.packet(function, command, data, rq=rq))
        if answer is None:
            return None
        assert self.keys is not None
        return rmcp.message(self.keys.unseal(answer)[1]).data


Make = Callable[..., Console]


@pytest.fixture
async def hosts() -> dict[str, SimHost]:
    return make_hosts(2)


@pytest.fixture
async def console(hosts: dict[str, SimHost]) -> Console:
    return Console(hosts)


@pytest.mark.parametrize("suite", [3, 17])
async def test_a_login_and_a_command(console: Console, suite: int) -> None:
    assert console.log_in(suite) == 0
    status = console.ask(ipmi.CHASSIS, ipmi.CHASSIS_STATUS)
    assert status is not None
    assert status[0] == ipmi.OK
    assert status[1] & 1 == 0


@pytest.mark.parametrize("suite", [3, 17])
async def test_refusals_of_the_login(console: Console, suite: int) -> None:
    assert console.log_in(suite, password="wrong") == ipmi.STATUS_BAD_CODE
    assert console.log_in(suite, name="nobody") == ipmi.STATUS_BAD_NAME
    assert console.log_in(suite, name="") == ipmi.STATUS_BAD_NAME
    assert console.log_in(suite, role=0x10) == ipmi.STATUS_BAD_ROLE


async def test_an_account_without_the_right_is_refused_at_the_role(console: Console) -> None:
    assert console.log_in() == 0
    assert console.ask(ipmi.APP, ipmi.SET_PRIVILEGE, b"\x04") == b"\x00\x04"
    assert console.ask(ipmi.APP, ipmi.SET_USER_ACCESS, bytes((0x91, 2, ipmi.OPERATOR)), rq=2) == b"\x00"
    assert console.log_in(role=0x14) == ipmi.STATUS_NO_PRIVILEGE
    assert console.log_in(role=0x13) == 0
    assert console.ask(ipmi.APP, ipmi.SET_PRIVILEGE, b"\x04") == b"\x81"


async def test_a_session_begins_as_user(console: Console, hosts: dict[str, SimHost]) -> None:
    console.log_in()
    assert console.ask(ipmi.CHASSIS, ipmi.CHASSIS_CONTROL, b"\x01") == bytes((ipmi.NO_PRIVILEGE,))
    assert list(hosts[BMC].record.of("h1", "power.")) == []


async def test_each_copy_of_rakp1_draws_new_random(console: Console) -> None:
    opened = console.open()
    first = rmcp.rakp1(2, opened.bmc, b"m" * 16, 0x14, USERNAME.encode())
    one = rmcp.read_rakp2(console.setup(rmcp.RAKP1, first))
    two = rmcp.read_rakp2(console.setup(rmcp.RAKP1, first))
    assert one.random != two.random


async def test_replays_are_dropped_and_resends_answered_without_acting(
    console: Console, hosts: dict[str, SimHost]
) -> None:
    console.log_in()
    console.ask(ipmi.APP, ipmi.SET_PRIVILEGE, b"\x04", rq=1)
    packet = console.packet(ipmi.APP, ipmi.COLD_RESET + 0x40, rq=2)
    assert console.send(packet) is not None
    assert console.send(packet) is None  # the same session sequence number
    console.ask(ipmi.CHASSIS, ipmi.CHASSIS_CONTROL, b"\x03", rq=3)
    console.ask(ipmi.CHASSIS, ipmi.CHASSIS_CONTROL, b"\x03", rq=3)  # a new one, the same request: a resend
    assert len(list(hosts[BMC].record.of("h1", "power.reset"))) == 1
    console.ask(ipmi.CHASSIS, ipmi.CHASSIS_CONTROL, b"\x03", rq=4)
    assert len(list(hosts[BMC].record.of("h1", "power.reset"))) == 2


async def test_slots_are_few_and_close_frees_one(hosts: dict[str, SimHost]) -> None:
    console = Console(hosts, slots=2)
    assert [console.log_in() for _ in range(3)] == [0, 0, ipmi.STATUS_NO_RESOURCES]
    assert console.ask(ipmi.APP, ipmi.CLOSE_SESSION, console.session) == b"\x00"
    assert console.ask(ipmi.CHASSIS, ipmi.CHASSIS_STATUS) is None
    assert console.responder.sessions(hosts[BMC]) == 1
    assert console.log_in() == 0


async def test_half_open_logins_cost_bounded_memory(console: Console, hosts: dict[str, SimHost]) -> None:
    for _ in range(200):
        console.open()
    assert console.log_in() == 0


@pytest.mark.looptime
async def test_an_idle_session_is_forgotten(console: Console) -> None:
    console.log_in()
    await asyncio.sleep(59)
    assert console.ask(ipmi.CHASSIS, ipmi.CHASSIS_STATUS) is not None
    await asyncio.sleep(61)
    assert console.ask(ipmi.CHASSIS, ipmi.CHASSIS_STATUS, rq=2) is None


@pytest.mark.looptime
async def test_a_cold_reset_forgets_sessions_and_is_deaf_for_a_while(hosts: dict[str, SimHost]) -> None:
    console = Console(hosts)
    console.log_in()
    console.ask(ipmi.APP, ipmi.SET_PRIVILEGE, b"\x04", rq=1)
    assert console.ask(ipmi.APP, ipmi.COLD_RESET, rq=2) == b"\x00"
    assert console.send(rmcp.ping(1)) is None
    await asyncio.sleep(1.1)
    assert console.send(rmcp.ping(1)) == rmcp.pong(1)
    assert console.ask(ipmi.CHASSIS, ipmi.CHASSIS_STATUS, rq=3) is None


@pytest.mark.looptime
async def test_power_cycle_of_the_bmc_goes_off_and_on(console: Console, hosts: dict[str, SimHost]) -> None:
    console.log_in()
    console.ask(ipmi.APP, ipmi.SET_PRIVILEGE, b"\x04", rq=1)
    assert console.ask(ipmi.CHASSIS, ipmi.CHASSIS_CONTROL, b"\x02", rq=2) == bytes((ipmi.NOT_NOW,))
    console.ask(ipmi.CHASSIS, ipmi.CHASSIS_CONTROL, b"\x01", rq=3)
    await asyncio.sleep(1)
    console.ask(ipmi.CHASSIS, ipmi.CHASSIS_CONTROL, b"\x02", rq=4)
    await asyncio.sleep(1)
    said = [entry.what for entry in hosts[BMC].record.of("h1", "power.")]
    assert said == ["power.on", "power.off", "power.on"]
    hosts[BMC].close()


async def test_faults(console: Console, hosts: dict[str, SimHost]) -> None:
    console.log_in()
    console.ask(ipmi.APP, ipmi.SET_PRIVILEGE, b"\x04", rq=1)
    break_it(hosts[BMC], "busy-bmc", count=2)
    busy = bytes((ipmi.NODE_BUSY,))
    assert [console.ask(0, 1, rq=n) == busy for n in (2, 3, 4)] == [True, True, False]
    break_it(hosts[BMC], "lying-bmc")
    assert console.ask(ipmi.CHASSIS, ipmi.CHASSIS_CONTROL, b"\x01", rq=5) == b"\x00"
    assert list(hosts[BMC].record.of("h1", "power.")) == []
    break_it(hosts[BMC], "deaf-bmc", count=1)
    assert console.send(rmcp.ping(1)) is None
    assert console.send(rmcp.ping(1)) == rmcp.pong(1)


async def test_an_unknown_address_is_silence(console: Console) -> None:
    assert console.send(rmcp.ping(1), to="127.17.0.99") is None


datagrams = st.one_of(
    st.binary(max_size=1100),
    st.binary(max_size=100).map(lambda tail: b"\x06\x00\xff\x07" + tail),
    st.binary(max_size=100).map(lambda tail: b"\x06\x00\xff\x07\x06\xc0" + tail),
    st.builds(rmcp.setup, st.integers(0x10, 0x15), st.binary(max_size=80)),
    st.builds(
        lambda *parts: rmcp.plain(rmcp.request(*parts)),
        st.sampled_from([0, 4, 6, 10]),
        st.integers(0, 255),
        st.binary(max_size=30),
        st.integers(0, 63),
    ),
)


@given(st.lists(datagrams, max_size=20))
async def test_garbage_never_crashes_it(garbage: list[bytes]) -> None:
    console = Console(make_hosts(1))
    for data in garbage:
        console.send(data)
    assert console.log_in() == 0


@given(
    st.lists(st.tuples(st.sampled_from([0, 6, 10, 0x2C]), st.integers(0, 0x60), st.binary(max_size=24)), max_size=30)
)
async def test_no_command_of_an_administrator_crashes_it(commands: list[tuple[int, int, bytes]]) -> None:
    hosts = make_hosts(1)
    console = Console(hosts, reset_seconds=0)
    for n, (function, command, data) in enumerate(commands):
        if console.keys is None or console.responder.sessions(hosts[BMC]) == 0:
            hosts[BMC].accounts[USERNAME] = PASSWORD
            if console.log_in():  # it took the privilege from itself
                break
            console.ask(ipmi.APP, ipmi.SET_PRIVILEGE, b"\x04", rq=63)
        assert console.ask(function, command, data, rq=n & 31)
    console.responder.close()
    hosts[BMC].close()


@pytest.fixture
def plain_socket() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


async def test_one_wildcard_socket_answers_from_the_address_asked(
    hosts: dict[str, SimHost], plain_socket: socket.socket
) -> None:
    server = IpmiServer(hosts.get, bind="0.0.0.0")
    loop = asyncio.get_running_loop()
    try:
        for address in hosts:
            await loop.sock_sendto(plain_socket, rmcp.ping(9), (address, server.port))
            data, source = await asyncio.wait_for(loop.sock_recvfrom(plain_socket, 100), 5)
            assert (data, source) == (rmcp.pong(9), (address, server.port))
    finally:
        server.close()
