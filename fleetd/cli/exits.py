"""What a script learns from `fleetctl`: the exit codes, in one place."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Documented and tested; never renumber."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3
    DENIED = 4
    NOT_FOUND = 5
    CONFLICT = 6
    TIMEOUT = 7
    RUNNING = 8
    VERDICT = 9
    CHANGES = 10
    INTERRUPTED = 130


MEANS: dict[Exit, str] = {
    Exit.OK: "done",
    Exit.FAILED: "failed; stderr says what and why",
    Exit.USAGE: "the command or its input is wrong; nothing was changed",
    Exit.PARTIAL: "some hosts failed, or some contexts did not answer; stderr names them",
    Exit.DENIED: "not authenticated, or not allowed",
    Exit.NOT_FOUND: "nothing of that name, or more than one",
    Exit.CONFLICT: "the ledger or a safety rule says no: leased, frozen, changed meanwhile",
    Exit.TIMEOUT: "not finished in the time given",
    Exit.RUNNING: "it still runs",
    Exit.VERDICT: "a verdict failed: a run with failed hosts, a certificate that is not good",
    Exit.CHANGES: "the plan has changes",
    Exit.INTERRUPTED: "interrupted by Ctrl-C; what was started goes on",
}


class Done(Exception):
    """Ends the command with a code that is not an error to explain."""

    def __init__(self, code: Exit) -> None:
        super().__init__(code)
        self.code = code
