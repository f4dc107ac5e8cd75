"""`fleetd boot` as systemd and an operator meet it: a process with ports, a child, signals and a file that may be wrong."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from fleetd.api.server import bind_unix
from fleetd.daemon.boot import DESCRIPTORS
from fleetd.drivers.boot.capabilities import Sighting
from fleetd.drivers.boot.desk_wire import DeskServer, RemoteDesk
from fleetd.drivers.boot.files import PLACEHOLDER
from fleetd.kit.errors import Denied
from tests.daemon.test_process import Running as Daemon
from tests.host_rig import Desk
from tests.world import Plan, free_port, write_world

pytestmark = pytest.mark.slow
MAC = "04:3f:72:aa:00:01"
# In place of dnsmasq: says what dnsmasq says, notes its signals, and can die.
CHILD = """#!/bin/sh
case "$*" in *--test*) if grep -q 'interface=refused' "${2#--conf-file=}"; then echo 'bad option' >&2; exit 1; fi; exit 0;; esac
here="$(dirname "$0")"
trap 'echo hup >> "$here/signals"' HUP
trap 'echo term >> "$here/signals"; exit 0' TERM
echo 'dnsmasq: started, version 2.90 DNS disabled' >&2
echo 'dnsmasq-dhcp: 7 DHCPDISCOVER(br0) 04:3f:72:aa:00:01 ' >&2
echo "$$" >> "$here/started"  # last: from here on a signal meets its trap
while :; do if [ -e "$here/die" ]; then rm "$here/die"; echo 'dnsmasq: failed to bind' >&2; exit 2; fi; sleep 0.05; done
"""


def fleetd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fleetd", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


class Running:
    """`fleetd boot` under a fake service manager, with a desk of the test."""

    def __init__(self, folder: Path, *, child: bool = True, desk: Desk | None = None) -> None:
        self.folder, self.desk, self.port = folder, desk or Desk(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        files = folder / "files"
        files.mkdir(exist_ok=True)
        for name in ("vmlinuz", "initrd", "undionly.kpxe", "snponly.efi"):
            (files / name).write_bytes(name.encode() * 100)
        program = folder / "child"
        program.write_text(CHILD)
        program.chmod(0o755)
        self.config = folder / "boot.yaml"
        self.write(child=child)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._notify.bind(str(folder / "notify"))

    def write(self, *, child: bool = True, interface: str = "br0", server: int = 64) -> None:
        dhcp = (
            f"{{program: {self.folder / 'child'}, interface: {interface}, address: 10.77.0.1,"
            " range: '10.77.0.50,10.77.0.99,255.255.255.0'}"
        )
        self.config.write_text(
            f"listen: 127.0.0.1:{self.port}\nurl: {self.url}\ndesk: desk.sock\nfiles: files\nstate: state\ndrain: 5\n"
            f"admission: {{server: {server}}}\n" + (f"dnsmasq: {dhcp}\n" if child else "")
        )

    async def note(self, wanted: str) -> str:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(30):
            while True:
                text = (await loop.sock_recv(self._notify, 4096)).decode()
                if wanted in text:
                    return text

    async def until(self, name: str, count: int = 1) -> list[str]:
        """The lines of a file that the child writes, once there are `count`."""
        async with asyncio.timeout(20):
            while True:
                path = self.folder / name
                lines = path.read_text().split() if path.exists() else []
                if len(lines) >= count:
                    return lines
                await asyncio.sleep(0.02)

    async def __aenter__(self) -> Running:
        self.server = DeskServer(self.desk, bind_unix(self.folder / "desk.sock"))
        await self.server.start()
        self._log = (self.folder / "log").open("wb")
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fleetd", "boot", "--config", str(self.config)),
            env={**os.environ, "NOTIFY_SOCKET": str(self.folder / "notify"), "WATCHDOG_USEC": "600000"},
            stderr=self._log,
        )
        await self.note("READY=1")
        return self

    async def __aexit__(self, *exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        async with asyncio.timeout(30):
            await self.process.wait()
        await self.server.stop()
        self._notify.close()
        self._log.close()

    def log(self) -> str:
        return (self.folder / "log").read_text()


async def test_it_serves_by_the_desk_and_without_it_says_when_and_files_flow_on(tmp_path):
    desk = Desk()
    async with Running(tmp_path, child=False, desk=desk) as r, aiohttp.ClientSession(r.url) as session:
        token = desk.arm(MAC, "k")
        assert f"fleetd.token={token}" in await (await session.get(f"/boot/{MAC}.ipxe")).text()
        assert "WATCHDOG=1" in await r.note("the daemon answers")
        await r.server.stop()
        answer = await session.get(f"/boot/{MAC}.ipxe")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        assert (await session.get("/deploy/vmlinuz")).status == 200
        assert "does not answer" in await r.note("does not answer")
    assert r.process.returncode == 0


async def test_a_directory_of_images_that_is_not_there_is_said_at_once(tmp_path):
    r = Running(tmp_path, child=False)
    r.config.write_text(r.config.read_text() + "images: nowhere\n")
    async with r:
        assert "boot.images.unreadable" in r.log()
        assert "No such file" in r.log()


async def test_its_child_is_told_of_hosts_started_again_and_ended(tmp_path):
    desk = Desk()
    async with Running(tmp_path, desk=desk) as r:
        config = (tmp_path / "state" / "dnsmasq.conf").read_text()
        assert "interface=br0" in config
        assert (tmp_path / "state" / "tftp" / "undionly.kpxe").is_file()
        async with asyncio.timeout(10):
            while not desk.sightings:
                await asyncio.sleep(0.05)
        assert (desk.sightings[0].stage, desk.sightings[0].mac) == ("dhcp", MAC)
        (tmp_path / "die").touch()
        await r.until("started", 2)
        assert "failed to bind" in r.log()
        (first, second) = await r.until("started", 2)
        r.process.terminate()
        await r.note("STOPPING=1")
        async with asyncio.timeout(20):
            assert await r.process.wait() == 0
        assert await r.until("signals") == ["term"]
        for pid in (first, second):
            assert not Path(f"/proc/{pid}").exists()


async def test_hup_takes_what_is_good_and_refuses_what_is_not(tmp_path):
    async with Running(tmp_path) as r:
        await r.until("started")
        r.write(interface="refused")
        r.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(10):
            while "bad option" not in r.log():
                await asyncio.sleep(0.02)
        r.config.write_text("listen: nowhere\n")
        r.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(10):
            while r.log().count("reload.refused") < 2:
                await asyncio.sleep(0.02)
        assert len(await r.until("started")) == 1
        r.write(interface="br1")
        r.process.send_signal(signal.SIGHUP)
        await r.until("started", 2)
        assert "interface=br1" in (tmp_path / "state" / "dnsmasq.conf").read_text()


async def test_hup_takes_another_directory_by_http_and_by_tftp_at_once(tmp_path):
    """Else HTTP would serve one directory and TFTP another, and nobody would be told."""
    async with Running(tmp_path) as r:
        other = tmp_path / "other"
        other.mkdir()
        for name in ("undionly.kpxe", "snponly.efi"):
            (other / name).write_bytes(b"other " + name.encode())
        r.config.write_text(r.config.read_text().replace("files: files", "files: other"))
        r.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(10):
            while "reloaded" not in r.log():
                await asyncio.sleep(0.02)
        assert (tmp_path / "state/tftp/snponly.efi").read_bytes() == b"other snponly.efi"
        async with aiohttp.ClientSession() as session, session.get(f"{r.url}/boot/snponly.efi") as answer:
            assert (answer.status, await answer.read()) == (200, b"other snponly.efi")


async def test_a_refused_reload_leaves_the_medium_too(tmp_path):
    """Else hosts would start by network from the old directory, and from virtual media by the new one."""
    other = tmp_path / "other"
    for folder in (tmp_path / "files", other):
        folder.mkdir()
        (folder / "deploy.iso").write_bytes(PLACEHOLDER + folder.name.encode())
    async with Running(tmp_path) as r:
        for name in ("undionly.kpxe", "snponly.efi"):
            (other / name).write_bytes(b"other")
        r.write(interface="refused")
        r.config.write_text(r.config.read_text().replace("files: files", "files: other"))
        r.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(10):
            while "reload.refused" not in r.log():
                await asyncio.sleep(0.02)
        assert "bad option" in r.log()
        async with aiohttp.ClientSession() as session, session.get(f"{r.url}/deploy/deploy.iso") as answer:
            assert (await answer.read()).endswith(b"files")


async def test_a_reload_that_finds_no_room_leaves_what_runs(tmp_path):
    async with Running(tmp_path) as r:
        (tmp_path / "state" / "deploy.iso.new").mkdir()  # in place of a full disk
        (tmp_path / "files" / "deploy.iso").write_bytes(PLACEHOLDER)
        r.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(10):
            while "reload.refused" not in r.log():
                await asyncio.sleep(0.02)
        async with aiohttp.ClientSession() as session, session.get(f"{r.url}/deploy/vmlinuz") as answer:
            assert answer.status == 200


def test_it_takes_more_connections_than_a_shell_lets_it():
    script = (
        "import resource as r; _, hard = r.getrlimit(r.RLIMIT_NOFILE); r.setrlimit(r.RLIMIT_NOFILE, (256, hard));"
        " from fleetd.daemon import boot; boot._more_descriptors(); print(*r.getrlimit(r.RLIMIT_NOFILE))"
    )
    soft, hard = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()
    assert int(soft) == (DESCRIPTORS if int(hard) < 0 else min(int(hard), DESCRIPTORS))


async def test_a_killed_parent_takes_its_child_along(tmp_path):
    async with Running(tmp_path) as r:
        (pid,) = await r.until("started")
        r.process.kill()
        assert await r.until("signals") == ["term"]
        async with asyncio.timeout(10):
            while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("change", "message", "line"),
    [
        ("speed: fast", "unknown key `speed`", 3),
        ("admission: {server: 0}", "admission.server", 3),
        ("dnsmasq: {interface: br0}", "address", 3),
        ("dnsmasq:\n  interface: br0\n  address: x\n  range: y", "dnsmasq.address", 5),
        (
            "dnsmasq:\n  interface: br0\n  address: 10.77.0.1\n  relayed:\n"
            "    - {range: '10.78.0.50,10.78.0.99,255.255.255.0', router: 10.78.0.1}\n"
            "    - range: 10.79.0.50,10.79.0.99,255.255.255.0\n      router: 10.78.0.1",
            "dnsmasq.relayed.1.router",
            9,
        ),
        ("dnsmasq: {interface: br0, address: 10.77.0.1, relayed: [{rnage: x}]}", "unknown key `rnage`", 3),
        ("drain: -1", "drain", 3),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path, change, message, line):
    config = tmp_path / "boot.yaml"
    config.write_text(f"listen: 127.0.0.1:1\nurl: http://127.0.0.1:1\n{change}\n")
    found = fleetd("boot", "--config", str(config))
    assert found.returncode == 2
    assert message in found.stderr
    assert f"{config}:{line}" in found.stderr


@pytest.mark.parametrize("url", ["http://x/${evil}", "http://a,b", "'http://x y'"])
def test_a_url_that_could_be_more_is_refused(tmp_path, url):
    config = tmp_path / "boot.yaml"
    config.write_text(f"listen: 127.0.0.1:1\nurl: {url}\n")
    found = fleetd("boot", "--config", str(config))
    assert found.returncode == 2
    assert f"{config}:2" in found.stderr


def test_missing_loaders_are_said(tmp_path):
    r = Running(tmp_path)
    (tmp_path / "files" / "snponly.efi").unlink()
    found = fleetd("boot", "--config", str(r.config))
    r._notify.close()
    assert found.returncode == 5
    assert "ipxe" in found.stderr


def test_a_check_names_all_that_is_missing_and_starts_nothing(tmp_path):
    r = Running(tmp_path)
    r._notify.close()
    found = fleetd("boot", "--check", "--config", str(r.config))
    assert (found.returncode, found.stdout) == (0, f"{r.config}: good; {r.url}, dnsmasq (own) on br0\n")
    assert not (tmp_path / "state").exists()
    (tmp_path / "files" / "initrd").unlink()
    (tmp_path / "child").unlink()
    r.config.write_text(r.config.read_text() + "images: gone\n")
    found = fleetd("boot", "--check", "--config", str(r.config))
    assert found.returncode == 5
    for said in ("no initrd in", "images: ", "dnsmasq.program: no "):
        assert said in found.stderr
    r.config.write_text("listen: nowhere\n")
    assert fleetd("boot", "--check", "--config", str(r.config)).returncode == 2


@pytest.mark.peers
class TestUnit:
    """The unit file, by systemd's own judgement."""

    @pytest.fixture
    def unit(self, tmp_path: Path) -> Path:
        if shutil.which("systemd-analyze") is None:
            if os.environ.get("CI"):
                pytest.fail("systemd-analyze is not installed")
            pytest.skip("systemd-analyze is not installed")
        path = tmp_path / "fleetd-boot.service"
        text = fleetd("unit", "--service", "boot").stdout
        assert "@EXEC@" not in text
        path.write_text(text.replace(text.split("ExecStart=")[1].split()[0], "/bin/true"))
        return path

    def test_systemd_accepts_it(self, unit):
        found = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(unit)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert [line for line in found.stderr.splitlines() if "fleetd-boot.service" in line] == []

    def test_its_exposure_is_low_for_what_it_must_do(self, unit):
        found = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert found.returncode == 0, found.stdout[-3000:]
        caps = unit.read_text().split("CapabilityBoundingSet=")[1].splitlines()[0].split()
        assert caps == ["CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_NET_ADMIN"]


async def test_the_daemon_opens_its_desk_and_listens_for_no_host(tmp_path):
    write_world(tmp_path, [Plan()])
    config = tmp_path / "fleetd.yaml"
    text = config.read_text()
    start = text.index("boot: {")
    url = f"http://127.0.0.1:{free_port()}"
    config.write_text(
        text[:start] + f"boot: {{listen: '', url: '{url}', desk: boot.sock}}" + text[text.index("}", start) + 1 :]
    )
    async with Daemon(tmp_path):
        assert stat.S_IMODE((tmp_path / "boot.sock").stat().st_mode) == 0o660
        desk = RemoteDesk(str(tmp_path / "boot.sock"))
        try:
            assert (await desk.script(MAC, uuid="U", serial="S", source="10.0.0.9")).token is None
            assert await desk.hosts() == []
            with pytest.raises(Denied):
                await desk.grant("0" * 64, "t" * 40, source="10.0.0.9")
            await desk.seen([Sighting(stage="dhcp", mac=MAC, at=1.0)])
        finally:
            await desk.close()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
