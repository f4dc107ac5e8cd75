"""`fleetd boot` with the real dnsmasq, in a network of its own: as an ordinary user with the unit's three capabilities.

Needs root (to make the network), dnsmasq-base, ipxe, iproute2, util-linux and curl.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from fleetd.api.server import bind_unix
from fleetd.drivers.boot.capabilities import BootHost
from fleetd.drivers.boot.desk_wire import DeskServer
from fleetd.drivers.boot.dnsmasq import Settings, config_text
from fleetd.drivers.boot.networks import Relayed
from tests.host_rig import Desk

pytestmark = [pytest.mark.peers, pytest.mark.slow]
US, URL = "10.88.7.1", "http://10.88.7.1:8680"
KNOWN, NEW, STRANGER = (f"52:54:00:88:00:0{n}" for n in (1, 2, 3))
RACK, ROUTER, ROW, LOST = "10.89.7.0/24", "10.89.7.1", "10.90.7.1", "10.91.7.1"
OWN = Settings(interface="boot0", address=US, range="10.88.7.50,10.88.7.99,255.255.255.0")
RELAYED = msgspec.structs.replace(
    OWN,
    dns="10.0.0.53",
    relayed=(
        Relayed(range="10.89.7.50,10.89.7.199,255.255.255.0", router=ROUTER),
        Relayed(range="10.90.7.50,10.90.7.199,255.255.255.0", router="10.90.7.254", dns="10.90.7.53", lease="1h"),
    ),
)
CAPS = "+net_bind_service,+net_raw,+net_admin"
NOBODY = 65534


def need(*programs: str) -> None:
    missing = [name for name in programs if shutil.which(name) is None]
    if not missing and os.geteuid() == 0 and Path("/usr/lib/ipxe/snponly.efi").is_file():
        return
    why = f"needs root, ipxe and {', '.join(programs)}; missing: {', '.join(missing) or 'none of the programs'}"
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.mark.parametrize(
    "settings",
    [
        OWN,
        msgspec.structs.replace(OWN, unknown="serve", router="10.88.7.254", dns="10.0.0.53", lease="1h"),
        msgspec.structs.replace(OWN, mode="proxy", range="10.88.7.0/24"),
        RELAYED,
        msgspec.structs.replace(RELAYED, range=""),
        msgspec.structs.replace(OWN, mode="proxy", range="", relayed=(Relayed(range=RACK),)),
    ],
    ids=["own", "all", "proxy", "relayed", "relayed only", "relayed proxy"],
)
def test_dnsmasq_takes_what_we_write(tmp_path, settings):
    if shutil.which("dnsmasq") is None:
        need("dnsmasq")
    path = tmp_path / "dnsmasq.conf"
    path.write_text(config_text(settings, URL, state="/var/lib/fleetd-boot", user="root"))
    found = subprocess.run(
        ["dnsmasq", "--test", f"--conf-file={path}"], capture_output=True, text=True, timeout=30, check=False
    )
    assert found.returncode == 0, found.stderr


class Network:
    """Two namespaces with a cable between: the boot service in one, a machine in the other."""

    def __init__(self) -> None:
        self.ours, self.theirs = f"fltb{os.getpid()}", f"fltm{os.getpid()}"
        for name in (self.ours, self.theirs):
            self.ip("netns", "add", name)
            self.ip("-n", name, "link", "set", "lo", "up")
        self.ip(
            "link", "add", "boot0", "netns", self.ours, "type", "veth", "peer", "name", "nic0", "netns", self.theirs
        )
        for name, link, address in ((self.ours, "boot0", US), (self.theirs, "nic0", "10.88.7.2")):
            self.ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            self.ip("-n", name, "link", "set", link, "up")

    @staticmethod
    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)

    def close(self) -> None:
        for name in (self.ours, self.theirs):
            self.ip("netns", "del", name)

    async def machine(self, *command: str) -> tuple[int, bytes]:
        """Run something where the machine is."""
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", self.theirs, *command), stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
        return process.returncode or 0, output

    async def dhcp(self, mac: str, arch: int, kind: str, *again: str) -> dict[str, Any] | None:
        client = str(Path(__file__).with_name("dhcp_client.py"))
        _, output = await self.machine(sys.executable, client, "nic0", mac, str(arch), kind, *again)
        found: dict[str, Any] | None = json.loads(output)
        return found


@pytest.fixture
def network() -> Iterator[Network]:
    need("dnsmasq", "ip", "setpriv", "curl")
    made = Network()
    try:
        yield made
    finally:
        made.close()


class Hall(Network):
    """A rack besides, behind a switch that routes and relays: the machine is in the rack, and hears nobody else.

    The switch is a real relay (dnsmasq as one) with three networks on the rack's cable; `relay` chooses in which the
    machine boots. The boot service knows the first two, and has a route to all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rack = f"fltr{os.getpid()}"
        self.ip("netns", "add", self.rack)
        self.ip("-n", self.rack, "link", "set", "lo", "up")
        # A relay that is dnsmasq forgets whom it asked for at every new address, and IPv6 makes one up a second later.
        for which in ("all", "default"):
            self.ip("netns", "exec", self.rack, "sysctl", "-qw", f"net.ipv6.conf.{which}.disable_ipv6=1")
        self.ip("-n", self.theirs, "link", "set", "nic0", "netns", self.rack, "name", "up0")
        self.ip("-n", self.rack, "addr", "add", "10.88.7.2/24", "dev", "up0")
        self.ip("-n", self.rack, "link", "set", "up0", "up")
        self.ip(
            "link", "add", "rack0", "netns", self.rack, "type", "veth", "peer", "name", "nic0", "netns", self.theirs
        )
        for name, link in ((self.rack, "rack0"), (self.theirs, "nic0")):
            self.ip("-n", name, "link", "set", link, "up")
        for address in (ROUTER, ROW, LOST):
            network = ipaddress.IPv4Interface(f"{address}/24").network
            self.ip("-n", self.ours, "route", "add", str(network), "via", "10.88.7.2")
        self.ip("netns", "exec", self.rack, "sysctl", "-qw", "net.ipv4.ip_forward=1")

    @contextlib.asynccontextmanager
    async def relay(self, address: str):
        """The rack's network has this router and relay."""
        self.ip("-n", self.rack, "addr", "flush", "dev", "rack0")
        self.ip("-n", self.rack, "addr", "add", f"{address}/24", "dev", "rack0")
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", self.rack, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0"),
            *("--pid-file=", "--user=root", "--log-facility=-", f"--dhcp-relay={address},{US}"),
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(20):
                while b"DHCP relay from" not in (said := await process.stderr.readline()):
                    assert said, "the relay did not start"
            yield
        finally:
            process.terminate()
            await process.communicate()

    def live(self, address: str, router: str) -> None:
        """The machine takes what it was given."""
        self.ip("-n", self.theirs, "addr", "flush", "dev", "nic0")
        self.ip("-n", self.theirs, "addr", "add", f"{address}/24", "dev", "nic0")
        self.ip("-n", self.theirs, "route", "replace", "default", "via", router)

    def close(self) -> None:
        self.ip("netns", "del", self.rack)
        super().close()


