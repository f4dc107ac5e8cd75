"""`GET /images/<sha256>?ticket=`: who may fetch is the desk's word, when is admission's, and the kernel sends.

A grant is remembered for a bounded time, never past its ticket's own end, and only for the address that got it: while the
daemon restarts, a transfer that was cut off can be resumed. A desk that answers is always believed instead.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections import OrderedDict
from pathlib import Path

import msgspec
from aiohttp import web

from fleetd.drivers.boot.admission import Admission
from fleetd.drivers.boot.capabilities import BootDesk, ImageGrant
from fleetd.drivers.boot.sightings import Sightings
from fleetd.drivers.boot.transfer import send
from fleetd.kit.clock import Clock
from fleetd.kit.errors import DeadlineExceeded, Denied, FleetError, NotFound, Temporary

REMEMBERED_SECONDS = 900.0  # since the desk last said yes
REMEMBERED = 4096
DESK_SECONDS = 15.0
DIGEST = re.compile(r"[0-9a-f]{64}")
REMEDY = "`images` in boot.yaml must be the images.dir of the daemon, and the boot service must be able to read it"
_TICKET = re.compile(r"[A-Za-z0-9_-]{16,512}")


class _Known(msgspec.Struct, frozen=True):
    grant: ImageGrant
    until: float  # wall seconds


class Grants:
    """Asks the desk, and remembers what it said for when it cannot be asked."""

    def __init__(self, desk: BootDesk, clock: Clock) -> None:
        self._desk, self._clock = desk, clock
        self._known: OrderedDict[tuple[str, str, str], _Known] = OrderedDict()

    async def ask(self, digest: str, ticket: str, source: str) -> ImageGrant:
        """Who fetches.

        Raises:
            Denied: the desk says no; what was remembered is forgotten.
            Temporary: it cannot be asked, and this very ticket was not granted to this address lately.
        """
        key = (digest, ticket, source)
        try:
            async with asyncio.timeout(DESK_SECONDS):
                grant = await self._desk.grant(digest, ticket, source=source)
        except TimeoutError as error:
            if known := self._remembered(key):
                return known
            raise DeadlineExceeded("the daemon does not answer") from error
        except Temporary:
            if known := self._remembered(key):
                return known
            raise
        except FleetError:
            self._known.pop(key, None)
            raise
        until = self._clock.wall() + REMEMBERED_SECONDS
        self._known[key] = _Known(grant, until if grant.expires is None else min(until, grant.expires))
        self._known.move_to_end(key)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return grant

    def _remembered(self, key: tuple[str, str, str]) -> ImageGrant | None:
        known = self._known.get(key)
        if known is None or known.until <= self._clock.wall():
            self._known.pop(key, None)
            return None
        return known.grant


class Images:
    """The handler.

    Args:
        folder: read-only files named by their sha256; None: none are served.
    """

    def __init__(
        self, desk: BootDesk, admission: Admission, sightings: Sightings, clock: Clock, folder: Path | None
    ) -> None:
        self._grants = Grants(desk, clock)
        self.admission, self._sightings, self.folder = admission, sightings, folder

    async def handle(self, request: web.Request, source: str) -> web.StreamResponse:
        """Raises NotFound, Denied, Busy, Temporary; ConnectionResetError when the client goes."""
        digest, ticket = request.match_info["digest"], request.query.get("ticket", "")
        if not DIGEST.fullmatch(digest):
            raise NotFound("no such image")
        if not _TICKET.fullmatch(ticket):
            raise Denied("no ticket")
        grant = await self._grants.ask(digest, ticket, source)
        if self.folder is None:
            raise NotFound("no such image", why="no `images` are configured here", remedy=REMEDY)
        path = self.folder / digest
        if why := await asyncio.get_running_loop().run_in_executor(None, _unusable, path):
            raise NotFound("no such image", why=f"{path}: {why}", remedy=REMEDY)
        # Whoever stands between must not hand it on: the ticket is this host's.
        headers = {"Cache-Control": "private, no-store"}
        rate = self.admission.limits.min_rate
        if request.method == "HEAD":
            return await send(request, path, min_rate=rate, headers=headers)
        self._sightings.add("image", source=source, detail=digest[:12])
        async with self.admission.slot(grant.host, grant.rack):
            return await send(request, path, min_rate=rate, headers=headers)


def _unusable(path: Path) -> str:
    """Empty for a regular file, no link, that we may read: what `fleetctl image add` put there. Else why not."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return error.strerror or str(error)
    try:
        return "" if stat.S_ISREG(os.fstat(handle).st_mode) else "it is no regular file"
    finally:
        os.close(handle)


def unreadable(folder: Path) -> str:
    """Why this user cannot serve files from there; empty when he can. Blocking."""
    try:
        with os.scandir(folder):
            return "" if os.access(folder, os.X_OK) else "its files may not be opened"
    except OSError as error:
        return error.strerror or str(error)
