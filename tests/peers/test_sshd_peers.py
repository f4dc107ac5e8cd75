"""Our SSH client against OpenSSH's sshd on loopback: the probe runs, and a host that fleetd did not boot is never touched."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import io
import os
import pwd
import shutil
import signal
import socket
import sys
import zipfile
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from fleetd.drivers.ssh.capabilities import ShellTarget, Zipapp
from fleetd.drivers.ssh.client import SshShells
from fleetd.drivers.ssh.keys import new_key_pair
from fleetd.kit.errors import AuthFailed, DeadlineExceeded, Garbled, Permanent, PinMismatch, Refused
from fleetd.model.report import MAX_REPORT, read_report
from fleetd.probe import remote
from tests.host_rig import zipapp

PYTHON = Path(sys.executable).resolve().parent
INTENTS = Path("/run/fleetd/intents")
pytestmark = [pytest.mark.peers, pytest.mark.slow]


def unavailable(why: str) -> None:
    if os.environ.get("CI") == "1":
        pytest.fail(why)
    pytest.skip(why)


def find_sshd() -> str:
    found = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        unavailable("no sshd; apt install openssh-server")
    if os.getuid() == 0:
        try:
            pwd.getpwnam("sshd")
        except KeyError:
            unavailable("sshd cannot run as root without its user `sshd`; apt install openssh-server makes it")
        Path("/run/sshd").mkdir(exist_ok=True)
    return str(found)


@contextlib.asynccontextmanager
async def sshd(folder: Path, host_private: str, authorized: str) -> AsyncIterator[int]:
    program = find_sshd()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "host_key").touch(mode=0o600)
    (folder / "host_key").write_text(host_private)
    (folder / "authorized_keys").write_text(authorized + "\n")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "PidFile none\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nStrictModes no\n"
        f"PermitRootLogin yes\nSetEnv PATH={PYTHON}:/usr/bin:/bin\n"
    )
    process = await asyncio.create_subprocess_exec(
        program, "-D", "-e", "-f", str(folder / "sshd_config"), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        said = b""
        async with asyncio.timeout(20):
            while b"listening" not in said:
                line = await process.stderr.readline()
                assert line, f"sshd ended: {said!r}"
                said = line
        draining = asyncio.create_task(process.stderr.read())
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()
    await draining


@contextlib.asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[tuple[SshShells, ShellTarget]]:
    host_private, host_public = new_key_pair("host")
    private, public = new_key_pair("fleetd")
    shells = SshShells()
    async with sshd(folder, host_private, public) as port:
        target = ShellTarget(
            host="host-1",
            address="127.0.0.1",
            port=port,
            host_key=host_public,
            private_key=private,
            environment="disk",
            username=getpass.getuser(),
        )
        try:
            yield shells, target
        finally:
            await shells.close()


def pushed(app: Zipapp) -> list[Path]:
    return [
        Path("/run/fleetd") / f"{app.name}-{app.digest}.pyz",
        Path.home() / ".fleetd" / f"{app.name}-{app.digest}.pyz",
    ]


@contextlib.contextmanager
def tidy(*apps: Zipapp):
    """This machine is the host here: take away what was pushed to it."""
    try:
        yield
    finally:
        for app in apps:
            for path in pushed(app):
                path.unlink(missing_ok=True)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def journalled() -> list[Path] | None:
    return sorted(INTENTS.iterdir()) if INTENTS.exists() else None


def program(source: str) -> Zipapp:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("__main__.py", source)
    data = buffer.getvalue()
    return Zipapp(name="trial", data=data, digest=sha256(data).hexdigest())


async def test_the_probe_runs_on_a_plain_host(tmp_path):
    app = zipapp("report")
    with tidy(app):
        async with connected(tmp_path) as (shells, target):
            shell = await shells.connect(target, timeout=20)
            for nonce in ("first", "second"):
                odd = f"{nonce} '\"$(id)`id`;\\ é"
                data = await shell.run(app, ("--nonce", odd, "--host", "h"), timeout=60, max_output=MAX_REPORT)
                report = read_report(data)
                assert report.nonce == odd
                assert report.boot_id.v == boot_id()
            assert any(path.exists() for path in pushed(app))
            assert not list(pushed(app)[0].parent.glob(f"*{app.digest}.pyz.*")), "a part was left behind"


KEY = new_key_pair("host")


async def test_a_host_that_fleetd_did_not_boot_refuses_and_is_not_touched(tmp_path):
    app = zipapp("host")
    with tidy(app):
        async with connected(tmp_path) as (shells, target):
            shell = await shells.connect(target, timeout=20)

            async def ask(command: str, order: dict) -> dict:
                stdin = msgspec.json.encode(order)
                return msgspec.json.decode(await shell.run(app, (command,), stdin=stdin, timeout=60, max_output=10**6))

            status = await ask("status", {})
            assert status["deploy"] is False
            before = journalled()
            # the best order there can be: this machine's own serial and drives
            order = {
                "intent": "trial-1",
                "nonce": "n" * 43,
                "host_serial": status["host_serial"] or "SERIAL",
                "drives": [{"serial": d["serial"]} for d in status["drives"]] or [{"serial": "D0"}],
                "image": {
                    "name": "ubuntu",
                    "format": "raw.gz",
                    "bytes": 1024,
                    "sha256": "0" * 64,
                    "raw_bytes": 1 << 20,
                    "raw_sha256": "1" * 64,
                    "urls": ["http://127.0.0.1:1/image"],
                },
                "seed": {
                    "hostname": "h",
                    "instance_id": "i-1",
                    "authorized_keys": [KEY[1]],
                    "host_key_private": KEY[0],
                    "host_key_public": KEY[1],
                    "phone_home_url": "http://127.0.0.1:1",
                    "phone_home_token": "t" * 40,
                },
            }
            for command in ("wipe", "write-image", "clear-tpm", "boot-order", "inspect"):
                with pytest.raises(Refused, match="not-deploy"):
                    await ask(command, order)
            assert journalled() == before
            assert (await ask("status", {"intent": "trial-1"}))["state"] == "unknown"


async def test_keys_are_exact(tmp_path):
    async with connected(tmp_path) as (shells, target):
        private, public = new_key_pair()
        with pytest.raises(PinMismatch):
            await shells.connect(msgspec.structs.replace(target, host_key=public), timeout=20)
        with pytest.raises(AuthFailed):
            await shells.connect(msgspec.structs.replace(target, private_key=private), timeout=20)


async def test_output_exit_codes_signals_and_time_are_bounded(tmp_path):
    noise = program("import sys\nwhile True: sys.stdout.write('x' * 65536)")
    fails = program("import sys; print('why it failed', file=sys.stderr); sys.exit(7)")
    killed = program("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    sleeps = program("import time; time.sleep(60)")
    echo = program(
        "import json, sys\nprint(json.dumps({'done': 1}), file=sys.stderr)\nsys.stdout.write(sys.stdin.read()[::-1])"
    )
    with tidy(noise, fails, killed, sleeps, echo):
        async with connected(tmp_path) as (shells, target):
            shell = await shells.connect(target, timeout=20)
            with pytest.raises(Garbled):
                await shell.run(noise, (), timeout=30, max_output=300_000)
            with pytest.raises(Permanent, match="exit code 7") as caught:
                await shell.run(fails, (), timeout=30, max_output=100)
            assert "why it failed" in caught.value.why
            with pytest.raises(Permanent, match="was killed"):
                await shell.run(killed, (), timeout=30, max_output=100)
            with pytest.raises(DeadlineExceeded):
                await shell.run(sleeps, (), timeout=3, max_output=100)
            heard: list[dict] = []
            said = await shell.run(
                echo, (), stdin=b"abc" * 100_000, timeout=30, max_output=400_000, progress=heard.append
            )
            assert said == b"cba" * 100_000
            assert heard == [{"done": 1}]


async def test_a_push_that_breaks_off_leaves_nothing_to_run(tmp_path):
    whole = program("print('whole')")
    torn = Zipapp(name=whole.name, data=whole.data[:-10], digest=whole.digest)
    with tidy(whole):
        async with connected(tmp_path) as (shells, target):
            shell = await shells.connect(target, timeout=20)
            with pytest.raises(Permanent, match="does not take"):
                await shell.run(torn, (), timeout=30, max_output=100)
            assert await shell.run(whole, (), timeout=30, max_output=100) == b"whole\n"
    for place in remote.PLACES:
        assert not list((Path.home() / place).glob(f"{whole.name}-{whole.digest}.pyz.*")), "a part was left behind"
