"""BMC passwords: one per host, sealed at rest, changed in an order that a crash at any point survives.

Order: store the new password sealed as `pending`, set it, log in with it, promote. After a crash: try pending, then the old.
There is no fallback to a factory password outside enrolling.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec

from fleetd.drivers.bmc.capabilities import Bmc, BmcDrivers, BmcTarget
from fleetd.kit.clock import Clock
from fleetd.kit.errors import AuthFailed, Invalid
from fleetd.model.bmc import Login
from fleetd.model.host import Host
from fleetd.store import secrets as rows
from fleetd.store.database import Database, Op
from fleetd.store.secrets import Sealer

KIND = "bmc"
_ALPHABET = string.ascii_letters + string.digits
LENGTH = 16  # IPMI 1.5 fields hold 16 bytes, IPMI 2.0 20; letters and digits survive every vendor's rules


class Credentials:
    """Logins for BMCs. `factory` maps the names the inventory uses to factory logins (from the configuration)."""

    def __init__(
        self, db: Database, clock: Clock, sealer: Sealer, drivers: BmcDrivers, factory: Mapping[str, Login]
    ) -> None:
        self._db, self._clock, self._sealer, self._drivers, self._factory = db, clock, sealer, drivers, factory

    def factory(self, host: Host) -> Login:
        """The factory login the inventory names. Raises Invalid when the configuration lacks it."""
        name = host.spec.bmc.credentials
        if name not in self._factory:
            raise Invalid(
                f"credentials `{name}` of host {host.name} are not configured",
                remedy=f"add `{name}` under `credentials:` in fleetd.yaml and reload",
            )
        return self._factory[name]

    def target(self, host: Host, login: Login, *, pin: str | None = None) -> BmcTarget:
        bmc = host.spec.bmc
        pin = host.status.observed.tls_pin if pin is None else pin
        return BmcTarget(protocol=bmc.protocol, host=bmc.host, port=bmc.port, login=login, tls_pin=pin)

    async def _known(self, host: Host) -> list[tuple[str, Login]]:
        """Passwords that may be set now, in the order to try: pending (a rotation was cut short), then current."""
        stored = await rows.get(self._db, host.id, KIND)
        return [
            (status, msgspec.json.decode(self._sealer.open(stored[status], context=self._context(host)), type=Login))
            for status in ("pending", "current")
            if status in stored
        ]

    async def open(self, host: Host, *, timeout: float, pin: str | None = None, enrolling: bool = False) -> Bmc:
        """A session with the host's own login; while enrolling, the factory's is the last to try."""
        logins = await self._known(host)
        if enrolling:
            logins.append(("factory", self.factory(host)))
        if not logins:
            raise AuthFailed(
                f"fleetd holds no password for the BMC of {host.name}", remedy="enroll it: `fleetctl rack bringup`"
            )
        error: AuthFailed | None = None
        for status, login in logins:
            try:
                bmc = await self._drivers.open(self.target(host, login, pin=pin), timeout=timeout)
            except AuthFailed as refused:
                error = refused
                continue
            if status == "pending":
                # A rotation was cut short after the BMC took it. Promoted before the next may overwrite it: two cuts in
                # a row would else leave a password that nobody knows.
                await self._db.commit(rows.promote(host.id, KIND, self._clock.wall()))
            return bmc
        assert error is not None
        raise error

    @asynccontextmanager
    async def session(self, host: Host, *, timeout: float = 30.0) -> AsyncIterator[Bmc]:
        """A session that is logged out at the end (slots are few)."""
        bmc = await self.open(host, timeout=timeout)
        try:
            yield bmc
        finally:
            await bmc.close()

    async def rotate(self, host: Host, bmc: Bmc, *, username: str, timeout: float, pin: str | None = None) -> None:
        """Give the account a password of its own and prove it by a new login. The old session may die of it."""
        login = Login(username=username, password="".join(secrets.choice(_ALPHABET) for _ in range(LENGTH)))
        sealed = self._sealer.seal(msgspec.json.encode(login).decode(), context=self._context(host))
        await self._db.commit(rows.put(host.id, KIND, "pending", sealed, self._clock.wall()))
        await bmc.set_password(login.password, timeout=timeout)
        proof = await self._drivers.open(self.target(host, login, pin=pin), timeout=timeout)
        await proof.close()
        await self._db.commit(rows.promote(host.id, KIND, self._clock.wall()))

    async def username(self, host: Host) -> str:
        """The account that is ours on this BMC."""
        known = await self._known(host)
        return known[0][1].username if known else self.factory(host).username

    # --- what a written image was seeded with --------------------------------------------------------------------------

    def keep_seed(self, host: Host, seed: Seed) -> list[Op]:
        """Ops that store the seed of the image on the host's disk."""
        sealed = self._sealer.seal(msgspec.json.encode(seed).decode(), context=self._context(host))
        return rows.put(host.id, "disk-seed", "current", sealed, self._clock.wall())

    async def seed(self, host: Host) -> Seed | None:
        stored = await rows.get(self._db, host.id, "disk-seed")
        if "current" not in stored:
            return None
        return msgspec.json.decode(self._sealer.open(stored["current"], context=self._context(host)), type=Seed)

    @staticmethod
    def _context(host: Host) -> str:
        return f"host:{host.id}"


class Seed(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of the system on the host's disk. `private_key` is empty on a tenant's image: fleetd has no way in."""

    token: str
    host_key: str
    private_key: str = ""
    public_key: str = ""

    def __repr__(self) -> str:
        return "Seed(***)"
