"""Boots that fleetd starts, and the phone-homes that prove which host came up. Implements the desk the boot listener asks.

Identity is proven within one boot: its nonce came back, SMBIOS serial and UUID equal the BMC's and the inventory's, the
boot MAC matches, and SSH talks only to the host key that was phoned home. Nothing destructive happens on less.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets

import msgspec

from fleetd.drivers.boot.capabilities import BootScript, Hello
from fleetd.drivers.ssh.capabilities import ShellTarget
from fleetd.drivers.ssh.keys import new_key_pair
from fleetd.kit.clock import Clock
from fleetd.kit.errors import DeadlineExceeded, Denied, IdentityUnproven, Permanent
from fleetd.kit.ids import new_id
from fleetd.kit.logs import get
from fleetd.model.bmc import is_placeholder
from fleetd.model.boot import Boot, Environment
from fleetd.model.event import Event
from fleetd.model.host import Host
from fleetd.store import boots as rows
from fleetd.store import events
from fleetd.store import hosts as host_rows
from fleetd.store.database import Database
from fleetd.store.secrets import Sealer

log = get("boots")


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Boots:
    """One per daemon. Tokens of armed boots live in memory only: after a crash the boot step arms a fresh boot.

    Args:
        base_url: where hosts reach the boot listener; stands in seeds of written images.
    """

    def __init__(self, db: Database, clock: Clock, sealer: Sealer, base_url: str) -> None:
        self._db, self._clock, self._sealer = db, clock, sealer
        self.base_url = base_url
        self._tokens: dict[str, str] = {}  # boot id -> token, until the host came up
        self._waiters: dict[str, asyncio.Future[Boot]] = {}
        self._foreign: dict[str, str] = {}  # boot id -> who came in the host's place, should the host itself not come

    async def arm(
        self,
        host: Host,
        environment: Environment,
        *,
        intent: str,
        seconds: float,
        token: str | None = None,
        keys: tuple[str, str] | None = None,
        host_key: str = "",
    ) -> Boot:
        """Store a boot that may come within `seconds`; earlier boots of the host are closed.

        Args:
            token, keys, host_key: for disk boots: what the written image was seeded with (private PEM, public line).
        """
        token = token or secrets.token_urlsafe(32)
        private, public = keys or new_key_pair(f"fleetd {host.name}")
        now = self._clock.wall()
        boot_id = new_id("boot", now)
        boot = Boot(
            id=boot_id,
            host=host.id,
            environment=environment,
            token_hash=token_hash(token),
            public_key=public,
            private_key=self._sealer.seal(private, context=f"boot:{host.id}") if private else "",
            armed=now,
            expires=now + seconds,
            intent=intent,
            expected_host_key=host_key,
        )
        event = Event(kind="boot.armed", at=now, site=host.spec.site, host=host.id, data={"environment": environment})
        await self._db.commit([*rows.insert(boot), events.append(event)])
        self._tokens[boot_id] = token
        self._waiters[boot_id] = asyncio.get_running_loop().create_future()
        return boot

    async def wait_hello(self, boot: Boot, seconds: float) -> Boot:
        """The boot once it was met.

        Raises:
            DeadlineExceeded: no phone-home in time.
            IdentityUnproven: no phone-home of the host in time, but one of something else with this boot's nonce.
        """
        waiter = self._waiters.get(boot.id)
        if waiter is None:
            raise DeadlineExceeded(f"boot {boot.id} is not waited for any more", remedy="boot the host again")
        try:
            async with asyncio.timeout(seconds):
                return await waiter
        except TimeoutError as error:
            if wrong := self._foreign.get(boot.id):
                raise IdentityUnproven(
                    "what came up with the nonce of this boot is not the host we mean", why=wrong
                ) from error
            raise DeadlineExceeded(
                f"no phone-home within {seconds:.0f} s",
                why=f"the host did not come up into the {boot.environment} environment",
                remedy="look at its console; check cable and DHCP of the boot NIC, and the boot order",
            ) from error
        finally:
            self._waiters.pop(boot.id, None)
            self._tokens.pop(boot.id, None)
            self._foreign.pop(boot.id, None)

    async def shell_target(self, host: Host, environment: Environment) -> tuple[Boot, ShellTarget]:
        """Where and with which keys to reach the host's present boot.

        Raises:
            IdentityUnproven: no boot of that environment that fleetd started is up.
        """
        boot = await rows.open_of(self._db, host.id)
        if boot is None or boot.met is None or boot.environment != environment or not boot.private_key:
            raise IdentityUnproven(
                f"host {host.name} is not proven to be up in the {environment} environment",
                why="no phone-home of a boot that fleetd started through its BMC",
                remedy="boot it again: the boot step of the playbook does",
            )
        return boot, ShellTarget(
            host=host.id,
            address=boot.source,
            port=boot.ssh_port,
            host_key=boot.host_key,
            private_key=self._sealer.open(boot.private_key, context=f"boot:{host.id}"),
            environment=environment,
        )

    # --- the desk the listener asks ------------------------------------------------------------------------------------

    async def script(self, mac: str, *, uuid: str, serial: str, source: str) -> BootScript:
        boot = await rows.armed_for_mac(self._db, mac)
        if boot is None or boot.expires < self._clock.wall() or boot.id not in self._tokens:
            return BootScript()
        host = await host_rows.get(self._db, boot.host)
        if serial != host.spec.serial or uuid.lower() != host.status.observed.uuid.lower():
            # A MAC is printed on every frame; who cannot tell the board's serial and UUID too gets no token.
            self._foreign[boot.id] = f"{source} asked for its boot script as serial {serial[:40]!r}, UUID {uuid[:40]!r}"
            log.warning("boot.script.denied", host=host.name, source=source)
            return BootScript()
        return BootScript(host=boot.host, token=self._tokens[boot.id])

    async def authorized_keys(self, token: str, *, source: str) -> str:
        boot = await self._of_token(token, source)
        return boot.public_key

    async def hello(self, token: str, hello: Hello, *, source: str) -> None:
        boot = await self._of_token(token, source)
        host = await host_rows.get(self._db, boot.host)
        if boot.met is not None:
            if (boot.boot_id, boot.host_key) == (hello.boot_id, hello.host_key):
                return  # the same boot repeats itself: its answer got lost
            await self._deny(host, source, "the token of this boot was used already")
        if wrong := self._mismatch(host, boot, hello):
            # Remembered, not believed: a stranger's call must not end the wait for the right host.
            self._foreign[boot.id] = wrong
            await self._deny(host, source, wrong)
        now = self._clock.wall()
        met = _met(boot, hello, source, now)
        event = Event(
            kind="boot.met",
            at=now,
            site=host.spec.site,
            host=host.id,
            data={"environment": boot.environment, "source": source},
        )
        await self._db.commit([rows.save(met), events.append(event)])
        waiter = self._waiters.get(boot.id)
        if waiter is not None and not waiter.done():
            waiter.set_result(met)

    async def _of_token(self, token: str, source: str) -> Boot:
        boot = await rows.by_token(self._db, token_hash(token))
        if boot is None or boot.closed is not None or (boot.met is None and boot.expires < self._clock.wall()):
            log.warning("boot.denied", source=source, reason="unknown, closed or expired token")
            raise Denied("this boot token is not valid", remedy="boot the host again through fleetd")
        return boot

    async def _deny(self, host: Host, source: str, why: str) -> None:
        log.warning("boot.denied", host=host.name, source=source, reason=why)
        event = Event(
            kind="boot.denied",
            at=self._clock.wall(),
            site=host.spec.site,
            host=host.id,
            data={"source": source, "why": why},
        )
        await self._db.commit([events.append(event)])
        raise Denied("this phone-home is refused", why=why, remedy=f"fleetctl host why {host.name}")

    @staticmethod
    def _mismatch(host: Host, boot: Boot, hello: Hello) -> str:
        """What disagrees, in a technician's words; empty when all is proven."""
        seen = host.status.observed
        if hello.environment != boot.environment:
            return f"it came up in the {hello.environment} environment, not in {boot.environment}"
        if is_placeholder(hello.serial) or hello.serial != host.spec.serial or hello.serial != seen.serial:
            return f"SMBIOS serial {hello.serial!r}; inventory {host.spec.serial!r}, BMC {seen.serial!r}"
        if is_placeholder(hello.uuid) or hello.uuid.lower() != seen.uuid.lower():
            return f"SMBIOS UUID {hello.uuid!r}; BMC {seen.uuid!r}"
        if hello.mac.lower() != host.spec.boot_mac.lower():
            return f"boot MAC {hello.mac}; inventory {host.spec.boot_mac}"
        if boot.expected_host_key and _key(hello.host_key) != _key(boot.expected_host_key):
            return "its SSH host key is not the one that was seeded"
        return ""


def _key(line: str) -> tuple[str, ...]:
    """Type and body of a public key line, without its comment."""
    return tuple(line.split()[:2])


def _met(boot: Boot, hello: Hello, source: str, now: float) -> Boot:
    """The boot as met. The address is where the call came from, never what its body claims."""
    if not 0 < hello.ssh_port < 65536:
        raise Permanent("the phone-home names no usable SSH port")
    return msgspec.structs.replace(
        boot,
        met=now,
        source=source,
        ssh_port=hello.ssh_port,
        host_key=hello.host_key,
        boot_id=hello.boot_id,
        serial=hello.serial,
        uuid=hello.uuid.lower(),
        mac=hello.mac.lower(),
    )
