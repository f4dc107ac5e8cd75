"""The IPMI driver: power, boot, identity and accounts of a host whose BMC speaks no Redfish worth using.

Everything a BMC confirms is read back where IPMI lets us. One request is in flight per BMC; a session that the BMC
forgot (idle, reset) is opened again without the caller noticing, within the caller's deadline.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Final

from fleetd.drivers.bmc.capabilities import BmcTarget
from fleetd.drivers.bmc.ipmi_fru import read_fru
from fleetd.drivers.bmc.ipmi_mux import Address, Mux, OpenDatagrams, UdpDatagrams
from fleetd.drivers.bmc.ipmi_session import Session, login
from fleetd.kit.clock import Clock, SystemClock
from fleetd.kit.errors import AuthFailed, Busy, DeadlineExceeded, FleetError, Garbled, Lied, Unreachable, Unsupported
from fleetd.kit.retry import backoff
from fleetd.kit.tasks import deadline, gather_bounded
from fleetd.model.bmc import BmcAccount, SystemInfo, is_placeholder, told
from fleetd.model.power import BootDevice, PowerState, PowerVerb
from fleetd.wire import ipmi
from fleetd.wire.rakp import MAX_PASSWORD, name_bytes, password_bytes

IDLE_LIMIT: Final = 50.0  # seconds; a BMC drops a session after 60 s ± 3 s without a message (IPMI 6.12.15)
BUSY_TRIES: Final = 6
LOGIN_TRIES: Final = 4  # while the BMC's session table is full
_FIRST_POLL, _LAST_POLL = 0.05, 2.0  # seconds between two read-backs of a power verb
_CLOSE_PATIENCE: Final = 3.0  # seconds for a polite log-out
_MAX_USERS: Final = 63  # user ids have six bits (IPMI 22.26)
_NO_SUCH_USER: Final = frozenset((ipmi.OUT_OF_RANGE, ipmi.NOT_PRESENT, ipmi.INVALID_FIELD))
_SHORT_PASSWORD: Final = 16  # bytes that every BMC can hold (IPMI 22.30)
_ANOTHER_PASSWORD: Final = frozenset((ipmi.PASSWORD_WRONG, ipmi.PASSWORD_WRONG_SIZE))
_SUITES_KEPT: Final = 100_000  # addresses whose cipher suite is remembered


def failure(what: str, code: int) -> FleetError:
    """A completion code other than 0 as a typed error (IPMI 5.2)."""
    why = ipmi.code_text(code)
    if code in ipmi.CODES_BUSY:
        return Busy(what, why=why)
    if code == ipmi.NO_PRIVILEGE:
        return AuthFailed(what, why=why, remedy="give the BMC account ADMINISTRATOR privilege on the LAN channel")
    return Unsupported(what, why=why)


class IpmiBmc:
    """One logged-in session with one BMC: the `Bmc` of capabilities.py. Made by `IpmiDriver.open`."""

    __slots__ = ("_address", "_closed", "_driver", "_free", "_key", "_mux", "_name", "_occupied", "_session")

    def __init__(self, driver: IpmiDriver, mux: Mux, address: Address, name: bytes, key: bytes) -> None:
        self._driver, self._mux, self._address = driver, mux, address
        self._name, self._key = name, key
        self._session: Session | None = None
        self._occupied = self._closed = False
        self._free: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<IpmiBmc {self._address[0]}:{self._address[1]}>"

    # --- power ------------------------------------------------------------------------------------------------------

    async def power_state(self, *, timeout: float) -> PowerState:
        """Read it now. Raises as capabilities.py says."""
        return await self._power_state(self._end(timeout))

    async def power(self, verb: PowerVerb, *, timeout: float) -> PowerState:
        """Do it and read back until it is so; returns what the read-back said.

        RESET of a stopped host starts nothing and returns OFF: BMCs confirm that request and ignore it.

        Raises:
            Lied: confirmed, and the state did not follow. DeadlineExceeded: the operating system ignored SOFT.
        """
        end, margin = self._end(timeout), min(0.5, timeout / 5)
        state = await self._power_state(end)
        if verb is PowerVerb.ON:
            return await self._switch(state, ipmi.POWER_UP, PowerState.ON, end, margin)
        if verb is PowerVerb.OFF:
            return await self._switch(state, ipmi.POWER_DOWN, PowerState.OFF, end, margin)
        if verb is PowerVerb.SOFT:
            return await self._switch(state, ipmi.SOFT_DOWN, PowerState.OFF, end, margin)
        if verb is PowerVerb.CYCLE:
            state = await self._switch(state, ipmi.POWER_DOWN, PowerState.OFF, end, margin)
            return await self._switch(state, ipmi.POWER_UP, PowerState.ON, end, margin)
        if state is PowerState.OFF:
            return state
        await self._call(ipmi.CHASSIS, ipmi.CHASSIS_CONTROL, bytes((ipmi.HARD_RESET,)), end)
        return await self._follow(ipmi.HARD_RESET, PowerState.ON, end, margin)

    async def _power_state(self, end: float) -> PowerState:
        status = await self._call(ipmi.CHASSIS, ipmi.CHASSIS_STATUS, b"", end, privilege=ipmi.USER)
        if len(status) < 3:
            raise Garbled(f"{self._address[0]}: a chassis status of {len(status)} bytes")
        return PowerState.ON if status[0] & 1 else PowerState.OFF

    async def _switch(
        self, state: PowerState, control: int, wanted: PowerState, end: float, margin: float
    ) -> PowerState:
        if state is wanted:
            return state
        await self._call(ipmi.CHASSIS, ipmi.CHASSIS_CONTROL, bytes((control,)), end)
        return await self._follow(control, wanted, end, margin)

    async def _follow(self, control: int, wanted: PowerState, end: float, margin: float) -> PowerState:
        """Poll until the state is the wanted one; the last look is taken `margin` seconds before the end."""
        pause = _FIRST_POLL
        while True:
            state = await self._power_state(end)
            if state is wanted:
                return state
            left = end - margin - self._mux.loop.time()
            if left <= 0:
                break
            await self._driver.clock.sleep(min(pause, left))
            pause = min(pause * 1.6, _LAST_POLL)
        what = f"{self._address[0]}: the host is still {state} after it was told to be {wanted}"
        if control == ipmi.SOFT_DOWN:
            raise DeadlineExceeded(
                what,
                why="its system did not shut down when asked",
                remedy="`fleetctl host power HOST off` cuts the power",
            )
        raise Lied(what, why="the BMC confirmed the command")

    # --- boot, identify ---------------------------------------------------------------------------------------------

    async def set_boot_once(self, device: BootDevice, *, timeout: float, uefi: bool = True) -> None:
        """The next boot only; reads the selector back, because some BMCs drop the other bits (ipmi_sim does)."""
        end = self._end(timeout)
        selector = ipmi.BOOT_SELECTOR[device]
        with suppress(Unsupported):  # optional: without it the choice still holds for a minute
            # Else the BMC forgets the choice when the host is not started within 60 s (IPMI 28.12, parameter 3).
            await self._set_boot(bytes((ipmi.BOOT_VALID_CLEARING, ipmi.KEEP_ON_TIMEOUT)), end)
        flags = ipmi.FLAGS_VALID | (ipmi.FLAGS_EFI if uefi else 0)
        try:
            await self._set_boot(bytes((ipmi.BOOT_FLAGS, flags, selector, 0, 0, 0)), end)
        except Unsupported:  # a BMC from before UEFI refuses the EFI bit
            if not uefi:
                raise
            await self._set_boot(bytes((ipmi.BOOT_FLAGS, ipmi.FLAGS_VALID, selector, 0, 0, 0)), end)
        kept = await self._call(ipmi.CHASSIS, ipmi.GET_BOOT_OPTIONS, bytes((ipmi.BOOT_FLAGS, 0, 0)), end)
        if len(kept) < 4 or kept[1] & 0x7F != ipmi.BOOT_FLAGS:
            raise Garbled(f"{self._address[0]}: boot options of another shape")
        if kept[3] & ipmi.SELECTOR_MASK != selector:
            raise Lied(f"{self._address[0]}: the BMC confirmed `{device}` for the next boot and did not keep it")

    async def _set_boot(self, data: bytes, end: float) -> None:
        await self._call(ipmi.CHASSIS, ipmi.SET_BOOT_OPTIONS, data, end)

    async def insert_media(self, url: str, *, timeout: float) -> None:
        """Raises Unsupported: IPMI has no virtual media that two vendors agree on."""
        raise self._no_media()

    async def eject_media(self, *, timeout: float) -> None:
        """Raises Unsupported."""
        raise self._no_media()

    def _no_media(self) -> Unsupported:
        return Unsupported(
            f"{self._address[0]}: virtual media is not part of IPMI",
            remedy="boot this host by network (`boot_via: network` in its SKU), or reach its BMC by Redfish",
        )

    async def identify(self, on: bool, *, timeout: float) -> None:
        """The identify LED; where a BMC cannot hold it, on means 255 s."""
        end = self._end(timeout)
        if not on:
            await self._call(ipmi.CHASSIS, ipmi.CHASSIS_IDENTIFY, b"\x00", end)
            return
        try:
            await self._call(ipmi.CHASSIS, ipmi.CHASSIS_IDENTIFY, b"\x00\x01", end)
        except Unsupported:  # the second byte is optional (IPMI 28.5)
            await self._call(ipmi.CHASSIS, ipmi.CHASSIS_IDENTIFY, b"\xff", end)

    # --- inventory --------------------------------------------------------------------------------------------------

    async def system(self, *, timeout: float) -> SystemInfo:
        """Identity from FRU 0 (product area, then board area), the system GUID and the device id.

        The serial is the product's, as SMBIOS has it; the board's own stands in for it only where there is no product
        area. The BMC's version has two numbers: what stands in the auxiliary bytes is the vendor's own.
        """
        end = self._end(timeout)
        device = await self._call(ipmi.APP, ipmi.GET_DEVICE_ID, b"", end, privilege=ipmi.USER)
        if len(device) < 11:
            raise Garbled(f"{self._address[0]}: a device id of {len(device)} bytes")

        async def ask(network_function: int, command: int, data: bytes) -> tuple[int, bytes]:
            return await self._ask(network_function, command, data, end, ipmi.USER)

        board, product = await read_fru(ask)
        texts = {
            "manufacturer": product.manufacturer or board.manufacturer,
            "model": product.name or board.name,
            "serial": product.serial if any(product) else board.serial,
            "uuid": await self._uuid(end),
            "bios_version": await self._firmware_version(end),
            "bmc_version": f"{device[2] & 0x7F}.{device[3]:02x}",
        }
        known = {field: "" if is_placeholder(text) else text for field, text in texts.items()}
        return SystemInfo(**known, power=await self._power_state(end))

    async def _uuid(self, end: float) -> str:
        for command in (ipmi.GET_SYSTEM_GUID, ipmi.GET_DEVICE_GUID):
            code, data = await self._ask(ipmi.APP, command, b"", end, ipmi.USER)
            if code == ipmi.OK:
                return ipmi.guid_text(data)
        return ""

    async def _firmware_version(self, end: float) -> str:
        """System firmware (BIOS) version, if the BMC was told it: Get System Info parameter 1, at most 3 blocks."""
        text, length = b"", 0
        for block in range(3):
            asked = bytes((0, ipmi.SYSTEM_FIRMWARE_VERSION, block, 0))
            code, data = await self._ask(ipmi.APP, ipmi.GET_SYSTEM_INFO, asked, end, ipmi.USER)
            if code != ipmi.OK or len(data) < 4:
                break
            if block == 0:
                length = data[3]
                text += data[4:18]
            else:
                text += data[2:18]
            if len(text) >= length:
                break
        raw = text[:length].rstrip(b"\0")
        return "".join(char for char in raw.decode("utf-8", "replace") if char.isprintable()).strip()

    # --- accounts, reset --------------------------------------------------------------------------------------------

    async def accounts(self, *, timeout: float) -> tuple[BmcAccount, ...]:
        """Every user id of this BMC that has a name or may log in (IPMI 22.27, 22.29), with its rights on our channel.

        A user's limit and its messaging are set for each channel by itself: what a user may do on another one, such as a
        second LAN port or the serial line, is not told here. Its name and whether it is disabled hold for all.
        """
        end = self._end(timeout)
        found, user, last = [], 1, 1
        while user <= last:
            asked = bytes((ipmi.THIS_CHANNEL, user))
            code, data = await self._ask(ipmi.APP, ipmi.GET_USER_ACCESS, asked, end, ipmi.ADMINISTRATOR)
            if code != ipmi.OK and (user == 1 or code not in _NO_SUCH_USER):
                raise failure(f"{self._address[0]}: the access of user {user}", code)
            access = ipmi.read_user_access(data) if code == ipmi.OK else None
            if user == 1 and access is not None:
                last = min(access.users, _MAX_USERS)
            # Many answer "invalid field" for an id without a name (ipmitool's user list takes it as that, too).
            code, data = await self._ask(ipmi.APP, ipmi.GET_USER_NAME, bytes((user,)), end, ipmi.ADMINISTRATOR)
            if code != ipmi.OK and code not in _NO_SUCH_USER:
                raise failure(f"{self._address[0]}: the name of user {user}", code)
            name = told(data[:16].rstrip(b"\0 ").decode("utf-8", "backslashreplace")) if code == ipmi.OK else ""
            if access is None and name:
                found.append(BmcAccount(id=str(user), name=name, role="not told", enabled=True))
            elif access is not None and (name or (access.enabled and access.level != ipmi.NO_ACCESS)):
                found.append(BmcAccount(id=str(user), name=name, role=access.role, enabled=access.enabled))
            user += 1
        if not found:
            raise Unsupported(
                f"{self._address[0]}: the BMC lists no user", why="its accounts come from elsewhere (LDAP)"
            )
        return tuple(found)

    async def set_password(self, password: str, *, timeout: float) -> None:
        """Give our own account this password, and let the BMC test it where it can.

        Raises:
            Unsupported: longer than 20 bytes; longer than 16 and this BMC cuts there (the old one is put back); or the
                BMC keeps no list of names.
            Lied: its test says that it holds another (the old one is put back).
        """
        end = self._end(timeout)
        key, old = password_bytes(password), self._key
        user = await self._user_id(end)
        await self._write_password(user, key, end)
        self._key = key  # a new login of this session uses it already
        if await self._test_password(user, key, MAX_PASSWORD, end) in _ANOTHER_PASSWORD:
            await self._put_back(user, old, end)
            raise Lied(
                f"{self._address[0]}: the BMC confirmed the new password and holds another",
                why="the old password was put back",
                remedy=f"use a password of at most {_SHORT_PASSWORD} plain characters for this host",
            )
        # ipmi_sim and BMCs like it keep 16 bytes of 20 and even pass the test: nobody could log in any more.
        if len(key) > _SHORT_PASSWORD and await self._test_password(user, key, _SHORT_PASSWORD, end) == ipmi.OK:
            await self._put_back(user, old, end)
            raise Unsupported(
                f"{self._address[0]}: the BMC keeps only {_SHORT_PASSWORD} bytes of a password",
                why="the old password was put back",
                remedy=f"use a password of at most {_SHORT_PASSWORD} characters for this host",
            )

    async def _put_back(self, user: int, old: bytes, end: float) -> None:
        await self._write_password(user, old, end)
        self._key = old

    async def _write_password(self, user: int, key: bytes, end: float) -> None:
        head = bytes((user | ipmi.PASSWORD_20_BYTES, ipmi.PASSWORD_SET))
        await self._call(ipmi.APP, ipmi.SET_USER_PASSWORD, head + key.ljust(MAX_PASSWORD, b"\0"), end)

    async def _test_password(self, user: int, key: bytes, size: int, end: float) -> int:
        """The completion code of testing the first `size` bytes: 16 or 20."""
        flag = ipmi.PASSWORD_20_BYTES if size == MAX_PASSWORD else 0
        tested = bytes((user | flag, ipmi.PASSWORD_TEST)) + key[:size].ljust(size, b"\0")
        code, _ = await self._ask(ipmi.APP, ipmi.SET_USER_PASSWORD, tested, end, ipmi.ADMINISTRATOR)
        return code

    async def _user_id(self, end: float) -> int:
        access = await self._call(ipmi.APP, ipmi.GET_USER_ACCESS, bytes((ipmi.THIS_CHANNEL, 1)), end)
        if not access:
            raise Garbled(f"{self._address[0]}: user access without the number of users")
        for user in range(1, min(access[0] & 0x3F, _MAX_USERS) + 1):
            code, name = await self._ask(ipmi.APP, ipmi.GET_USER_NAME, bytes((user,)), end, ipmi.ADMINISTRATOR)
            if code == ipmi.OK and name.rstrip(b"\0 ") == self._name:
                return user
        raise Unsupported(
            f"{self._address[0]}: the BMC lists no user of our name",
            why="its accounts come from elsewhere (LDAP), or the name is shown differently",
            remedy="log in with a local account of the BMC",
        )

    async def reset_bmc(self, *, timeout: float) -> None:
        """Cold reset. Many BMCs restart without a word: one that spoke before it and is deaf after it obeyed."""
        end = self._end(timeout)
        await self._call(ipmi.APP, ipmi.GET_DEVICE_ID, b"", end)
        await self._enter(end)
        try:
            session, self._session = self._session, None
            if session is None:
                raise Unreachable(f"{self._address[0]}: the session ended just before the cold reset")
            try:
                await self._cold_reset(session, end)
            finally:
                session.forget()
        finally:
            self._leave()

    async def _cold_reset(self, session: Session, end: float) -> None:
        for attempt in range(1, BUSY_TRIES + 1):
            try:
                reply = await session.request(ipmi.APP, ipmi.COLD_RESET, b"", end=end, tries=1)
            except Unreachable:
                try:  # was the command lost, or is the BMC gone?
                    await session.request(ipmi.APP, ipmi.GET_DEVICE_ID, b"", end=end, tries=2)
                except Unreachable:
                    return
                continue
            if reply[0] == ipmi.OK:
                return
            if reply[0] not in ipmi.CODES_BUSY or attempt == BUSY_TRIES:
                raise failure(f"{self._address[0]}: cold reset", reply[0])
            await self._driver.clock.sleep(backoff(attempt, first=0.2, cap=5.0))
        raise Unreachable(f"{self._address[0]}: the BMC answers everything but the cold reset")

    async def close(self) -> None:
        """Log out and drop the session. Never raises; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._driver.forget(self)
        end = self._end(_CLOSE_PATIENCE)
        try:
            await self._enter(end, closing=True)
        except Busy:
            if self._session is not None:
                self._session.farewell()
            return
        try:
            session, self._session = self._session, None
            if session is not None and session.silent:
                session.farewell()  # it did not answer the last request either
            elif session is not None:
                await session.close(end=end)
        finally:
            self._leave()

    # --- one request at a time --------------------------------------------------------------------------------------

    def _end(self, timeout: float) -> float:
        return self._mux.loop.time() + timeout

    async def _enter(self, end: float, *, closing: bool = False) -> None:
        while self._occupied:
            if self._free is None:
                self._free = self._mux.loop.create_future()
            left = end - self._mux.loop.time()
            if left <= 0:
                raise Busy(f"{self._address[0]}: another request of ours is still in flight")
            await asyncio.wait((self._free,), timeout=left)
        if self._closed and not closing:
            raise Unreachable(f"{self._address[0]}: this session was closed", remedy="open a new one")
        self._occupied = True

    def _leave(self) -> None:
        self._occupied = False
        if self._free is not None:
            self._free.set_result(None)
            self._free = None

    async def log_in(self, end: float) -> None:
        """Called once by the driver. Raises as `login` does."""
        await self._enter(end)
        try:
            await self._ready(end)
        finally:
            self._leave()

    async def _ready(self, end: float) -> Session:
        """A session that the BMC still knows, as far as one can tell."""
        session = self._session
        if session is not None and self._mux.loop.time() - session.heard > IDLE_LIMIT:
            session.farewell()
            session = self._session = None
        if session is None:
            session = self._session = await self._driver.login(self._mux, self._address, self._name, self._key, end)
        return session

    async def _once(self, network_function: int, command: int, data: bytes, end: float, privilege: int) -> bytes:
        """Log in and raise the privilege if need be, then ask. Returns completion code and data."""
        session = await self._ready(end)
        if session.privilege < privilege:
            # Lazily: a poll of the power state needs USER only, and one round trip less (IPMI 22.18).
            reply = await session.request(ipmi.APP, ipmi.SET_PRIVILEGE, bytes((privilege,)), end=end)
            if reply[0] in ipmi.CODES_BUSY:
                return reply
            if reply[0] != ipmi.OK:
                raise AuthFailed(
                    f"{self._address[0]}: our account may not act as ADMINISTRATOR",
                    why=ipmi.code_text(reply[0]),
                    remedy="give the BMC account ADMINISTRATOR privilege on the LAN channel",
                )
            session.privilege = privilege
        return await session.request(network_function, command, data, end=end)

    async def _exchange(self, network_function: int, command: int, data: bytes, end: float, privilege: int) -> bytes:
        await self._enter(end)
        try:
            try:
                return await self._once(network_function, command, data, end, privilege)
            except Unreachable:
                # Silence inside a session: the BMC forgot it, or is gone. A new login tells which.
                if self._session is None or self._mux.loop.time() >= end:
                    raise
                self._session.forget()
                self._session = None
            return await self._once(network_function, command, data, end, privilege)
        finally:
            self._leave()

    async def _ask(
        self, network_function: int, command: int, data: bytes, end: float, privilege: int
    ) -> tuple[int, bytes]:
        """Completion code and data, after waiting out a busy BMC. Raises Busy when it stays so."""
        attempt = 1
        while True:
            reply = await self._exchange(network_function, command, data, end, privilege)
            code = reply[0]
            if code == ipmi.NO_PRIVILEGE and privilege < ipmi.ADMINISTRATOR:
                privilege = ipmi.ADMINISTRATOR  # this BMC wants more than the specification for this command
                continue
            if code not in ipmi.CODES_BUSY:
                return code, reply[1:]
            pause = backoff(attempt, first=0.2, cap=5.0)
            if attempt == BUSY_TRIES or self._mux.loop.time() + pause >= end:
                raise failure(f"{self._address[0]}: command {network_function:#04x}/{command:#04x}", code)
            await self._driver.clock.sleep(pause)
            attempt += 1

    async def _call(
        self, network_function: int, command: int, data: bytes, end: float, *, privilege: int = ipmi.ADMINISTRATOR
    ) -> bytes:
        code, reply = await self._ask(network_function, command, data, end, privilege)
        if code != ipmi.OK:
            raise failure(f"{self._address[0]}: command {network_function:#04x}/{command:#04x}", code)
        return reply