@pytest.fixture
def hall() -> Iterator[Hall]:
    need("dnsmasq", "ip", "setpriv", "curl", "sysctl")
    made = Hall()
    try:
        yield made
    finally:
        made.close()


def write(folder: Path, settings: Settings) -> None:
    text = msgspec.json.encode(settings).decode()
    (folder / "boot.yaml").write_text(
        f"listen: {US}:8680\nurl: {URL}\ndesk: desk.sock\nfiles: files\nstate: state\ndrain: 1\ndnsmasq: {text}\n"
    )


class Service(NamedTuple):
    folder: Path
    process: asyncio.subprocess.Process

    def log(self) -> str:
        return (self.folder / "log").read_text()

    async def reload(self, settings: Settings) -> None:
        """As `systemctl reload`, until dnsmasq is up anew."""
        ups = self.log().count("dnsmasq.up")
        write(self.folder, settings)
        self.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(20):
            while self.log().count("dnsmasq.up") == ups:
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def service(network: Network, settings: Settings, desk: Desk):
    """`fleetd boot` as nobody, with the capabilities of the unit; the folder is open to nobody."""
    group = grp.getgrgid(NOBODY).gr_name
    with tempfile.TemporaryDirectory(prefix="fleetd-boot-") as text:
        folder = Path(text)
        folder.chmod(0o755)
        for name in ("files", "state"):
            (folder / name).mkdir()
        os.chown(folder / "state", NOBODY, NOBODY)
        for name in ("undionly.kpxe", "snponly.efi", "ipxe.efi"):
            shutil.copy(f"/usr/lib/ipxe/{name}", folder / "files" / name)
        for name in ("vmlinuz", "initrd"):
            (folder / "files" / name).write_bytes(name.encode())
        write(folder, settings)
        server = DeskServer(desk, bind_unix(folder / "desk.sock", group=group), group)
        await server.start()
        log = (folder / "log").open("wb+")
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", network.ours),
            *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"),
            *(f"--inh-caps={CAPS}", f"--ambient-caps={CAPS}", f"--bounding-set=-all,{CAPS}", "--"),
            *(sys.executable, "-m", "fleetd", "boot", "--config", str(folder / "boot.yaml")),
            stderr=log,
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent"},
        )
        try:
            async with asyncio.timeout(30):
                while b" ready " not in (said := (folder / "log").read_bytes()):
                    assert process.returncode is None, said.decode()
                    await asyncio.sleep(0.05)
            assert b"dnsmasq up" in said, said.decode()
            async with asyncio.timeout(20):
                while (folder / "state" / "hosts").read_text().count("\n") != len(desk.inventory):
                    await asyncio.sleep(0.05)
            yield Service(folder, process)
        finally:
            if process.returncode is None:
                process.terminate()
            async with asyncio.timeout(20):
                await process.wait()
            log.close()
            await server.stop()


