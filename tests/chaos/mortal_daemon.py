"""The real daemon with one addition: it dies by SIGKILL right after a commit that holds a step's boundary, and comes again.

Run as a process: `python mortal_daemon.py CONFIG BOUNDARY DEATHS`. BOUNDARY counts commits with a `step.*` event from 1 (0:
it lives). Each life is a process of its own, forked from this one, which only imported the code: a fresh start without
the second that imports cost. Each death adds a line to the file DEATHS. SIGTERM goes on to the living one.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from fleetd.daemon import serve
from fleetd.store.database import Database, Op


def live(config: Path, boundary: int) -> None:
    """Serve until the boundary, then die without a word."""
    commit = Database.commit
    seen = 0

    async def mortal(self: Database, ops: Sequence[Op]) -> int:
        nonlocal seen
        result = await commit(self, ops)
        if any(str(op.params.get("kind", "")).startswith("step.") for op in ops):
            seen += 1
            if seen == boundary:
                os.kill(os.getpid(), signal.SIGKILL)
        return result

    Database.commit = mortal  # type: ignore[method-assign]
    serve.run(config)


def main() -> int:
    """One life after the other until one ends by itself."""
    config, boundary, deaths = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    child = 0

    def pass_on(number: int, _: object) -> None:
        if child:
            os.kill(child, number)

    while True:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            live(config, boundary)
            return 0
        signal.signal(signal.SIGTERM, pass_on)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            return os.waitstatus_to_exitcode(status)
        with deaths.open("a") as file:
            file.write("died\n")


sys.exit(main())
