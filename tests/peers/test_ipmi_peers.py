"""IPMI against programs nobody here wrote: our driver on OpenIPMI's ipmi_sim, ipmitool and ipmipower on our simulator.

Programs of Debian: openipmi (ipmi_sim), ipmitool, freeipmi-tools (ipmipower).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fleetd.drivers.bmc.capabilities import BmcTarget
from fleetd.drivers.bmc.ipmi import IpmiBmc, IpmiDriver
from fleetd.kit.errors import AuthFailed, DeadlineExceeded, Lied, Unsupported
from fleetd.model.bmc import Login
from fleetd.model.power import BootDevice, PowerState, PowerVerb
from fleetd.sim.bmc_ipmi import IpmiServer
from fleetd.sim.host import SimHost
from fleetd.wire import fru
from tests.ipmi_hosts import PASSWORD, USERNAME, make_hosts

pytestmark = [pytest.mark.peers, pytest.mark.slow]


def program(name: str, package: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        why = f"no {name}; apt install {package}"
        if os.environ.get("CI") == "1":
            pytest.fail(why)
        pytest.skip(why)
    return found


async def run(*command: str, timeout: float = 20) -> tuple[int, str]:
    """Exit code and all output."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), timeout)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, output.decode()


# --- our driver on ipmi_sim ------------------------------------------------------------------------------------------

LAN = """\
name "peer"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {port}
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "{folder}/chassis 0x20"
  user 1 false "" "none" user 2 none md2 md5 straight
  user 2 true "root" "calvin" admin 10 none md2 md5 straight
  user 3 true "fleet" "first-password" admin 10 none md2 md5 straight
"""
EMULATION = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_add_fru_data 0x20 0 {size} data {data}
mc_enable 0x20
"""
CHASSIS = """\
#!/bin/sh
# chassis MC check|get|set NAME ...: the state lives in files beside this script
here=$(dirname "$0")
shift
op=$1; shift
case $op in
get) for name in "$@"; do echo "$name:$(cat "$here/$name" 2>/dev/null || echo 0)"; done ;;
set) while [ $# -ge 2 ]; do
       case $1 in
       shutdown) test -e "$here/stubborn" || echo 0 > "$here/power" ;;
       power) test -e "$here/liar" || echo "$2" > "$here/power" ;;
       *) echo "$2" > "$here/$1" ;;
       esac
       shift 2
     done ;;
