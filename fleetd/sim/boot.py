"""How a simulated machine finds its way to a running system, and phones home, over the real HTTP from its own address."""

from __future__ import annotations

import asyncio
import re
import uuid

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fleetd.sim.hardware import real_serial
from fleetd.sim.host import BootSource, Running, SimHost

TRIES = 6
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between tries, doubling
REQUEST_SECONDS = 20.0
ISO = "/deploy/deploy.iso"
MAX_ANSWER = 64 * 1024
_URL = re.compile(r"fleetd\.url=(\S{1,512})")
_TOKEN = re.compile(r"fleetd\.token=(\S{1,512})")


def host_key() -> tuple[str, str]:
    """A fresh (private OpenSSH PEM, public line), as a booting system makes one."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode("ascii")
    return private, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def _mac(host: SimHost, running: Running) -> str:
    """The MAC it tells: of another of its NICs with the fault `wrong-mac`."""
    fault = host.fault("wrong-mac") if running.environment == "deploy" else None
    if fault is None:
        return host.mac
    return str(fault.params.get("mac", f"{host.mac[:-2]}{int(host.mac[-2:], 16) ^ 0x80:02x}"))


class Booter:
    """Callable as `SimHost.boot`.

    Args:
        boot_url: where the network boot script is fetched; an image's phone-home goes to the URL in its seed.
        ssh_port: what a system says of itself in its hello.
    """

    def __init__(self, boot_url: str, ssh_port: int) -> None:
        self._boot_url = boot_url.rstrip("/")
        self._ssh_port = ssh_port

    async def __call__(self, host: SimHost, source: BootSource) -> Running | None:
        """What runs then; None when nothing boots. `host.running` is set before the phone-home, as sshd runs by then."""
        if source != "disk" and host.fault("boots-wrong-device") is not None:
            source = "disk"
        if source == "disk":
            return await self._disk(host)
        if source == "cd" and self._boot_url not in {url.removesuffix(ISO) for url in host.media.values()}:
            return await self._disk(host)  # no disc, or another's: the firmware goes on to the disk
        # The deploy environment of the ISO holds no token: it asks by DHCP and for the script as iPXE would.
        if host.fault("no-boot") is not None or host.fault("no-dhcp") is not None:
            return None
        connector = aiohttp.TCPConnector(local_addr=(host.os_address, 0))
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            query = {"uuid": host.uuid, "serial": real_serial(host)}
            found = await self._ask(session, "GET", f"{self._boot_url}/boot/{host.mac}.ipxe", params=query)
            if found is None:
                return None
            base, token = _URL.search(found), _TOKEN.search(found)
            if base and token:
                return await self._deploy(host, session, base[1].rstrip("/"), token[1])
        if source == "cd":
            host.log("boot.refused", source=source)
            return None  # no token for this machine: the environment waits and does nothing
        return await self._disk(host)  # the script said `exit 1`: the firmware goes on to the disk

    async def _deploy(self, host: SimHost, session: aiohttp.ClientSession, base: str, token: str) -> Running | None:
        await asyncio.sleep(host.timings.boot)
        bearer = {"Authorization": f"Bearer {token}"}
        key = await self._ask(session, "GET", f"{base}/deploy/authorized_keys", headers=bearer)
        if key is None:
            return None
        private, public = host_key()
        running = Running(
            environment="deploy",
            boot_id=str(uuid.uuid4()),
            authorized_key=key.strip(),
            token=token,
            host_key_private=private,
            host_key_public=public,
            started=asyncio.get_running_loop().time(),
        )
        return await self._phone_home(host, session, f"{base}/deploy/hello", running)

    async def _disk(self, host: SimHost) -> Running | None:
        installed = host.installed
        if installed is None:
            return None
        await asyncio.sleep(host.timings.boot)
        running = Running(
            environment="disk",
            boot_id=str(uuid.uuid4()),
            authorized_key="\n".join(installed.authorized_keys),
            token=installed.phone_home_token,
            host_key_private=installed.host_key_private,
            host_key_public=installed.host_key_public,
            started=asyncio.get_running_loop().time(),
        )
        url = installed.phone_home_url.rstrip("/")
        url = url if url.endswith("/deploy/hello") else f"{url}/deploy/hello"
        connector = aiohttp.TCPConnector(local_addr=(host.os_address, 0))
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            await self._phone_home(host, session, url, running)
        return running  # an installed system runs whether or not anybody listens to its hello

    async def _phone_home(
        self, host: SimHost, session: aiohttp.ClientSession, url: str, running: Running
    ) -> Running | None:
        host.running = running
        hello = {
            "environment": running.environment,
            "mac": _mac(host, running),
            "serial": real_serial(host),
            "uuid": host.uuid,
            "boot_id": running.boot_id,
            "host_key": running.host_key_public,
            "ssh_port": self._ssh_port,
        }
        bearer = {"Authorization": f"Bearer {running.token}"}
        if await self._ask(session, "POST", url, headers=bearer, json=hello) is not None:
            return running
        host.log("boot.unheard", environment=running.environment)
        if running.environment == "deploy":
            host.running = None  # it would ask on for ever; nobody may log in to it
            return None
        return running

    async def _ask(self, session: aiohttp.ClientSession, method: str, url: str, **more: object) -> str | None:
        """The answer's text; None when it was refused (4xx) or nobody answered in a bounded number of tries."""
        pause = FIRST_PAUSE
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE, pause * 2)
            try:
                timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
                async with session.request(method, url, timeout=timeout, **more) as answer:  # type: ignore[arg-type]
                    if answer.status < 300:
                        return (await answer.content.read(MAX_ANSWER)).decode("utf-8", "replace")
                    if answer.status < 500:
                        return None
            except (aiohttp.ClientError, OSError, TimeoutError):
                continue
        return None