def inventory(*macs: str) -> list[BootHost]:
    return [BootHost(name=f"h{n}", mac=mac, rack="r1", site="s1") for n, mac in enumerate(macs)]


async def test_every_firmware_gets_what_it_boots_and_the_desk_hears_of_it(network):
    desk = Desk()
    desk.inventory = inventory(KNOWN)
    async with service(network, OWN, desk):
        for arch, kind, file in (
            (0, "pxe", "undionly.kpxe"),
            (7, "pxe", "snponly.efi"),
            (9, "pxe", "snponly.efi"),
            (0, "ipxe", f"{URL}/boot/start.ipxe"),
            (7, "ipxe", f"{URL}/boot/start.ipxe"),
            (16, "http", f"{URL}/boot/snponly.efi"),
            (0, "plain", ""),
        ):
            answer = await network.dhcp(KNOWN, arch, kind)
            assert answer is not None, (arch, kind)
            assert (answer["file"], answer["type"]) == (file, 5), (arch, kind)
            assert answer["address"].startswith("10.88.7.")
            assert (answer["router"], answer["dns"]) == ("", "")
            if kind == "pxe":
                assert answer["next_server"] == US
            if kind == "http":
                assert answer["vendor"] == "HTTPClient"
        code, loader = await network.machine("curl", "-sf", "--max-time", "30", f"tftp://{US}/snponly.efi")
        assert code == 0
        assert loader == Path("/usr/lib/ipxe/snponly.efi").read_bytes()
        for name in ("vmlinuz", "../hosts", "../../boot.yaml", "/etc/passwd"):
            code, body = await network.machine("curl", "-s", "--max-time", "10", "--path-as-is", f"tftp://{US}/{name}")
            assert (code != 0, body) == (True, b""), name
        code, body = await network.machine("curl", "-sf", "--max-time", "30", f"{URL}/boot/snponly.efi")
        assert body == Path("/usr/lib/ipxe/snponly.efi").read_bytes()
        async with asyncio.timeout(10):
            while "http" not in {s.stage for s in desk.sightings}:
                await asyncio.sleep(0.05)
    said = {(s.stage, s.mac, s.detail.split(" got ")[0]) for s in desk.sightings}
    assert ("dhcp", KNOWN, "BIOS firmware") in said
    assert ("dhcp", KNOWN, "UEFI HTTP firmware") in said
    assert ("dhcp", KNOWN, "iPXE") in said
    assert ("tftp", "", "snponly.efi") in said


async def test_a_stranger_is_not_answered_until_the_inventory_has_it(network):
    desk = Desk()
    desk.inventory = inventory(KNOWN)
    async with service(network, OWN, desk) as running:
        assert await network.dhcp(STRANGER, 7, "pxe") is None
        assert await network.dhcp(NEW, 7, "pxe") is None
        desk.inventory = inventory(KNOWN, NEW)
        async with asyncio.timeout(20):
            while NEW not in (running.folder / "state" / "hosts").read_text():
                await asyncio.sleep(0.1)
            while await network.dhcp(NEW, 7, "pxe") is None:
                await asyncio.sleep(0.1)
        assert await network.dhcp(STRANGER, 7, "pxe") is None
    assert any(s.mac == STRANGER and "inventory" in s.detail for s in desk.sightings)


async def test_a_proxy_adds_the_boot_file_and_no_address(network):
    desk = Desk()
    desk.inventory = inventory(KNOWN)
    async with service(network, msgspec.structs.replace(OWN, mode="proxy", range="10.88.7.0/24"), desk):
        answer = await network.dhcp(KNOWN, 0, "ipxe")
        assert answer is not None
        assert (answer["address"], answer["file"]) == ("0.0.0.0", f"{URL}/boot/start.ipxe")
        assert (answer["next_server"], answer["vendor"]) == (US, "PXEClient")
        assert await network.dhcp(KNOWN, 0, "plain") is None
        assert await network.dhcp(STRANGER, 0, "ipxe") is None


