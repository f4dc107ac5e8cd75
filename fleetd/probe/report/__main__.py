"""`python3 -I report.pyz --nonce N --host H`: gather within a time limit, print one JSON report, exit 0.

Whatever has not answered by then (a hung driver, a dead drive) is reported as absent; the rest still arrives.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from typing import Any

from . import FORMAT, VERSION
from .files import Files, Reading, Tree, absent, line
from .gpu import collect
from .kmsg import xids
from .network import nics
from .pci import devices
from .storage import drives
from .system import identity, system

# Seconds. `quick` runs at a hand-over, where somebody waits.
LIMITS = {"quick": 30.0, "acceptance": 120.0}


class Gathering:
    """Sections fill in one after another; `report()` may be called at any time, also from another thread."""

    def __init__(self, files: Files, nvml: Any = None, *, nonce: str, host: str) -> None:
        self._files, self._nvml = files, nvml
        self._began = time.monotonic()
        self._unfinished = absent("not finished within the time limit")
        late: Reading = self._unfinished
        self._out: dict[str, Any] = {
            "format": FORMAT,
            "probe": VERSION,
            "nonce": nonce,
            "host": host,
            "boot_id": late,
            "pci": late,
            "nvml": {"init": late},
            "nics": late,
            "nvme": late,
            "xids": late,
            "identity": dict.fromkeys(("serial", "uuid", "vendor", "product", "board_serial", "macs"), late),
            "system": {"kernel": late},
        }

    def run(self) -> None:
        """The cheap and the sure first: what may hang (NVML, NVMe commands) comes last."""
        out, files = self._out, self._files
        out["boot_id"] = line(files, "/proc/sys/kernel/random/boot_id")
        for name, read in (
            ("identity", identity),
            ("system", system),
            ("pci", devices),
            ("nics", nics),
            ("xids", xids),
        ):
            out[name] = self._section(name, read)
        facts: dict[str, Any] = {"init": self._unfinished}
        out["nvml"] = facts
        try:
            collect(self._nvml, facts)
        except Exception as error:  # noqa: BLE001 - a slip of ours in one section must not cost the others
            facts["topology"] = absent(error)
            facts.setdefault("count", absent(error))
        out["nvme"] = self._section("nvme", drives)

    def _section(self, name: str, read: Any) -> Any:
        try:
            return read(self._files)
        except Exception as error:  # noqa: BLE001 - as above
            reason = absent(error)
            fields = self._out[name]
            return reason if "absent" in fields else dict.fromkeys(fields, reason)

    def report(self) -> bytes:
        """The report as it stands, one line of JSON."""
        seconds = round(time.monotonic() - self._began, 3)
        return json.dumps({**self._out, "seconds": seconds}, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def gather(files: Files, nvml: Any = None, *, nonce: str, host: str) -> bytes:
    """The whole report in this thread, without a time limit. `nvml`: pynvml or what stands in for it."""
    gathering = Gathering(files, nvml, nonce=nonce, host=host)
    gathering.run()
    return gathering.report()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="report", description="Print raw facts of this host as one JSON report.")
    parser.add_argument("--nonce", required=True, help="echoed, so that an old report cannot be played again")
    parser.add_argument("--host", required=True, help="the host id to echo")
    parser.add_argument("--suite", choices=sorted(LIMITS), default="acceptance", help="sets the time limit")
    parser.add_argument("--limit", type=float, help="seconds for everything, instead of the suite's")
    parser.add_argument("--root", default="/", help="directory that stands for /")
    options = parser.parse_args(arguments)
    gathering = Gathering(Tree(options.root), nonce=options.nonce, host=options.host)
    worker = threading.Thread(target=gathering.run, daemon=True)
    worker.start()
    worker.join(options.limit if options.limit is not None else LIMITS[options.suite])
    sys.stdout.buffer.write(gathering.report())
    sys.stdout.buffer.flush()
    if worker.is_alive():
        os._exit(0)  # a call into a hung driver never returns, and must not keep us either
    return 0


if __name__ == "__main__":
    sys.exit(main())
