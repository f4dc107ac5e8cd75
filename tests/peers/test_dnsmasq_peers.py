"""`fleetd boot` with the real dnsmasq, in a network of its own: as an ordinary user with the unit's three capabilities.

Needs root (to make the network), dnsmasq-base, ipxe, iproute2, util-linux and curl.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleetd.api.server import bind_unix
from fleetd.drivers.boot.capabilities import BootHost
from fleetd.drivers.boot.desk_wire import DeskServer
from fleetd.drivers.boot.dnsmasq import Settings, config_text
from tests.host_rig import Desk

pytestmark = [pytest.mark.peers, pytest.mark.slow]
US, URL = "10.88.7.1", "http://10.88.7.1:8680"
KNOWN, NEW, STRANGER = (f"52:54:00:88:00:0{n}" for n in (1, 2, 3))
OWN = Settings(interface="boot0", address=US, range="10.88.7.50,10.88.7.99,255.255.255.0")
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
    ],
    ids=["own", "all", "proxy"],
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

    async def dhcp(self, mac: str, arch: int, kind: str) -> dict[str, Any] | None:
        client = str(Path(__file__).with_name("dhcp_client.py"))
        _, output = await self.machine(sys.executable, client, "nic0", mac, str(arch), kind)
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
        text = msgspec.json.encode({k: v for k, v in msgspec.to_builtins(settings).items() if v != ""}).decode()
        (folder / "boot.yaml").write_text(
            f"listen: {US}:8680\nurl: {URL}\ndesk: desk.sock\nfiles: files\nstate: state\ndrain: 1\ndnsmasq: {text}\n"
        )
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
            yield folder
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
            assert not answer["router"]
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
    async with service(network, OWN, desk) as folder:
        assert await network.dhcp(STRANGER, 7, "pxe") is None
        assert await network.dhcp(NEW, 7, "pxe") is None
        desk.inventory = inventory(KNOWN, NEW)
        async with asyncio.timeout(20):
            while NEW not in (folder / "state" / "hosts").read_text():
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
