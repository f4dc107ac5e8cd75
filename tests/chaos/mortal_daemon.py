"""The real daemon with one addition: it dies by SIGKILL right after a commit that holds a step's boundary.

Run as a process: `python mortal_daemon.py CONFIG BOUNDARY`, where BOUNDARY counts commits with a `step.*` event from 1.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from fleetd.daemon import serve
from fleetd.store.database import Database, Op


def main() -> None:
    """Serve until the boundary, then die without a word."""
    boundary = int(sys.argv[2])
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
    serve.run(Path(sys.argv[1]))


main()
