"""Runs the daemon as a process that may die at any boundary, and asks it over its own API."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp

from tests.images import header_of, image_key, signed_image
from tests.world import ROOT, image_names, inventory_files

MORTAL = ROOT / "tests/chaos/mortal_daemon.py"
AWAY = (aiohttp.ClientError, OSError)  # the daemon is dead or not up yet


class Daemons:
    """One daemon after the other on one state directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "fleetd.sock"
        self._deaths = folder / "deaths"
        self.log = (folder / "daemon.log").open("ab")
        self.process: asyncio.subprocess.Process | None = None

    @property
    def deaths(self) -> int:
        """How often it died so far."""
        return len(self._deaths.read_text().splitlines()) if self._deaths.exists() else 0

    async def start(self, boundary: int) -> None:
        """Start it; each life ends at that boundary (0: none does)."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(MORTAL),
            str(self.folder / "fleetd.yaml"),
            str(boundary),
            str(self._deaths),
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Of the living daemon (the child of the process that forks it)."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    async def call(self, method: str, path: str, body: Any = None, **rest: Any) -> Any:
        """One request; raises what AWAY holds when the daemon is not there."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.socket))) as session,
            session.request(
                method, f"http://fleetd{path}", json=body, timeout=aiohttp.ClientTimeout(20), **rest
            ) as answer,
        ):
            text = await answer.text()
            assert answer.status < 400, f"{method} {path}: {answer.status} {text}"
            return json.loads(text) if text else None

    async def until(self, path: str, good: Any, *, seconds: float = 120.0) -> Any:
        """GET until `good(answer)`, through any number of deaths."""
        async with asyncio.timeout(seconds):
            while True:
                assert self.process is not None
                assert self.process.returncode is None, (self.folder / "daemon.log").read_text()[-3000:]
                try:
                    answer = await self.call("GET", path)
                except AWAY:
                    answer = None
                if answer is not None and good(answer):
                    return answer
                await asyncio.sleep(0.1)

    async def once(self, path: str, body: Any, done: Any, look: str) -> None:
        """POST one thing exactly once: after a death before the answer, look whether it landed before trying again."""
        async with asyncio.timeout(60):
            while not done(await self.until(look, lambda answer: True)):
                try:
                    await self.call("POST", path, body)
                except AWAY:
                    continue

    async def apply(self) -> None:
        """The whole inventory, and the images its SKUs name; applying twice changes nothing."""
        await self.until("/v1/hosts", lambda answer: True)
        await self.call("POST", "/v1/inventory/apply", {"files": inventory_files(self.folder)})
        for name in sorted(image_names(self.folder)):
            signed, served = signed_image(name, image_key(self.folder))
            await self.call("PUT", f"/v1/images/{name}/content", data=served, headers=header_of(signed))

    async def stop(self) -> None:
        """SIGTERM, and a clean end."""
        assert self.process is not None
        self.process.terminate()
        async with asyncio.timeout(30):
            assert await self.process.wait() == 0, (self.folder / "daemon.log").read_text()[-3000:]

    async def kill(self) -> None:
        """SIGKILL all of it now."""
        if self.process is not None and self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()
        self.log.close()