esac
exit 0
"""


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Peer:
    """A running ipmi_sim with one BMC; `folder` holds the state of its chassis as files."""

    def __init__(self, folder: Path, port: int, driver: IpmiDriver) -> None:
        self.folder, self.port, self.driver = folder, port, driver

    async def open(self, password: str = "first-password") -> IpmiBmc:
        login = Login("fleet", password)
        return await self.driver.open(
            BmcTarget(protocol="ipmi", host="127.0.0.1", port=self.port, login=login), timeout=15
        )

    def state(self, name: str) -> str:
        return (self.folder / name).read_text().strip()


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    binary = program("ipmi_sim", "openipmi")
    port = free_udp_port()
    data = fru.build(
        fru.Board("Acme", "Board", "BOARD1", "BP"), fru.Product("Acme Computers", "Box 9000", "PN", "1", "SER42")
    )
    (tmp_path / "state").mkdir()
    (tmp_path / "lan.conf").write_text(LAN.format(port=port, folder=tmp_path))
    (tmp_path / "emu").write_text(EMULATION.format(size=len(data), data=" ".join(f"{byte:#04x}" for byte in data)))
    (tmp_path / "chassis").write_text(CHASSIS)
    (tmp_path / "chassis").chmod(0o755)
    (tmp_path / "power").write_text("0\n")
    (tmp_path / "boot").write_text("default\n")
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            binary, "-c", str(tmp_path / "lan.conf"), "-f", str(tmp_path / "emu"), "-s", str(tmp_path / "state"), "-n",
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, cwd=tmp_path,
        )  # fmt: skip
    driver = IpmiDriver()
    try:
        yield Peer(tmp_path, port, driver)
    finally:
        await driver.close()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()


async def test_ipmi_sim_power(peer: Peer) -> None:
    bmc = await peer.open()
    assert await bmc.power_state(timeout=5) is PowerState.OFF
    assert await bmc.power(PowerVerb.RESET, timeout=5) is PowerState.OFF  # it would say OK and do nothing
    assert await bmc.power(PowerVerb.ON, timeout=5) is PowerState.ON
    assert peer.state("power") == "1"
    assert await bmc.power(PowerVerb.CYCLE, timeout=5) is PowerState.ON
    assert await bmc.power(PowerVerb.RESET, timeout=5) is PowerState.ON
    assert peer.state("reset") == "1"
    assert await bmc.power(PowerVerb.SOFT, timeout=5) is PowerState.OFF
    assert await bmc.power(PowerVerb.ON, timeout=5) is PowerState.ON
    assert await bmc.power(PowerVerb.OFF, timeout=5) is PowerState.OFF
    assert peer.state("power") == "0"
    await bmc.close()


async def test_ipmi_sim_power_that_does_not_follow(peer: Peer) -> None:
    bmc = await peer.open()
    (peer.folder / "liar").touch()
    with pytest.raises(Lied):
        await bmc.power(PowerVerb.ON, timeout=1)
    (peer.folder / "liar").unlink()
    (peer.folder / "stubborn").touch()
    await bmc.power(PowerVerb.ON, timeout=5)
    with pytest.raises(DeadlineExceeded):
        await bmc.power(PowerVerb.SOFT, timeout=1)


async def test_ipmi_sim_speaks_suite_3_only_and_is_asked_once(peer: Peer) -> None:
    bmc = await peer.open()
    sent = peer.driver.traffic["sent"]
    again = await peer.open()
    assert peer.driver.traffic["sent"] - sent == 3  # Open Session, RAKP 1, RAKP 3
    await again.close()
    await bmc.close()


@pytest.mark.parametrize(
    ("device", "kept"), [(BootDevice.NETWORK, "pxe"), (BootDevice.CD, "cdrom"), (BootDevice.BIOS_SETUP, "bios")]
)
async def test_ipmi_sim_boot(peer: Peer, device: BootDevice, kept: str) -> None:
    bmc = await peer.open()
    await bmc.set_boot_once(device, timeout=5)
    assert peer.state("boot") == kept


async def test_ipmi_sim_identify_and_system(peer: Peer) -> None:
    bmc = await peer.open()
    await bmc.identify(True, timeout=5)
    assert peer.state("identify").split()[-1] == "1"
    await bmc.identify(False, timeout=5)
    info = await bmc.system(timeout=5)
    assert (info.manufacturer, info.model, info.serial) == ("Acme Computers", "Box 9000", "SER42")
    assert info.uuid == "674523a1-ab89-efcd-a123-456789abcdef"  # its bytes as SMBIOS orders them
    assert info.bmc_version == "9.08"
    assert info.power is PowerState.OFF


async def test_ipmi_sim_passwords(peer: Peer) -> None:
    with pytest.raises(AuthFailed):
        await peer.open("wrong")
    bmc = await peer.open()
    with pytest.raises(Unsupported, match="only 16 bytes"):  # it would confirm, cut, and lock us out
        await bmc.set_password("twenty-bytes-exactly", timeout=5)
    await bmc.close()
    bmc = await peer.open()
    await bmc.set_password("sixteen-bytes-ok", timeout=5)
    await bmc.close()
    again = await peer.open("sixteen-bytes-ok")
    assert await again.power_state(timeout=5) is PowerState.OFF
    with pytest.raises(AuthFailed):
        await peer.open("first-password")


async def test_ipmi_sim_accounts(peer: Peer) -> None:
    bmc = await peer.open()
    before = await bmc.accounts(timeout=10)
    assert [(a.id, a.name, a.role, a.enabled) for a in before] == [
        ("2", "root", "administrator", True),
        ("3", "fleet", "administrator", True),
    ]
    await bmc.set_password("sixteen-bytes-ok", timeout=5)
    assert await bmc.accounts(timeout=10) == before


async def test_ipmi_sim_has_no_cold_reset_and_we_say_so(peer: Peer) -> None:
    bmc = await peer.open()
    with pytest.raises(Unsupported, match="cold reset"):
        await bmc.reset_bmc(timeout=5)


# --- ipmitool and FreeIPMI on our simulator --------------------------------------------------------------------------


class Ours:
    """Our simulator, and a tool bound to its first host."""

    def __init__(self, hosts: dict[str, SimHost], server: IpmiServer) -> None:
        self.hosts, self.server = hosts, server
        self.host = next(iter(hosts.values()))

    async def ipmitool(self, *words: str, suite: int = 17, password: str = PASSWORD) -> tuple[int, str]:
        return await run(
            program("ipmitool", "ipmitool"),
            *("-I", "lanplus", "-C", str(suite), "-H", self.host.bmc_address, "-p", str(self.server.port)),
            *("-U", USERNAME, "-P", password, *words),
        )

    async def ipmipower(self, *words: str, suite: int = 17) -> tuple[int, str]:
        where = ",".join(f"{address}:{self.server.port}" for address in self.hosts)
        return await run(
            program("ipmipower", "freeipmi-tools"),
            *("-D", "LAN_2_0", "-I", str(suite), "-h", where, "-u", USERNAME, "-p", PASSWORD, *words),
        )

    async def until(self, met: Callable[[], bool]) -> None:
        """The machine follows a verb after `timings.power`."""
        async with asyncio.timeout(5):
            while not met():
                await asyncio.sleep(0.005)


@pytest.fixture
async def ours() -> AsyncIterator[Ours]:
    hosts = make_hosts(3)
    server = IpmiServer(hosts.get, bind="0.0.0.0")
    yield Ours(hosts, server)
    server.close()
    for host in hosts.values():
        host.close()


@pytest.mark.parametrize("suite", [3, 17])
async def test_ipmitool_verbs(ours: Ours, suite: int) -> None:
    host = ours.host

    async def tool(*words: str) -> str:
        code, output = await ours.ipmitool(*words, suite=suite)
        assert code == 0, output
        return output

    assert "Power is off" in await tool("power", "status")
    await tool("power", "on")
    await ours.until(lambda: host.power_state is PowerState.ON)
    assert "Power is on" in await tool("power", "status")
    await tool("power", "cycle")
    await ours.until(lambda: [entry.what for entry in host.record.of(host.name, "power.")][-1] == "power.on")
    await ours.until(lambda: host.power_state is PowerState.ON)
    await tool("power", "off")
    await ours.until(lambda: host.power_state is PowerState.OFF)
    await tool("chassis", "bootdev", "pxe", "options=efiboot")
    assert host.boot_once is BootDevice.NETWORK
    flags = await tool("chassis", "bootparam", "get", "5")
    assert "Force PXE" in flags
    assert "EFI" in flags
    await tool("chassis", "identify", "force")
    assert host.identify_led
    await tool("chassis", "identify", "0")
    assert not host.identify_led
    assert host.serial in await tool("fru", "print", "0")
    about = await tool("mc", "info")
    assert "7.10" in about
    assert "IPMI Version              : 2.0" in about
    assert host.uuid in await tool("mc", "guid", "smbios")
    assert USERNAME in await tool("user", "list", "1")


@pytest.mark.parametrize("suite", [3, 17])
async def test_ipmitool_passwords(ours: Ours, suite: int) -> None:
    code, _ = await ours.ipmitool("mc", "info", suite=suite, password="wrong")
    assert code != 0
    code, output = await ours.ipmitool("user", "set", "password", "2", "twenty-bytes-exactly", "20", suite=suite)
    assert code == 0, output
    assert ours.host.accounts == {USERNAME: "twenty-bytes-exactly"}
    code, output = await ours.ipmitool("power", "status", suite=suite, password="twenty-bytes-exactly")
    assert code == 0, output
    code, _ = await ours.ipmitool("power", "status", suite=suite)
    assert code != 0


async def test_ipmitool_finds_the_best_suite_by_itself(ours: Ours) -> None:
    tool = program("ipmitool", "ipmitool")
    where = ("-H", ours.host.bmc_address, "-p", str(ours.server.port), "-U", USERNAME, "-P", PASSWORD)
    code, output = await run(tool, "-I", "lanplus", *where, "power", "status")
    assert code == 0
    assert "Unable" not in output


@pytest.mark.parametrize("suite", [3, 17])
async def test_ipmipower_on_three_hosts_at_once(ours: Ours, suite: int) -> None:
    code, output = await ours.ipmipower("--stat", suite=suite)
    assert code == 0
    assert output.count(": off") == 3, output
    code, output = await ours.ipmipower("--on", "--wait-until-on", suite=suite)
    assert output.count(": ok") == 3, output
    assert all(host.power_state is PowerState.ON for host in ours.hosts.values())
    await ours.ipmipower("--off", "--wait-until-off", suite=suite)
    assert all(host.power_state is PowerState.OFF for host in ours.hosts.values())
    assert [ours.server.responder.sessions(host) for host in ours.hosts.values()] == [0, 0, 0]
