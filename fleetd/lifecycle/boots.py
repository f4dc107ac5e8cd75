"""Boots that fleetd starts, and the phone-homes that prove which host came up. Implements the desk the boot listener asks.

Identity is proven within one boot: its nonce came back, SMBIOS serial and UUID equal the BMC's and the inventory's, the
boot MAC matches, and SSH talks only to the host key that was phoned home. Nothing destructive happens on less.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from fleetd.drivers.boot.capabilities import BootHost, BootScript, Hello, ImageGrant, Sighting
from fleetd.drivers.ssh.capabilities import ShellTarget
from fleetd.drivers.ssh.keys import new_key_pair
from fleetd.kit.clock import Clock
from fleetd.kit.errors import Busy, Conflict, DeadlineExceeded, Denied, IdentityUnproven, NotFound, Permanent
from fleetd.kit.ids import new_id
from fleetd.kit.logs import get
from fleetd.kit.rate import Meter
from fleetd.lifecycle.boottrail import Answer, Diagnosis, Entry, Trail, diagnose
from fleetd.lifecycle.tickets import Tickets
from fleetd.model.bmc import is_placeholder
from fleetd.model.boot import Boot, Environment
from fleetd.model.event import Event
from fleetd.model.host import Host, State
from fleetd.model.image import Manifest
from fleetd.store import boots as rows
from fleetd.store import events
from fleetd.store import hosts as host_rows
from fleetd.store.database import Database
from fleetd.store.secrets import Sealer

log = get("boots")

TICKET_SECONDS: Final = 6 * 3600.0  # a large image behind a full queue; the boot's end ends its tickets before
MAX_SIGHTINGS: Final = 1000  # in one call
DENIALS, DENIALS_SECONDS = 20, 600.0  # events of refused callers a host, and of all unknown ones together
EVERYWHERE: Final = "*"
TRIES: Final = 5  # to write what was judged, before others write


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Boots:
    """One per daemon. Tokens of armed boots live in memory only: after a crash the boot step arms a fresh boot.

    Args:
        base_url: where hosts reach the boot listener; stands in seeds of written images.
        mirrors: by rack, and `*` for all: URLs that serve images as `<mirror>/<sha256>`.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        sealer: Sealer,
        base_url: str,
        mirrors: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._db, self._clock, self._sealer = db, clock, sealer
        self.base_url = base_url.rstrip("/")
        self._mirrors = dict(mirrors or {})
        self._tickets = Tickets(sealer.derive("image-tickets"))
        self._meter = Meter(DENIALS, DENIALS_SECONDS)
        self._trail = Trail(clock.wall())
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
            self.forget(boot)

    def forget(self, boot: Boot) -> None:
        """Nobody waits for it any more: who asks for its script is sent to the disk. Safe to call twice."""
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

    async def contested(self, host: Host) -> str:
        """Why the host's open boot may not be believed: a second machine came as this host. Empty: nobody did."""
        boot = await rows.open_of(self._db, host.id)
        return boot.contested if boot is not None else ""

    # --- images and the doctor -------------------------------------------------------------------------------------

    def image_urls(self, boot: Boot, host: Host, manifest: Manifest) -> list[str]:
        """Where this host fetches the image in this boot, best first: mirrors of its rack, of all, the boot service itself."""
        mirrors = [*self._mirrors.get(host.spec.rack, ()), *self._mirrors.get(EVERYWHERE, ())]
        ticket = self._tickets.issue(boot.id, manifest.sha256, self._clock.wall() + TICKET_SECONDS)
        return [
            *dict.fromkeys(f"{mirror.rstrip('/')}/{manifest.sha256}" for mirror in mirrors),
            f"{self.base_url}/images/{manifest.sha256}?ticket={ticket}",
        ]

    async def doctor(self, host: Host) -> tuple[Boot | None, list[Entry], Diagnosis]:
        """The host's open boot, what was seen of it, and what that means."""
        boot = await rows.open_of(self._db, host.id)
        entries = self._trail.of(host)
        seen = [*entries, *self._trail.relays()]
        waited = boot is not None and boot.id in self._waiters
        return boot, entries, diagnose(host, boot, seen, self._clock.wall(), waited=waited)

    @property
    def remembers_since(self) -> float:
        """Wall second of the start: what was seen before is not known any more."""
        return self._trail.since

    # --- the desk the listener asks ------------------------------------------------------------------------------------

    async def script(self, mac: str, *, uuid: str, serial: str, source: str) -> BootScript:
        def note(answer: Answer, detail: str = "") -> None:
            self._see("script", mac, source, detail, answer, serial=serial, uuid=uuid)

        boot = await rows.armed_for_mac(self._db, mac)
        if boot is None or boot.expires < self._clock.wall() or boot.id not in self._tokens:
            await self._second(mac, uuid=uuid, serial=serial, source=source)
            note("local", await self._why_local(mac, boot))
            return BootScript()
        host = await host_rows.get(self._db, boot.host)
        if serial != host.spec.serial or uuid.lower() != host.status.observed.uuid.lower():
            # A MAC is printed on every frame; who cannot tell the board's serial and UUID too gets no token.
            asked = f"serial {serial[:40]!r}, UUID {uuid[:40]!r}"
            note("denied", asked)
            await self._audit(host, source, f"it asked for the boot script as {asked}")
            return BootScript()
        note("boot")
        return BootScript(host=boot.host, token=self._tokens[boot.id])

    async def authorized_keys(self, token: str, *, source: str) -> str:
        boot, host = await self._of_token(token, source, "keys")
        self._see("keys", host.spec.boot_mac, source, "", "boot")
        return boot.public_key

    async def hello(self, token: str, hello: Hello, *, source: str) -> None:
        if await self._restarted(token, hello, source):
            return
        for _ in range(TRIES):
            boot, host = await self._of_token(token, source, "hello")
            with contextlib.suppress(Conflict):  # written since it was read: by another phone-home, or by a newer boot
                await self._heard(boot, host, hello, source)
                return
        raise Busy("this boot changes too often to be judged", retry_after=1.0)

    async def _restarted(self, token: str, hello: Hello, source: str) -> bool:
        """Whether the system on the disk was switched off and on again, after which no newer boot came: nothing opens."""
        boot = await rows.by_token(self._db, token_hash(token))
        if boot is None or boot.closed is None or boot.met is None or boot.environment != "disk":
            return False
        newest = await rows.newest_of(self._db, boot.host)
        same = (boot.host_key, boot.source) == (hello.host_key, source)
        if not same or newest is None or newest.id != boot.id:
            return False
        return not self._mismatch(await host_rows.get(self._db, boot.host), boot, hello)

    async def _heard(self, boot: Boot, host: Host, hello: Hello, source: str) -> None:
        """Judge a phone-home by the boot as read. Raises Denied; Conflict when it changed since."""
        if boot.met is not None:
            # The same boot repeats itself: its answer got lost. Or the system on the disk was started again, where it was.
            restarted = boot.environment == "disk" and boot.source == source
            if boot.host_key == hello.host_key and (boot.boot_id == hello.boot_id or restarted):
                self._wake(boot)
                return
            if not self._mismatch(host, boot, hello):
                await self._contest(host, boot, source, "phoned home as it, with another key")
            await self._deny(host, source, "the token of this boot was used already")
        if wrong := self._mismatch(host, boot, hello):
            # Remembered, not believed: a stranger's call must not end the wait for the right host.
            if boot.id in self._waiters:
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
        self._see("hello", host.spec.boot_mac, source, f"{boot.environment}, {_sees(hello)}".strip(", "), "boot")
        self._wake(met)

    def _wake(self, met: Boot) -> None:
        """Whoever waits for it. Also on a repeated phone-home: the first may have been cut off right behind its write."""
        waiter = self._waiters.get(met.id)
        if waiter is not None and not waiter.done():
            waiter.set_result(met)

    async def grant(self, digest: str, ticket: str, *, source: str) -> ImageGrant:
        try:
            boot = await rows.get(self._db, self._tickets.read(ticket, digest, self._clock.wall()))
        except (Denied, NotFound) as error:
            await self._audit(None, source, f"image {digest[:12]}: {error.why or error.what}")
            raise Denied("this image ticket is not valid", remedy="boot the host again through fleetd") from error
        host = await host_rows.get(self._db, boot.host)
        if boot.closed is not None or boot.met is None or boot.environment != "deploy":
            why = (
                f"image {digest[:12]}: its boot is over"
                if boot.closed
                else f"image {digest[:12]}: no deploy boot is up"
            )
            await self._audit(host, source, why)
            raise Denied("this image ticket is not valid", remedy="boot the host again through fleetd")
        return ImageGrant(host=host.id, rack=host.spec.rack, expires=self._tickets.expires(ticket))

    async def hosts(self) -> list[BootHost]:
        return [
            BootHost(name=host.name, mac=host.spec.boot_mac.lower(), rack=host.spec.rack, site=host.spec.site)
            for host in await host_rows.every(self._db)
            if host.state is not State.RETIRED and host.spec.boot_mac
        ]

    async def seen(self, sightings: list[Sighting]) -> None:
        for one in sightings[:MAX_SIGHTINGS]:
            if one.stage not in ("script", "keys", "hello"):  # those are answered here, and known better
                self._trail.add(Entry(stage=one.stage, at=one.at, mac=one.mac, source=one.source, detail=one.detail))

    def _see(self, stage: str, mac: str, source: str, detail: str, answer: Answer, **known: str) -> None:
        at = self._clock.wall()
        self._trail.add(Entry(stage=stage, at=at, mac=mac, source=source, detail=detail, answer=answer, **known))

    async def _why_local(self, mac: str, armed: Boot | None) -> str:
        """Why a machine that asked for its script is sent to its disk, for the doctor."""
        if armed is not None:
            late = armed.expires < self._clock.wall()
            return (
                "the armed boot expired" if late else "no step waits for the armed boot: it ended, or fleetd restarted"
            )
        host = await host_rows.by_mac(self._db, mac)
        if host is None:
            return "no host of the inventory has this MAC"
        boot = await rows.open_of(self._db, host.id)
        if boot is None:
            return "no boot is armed"
        return (
            "it came up in this boot already" if boot.met is not None else f"a boot from {boot.environment} is expected"
        )

    async def _second(self, mac: str, *, uuid: str, serial: str, source: str) -> None:
        """Who asks for the script of a deploy boot that is up, from elsewhere, with the board's own serial and UUID, is
        the host itself, and what came first was a stranger; or the other way round. MAC, serial and UUID are no secrets:
        every tenant has read them. A host that restarted by itself asks from the address it had.
        """
        host = await host_rows.by_mac(self._db, mac)
        for _ in range(TRIES):
            boot = await rows.open_of(self._db, host.id) if host is not None else None
            if (
                host is None
                or boot is None
                or boot.met is None
                or boot.environment != "deploy"
                or source == boot.source
            ):
                return
            if serial != host.spec.serial or uuid.lower() != host.status.observed.uuid.lower():
                return
            with contextlib.suppress(Conflict):  # written since it was read: looked at again
                await self._contest(host, boot, source, "asked for its boot script")
                return
        raise Busy("this boot changes too often to be judged", retry_after=1.0)

    async def _contest(self, host: Host, boot: Boot, source: str, what: str) -> None:
        """Remember it with the boot: the step that works in it fails, and all its work is done again in another.

        Raises Conflict when the boot changed since it was read.
        """
        if boot.contested:
            return
        why = f"{boot.source} came up as {host.name}, and then {source[:64]} {what}"
        event = Event(
            kind="boot.contested", at=self._clock.wall(), site=host.spec.site, host=host.id, data={"why": why}
        )
        await self._db.commit([rows.save(msgspec.structs.replace(boot, contested=why)), events.append(event)])
        log.warning("boot.contested", host=host.name, why=why)

    async def _of_token(self, token: str, source: str, stage: str) -> tuple[Boot, Host]:
        boot = await rows.by_token(self._db, token_hash(token))
        if boot is None:
            await self._audit(None, source, f"{stage}: the token is unknown")
        elif boot.closed is not None or (boot.met is None and boot.expires < self._clock.wall()):
            host = await host_rows.get(self._db, boot.host)
            why = f"the token is of a boot that {'is closed' if boot.closed is not None else 'expired'}"
            self._see(stage, host.spec.boot_mac, source, why, "denied")
            await self._audit(host, source, why)
        else:
            return boot, await host_rows.get(self._db, boot.host)
        raise Denied("this boot token is not valid", remedy="boot the host again through fleetd")

    async def _deny(self, host: Host, source: str, why: str) -> None:
        self._see("hello", host.spec.boot_mac, source, why, "denied")
        await self._audit(host, source, why)
        raise Denied("this phone-home is refused", why=why, remedy=f"fleetctl host why {host.name}")

    async def _audit(self, host: Host | None, source: str, why: str) -> None:
        """A refused caller leaves an event, but a flood of them only a few: the rest is counted in the next."""
        held = self._meter.take(host.id if host is not None else "", self._clock.steady())
        if held is None:
            return
        log.warning(
            "boot.denied", host=host.name if host is not None else "", source=source, reason=why, held_back=held
        )
        event = Event(
            kind="boot.denied",
            at=self._clock.wall(),
            site=host.spec.site if host is not None else "",
            host=host.id if host is not None else None,
            data={"source": source[:64], "why": why[:300], **({"held_back": held} if held else {})},
        )
        await self._db.commit([events.append(event)])

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


def _sees(hello: Hello) -> str:
    """What the environment says it found, in one line for people."""
    return ", ".join(f"{key[:20]} {value[:40]}" for key, value in sorted(hello.sees.items())[:8])


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
