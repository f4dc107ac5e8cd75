"""The Redfish driver: one kept session a BMC, the verbs of `capabilities.Bmc`, vendors' ways only as quirks."""

from __future__ import annotations

import asyncio

from fleetd.drivers.bmc import redfish_accounts, redfish_boot, redfish_media, redfish_power, redfish_tree
from fleetd.drivers.bmc.capabilities import BmcTarget
from fleetd.drivers.bmc.quirks import Quirk, quirks_of
from fleetd.drivers.bmc.redfish_answers import Document, decode_power, power_word, text
from fleetd.drivers.bmc.redfish_http import Http, read_certificate_pin
from fleetd.drivers.bmc.session import Call, Session, within
from fleetd.kit.clock import Clock, SystemClock
from fleetd.kit.errors import Busy, Unreachable, Unsupported
from fleetd.model.bmc import BmcAccount, SystemInfo, is_placeholder
from fleetd.model.power import BootDevice, PowerState, PowerVerb


class RedfishBmc:
    """One logged-in BMC; implements `capabilities.Bmc`. Made by `RedfishDriver.open`."""

    def __init__(self, session: Session, clock: Clock) -> None:
        self.session = session
        self.quirks: tuple[Quirk, ...] = ()
        self._clock = clock
        self._system_path = ""
        self._reset: tuple[str, tuple[str, ...] | None] | None = None
        self._finding = asyncio.Lock()

    # --- capabilities.Bmc ------------------------------------------------------------------------------------------

    async def power_state(self, *, timeout: float) -> PowerState:
        return await within(self._clock, timeout, "reading the power state", self._name, self.read_power)

    async def power(self, verb: PowerVerb, *, timeout: float) -> PowerState:
        async def work(call: Call) -> PowerState:
            return await redfish_power.set_power(self, call, verb)

        return await within(self._clock, timeout, f"power {verb}", self._name, work)

    async def set_boot_once(self, device: BootDevice, *, timeout: float, uefi: bool = True) -> None:
        async def work(call: Call) -> None:
            system, etag = await self._system(call)
            await redfish_boot.set_boot_once(
                self.session, call, self._system_path, system, etag, self.quirks, device
            )  # fmt: skip

        await within(self._clock, timeout, f"setting the next boot to {device}", self._name, work)

    async def insert_media(self, url: str, *, timeout: float) -> None:
        async def work(call: Call) -> None:
            system, _ = await self._system(call)
            await redfish_media.insert(self.session, call, system, self._system_path, url)

        await within(self._clock, timeout, "inserting virtual media", self._name, work)

    async def eject_media(self, *, timeout: float) -> None:
        async def work(call: Call) -> None:
            system, _ = await self._system(call)
            await redfish_media.eject(self.session, call, system, self._system_path)

        await within(self._clock, timeout, "ejecting virtual media", self._name, work)

    async def identify(self, on: bool, *, timeout: float) -> None:
        async def work(call: Call) -> None:
            system, etag = await self._system(call)
            if isinstance(system.get("LocationIndicatorActive"), bool):
                body: Document = {"LocationIndicatorActive": on}
            elif "IndicatorLED" in system:  # deprecated in 2019, still the only one of iDRAC9 and XCC
                body = {"IndicatorLED": "Blinking" if on else "Off"}
            else:
                raise Unsupported("this BMC has no identify LED", where=self._name)
            answer = await self.session.patch(call, self._system_path, body, etag)
            if not answer.ok and not on and "IndicatorLED" in body:
                # iDRAC9 knows Lit and Blinking only; Lit is its resting state (recorded R750).
                answer = await self.session.patch(call, self._system_path, {"IndicatorLED": "Lit"}, etag)
            if not answer.ok:
                raise self.session.error(answer, "switching the identify LED")

        await within(self._clock, timeout, "switching the identify LED", self._name, work)

    async def system(self, *, timeout: float) -> SystemInfo:
        return await within(self._clock, timeout, "reading the system", self._name, self._read_system)

    async def accounts(self, *, timeout: float) -> tuple[BmcAccount, ...]:
        async def work(call: Call) -> tuple[BmcAccount, ...]:
            return await redfish_accounts.accounts(self.session, call)

        return await within(self._clock, timeout, "reading the accounts", self._name, work)

    async def set_password(self, password: str, *, timeout: float) -> None:
        async def work(call: Call) -> None:
            await redfish_accounts.set_password(self.session, call, password)

        await within(self._clock, timeout, "setting the password", self._name, work)

    async def reset_bmc(self, *, timeout: float) -> None:
        await within(self._clock, timeout, "resetting the BMC", self._name, self._reset_bmc)

    async def close(self) -> None:
        await self.session.log_out()

    # --- what the verbs share -------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self.session.peer.name

    async def read_power(self, call: Call) -> PowerState:
        """The hot poll: one exchange, two words decoded."""
        if not self._system_path:
            return power_word((await self._system(call))[0].get("PowerState"))
        answer = await self.session.send(call, "GET", self._system_path)
        if answer.status != 200:
            raise self._while_booting(answer.status) or self.session.error(answer, "reading the power state")
        return decode_power(answer.body, self._name)

    async def reset_action(self, call: Call) -> tuple[str, tuple[str, ...] | None]:
        """(target, allowed types) of ComputerSystem.Reset, read once."""
        if self._reset is None:
            system, _ = await self._system(call)
            self._reset = await redfish_tree.action(self.session, call, system, "ComputerSystem.Reset")
        return self._reset

    async def _system(self, call: Call) -> tuple[Document, str]:
        """The host's ComputerSystem, fresh, with its ETag; finds it and its quirks the first time."""
        if not self._system_path:
            async with self._finding:
                if not self._system_path:
                    path, document, etag = await redfish_tree.find_host_system(self.session, call)
                    self.quirks = quirks_of(redfish_tree.facts_of(self.session.root, document))
                    for quirk in self.quirks:
                        self.session.also_busy(quirk.busy_ids())
                    self._system_path = path
                    return document, etag
        try:
            return await self.session.get_with_etag(call, self._system_path)
        except Unsupported as error:
            raise self._while_booting(404) or error from None

    def _while_booting(self, status: int) -> Busy | None:
        """404 of a system that was there before: a BMC that starts up fills its tree piece by piece."""
        if status != 404:
            return None
        return Busy("the BMC does not show its host now", why=f"{self._system_path} is gone", where=self._name)

    async def _read_system(self, call: Call) -> SystemInfo:
        document, _ = await self._system(call)
        serial = next(
            (found for found in (quirk.serial(document) for quirk in self.quirks) if found is not None),
            text(document, "SerialNumber"),
        )
        try:
            _, manager = await redfish_tree.find_manager(self.session, call, document, self._system_path)
        except Unsupported:
            manager = {}  # versions of the BMC stay unknown; the identity of the host does not hang on it
        return SystemInfo(
            manufacturer=_known(text(document, "Manufacturer")),
            model=_known(text(document, "Model")),
            serial=_known(serial.strip()[:256]),
            uuid=_known(text(document, "UUID").lower()),
            bios_version=_known(text(document, "BiosVersion")),
            bmc_version=_known(text(manager, "FirmwareVersion")),
            power=power_word(document.get("PowerState")),
        )

    async def _reset_bmc(self, call: Call) -> None:
        document, _ = await self._system(call)
        _, manager = await redfish_tree.find_manager(self.session, call, document, self._system_path)
        target, allowed = await redfish_tree.action(self.session, call, manager, "Manager.Reset")
        bodies: list[Document] = [
            {"ResetType": name} for name in ("GracefulRestart", "ForceRestart") if allowed is None or name in allowed
        ]
        if allowed is None:
            bodies.insert(0, {})  # HPE tells no values and takes none (gofish schemas/manager.go:663)
        answer = None
        for body in bodies:
            try:
                answer = await self.session.send(call, "POST", target, body)
            except Unreachable:
                return  # it went down before it could answer; the exchange before this one proves that it was there
            if answer.ok:
                return
            if answer.status not in (400, 405, 422, 501):
                break
        if answer is None:
            raise Unsupported("this BMC cannot restart itself", why=f"it offers {allowed}"[:200], where=self._name)
        raise self.session.error(answer, "resetting the BMC")


def _known(value: str) -> str:
    return "" if is_placeholder(value) else value


class RedfishDriver:
    """Opens sessions; all share one connector with one connection a BMC. Use it in one event loop."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or SystemClock()
        self._http = Http()

    async def read_pin(self, target: BmcTarget, *, timeout: float) -> str:
        """sha256 hex of the certificate (DER) shown now; nothing of the login is sent. Raises Unreachable."""
        return await read_certificate_pin(target.host, target.port, timeout=timeout)

    async def open(self, target: BmcTarget, *, timeout: float) -> RedfishBmc:
        """Log in.

        Raises:
            PinMismatch: before any byte of HTTP. AuthFailed, Unreachable, Busy, DeadlineExceeded, Garbled.
        """
        peer = self._http.peer(target.host, target.port, target.tls_pin)
        session = Session(self._http, peer, target.login, self._clock)
        await within(self._clock, timeout, "logging in", peer.name, session.log_in)
        return RedfishBmc(session, self._clock)

    async def close(self) -> None:
        """Drop every connection. Sessions not closed before stay open at their BMC until it forgets them."""
        await self._http.close()