class IpmiDriver:
    """Opens sessions; all of them share one socket per address family.

    Args:
        clock: for the pauses between two tries and two read-backs; the system's by default.
        open_datagrams: what carries datagrams; a simulator's memory under virtual time.
    """

    def __init__(self, clock: Clock | None = None, open_datagrams: OpenDatagrams = UdpDatagrams) -> None:
        self.clock = clock or SystemClock()
        self._open_datagrams = open_datagrams
        self._muxes: dict[int, Mux] = {}
        self._bmcs: set[IpmiBmc] = set()
        self._suites: dict[Address, int] = {}

    async def read_pin(self, target: BmcTarget, *, timeout: float) -> str:
        """Empty: RMCP+ has no certificate. The BMC proves itself by knowing the password."""
        return ""

    async def open(self, target: BmcTarget, *, timeout: float) -> IpmiBmc:
        """Log in within `timeout` seconds.

        Raises:
            Unreachable: silence, or a name that does not resolve. Busy: the session table stays full.
            AuthFailed, Unsupported, Garbled: see `login`.
        """
        end = asyncio.get_running_loop().time() + timeout
        name, key = name_bytes(target.login.username), password_bytes(target.login.password)
        family, address = await _resolve(target.host, target.port, timeout)
        mux = self._muxes.get(family)
        if mux is None:
            mux = self._muxes[family] = Mux(family, self._open_datagrams)
        bmc = IpmiBmc(self, mux, address, name, key)
        await bmc.log_in(end)
        self._bmcs.add(bmc)
        return bmc

    async def login(self, mux: Mux, address: Address, name: bytes, key: bytes, end: float) -> Session:
        """`login` with what we know of this address; waits out a full session table as long as `end` allows."""
        attempt = 1
        while True:
            try:
                session = await login(mux, address, name, key, end=end, suite_id=self._suites.get(address))
            except Busy:
                pause = backoff(attempt, first=1.0, cap=5.0)
                if attempt == LOGIN_TRIES or mux.loop.time() + pause >= end:
                    raise
                await self.clock.sleep(pause)
                attempt += 1
            else:
                if session.suite == 17:
                    self._suites.pop(address, None)
                elif len(self._suites) < _SUITES_KEPT:
                    self._suites[address] = session.suite
                return session

    def forget(self, bmc: IpmiBmc) -> None:
        """It closes itself."""
        self._bmcs.discard(bmc)

    @property
    def traffic(self) -> dict[str, int]:
        """Datagrams since the start: sent, received, resent, dropped (belonging to nobody, forged or malformed)."""
        muxes = self._muxes.values()
        return {name: sum(getattr(mux, name) for mux in muxes) for name in ("sent", "received", "resent", "dropped")}

    async def close(self) -> None:
        """Log out everywhere, 256 BMCs at once, and close the sockets."""
        await gather_bounded([bmc.close for bmc in self._bmcs.copy()], width=256)
        for mux in self._muxes.values():
            mux.close()
        self._muxes.clear()


async def _resolve(host: str, port: int, timeout: float) -> tuple[int, Address]:
    """Family and socket address. Numbers are not looked up; a name is, in a thread, within `timeout` seconds."""
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):
        pass  # a name or IPv6
    else:
        return socket.AF_INET, (host, port)
    try:
        loop = asyncio.get_running_loop()
        found = await deadline(loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM), timeout)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise Unreachable(f"the BMC's name {host!r} does not resolve", why=str(error) or "no answer in time") from error
    return found[0][0], found[0][4]
