"""`python3 -I host.pyz COMMAND < ORDER`: progress as JSON lines on stderr, one JSON report on stdout.

Exit 0 with a report that may say anything but a refusal, 3 with a report that says refused, 2 for bad usage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys

from .machine import Machine
from .order import MAX_ORDER, Refusal
from .real import RealMachine
from .standin import RootMachine
from .work import COMMANDS, Progress, Report, perform


def _tell(progress: Progress) -> None:
    # Nobody may be listening any more: the work goes on, and its report waits in the journal.
    with contextlib.suppress(OSError, ValueError):
        print(json.dumps(progress), file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="host", description="Wipe, write and inspect this host, under order.")
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--root", help="a directory that stands for a host, with simulated drives")
    options = parser.parse_args(arguments)
    for number in (signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    data = sys.stdin.buffer.read(MAX_ORDER + 1)
    report: Report
    try:
        machine: Machine = RootMachine(options.root) if options.root else RealMachine()
    except Refusal as refusal:
        report = {"ok": False, "refused": {"code": refusal.code, "reason": refusal.reason}}
    else:
        work = perform(options.command, data, machine)
        while True:
            try:
                _tell(next(work))
            except StopIteration as done:
                report = done.value
                break
    with contextlib.suppress(OSError, ValueError):
        print(json.dumps(report), flush=True)
    return 3 if "refused" in report else 0


if __name__ == "__main__":
    sys.exit(main())
