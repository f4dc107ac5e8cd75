"""The running system of a simulated host, as one who logged in finds it: which programs it has, and running them.

Depth `full` runs the pushed zipapps as real processes; `fast` calls the same code in this process. Host-side commands
belong to the host, not to the connection that started them: they end when their work or their boot ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fleetd
from fleetd.probe.host import order as orders
from fleetd.probe.host.order import Image
from fleetd.probe.host.work import perform
from fleetd.probe.report.__main__ import gather
from fleetd.probe.report.files import Table
from fleetd.sim.drives import Folder, MemoryMachine, Shelf
from fleetd.sim.fetch import fetch
from fleetd.sim.garbage import spoil
from fleetd.sim.hardware import describe, scenario_file
from fleetd.sim.host import SimHost
from fleetd.sim.nvml import loaded

Depth = Literal["full", "fast"]
Tell = Callable[[bytes], None]
MAX_STDOUT = 64 * 1024 * 1024
LOOP_BYTES = 4 * 1024 * 1024  # an image no larger than this is unpacked and written on the loop: some milliseconds


class Answer(NamedTuple):
    """What a command left: its standard output and its exit code."""

    stdout: bytes
    code: int


class Workshop:
    """What all hosts of a site share at depth `full`: a folder, the pushed programs by digest, a bound on processes.

    Args:
        folder: the simulator's own; everything below it may be replaced.
        processes: how many probes may run at once; they need a processor.
        works: how many wipes and image writes may run at once; they mostly wait for their drives.
    """

    def __init__(self, folder: Path, processes: int = 3, works: int = 64) -> None:
        self.folder = folder
        self.gate = asyncio.Semaphore(processes)
        self.works = asyncio.Semaphore(works)

    def keep(self, digest: str, data: bytes) -> None:
        """Store a program. Raises OSError."""
        path = self.program(digest)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_bytes(data)
            part.replace(path)

    def program(self, digest: str) -> Path:
        return self.folder / "programs" / f"{digest}.pyz"


class System:
    """One host's system; `stop` is called at each reboot and power-off, and forgets what lay in RAM."""

    def __init__(self, host: SimHost, workshop: Workshop | None) -> None:
        self.host = host
        self._workshop = workshop
        self._shelf = Shelf(host)
        self._folder = Folder(host, self._shelf, workshop.folder / host.name / "root") if workshop else None
        self._programs: set[str] = set()
        self._journal: dict[str, dict[str, Any]] = {}
        self._works: set[asyncio.Task[Answer]] = set()
        self._ending: set[asyncio.Task[Answer]] = set()
        self._processes: set[asyncio.subprocess.Process] = set()
        self._probing = asyncio.Lock()

    def stop(self) -> None:
        """Power is gone: programs die where they stand."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        if self._folder is None:
            for work in self._works:
                work.cancel()
        self._ending |= self._works
        self._works = set()
        self._programs.clear()
        self._journal = {}
        if self._folder is not None:
            shutil.rmtree(self._folder.root / "run", ignore_errors=True)

    # --- the three commands that a login may give ------------------------------------------------------------------------

    def has(self, digest: str) -> bool:
        return digest in self._programs

    def push(self, digest: str, data: bytes) -> bool:
        """False when the bytes are not what their name says."""
        if hashlib.sha256(data).hexdigest() != digest:
            return False
        if self._workshop is not None:
            self._workshop.keep(digest, data)
        self._programs.add(digest)
        return True

    async def run(self, name: str, digest: str, arguments: tuple[str, ...], stdin: bytes, tell: Tell) -> Answer:
        """Run a program that was pushed in this boot. `tell` gets what it says on standard error, as it says it."""
        if digest not in self._programs:
            tell(b"python3: can't open file: [Errno 2] No such file or directory\n")
            return Answer(b"", 2)
        if name == "report":
            return await self._report(digest, arguments, tell)
        if name != "host":
            tell(b"the simulator knows no such program\n")
            return Answer(b"", 2)
        if self._ending:
            await asyncio.wait(self._ending)  # of the boot before: their last acts go into the record first
            self._ending = set()
        work = asyncio.get_running_loop().create_task(self._host(digest, arguments, stdin, tell))
        self._works.add(work)
        work.add_done_callback(self._works.discard)
        return await asyncio.shield(work)

    # --- report ------------------------------------------------------------------------------------------------------------

    async def _report(self, digest: str, arguments: tuple[str, ...], tell: Tell) -> Answer:
        self.host.log("probe.run", depth="full" if self._workshop else "fast")
        garbage = self.host.fault("probe-garbage")
        if self._workshop is None:
            hardware = describe(self.host)
            nonce, host = _option(arguments, "--nonce"), _option(arguments, "--host")
            data = gather(Table(hardware.contents, hardware.links), loaded(hardware.nvml), nonce=nonce, host=host)
            answer = Answer(data, 0)
        else:
            async with self._probing, self._workshop.gate:
                answer = await self._report_process(self._workshop, digest, arguments, tell)
        return answer if garbage is None else answer._replace(stdout=spoil(answer.stdout, garbage))

    async def _report_process(self, workshop: Workshop, digest: str, arguments: tuple[str, ...], tell: Tell) -> Answer:
        root = workshop.folder / self.host.name / "seen"
        hardware = describe(self.host)
        await asyncio.to_thread(hardware.write, root)
        scenario = root.with_suffix(".json")
        scenario_file(hardware, scenario)
        program = str(workshop.program(digest))
        command = ["-S", "-m", "fleetd.sim.nvml_runner", str(scenario), program, *arguments, "--root", str(root)]
        return await self._process(command, b"", tell)

    # --- host-side commands ------------------------------------------------------------------------------------------------

    async def _host(self, digest: str, arguments: tuple[str, ...], stdin: bytes, tell: Tell) -> Answer:
        command = arguments[0] if arguments else ""
        self.host.log("host.command", command=command)
        if self._workshop is None or self._folder is None:
            return await self._host_here(command, stdin, tell)
        if len(self._works) == 1:  # nobody else works on the drives now
            self._folder.lay_out(self._marker())
        try:
            async with self._workshop.gate if command == "status" else self._workshop.works:
                program = [str(self._workshop.program(digest)), *arguments, "--root", str(self._folder.root)]
                return await self._process(["-I", "-S", *program], stdin, self._hearing(tell))
        finally:
            self._folder.take_back()

    def _hearing(self, tell: Tell) -> Tell:
        """Each time the program speaks, its drives may have done something."""
        folder = self._folder
        assert folder is not None

        def hear(chunk: bytes) -> None:
            folder.listen()
            tell(chunk)

        return hear

    async def _host_here(self, command: str, stdin: bytes, tell: Tell) -> Answer:
        image = _image(stdin) if command == "write-image" else None
        pauses = {"erasing": self.host.timings.wipe, "writing": self.host.timings.image}
        if image is not None and max(image.bytes, image.raw_bytes) > LOOP_BYTES:
            return await self._in_thread(stdin, pauses["writing"], tell)
        machine = MemoryMachine(self.host, self._shelf, self._marker(), self._journal, _at_once)
        work, used = perform(command, stdin, machine), set[str]()
        while True:
            try:
                progress = next(work)
            except StopIteration as done:
                return _answer(done.value)
            tell(json.dumps(progress).encode() + b"\n")
            if (pause := pauses.get(progress["event"])) is not None:
                await asyncio.sleep(pause)
            if image is not None and progress["event"] in ("writing", "again"):
                urls = [url for url in image.urls if url.partition("?")[0] not in used]
                machine.arrived = arrived = await fetch(urls, image.bytes, self.host.os_address)
                used |= arrived.used

    async def _in_thread(self, stdin: bytes, pause: float, tell: Tell) -> Answer:
        """A large image is fetched and written while the loop goes on. A power cut ends it at its next act."""
        loop = asyncio.get_running_loop()
        machine = MemoryMachine(self.host, self._shelf, self._marker(), self._journal, loop.call_soon_threadsafe)
        ended: asyncio.Future[dict[str, Any]] = loop.create_future()

        def work() -> None:
            try:
                steps = perform("write-image", stdin, machine)
                while True:
                    try:
                        progress = next(steps)
                    except StopIteration as done:
                        loop.call_soon_threadsafe(ended.set_result, done.value)
                        return
                    loop.call_soon_threadsafe(tell, json.dumps(progress).encode() + b"\n")
                    if progress["event"] == "writing":
                        machine.pause(pause)
            except Exception as error:  # noqa: BLE001  it is raised again on the loop
                loop.call_soon_threadsafe(ended.set_exception, error)

        thread = threading.Thread(target=work, name=f"sim:{self.host.name}:write-image", daemon=True)
        thread.start()
        try:
            return _answer(await asyncio.shield(ended))
        except asyncio.CancelledError:
            machine.cut()
            await asyncio.wait([ended])
            raise

    def _marker(self) -> str:
        """What the deploy boot wrote into /run: the hash of its token. An installed system has none."""
        running = self.host.running
        if running is None or running.environment != "deploy":
            return ""
        return hashlib.sha256(running.token.encode()).hexdigest()

    # --- processes ---------------------------------------------------------------------------------------------------------

    async def _process(self, command: list[str], stdin: bytes, tell: Tell) -> Answer:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PYTHONPATH": str(Path(fleetd.__file__).parents[1]), "PATH": os.environ.get("PATH", "/usr/bin:/bin")},
            cwd="/",
        )
        self._processes.add(process)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            process.stdin.write(stdin)
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
            process.stdin.close()
            reading = asyncio.get_running_loop().create_task(process.stdout.read(MAX_STDOUT))
            while chunk := await process.stderr.readline():
                tell(chunk)
            stdout = await reading
            code = await process.wait()
        finally:
            self._processes.discard(process)
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return Answer(stdout, code if code >= 0 else 137)


def _image(stdin: bytes) -> Image | None:
    """The image of a good order; what is wrong with it is for `perform` to say."""
    try:
        return orders.read("write-image", stdin).image
    except orders.Refusal:
        return None


def _at_once(call: Callable[[], None]) -> None:
    call()


def _answer(report: dict[str, Any]) -> Answer:
    return Answer(json.dumps(report).encode() + b"\n", 3 if "refused" in report else 0)


def _option(arguments: tuple[str, ...], name: str) -> str:
    """The value of `--name VALUE` or `--name=VALUE`; empty when it is not there. The real program parses in `full`."""
    for word, after in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == name:
            return after
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""
