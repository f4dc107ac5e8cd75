"""Programs nobody here wrote: our driver against sushy-emulator's fake host, curl against our simulator."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509

from fleetd.drivers.bmc.capabilities import BmcTarget
from fleetd.drivers.bmc.redfish import RedfishDriver
from fleetd.kit.errors import FleetError, PinMismatch, Unreachable, Unsupported
from fleetd.model.bmc import Login
from fleetd.model.power import BootDevice, PowerState, PowerVerb
from tests.redfish_rig import PASSWORD, USER, rig, skip_or_fail

pytestmark = pytest.mark.peers

VENV = Path(os.environ.get("FLEETD_PEERS_VENV", Path(__file__).parents[2] / ".venv-peers"))
UUID = "27946b59-9e44-4fa7-8e91-f3527a1ef094"


def program(path: Path | str) -> str:
    found = shutil.which(path)
    if found is None:
        skip_or_fail(f"{path} is not installed")
    return str(found)


def certificate(folder: Path) -> tuple[Path, Path, str]:
    """(certificate, key, pin), by openssl."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            *(program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=sushy"),
        ],
        check=True,
        capture_output=True,
    )
    der = ssl.PEM_cert_to_DER_cert(cert.read_text())
    assert x509.load_der_x509_certificate(der)
    return cert, key, hashlib.sha256(der).hexdigest()


@contextlib.asynccontextmanager
async def emulator(folder: Path) -> AsyncIterator[BmcTarget]:
    """A sushy-emulator with its fake driver, up and listening."""
    binary = program(VENV / "bin" / "sushy-emulator")
    cert, key, pin = certificate(folder)
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "emulator.conf"
    config.write_text(
        f"SUSHY_EMULATOR_STATE_DIR = {str(folder)!r}\n"
        f"SUSHY_EMULATOR_FAKE_SYSTEMS = [{{'uuid': {UUID!r}, 'name': 'fake', 'power_state': 'Off',"
        "'external_notifier': False, 'nics': [{'mac': '00:5c:52:31:3a:9c', 'ip': '172.22.0.100'}]}]\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(binary, "--fake", "--config", str(config), "-i", "127.0.0.1", "-p", str(port)),
        *("--ssl-certificate", str(cert), "--ssl-key", str(key)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=folder,
    )
    target = BmcTarget(protocol="redfish", host="127.0.0.1", port=port, login=Login("admin", "password"), tls_pin=pin)
    driver = RedfishDriver()
    try:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(Unreachable):
                    assert await driver.read_pin(target, timeout=1) == pin
                    break
                assert process.returncode is None, "sushy-emulator ended"
                await asyncio.sleep(0.1)
        yield target
    finally:
        await driver.close()
        process.terminate()
        await process.wait()


async def test_driver_against_sushy_emulator(tmp_path):
    driver = RedfishDriver()
    async with emulator(tmp_path) as target:
        try:
            wrong = BmcTarget(
                protocol="redfish", host=target.host, port=target.port, login=target.login, tls_pin="ab" * 32
            )
            with pytest.raises(PinMismatch):
                await driver.open(wrong, timeout=5)
            bmc = await driver.open(target, timeout=5)
            info = await bmc.system(timeout=5)
            assert info.uuid == UUID
            assert info.power is PowerState.OFF
            assert await bmc.power(PowerVerb.ON, timeout=20) is PowerState.ON
            assert await bmc.power(PowerVerb.ON, timeout=20) is PowerState.ON
            assert await bmc.power(PowerVerb.RESET, timeout=20) is PowerState.ON
            assert await bmc.power(PowerVerb.CYCLE, timeout=30) is PowerState.ON
            assert await bmc.power(PowerVerb.SOFT, timeout=20) is PowerState.OFF
            assert await bmc.power(PowerVerb.OFF, timeout=20) is PowerState.OFF
            for device in (BootDevice.NETWORK, BootDevice.DISK, BootDevice.CD):
                await bmc.set_boot_once(device, timeout=10)
            for call in (bmc.set_password("x" * 12, timeout=5), bmc.reset_bmc(timeout=5)):
                with pytest.raises(Unsupported):  # it has no accounts and no manager action
                    await call
            await bmc.close()
        finally:
            await driver.close()


@contextlib.asynccontextmanager
async def web_server(data: bytes) -> AsyncIterator[str]:
    """Base URL of a server that answers every GET and HEAD with these bytes."""

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(body=data, content_type="application/octet-stream")

    server = web.Server(answer)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        await server.shutdown(1)


async def test_virtual_media_of_sushy_emulator(tmp_path):
    """The emulator fetches the image itself, as a BMC does: what cannot be fetched must not count as inserted."""
    driver = RedfishDriver()
    async with emulator(tmp_path) as target, web_server(b"CD001" * 4096) as base:
        try:
            bmc = await driver.open(target, timeout=5)
            for name in ("deploy.iso", "deploy.iso", "other.iso"):  # the second puts out what is in
                await bmc.insert_media(f"{base}/deploy/{name}", timeout=30)
            await bmc.set_boot_once(BootDevice.CD, timeout=10)
            await bmc.eject_media(timeout=30)
            await bmc.eject_media(timeout=30)
            with contextlib.closing(socket.socket()) as nobody:
                nobody.bind(("127.0.0.1", 0))
                with pytest.raises(FleetError):
                    await bmc.insert_media(f"http://127.0.0.1:{nobody.getsockname()[1]}/deploy.iso", timeout=20)
            await bmc.close()
        finally:
            await driver.close()


async def curl(*arguments: str) -> tuple[str, str]:
    """(head, body)."""
    process = await asyncio.create_subprocess_exec(
        *(program("curl"), "-sk", "-i", "--max-time", "5", *arguments), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    head, _, body = out.decode().partition("\r\n\r\n")
    return head, body


@pytest.mark.parametrize(
    ("behaviour", "system"), [("dell", "System.Embedded.1"), ("supermicro", "1"), ("openbmc", "system")]
)
async def test_curl_against_the_simulator(behaviour, system):
    program("curl")
    async with rig(behaviour) as r:
        base = f"https://{r.host.bmc_address}:{r.port}/redfish/v1"
        login = json.dumps({"UserName": USER, "Password": PASSWORD})
        head, _ = await curl("-d", login, "-H", "Content-Type: application/json", f"{base}/SessionService/Sessions")
        assert head.startswith("HTTP/1.1 201")
        token = next(line for line in head.splitlines() if line.lower().startswith("x-auth-token:"))
        head, body = await curl("-H", token, f"{base}/Systems/{system}")
        assert json.loads(body)["PowerState"] == "Off"
        act = f"{base}/Systems/{system}/Actions/ComputerSystem.Reset"
        head, _ = await curl("-H", token, "-d", '{"ResetType": "On"}', act)
        assert head.startswith("HTTP/1.1 204")
        async with asyncio.timeout(5):
            while (
                json.loads((await curl("-u", f"{USER}:{PASSWORD}", f"{base}/Systems/{system}"))[1])["PowerState"]
                != "On"
            ):
                pass
        assert r.host.power_state is PowerState.ON
        head, _ = await curl(f"{base}/Systems/{system}")
        assert head.startswith("HTTP/1.1 401")
