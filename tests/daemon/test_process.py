"""The daemon as systemd and an operator meet it: a process with a socket, signals, tokens and a lock."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.world import Plan, free_port, write_world

pytestmark = pytest.mark.slow


def fleetd(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fleetd", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


class Running:
    """`fleetd serve` under a fake service manager."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.environment = folder, environment
        self.notes: list[str] = []
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        (folder / "notify").unlink(missing_ok=True)
        self._notify.bind(str(folder / "notify"))

    async def note(self, wanted: str) -> str:
        """The next notification that holds `wanted`."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(30):
            while True:
                text = (await loop.sock_recv(self._notify, 4096)).decode()
                self.notes.append(text)
                if wanted in text:
                    return text

    async def __aenter__(self) -> Running:
        self._log = (self.folder / "log").open("wb")
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "fleetd",
            "serve",
            "--config",
            str(self.folder / "fleetd.yaml"),
            env={**os.environ, "NOTIFY_SOCKET": str(self.folder / "notify"), **self.environment},
            stderr=self._log,
        )
        await self.note("READY=1")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self.process.returncode is None:
            self.process.terminate()
        async with asyncio.timeout(30):
            code = await self.process.wait()
        self._notify.close()
        self._log.close()
        assert code == 0, (self.folder / "log").read_text()[-3000:]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_world(tmp_path, [Plan()])
    return tmp_path


async def get(folder: Path, path: str) -> tuple[int, object]:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(folder / "fleetd.sock"))) as session,
        session.get(f"http://fleetd{path}") as answer,
    ):
        return answer.status, json.loads(await answer.text())


async def test_ready_means_that_the_api_answers_and_only_the_group_may_ask(folder):
    async with Running(folder):
        status, hosts = await get(folder, "/v1/hosts")
        mode = stat.S_IMODE((folder / "fleetd.sock").stat().st_mode)
    assert (status, hosts["items"]) == (200, [])
    assert mode == 0o660


async def test_the_heartbeat_comes_while_the_engine_ticks_and_sigterm_says_so(folder):
    running = Running(folder, WATCHDOG_USEC="3000000")
    async with running:
        assert "hosts at work" in await running.note("WATCHDOG=1")
        await running.note("WATCHDOG=1")
        running.process.terminate()
        await running.note("STOPPING=1")


async def test_a_start_tells_of_files_that_no_image_names_and_leaves_them(folder):
    async with Running(folder):
        pass
    (images,) = folder.rglob("incoming")
    for name in ("a" * 64, "notes.txt"):
        (images.parent / name).write_bytes(b"x" * 100)
    assert "images.unnamed" not in (folder / "log").read_text()
    async with (
        Running(folder),
        asyncio.timeout(60),
    ):  # told beside the work: a slow disk holds up neither start nor stop
        while "images.unnamed" not in (folder / "log").read_text():
            await asyncio.sleep(0.05)
    log = (folder / "log").read_text()
    assert "notes.txt" in log
    assert (images.parent / ("a" * 64)).exists()


async def test_one_daemon_a_state_directory(folder):
    async with Running(folder):
        second = fleetd("serve", "--config", str(folder / "fleetd.yaml"))
    assert second.returncode == 6
    assert "another fleetd" in second.stderr
    assert "try:" in second.stderr


async def test_tokens_open_the_tcp_door_and_nothing_else_does(folder):
    port = free_port()
    config = folder / "fleetd.yaml"
    config.write_text(config.read_text().replace("http: ''", f"http: '127.0.0.1:{port}'"))
    async with Running(folder), aiohttp.ClientSession() as session:
        made = fleetd("token", "create", "--config", str(config), "--role", "viewer", "--name", "probe")
        assert made.returncode == 0, made.stderr
        token = made.stdout.strip()
        url = f"http://127.0.0.1:{port}/v1"
        for header, expected in (
            ({}, 401),
            ({"Authorization": "Bearer flt_wrong"}, 401),
            ({"Authorization": f"Bearer {token}"}, 200),
        ):
            async with session.get(f"{url}/hosts", headers=header) as answer:
                assert answer.status == expected
        async with session.put(
            f"{url}/freezes/all", json={"reason": "x"}, headers={"Authorization": f"Bearer {token}"}
        ) as answer:
            assert answer.status == 403
    assert token not in (folder / "log").read_text()
    assert token.encode() not in (folder / "state" / "ledger.db").read_bytes()


MANY = [f"http://10.0.0.{n}/images" for n in range(16)]  # a host refuses an order with more URLs than these


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("speed: fast\n", "unknown key `speed`"),
        ("boot: {listen: nowhere}\n", "not host:port"),
        ("credentials: {factory-x: {username: root}}\n", "either password or password_file"),
        ("a: [\n", "not YAML"),
        ('images: {mirrors: {"*": ["ftp://10.0.0.5/x"]}}\n', "no URL of a mirror"),
        ("images: {mirrors: {lou-a01: ['http://10.0.0.5/x?y']}}\n", "no URL of a mirror"),
        ("images: {mirrors: {lou-a01: ['http://[']}}\n", "no URL of a mirror"),
        ("images: {mirrors: {lou-a01: ['http://user:word@10.0.0.5/x']}}\n", "no URL of a mirror"),
        (f"images: {{mirrors: {{'*': {MANY[:8]}, lou-a01: {MANY[8:]}}}}}\n", "more than 15 mirrors"),
        ('boot: {url: "http://10.0.0.1:8680 init=/bin/sh"}\n', "not a plain http URL"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_line(tmp_path, change, message):
    config = tmp_path / "fleetd.yaml"
    config.write_text("state: s\n" + change)
    config.chmod(0o600)
    found = fleetd("check-config", "--config", str(config))
    assert found.returncode == 2
    assert message in found.stderr
    assert f"{config}:" in found.stderr


def test_image_keys_that_cannot_be_read_are_told(folder):
    trusted = folder / "image-key.pem.pub"
    assert fleetd("check-config", "--config", str(folder / "fleetd.yaml")).returncode == 0
    trusted.write_bytes((folder / "image-key.pem").read_bytes())
    private = fleetd("check-config", "--config", str(folder / "fleetd.yaml"))
    assert (private.returncode, "is a private key" in private.stderr) == (2, True)
    trusted.unlink()
    gone = fleetd("check-config", "--config", str(folder / "fleetd.yaml"))
    assert (gone.returncode, "images.trust" in gone.stderr) == (2, True)


def test_a_sample_image_is_a_disk_in_gzip(tmp_path):
    file = tmp_path / "ubuntu.raw.gz"
    assert fleetd("sample-image", str(file)).returncode == 0
    disk = gzip.decompress(file.read_bytes())
    assert disk[510:520] == b"\x55\xaaEFI PART"
    assert fleetd("sample-image", str(tmp_path / "none" / "x")).returncode == 2


def test_passwords_in_a_readable_file_are_refused(folder):
    (folder / "fleetd.yaml").chmod(0o644)
    found = fleetd("check-config", "--config", str(folder / "fleetd.yaml"))
    assert found.returncode == 2
    assert "chmod 600" in found.stderr


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.peers
class TestUnit:
    """The unit file, by systemd's own judgement."""

    @pytest.fixture
    def unit(self, tmp_path: Path) -> Path:
        if shutil.which("systemd-analyze") is None:
            if os.environ.get("CI"):
                pytest.fail("systemd-analyze is not installed")
            pytest.skip("systemd-analyze is not installed")
        path = tmp_path / "fleetd.service"
        text = fleetd("unit").stdout
        assert "@EXEC@" not in text
        path.write_text(text.replace(text.split("ExecStart=")[1].split()[0], "/bin/true"))
        return path

    def test_systemd_accepts_it(self, unit):
        found = analyze("verify", "--man=no", str(unit))
        complaints = [line for line in found.stderr.splitlines() if "fleetd.service" in line]
        assert complaints == []

    def test_its_exposure_is_low(self, unit):
        found = analyze("security", "--offline=true", "--threshold=15", "--no-pager", str(unit))
        assert found.returncode == 0, found.stdout[-3000:]
