"""`fleetd boot`: one asyncio process with the open ports, and dnsmasq as its child. What needs deciding it asks the daemon.

It runs on asyncio's own loop: uvloop has no sendfile. Ready when it listens and dnsmasq is up, or has had its chance.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from fleetd.daemon.bootconfig import BootConfig, LoadedBoot, load
from fleetd.daemon.config import split_address
from fleetd.daemon.systemd import Notifier
from fleetd.drivers.boot.admission import Admission
from fleetd.drivers.boot.desk_wire import RemoteDesk
from fleetd.drivers.boot.dnsmasq_child import Dnsmasq
from fleetd.drivers.boot.files import ISO, Files, prepare_iso
from fleetd.drivers.boot.images import REMEDY, unreadable
from fleetd.drivers.boot.listener import BootListener
from fleetd.kit import logs
from fleetd.kit.clock import SystemClock
from fleetd.kit.errors import Conflict, FleetError

log = logs.get("boot")
DESCRIPTORS = 65536  # connections of a crowd, not yet judged, and two for each transfer
DNSMASQ_SECONDS = 10.0  # to come up before we say ready without it


def run(path: Path) -> None:
    """Serve until SIGTERM or SIGINT. Raises FleetError when it cannot start."""
    loaded = load(path)
    logs.set_up("json" if loaded.config.log == "json" else "text", loaded.config.log_level)
    os.umask(0o077)
    _more_descriptors()
    asyncio.run(BootService(loaded, path).serve())


class BootService:
    """The process: listener, dnsmasq, desk, heartbeat."""

    def __init__(self, loaded: LoadedBoot, path: Path) -> None:
        self._loaded, self._path = loaded, path
        self._notifier, self._clock = Notifier(), SystemClock()
        self._stopping, self._reload = asyncio.Event(), asyncio.Event()
        self._listener: BootListener | None = None
        self._dnsmasq: Dnsmasq | None = None

    async def serve(self) -> None:
        """Until told to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        try:
            async with self._rooms() as desk:
                await self._work(desk)
        finally:
            self._notifier.close()
        log.info("stopped")

    @contextlib.asynccontextmanager
    async def _rooms(self) -> AsyncIterator[RemoteDesk]:
        """Everything, made and closed."""
        config, loaded = self._loaded.config, self._loaded
        state = loaded.path(config.state)
        _own(state)
        host, port = split_address(config.listen)
        desk = RemoteDesk(str(loaded.path(config.desk)))
        listener = self._listener = BootListener(
            desk,
            host,
            port,
            config.url,
            files=await self._files(config),
            images=loaded.path(config.images) if config.images else None,
            admission=Admission(config.admission),
            tftp=_tftp(config),
            drain=config.drain,
        )
        try:
            if config.dnsmasq is not None:
                self._dnsmasq = Dnsmasq(
                    config.dnsmasq,
                    listener.base_url,
                    files=loaded.path(config.files),
                    state=state,
                    desk=desk,
                    sightings=listener.sightings,
                )
                await self._dnsmasq.prepare()
            await listener.start()
            yield desk
        finally:
            await listener.stop()
            await desk.close()

    async def _work(self, desk: RemoteDesk) -> None:
        assert self._listener is not None
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._reloads(), name="reload")]
            if self._dnsmasq is not None:
                tasks.append(group.create_task(self._dnsmasq.run(), name="dnsmasq"))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DNSMASQ_SECONDS):
                        await self._dnsmasq.up.wait()
            self._notifier.say(READY=1, STATUS=self._status(desk))
            log.info("ready", listen=self._loaded.config.listen, url=self._listener.base_url, status=self._status(desk))
            tasks.append(group.create_task(self._heartbeat(desk), name="heartbeat"))
            await self._stopping.wait()
            self._notifier.say(STOPPING=1, STATUS="letting transfers end")
            log.info("draining", images=self._listener.admission.active, files=self._listener.flowing)
            await self._listener.stop()
            for task in tasks:
                task.cancel()

    async def _heartbeat(self, desk: RemoteDesk) -> None:
        period = min(5.0, (self._notifier.watchdog_seconds or 15.0) / 3)
        while True:
            self._notifier.say(WATCHDOG=1, STATUS=self._status(desk))
            await self._clock.sleep(period)

    def _status(self, desk: RemoteDesk) -> str:
        listener = self._listener
        assert listener is not None
        parts = [
            f"{listener.admission.active} images and {listener.flowing} files flow, {listener.admission.waiting} wait"
        ]
        if self._dnsmasq is not None:
            parts.append(self._dnsmasq.status)
        parts.append("the daemon answers" if desk.answers else "the daemon was not heard yet, or does not answer")
        return "; ".join(parts)

    # --- SIGHUP -------------------------------------------------------------------------------------------------------

    async def _reloads(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            try:
                await self._take(load(self._path))
            except FleetError as error:
                log.error("reload.refused", error=str(error), remedy=error.remedy)
            except OSError as error:  # a directory we may not look into: what flows goes on
                log.error("reload.refused", error=str(error))

    async def _take(self, fresh: LoadedBoot) -> None:
        """What can change while transfers flow does; the rest is said. Raises FleetError; then the old one stays."""
        assert self._listener is not None
        old, new = self._loaded.config, fresh.config
        fixed = [
            name for name in ("listen", "url", "desk", "state", "drain") if getattr(old, name) != getattr(new, name)
        ]
        if (old.dnsmasq is None) != (new.dnsmasq is None):
            fixed.append("dnsmasq")
        if fixed:
            raise Conflict(
                f"{', '.join(fixed)} cannot change while the service runs", remedy="systemctl restart fleetd-boot"
            )
        files = await self._files(new)
        if self._dnsmasq is not None and new.dnsmasq is not None:
            try:
                await self._dnsmasq.reload(new.dnsmasq, fresh.path(new.files))
            except FleetError:
                await self._files(old)  # its ISO lies under the same name
                raise
        self._listener.files = files
        self._listener.images.folder = fresh.path(new.images) if new.images else None
        self._listener.admission.set_limits(new.admission)
        self._listener.tftp = _tftp(new)
        self._loaded = fresh
        log.info("reloaded")

    async def _files(self, config: BootConfig) -> Files:
        folder = self._loaded.path(config.files)
        state = self._loaded.path(config.state)
        iso = await asyncio.get_running_loop().run_in_executor(
            None, prepare_iso, folder / ISO, state, config.url.rstrip("/")
        )
        missing = [name for name in ("vmlinuz", "initrd") if not (folder / name).is_file()]
        if missing:
            log.warning("boot.file.missing", names=missing, folder=str(folder), remedy="make deploy-image")
        if config.images:
            images = self._loaded.path(config.images)
            if why := await asyncio.get_running_loop().run_in_executor(None, unreadable, images):
                log.warning("boot.images.unreadable", folder=str(images), error=why, remedy=REMEDY)
        return Files(folder, iso)


def _more_descriptors() -> None:
    """The usual 1024 are fewer than the listener lets connect: whoever opens as many would shut out all others."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _own(state: Path) -> None:
    """The working directory. Raises Conflict when it cannot be ours."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o750)
    except OSError as error:
        raise Conflict(
            f"the directory {state} cannot be made", why=error.strerror or "", remedy="set `state` in boot.yaml"
        ) from error


def _tftp(config: BootConfig) -> str:
    """Where a BIOS ROM's iPXE finds ours; empty: it is used."""
    return config.dnsmasq.tftp if config.dnsmasq is not None and config.dnsmasq.rom == "replace" else ""
