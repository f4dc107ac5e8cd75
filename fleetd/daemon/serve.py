"""`fleetd serve`: one asyncio process. Ready when the ledger is migrated, the sockets are bound and every active run was woken."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from pathlib import Path

from fleetd.api import server
from fleetd.api.app import build_app
from fleetd.daemon.config import Loaded, load, split_address
from fleetd.daemon.systemd import Notifier
from fleetd.daemon.wiring import House, build_house
from fleetd.kit import logs
from fleetd.kit.errors import FleetError
from fleetd.lifecycle.dark import keep_dark

log = logs.get("daemon")
SHOWN = 8  # names in one line of the log
BEAT_LIMIT = 20.0  # seconds without a tick that got through the ledger: then systemd hears no heartbeat


def run(path: Path) -> None:
    """Serve until SIGTERM or SIGINT. Raises FleetError when it cannot start."""
    loaded = load(path)
    logs.set_up("json" if loaded.config.log == "json" else "text", loaded.config.log_level)
    os.umask(0o077)
    import uvloop

    uvloop.run(_serve(loaded))


async def _serve(loaded: Loaded) -> None:
    notifier = Notifier()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        async with build_house(loaded) as house:
            await _with_house(loaded, house, notifier, stopping)
    finally:
        notifier.close()
    log.info("stopped")


async def _with_house(loaded: Loaded, house: House, notifier: Notifier, stopping: asyncio.Event) -> None:
    clock, engine = house.services.clock, house.engine
    # What is loaded by now stays; young objects of a busy ledger are cheap to keep a while (measured: 4 of 33 us a write).
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    app = build_app(
        house.services,
        engine_age=lambda: clock.steady() - engine.beat,
        clock_status=house.clock_brake.status,
    )
    listeners = _listeners(loaded)
    if house.boot is not None:
        await house.boot.start()
    if house.desk is not None:
        await house.desk.start()
    resumed = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            working = group.create_task(engine.run(resumed.set), name="engine")
            api_stop = asyncio.Event()
            api_ready = asyncio.Event()
            await resumed.wait()
            group.create_task(server.serve(app, listeners, stopping=api_stop, ready=api_ready.set), name="api")
            await api_ready.wait()
            notifier.say(READY=1, STATUS="ready")
            log.info(
                "ready",
                socket=loaded.config.listen.socket,
                http=loaded.config.listen.http,
                boot=loaded.config.boot.listen,
            )
            beat = group.create_task(_heartbeat(house, notifier), name="heartbeat")
            desks = house.services
            dark = group.create_task(keep_dark(desks.db, desks.clock, desks.hosts), name="keep-dark")
            telling = group.create_task(_tell_of_images(house), name="tell-of-images")
            await stopping.wait()
            notifier.say(STOPPING=1, STATUS="parking work at safe points")
            log.info("parking", hosts=engine.working)
            engine.park()
            await working
            api_stop.set()
            beat.cancel()
            dark.cancel()
            telling.cancel()
    finally:
        if house.desk is not None:
            await house.desk.stop()
        if house.boot is not None:
            await house.boot.stop()


async def _tell_of_images(house: House) -> None:
    """Files that no image names, and images without a file: nobody looks into that directory by himself."""
    try:
        found = await house.services.images.survey()
    except FleetError as error:
        log.warning("images.unread", error=str(error), remedy=error.remedy)
        return
    if found.gone:
        log.warning("images.gone", names=found.gone[:SHOWN], count=len(found.gone), remedy="add them again")
    if found.strangers:
        log.warning(
            "images.unnamed",
            names=[stranger.name for stranger in found.strangers[:SHOWN]],
            count=len(found.strangers),
            bytes=sum(stranger.bytes for stranger in found.strangers),
            remedy="delete them by hand, if no other fleetd uses this directory and no older ledger was restored",
        )


def _listeners(loaded: Loaded) -> list[server.Listener]:
    passed = server.inherited(os.environ)
    if passed:
        return [server.Listener(sock=sock) for sock in passed]
    listen = loaded.config.listen
    path = loaded.path(listen.socket)
    path.parent.mkdir(parents=True, exist_ok=True)
    listeners = [server.Listener(sock=server.bind_unix(path, group=listen.group or None))]
    if listen.http:
        host, port = split_address(listen.http)
        listeners.append(server.Listener(sock=server.bind_tcp(host, port)))
    return listeners


async def _heartbeat(house: House, notifier: Notifier) -> None:
    """Tells systemd that the engine is alive: only while its tick gets through the ledger."""
    clock, engine = house.services.clock, house.engine
    period = min(5.0, (notifier.watchdog_seconds or 10.0) / 3)
    while True:
        if clock.steady() - engine.beat < BEAT_LIMIT:
            notifier.say(WATCHDOG=1, STATUS=f"{engine.working} hosts at work")
        else:
            print("fleetd: the engine has not ticked; no heartbeat", file=sys.stderr)  # noqa: T201 -- the last words before systemd kills us
        await clock.sleep(period)