async def test_a_rack_behind_a_relay_boots_as_one_beside_us(hall):
    desk = Desk()
    desk.inventory = inventory(KNOWN)
    async with service(hall, RELAYED, desk):
        async with hall.relay(ROUTER):
            for arch, kind, file in (
                (0, "pxe", "undionly.kpxe"),
                (7, "pxe", "snponly.efi"),
                (9, "pxe", "snponly.efi"),
                (0, "ipxe", f"{URL}/boot/start.ipxe"),
                (7, "ipxe", f"{URL}/boot/start.ipxe"),
                (16, "http", f"{URL}/boot/snponly.efi"),
                (0, "plain", ""),
            ):
                answer = await hall.dhcp(KNOWN, arch, kind)
                assert answer is not None, (arch, kind)
                assert (answer["file"], answer["type"]) == (file, 5), (arch, kind)
                assert ipaddress.IPv4Address(answer["address"]) in ipaddress.IPv4Network(RACK)
                assert (answer["router"], answer["dns"]) == (ROUTER, "10.0.0.53"), (arch, kind)
                if kind == "pxe":
                    assert answer["next_server"] == US
                if kind == "http":
                    assert answer["vendor"] == "HTTPClient"
            assert await hall.dhcp(STRANGER, 7, "pxe") is None
            hall.live(answer["address"], answer["router"])
            for url in (f"tftp://{US}/snponly.efi", f"{URL}/boot/snponly.efi"):
                code, loader = await hall.machine("curl", "-sf", "--max-time", "30", url)
                assert (code, loader) == (0, Path("/usr/lib/ipxe/snponly.efi").read_bytes()), url
        async with hall.relay(ROW):  # the same machine in another rack: another network, at once
            moved = await hall.dhcp(KNOWN, 7, "pxe")
            assert moved is not None
            assert moved["address"].startswith("10.90.7.")
            assert (moved["router"], moved["dns"], moved["file"]) == ("10.90.7.254", "10.90.7.53", "snponly.efi")
    assert any(s.mac == STRANGER and "inventory" in s.detail for s in desk.sightings)
    assert any(s.mac == KNOWN and s.source == answer["address"] for s in desk.sightings)


async def test_a_relay_of_an_unknown_network_gets_nothing_until_a_reload_brings_the_network(hall):
    desk = Desk()
    desk.inventory = inventory(KNOWN)
    apart = msgspec.structs.replace(RELAYED, range="")
    async with service(hall, apart, desk) as running:
        async with hall.relay(LOST):
            assert await hall.dhcp(KNOWN, 7, "pxe") is None
            async with asyncio.timeout(10):
                while not any((s.stage, s.source) == ("relay", LOST) for s in desk.sightings):
                    await asyncio.sleep(0.05)
            said = next(line for line in running.log().splitlines() if "dnsmasq.cannot" in line)
            assert LOST in said
            assert "dnsmasq.relayed in boot.yaml" in said
            more = Relayed(range="10.91.7.50,10.91.7.99,255.255.255.0", router=LOST)
            await running.reload(msgspec.structs.replace(apart, relayed=(*apart.relayed, more)))
            answer = await hall.dhcp(KNOWN, 7, "pxe")
            assert answer is not None
            assert (answer["address"][:8], answer["router"], answer["file"]) == ("10.91.7.", LOST, "snponly.efi")
            # The network goes again, and what it leased holds nobody there.
            await running.reload(apart)
            assert await hall.dhcp(KNOWN, 7, "pxe") is None
        async with hall.relay(ROUTER):
            answer = await hall.dhcp(KNOWN, 7, "pxe")
            assert answer is not None
            assert answer["address"].startswith("10.89.7.")


async def test_a_proxy_answers_relays_too_and_the_second_question_comes_routed(hall):
    desk = Desk()
    desk.inventory = inventory(KNOWN)
    settings = msgspec.structs.replace(OWN, mode="proxy", range="10.88.7.0/24", relayed=(Relayed(range=RACK),))
    async with service(hall, settings, desk), hall.relay(ROUTER):
        answer = await hall.dhcp(KNOWN, 7, "ipxe")
        assert answer is not None
        assert (answer["address"], answer["file"]) == ("0.0.0.0", f"{URL}/boot/start.ipxe")
        answer = await hall.dhcp(KNOWN, 7, "pxe")
        assert answer is not None
        assert (answer["next_server"], answer["vendor"]) == (US, "PXEClient")
        assert await hall.dhcp(STRANGER, 7, "ipxe") is None
        hall.live("10.89.7.60", ROUTER)  # as the site's DHCP gave it
        for arch, file in ((0, "undionly.kpxe"), (7, "snponly.efi")):
            answer = await hall.dhcp(KNOWN, arch, "pxe", "10.89.7.60", US)
            assert answer is not None
            assert (answer["file"], answer["next_server"]) == (file, US)
    assert any(s.mac == STRANGER and "inventory" in s.detail for s in desk.sightings)
