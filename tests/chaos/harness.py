"""Runs the daemon as a process that may die at any boundary, and asks it over its own API."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp

from tests.world import ROOT, inventory_files

MORTAL = ROOT / "tests/chaos/mortal_daemon.py"


class Daemons:
    """One daemon after the other on one state directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "fleetd.sock"
        self.log = (folder / "daemon.log").open("ab")
        self.process: asyncio.subprocess.Process | None = None
        self.deaths = 0

    async def start(self, boundary: int) -> None:
        """Start one that dies at that boundary (0: never by itself)."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, str(MORTAL), str(self.folder / "fleetd.yaml"), str(boundary), stdout=self.log, stderr=self.log
        )

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request; raises aiohttp.ClientError or OSError when the daemon is not there."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.socket))) as session,
            session.request(method, f"http://fleetd{path}", json=body, timeout=aiohttp.ClientTimeout(20)) as answer,
        ):
            text = await answer.text()
            assert answer.status < 400, f"{method} {path}: {answer.status} {text}"
            return json.loads(text) if text else None

    async def until(self, path: str, good: Any, *, boundary: int, seconds: float = 120.0, body: Any = None) -> Any:
        """Ask until `good(answer)`; whenever the daemon died, start the next one that dies at `boundary`."""
        async with asyncio.timeout(seconds):
            while True:
                assert self.process is not None
                if self.process.returncode is not None:
                    assert self.process.returncode == -signal.SIGKILL, (self.folder / "daemon.log").read_text()[-3000:]
                    self.deaths += 1
                    await self.start(boundary)
                try:
                    answer = await self.call("POST" if body is not None else "GET", path, body)
                except (aiohttp.ClientError, OSError):
                    answer = None
                if answer is not None and good(answer):
                    return answer
                try:
                    async with asyncio.timeout(0.1):
                        await self.process.wait()
                except TimeoutError:
                    continue

    async def apply(self) -> None:
        await self.until(
            "/v1/inventory/apply", lambda answer: True, boundary=0, body={"files": inventory_files(self.folder)}
        )

    async def once(self, path: str, body: Any, done: Any, look: str, boundary: int) -> None:
        """POST one thing exactly once, though the daemon may die before it answers: look whether it landed before trying again."""
        async with asyncio.timeout(60):
            while True:
                if done(await self.until(look, lambda answer: True, boundary=boundary)):
                    return
                try:
                    await self.call("POST", path, body)
                except (aiohttp.ClientError, OSError):
                    continue

    async def stop_quietly(self) -> None:
        """SIGTERM, and wait for a clean end."""
        assert self.process is not None
        self.process.terminate()
        async with asyncio.timeout(30):
            assert await self.process.wait() == 0, (self.folder / "daemon.log").read_text()[-3000:]

    async def kill(self) -> None:
        """SIGKILL now."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        self.log.close()
