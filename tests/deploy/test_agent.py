"""The deploy environment's agent: what it believes, what it does when the answer is no, and what it tells the daemon."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from fleetd.drivers.boot.capabilities import BootScript
from fleetd.drivers.boot.listener import read_hello, script_text
from tests.deploy.stand import KEY, MAC, TOKEN, Machine, Server, load_agent, serve

pytestmark = pytest.mark.slow


class Rig:
    """One machine, one server, and the pauses the agent made."""

    def __init__(self, agent: ModuleType, machine: Machine, server: Server) -> None:
        self.agent, self.machine, self.server = agent, machine, server
        self.pauses: list[float] = []
        self._host = agent.Host(str(machine.root))

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        time.sleep(min(seconds, 0.02))

    def boot(self, cmdline: str | None = None) -> None:
        if cmdline is None:
            cmdline = f"quiet BOOTIF=01-{MAC.replace(':', '-')} fleetd.url={self.server.url} fleetd.token={TOKEN}"
        self.machine.cmdline(cmdline)
        self.agent.Agent(self._host, sleep=self._pause).boot()

    def refused(self, cmdline: str | None = None) -> str:
        with pytest.raises(self.agent.Refused) as caught:
            self.boot(cmdline)
        return str(caught.value)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    agent, machine = load_agent(), Machine(tmp_path)
    agent.SSH_PORT = machine.ssh_port
    agent.LINK_SECONDS = 0.2
    started: list[int] = []
    spawn = os.posix_spawn

    class Counted:
        """`os` of the agent, which remembers what it started, so that no test leaves an sshd behind."""

        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def posix_spawn(self, *arguments: object, **named: object) -> int:
            started.append(spawn(*arguments, **named))  # type: ignore[arg-type]
            return started[-1]

    agent.os = Counted()
    with serve() as server:
        server.good()
        yield Rig(agent, machine, server)
    for process in started:
        try:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


def test_a_boot_fetches_the_key_starts_ssh_and_says_hello(rig: Rig) -> None:
    rig.boot()
    assert rig.server.paths() == ["/deploy/authorized_keys", "/deploy/hello"]
    assert all(headers["Authorization"] == f"Bearer {TOKEN}" for _, _, headers, _ in rig.server.asked)
    assert rig.machine.text("/run/fleetd/deploy").strip() == hashlib.sha256(TOKEN.encode()).hexdigest()
    assert (rig.machine.root / "run/fleetd/deploy").stat().st_mode & 0o777 == 0o600
    assert rig.machine.text("/run/fleetd/authorized_keys") == KEY + "\n"
    hello = read_hello(rig.server.asked[-1][3])  # as the boot service reads it
    assert (hello.environment, hello.mac, hello.serial) == ("deploy", MAC, "SN 1/$(id)")
    assert hello.host_key.startswith("ssh-ed25519 AAAA")
    assert hello.sees["memory_kib"] == "480036"
    assert rig.machine.has("/sshd-started")
    for word in ("start", "net-up", "ssh-up", "ready"):
        assert f"fleetd-deploy 12.34 {word}" in rig.machine.console
    assert TOKEN not in rig.machine.console


def test_the_order_is_key_then_marker_then_ssh(rig: Rig) -> None:
    rig.server.answers["/deploy/authorized_keys"] = [(403, "", {})]
    assert "403" in rig.refused()
    assert rig.server.paths() == ["/deploy/authorized_keys"]  # asked once, and never again
    assert not rig.machine.has("/run/fleetd/deploy")
    assert not rig.machine.has("/run/fleetd/authorized_keys")
    assert not rig.machine.has("/sshd-started")
    assert rig.pauses == []


def test_a_refused_hello_takes_ssh_down_again(rig: Rig) -> None:
    rig.server.answers["/deploy/hello"] = [(403, "", {})]
    assert "403" in rig.refused()
    assert rig.server.paths().count("/deploy/hello") == 1
    assert rig.machine.has("/sshd-ended")
    assert not rig.machine.has("/run/fleetd/deploy")
    assert not rig.machine.has("/run/fleetd/authorized_keys")


@pytest.mark.parametrize("name", ["a..b", "a" * 64 + ".example"])
def test_a_name_that_no_resolver_takes_is_said_and_asked_for_again(rig: Rig, name: str) -> None:
    """Python's own codec refuses such a name with an error of another kind than the network's."""
    rig.agent.PATIENCE_SECONDS = 2.0
    assert "patience" in rig.refused(f"fleetd.url=http://{name}:1 fleetd.token={TOKEN}")


def test_a_slip_of_the_agent_is_said_on_the_console(rig: Rig) -> None:
    """A full memory, a program that is not there: whoever stands before the console must see why nothing goes on."""
    (rig.machine.root / "usr/bin/ssh-keygen").unlink()
    rig.machine.cmdline(f"fleetd.url={rig.server.url} fleetd.token={TOKEN}")
    assert rig.agent.main([str(rig.machine.root)]) == 4
    assert "fleetd-deploy 12.34 failed FileNotFoundError" in rig.machine.console


def test_refusal_is_said_on_the_console_and_ends_the_program(rig: Rig) -> None:
    rig.server.answers["/deploy/authorized_keys"] = [(403, "", {})]
    rig.machine.cmdline(f"BOOTIF=01-{MAC.replace(':', '-')} fleetd.url={rig.server.url} fleetd.token={TOKEN}")
    assert rig.agent.main([str(rig.machine.root)]) == 3
    assert "fleetd-deploy 12.34 refused HTTP 403" in rig.machine.console


def test_later_is_waited_out_as_long_as_the_server_says(rig: Rig) -> None:
    rig.server.answers["/deploy/authorized_keys"] = [
        (503, "", {"Retry-After": "7"}),
        (500, "", {}),
        (429, "", {}),
        (200, KEY, {}),
    ]
    rig.boot()
    long = [pause for pause in rig.pauses if pause > 0.5]
    assert len(long) == 3
    assert long[0] == 7.0
    assert 1.5 <= long[1] <= 2.5
    assert 3.0 <= long[2] <= 5.0


def test_patience_is_bounded(rig: Rig) -> None:
    rig.agent.PATIENCE_SECONDS = 2.0
    rig.server.answers["/deploy/authorized_keys"] = [(503, "", {"Retry-After": "999"})]
    assert "patience" in rig.refused()
    assert len(rig.server.asked) == 1  # 60 s at most would be waited, and that is more than there is


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((302, "", {"Location": "http://127.0.0.1:1/"}), "302"),
        ((404, "", {}), "404"),
        ((422, "", {}), "422"),
    ],
)
def test_an_answer_that_will_not_change_ends_it(rig: Rig, answer: tuple[int, str, dict[str, str]], says: str) -> None:
    rig.server.answers["/deploy/authorized_keys"] = [answer]
    assert says in rig.refused()
    assert len(rig.server.asked) == 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((200, 'command="rm -rf /" ' + KEY, {}), "no public key"),
        ((200, f"{KEY}\n{KEY}", {}), "no public key"),
        ((200, "", {}), "no public key"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 100_000, "too long"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 99999999\r\n\r\nx", "too long"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 50\r\n\r\nshort", "cut off"),
        (b"220 mail.example ESMTP\r\n\r\n", "no HTTP"),
        (b"", "cut off"),
        (b"HTTP/1.0 200 OK\r\nX: " + b"y" * 100_000, "too long"),
    ],
)
def test_a_strange_answer_is_never_taken(rig: Rig, answer: tuple[int, str, dict[str, str]] | bytes, says: str) -> None:
    rig.agent.PATIENCE_SECONDS = 0.1
    rig.server.answers["/deploy/authorized_keys"] = [answer]
    assert says in rig.refused()
    assert not rig.machine.has("/run/fleetd/authorized_keys")


def test_without_a_token_the_boot_script_is_asked_for_it_by_every_port(rig: Rig) -> None:
    other = "52:54:00:aa:00:02"
    rig.machine.add_nic("eth1", other, carrier=False)
    script = script_text(BootScript(host="a1", token=TOKEN), other, rig.server.url)
    rig.server.answers[f"/boot/{MAC}.ipxe"] = [(200, "#!ipxe\nexit 1\n", {})]
    rig.server.answers[f"/boot/{other}.ipxe"] = [(200, script, {})]
    rig.boot(f"console=ttyS0 fleetd.url={rig.server.url}{' ' * 150}")
    assert rig.server.paths()[0] == (
        f"/boot/{MAC}.ipxe?uuid=11111111-2222-3333-4444-555555555555&serial=SN%201%2F%24%28id%29"
    )
    assert read_hello(rig.server.asked[-1][3]).mac == other
    assert rig.machine.text("/run/fleetd/deploy").strip() == hashlib.sha256(TOKEN.encode()).hexdigest()


def test_a_host_that_is_not_expected_does_nothing(rig: Rig) -> None:
    rig.server.answers[f"/boot/{MAC}.ipxe"] = [(200, "#!ipxe\nexit 1\n", {})]
    assert "not expected" in rig.refused(f"fleetd.url={rig.server.url}")
    assert len(rig.server.asked) == 1
    assert not rig.machine.has("/sshd-started")


def test_another_port_is_used_when_the_booted_one_is_unknown_here(rig: Rig) -> None:
    rig.boot(f"BOOTIF=01-52-54-00-ff-ff-ff fleetd.url={rig.server.url} fleetd.token={TOKEN}")
    assert read_hello(rig.server.asked[-1][3]).mac == MAC  # the truth: the daemon refuses what does not fit


def test_no_carrier_is_no_network(rig: Rig) -> None:
    rig.agent.PATIENCE_SECONDS = 0.1
    rig.machine.file("/sys/class/net/eth0/carrier", "0")
    assert "carrier" in rig.refused()


def test_an_emulated_processor_gets_an_openssl_it_runs_well(rig: Rig) -> None:
    rig.machine.file("/proc/cpuinfo", "model name\t: QEMU TCG CPU version 2.5+\n")
    rig.boot()
    assert "SetEnv=OPENSSL_ia32cap" in rig.machine.text("/sshd-started")


@pytest.mark.parametrize(
    ("cmdline", "says"),
    [
        ("quiet", "fleetd.url"),
        ("fleetd.url=ftp://10.0.0.1/", "fleetd.url"),
        ("fleetd.url=http://10.0.0.1/$(reboot)", "fleetd.url"),
        ("fleetd.url=http://10.0.0.1/a?b", "fleetd.url"),
        ("fleetd.url=http://user@10.0.0.1", "fleetd.url"),
        (f"fleetd.url=http://{'a' * 300}", "fleetd.url"),
        ("fleetd.url=@FLEETD-URL@@@@@", "not prepared"),
        ("fleetd.url=http://10.0.0.1 fleetd.token=short", "fleetd.token"),
        ("fleetd.url=http://10.0.0.1 fleetd.token=aaaaaaaaaaaaaaaaaaaaaaaa;reboot", "fleetd.token"),
        ("fleetd.url=http://10.0.0.1 BOOTIF=01-xx", "BOOTIF"),
    ],
)
def test_a_bad_word_on_the_command_line_is_refused(cmdline: str, says: str) -> None:
    agent = load_agent()
    with pytest.raises(agent.Refused, match=says):
        agent.read_cmdline(cmdline)


def test_the_command_line_is_read() -> None:
    agent = load_agent()
    found = agent.read_cmdline(
        f"a=b BOOTIF=01-AA-BB-CC-00-11-22 fleetd.url=https://[fd00::1]:8443/x/ fleetd.token={TOKEN}"
    )
    assert found == ("https://[fd00::1]:8443/x", TOKEN, "aa:bb:cc:00:11:22")
    assert agent.read_cmdline("fleetd.url=http://h").token == ""


@pytest.mark.parametrize("text", ["", "<html>", "kernel x fleetd.token=" + TOKEN])
def test_what_is_no_script_is_asked_for_again(text: str) -> None:
    agent = load_agent()
    with pytest.raises(agent.Unavailable):
        agent.read_script(text)


def test_a_token_counts_only_on_the_kernel_line_and_as_one_word() -> None:
    agent = load_agent()
    assert agent.read_script(f"#!ipxe\necho fleetd.token={TOKEN}\nexit 1\n") == ""
    assert agent.read_script(f"#!ipxe\nkernel u fleetd.token={TOKEN};x\n") == ""
    assert agent.read_script(f"#!ipxe\nkernel u a=b fleetd.token={TOKEN}\n") == TOKEN
