"""Runs dnsmasq as a child of the boot service: writes its files, starts it again when it dies, reads what it says.

It runs as the same user, with the three capabilities of the unit: ports 67 and 69 need no root. It dies with its parent,
whatever ends that. The list of known MACs is kept on disk, so a boot network goes on without the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
from collections import OrderedDict
from pathlib import Path

from fleetd.drivers.boot.capabilities import BootDesk
from fleetd.drivers.boot.dnsmasq import LogReader, Seen, Settings, config_text, hosts_text
from fleetd.drivers.boot.scripts import BIOS_LOADER, UEFI_LOADER
from fleetd.drivers.boot.sightings import Sightings
from fleetd.kit.clock import Clock, SystemClock
from fleetd.kit.errors import Conflict, FleetError, Invalid, NotFound
from fleetd.kit.logs import get
from fleetd.kit.retry import backoff

HOSTS_SECONDS = 5.0  # between two looks at the inventory
DESK_SECONDS = 15.0
TEST_SECONDS = 10.0
STOP_SECONDS = 5.0
STEADY_SECONDS = 60.0  # up so long: the next failure is a new one
SAME_SECONDS = 600.0  # between two log lines of the same trouble
MAX_COMPLAINTS = 256
MAX_LINE = 16 * 1024
# util-linux: also a killed parent takes its child along. (preexec_fn would run Python between fork and exec.)
WITH_PARENT = ("setpriv", "--pdeathsig", "TERM", "--")

log = get("dnsmasq")


class Dnsmasq:
    """The child and its files under `state`.

    Args:
        base_url: of the boot listener, as hosts reach it.
        files: where undionly.kpxe and snponly.efi lie; they are copied, so that TFTP serves nothing else.
    """

    def __init__(
        self,
        settings: Settings,
        base_url: str,
        *,
        files: Path,
        state: Path,
        desk: BootDesk,
        sightings: Sightings,
        clock: Clock | None = None,
    ) -> None:
        self._settings, self._base_url = settings, base_url
        self._files, self._state = files, state
        self._desk, self._sightings = desk, sightings
        self._clock = clock or SystemClock()
        self._reader = LogReader()
        self._process: asyncio.subprocess.Process | None = None
        self._changed = asyncio.Event()  # the configuration is newer than what the child has read
        self._owed = False  # the hosts are newer than what the child may have read
        self._complained: OrderedDict[str, float] = OrderedDict()  # what it said it cannot -> steady second
        self.up = asyncio.Event()
        self.trouble = "not started yet"  # why it is not up
        self.starts = 0

    @property
    def status(self) -> str:
        """For the status line."""
        return "dnsmasq up" if self.up.is_set() else f"dnsmasq down: {self.trouble}"

    async def prepare(self) -> None:
        """Write the files and let dnsmasq judge them.

        Raises:
            Invalid: the settings cannot be, or dnsmasq refuses them.
            NotFound: no dnsmasq, or a boot loader is missing.
        """
        await self._write(self._settings, self._files)

    async def reload(self, settings: Settings, files: Path) -> None:
        """Other settings, other loaders: judged first; the child starts again for settings only, at once if it waits.

        Raises as `prepare`; then the old ones stay.
        """
        await self._write(settings, files)
        self._files = files
        if settings == self._settings:
            return
        self._settings = settings
        self._changed.set()
        self._complained.clear()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    async def run(self) -> None:
        """Until cancelled; stops the child then."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_up(), name="dnsmasq")
            group.create_task(self._keep_hosts(), name="dnsmasq-hosts")

    # --- files -------------------------------------------------------------------------------------------------------

    async def _write(self, settings: Settings, files: Path) -> None:
        user = pwd.getpwuid(os.geteuid()).pw_name if os.geteuid() == 0 else ""
        text = config_text(settings, self._base_url, state=str(self._state), user=user)
        draft = self._state / "dnsmasq.conf.new"
        try:
            draft.write_text(text, encoding="ascii")
            await self._judge(settings, draft)
            await asyncio.get_running_loop().run_in_executor(None, self._lay_out, files)
            draft.replace(self._state / "dnsmasq.conf")
        except OSError as error:
            raise Conflict(
                f"the files of dnsmasq cannot be written in {self._state}",
                why=error.strerror or str(error),
                remedy="make room there, or set `state` in boot.yaml",
            ) from error

    def _lay_out(self, files: Path) -> None:
        tftp = self._state / "tftp"
        tftp.mkdir(parents=True, exist_ok=True)
        for name in (BIOS_LOADER, UEFI_LOADER):
            try:
                shutil.copyfile(files / name, tftp / f"{name}.new")
            except OSError as error:
                raise NotFound(
                    f"the boot loader {files / name} cannot be read",
                    why=error.strerror or str(error),
                    remedy="install the package ipxe and copy undionly.kpxe and snponly.efi from /usr/lib/ipxe",
                ) from error
            (tftp / f"{name}.new").chmod(0o644)
        for name in (BIOS_LOADER, UEFI_LOADER):  # both are there: none of the old ones stays beside one of the new
            (tftp / f"{name}.new").replace(tftp / name)
        hosts = self._state / "hosts"
        if not hosts.exists():
            hosts.write_text("", encoding="ascii")

    async def _judge(self, settings: Settings, config: Path) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                settings.program,
                "--test",
                f"--conf-file={config}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise NotFound(
                f"{settings.program} cannot be run", why=error.strerror or "", remedy="apt install dnsmasq-base"
            ) from error
        try:
            async with asyncio.timeout(TEST_SECONDS):
                _, said = await process.communicate()
        except TimeoutError as error:
            process.kill()
            await process.wait()
            raise Invalid("dnsmasq does not judge its configuration in time") from error
        if process.returncode:
            raise Invalid("dnsmasq refuses its configuration", why=said.decode("utf-8", "replace").strip()[:300])

    # --- the child ----------------------------------------------------------------------------------------------------

    async def _keep_up(self) -> None:
        failures = 0
        while True:
            self._changed.clear()  # what lies there now is what the next life reads
            began = self._clock.steady()
            try:
                await self._once()
            except OSError as error:
                self.trouble = error.strerror or str(error)
            finally:
                self.up.clear()
            if self._changed.is_set():
                failures = 0
                continue
            failures = 1 if self._clock.steady() - began >= STEADY_SECONDS else failures + 1
            pause = backoff(failures)
            log.warning("dnsmasq.ended", why=self.trouble, again_in=round(pause, 1))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()  # who mends boot.yaml does not wait for the rest of it
                    failures = 0

    async def _once(self) -> None:
        """One life of the child."""
        process = await asyncio.create_subprocess_exec(
            *WITH_PARENT,
            self._settings.program,
            "--keep-in-foreground",
            f"--conf-file={self._state / 'dnsmasq.conf'}",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LINE,
        )
        self._process = process
        self.starts += 1
        self.trouble = "it said nothing"
        if self._changed.is_set():  # while it was being started: it may have read the old one
            process.terminate()
        assert process.stderr is not None
        try:
            await self._listen(process.stderr)
            await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                try:
                    async with asyncio.timeout(STOP_SECONDS):
                        await process.wait()
                except TimeoutError:
                    process.kill()
                    await process.wait()
            self._process = None

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                raw = await stream.readline()
            except ValueError:  # longer than we take: what is buffered was dropped, and the next line is read
                continue
            if not raw:
                return
            line = raw.decode("utf-8", "replace").rstrip()
            if seen := self._reader.read(line):
                if seen.stage != "server":
                    self._sightings.add(seen.stage, mac=seen.mac, source=seen.source, detail=seen.detail)
                if seen.remedy:
                    self._complain(seen)
            elif line.startswith("dnsmasq: ") or line.startswith("dnsmasq["):
                self._say(line.partition(": ")[2].strip())

    def _complain(self, seen: Seen) -> None:
        """Into the log; what every request of a hall repeats, once in a while."""
        key, now = f"{seen.source} {seen.detail}", self._clock.steady()
        last = self._complained.get(key)
        if last is not None and now - last < SAME_SECONDS:
            return
        self._complained[key] = now
        self._complained.move_to_end(key)
        if len(self._complained) > MAX_COMPLAINTS:
            self._complained.popitem(last=False)
        log.warning("dnsmasq.cannot", what=seen.detail, relay=seen.source, remedy=seen.remedy)

    def _say(self, text: str) -> None:
        """A line of dnsmasq itself: up, or why not."""
        if text.startswith("started, "):
            self.up.set()
            if self._owed:
                self._tell_hosts()
            log.info("dnsmasq.up", interface=self._settings.interface, mode=self._settings.mode)
        elif not text.startswith("compile time options"):
            self.trouble = text[:200]
            log.info("dnsmasq.says", text=text[:200])

    # --- who is known -------------------------------------------------------------------------------------------------

    async def _keep_hosts(self) -> None:
        """The inventory's MACs, read anew by dnsmasq when they changed. Without the daemon the last ones stand."""
        failed = False
        while True:
            try:
                async with asyncio.timeout(DESK_SECONDS):
                    self.know(hosts_text(await self._desk.hosts()))
                failed = False
            except (FleetError, OSError) as error:  # TimeoutError too; a full disk ends nothing that runs
                if not failed:
                    log.warning("dnsmasq.hosts", error=str(error) or "the daemon does not answer")
                failed = True
            await self._clock.sleep(HOSTS_SECONDS)

    def know(self, text: str) -> None:
        """Replace the `dhcp-hostsfile`; dnsmasq is told when it differs."""
        path = self._state / "hosts"
        if path.exists() and path.read_bytes() == text.encode("ascii"):
            return
        draft = path.with_suffix(".new")
        draft.write_text(text, encoding="ascii")
        draft.replace(path)
        log.info("dnsmasq.hosts", known=text.count("\n"))
        self._tell_hosts()

    def _tell_hosts(self) -> None:
        """Before it is up the signal would end it; whether it read the old list by then nobody knows."""
        self._owed = self._process is None or self._process.returncode is not None or not self.up.is_set()
        if not self._owed and self._process is not None:
            self._process.send_signal(signal.SIGHUP)
