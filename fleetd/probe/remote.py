"""The only commands fleetd ever gives to a remote shell: is a zipapp there, push it, run it. Built and parsed here.

Every word is either fixed, or a path of fixed letters, or an argument quoted by `shlex`: nothing a host, a user or
the ledger says can become shell. The pushed bytes get their final name only after their sha256 was compared there.
"""

from __future__ import annotations

import re
import shlex
from typing import Literal, NamedTuple

PLACES = ("/run/fleetd", ".fleetd")  # the second, below the login's home, where the first is not writable
MOST_ARGUMENTS = 64
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PATH = r"(?P<path>(?P<place>/run/fleetd|\.fleetd)/(?P<name>[a-z][a-z0-9-]{0,31})-(?P<digest>[0-9a-f]{64})\.pyz)"
_TEST = re.compile(rf"test -f {_PATH}")
_PUSH = re.compile(
    rf"umask 077; mkdir -p \S{{1,20}} && cat >\S{{1,200}}\.(?P<mark>[0-9a-f]{{16}}) && "
    rf'echo "\S{{64}}  \S{{1,200}}" \| sha256sum -c >/dev/null && mv \S{{1,200}} {_PATH} \|\| .{{1,250}}'
)
_RUN = re.compile(rf"exec python3 -I {_PATH}(?P<arguments>( .*)?)", re.DOTALL)


class Command(NamedTuple):
    """What one remote command means."""

    verb: Literal["test", "push", "run"]
    place: str
    name: str
    digest: str
    arguments: tuple[str, ...] = ()


def path(place: str, name: str, digest: str) -> str:
    """Where a zipapp stands on the host. Raises ValueError for words that are not plain."""
    if place not in PLACES or not _NAME.fullmatch(name) or not _DIGEST.fullmatch(digest):
        raise ValueError(f"not a zipapp's place, name and digest: {place!r}, {name!r}, {digest!r}")
    return f"{place}/{name}-{digest}.pyz"


def test(place: str, name: str, digest: str) -> str:
    """Exit 0 if the zipapp is there."""
    return f"test -f {path(place, name, digest)}"


def push(place: str, name: str, digest: str, mark: str) -> str:
    """Reads the bytes from standard input. `mark`: 16 hex digits, so that two pushes at once do not meet."""
    final = path(place, name, digest)
    if not re.fullmatch(r"[0-9a-f]{16}", mark):
        raise ValueError(f"not a mark: {mark!r}")
    part = f"{final}.{mark}"
    return (
        f"umask 077; mkdir -p {place} && cat >{part} && "
        f'echo "{digest}  {part}" | sha256sum -c >/dev/null && mv {part} {final} || {{ rm -f {part}; false; }}'
    )


def run(place: str, name: str, digest: str, arguments: tuple[str, ...]) -> str:
    """Run it isolated from the login's Python settings. Raises ValueError for NUL or too many arguments."""
    if len(arguments) > MOST_ARGUMENTS or any("\0" in a or len(a) > 4096 for a in arguments):
        raise ValueError("the arguments cannot be given to a remote command")
    return " ".join(["exec python3 -I", path(place, name, digest), *(shlex.quote(a) for a in arguments)])


def parse(command: str) -> Command | None:
    """The meaning of a command that one of the three above built; None for anything else."""
    if found := _TEST.fullmatch(command):
        return Command("test", found["place"], found["name"], found["digest"])
    if found := _PUSH.fullmatch(command):
        # the expression is loose on purpose: what counts is that `push` would have built exactly this
        same = push(found["place"], found["name"], found["digest"], found["mark"]) == command
        return Command("push", found["place"], found["name"], found["digest"]) if same else None
    if found := _RUN.fullmatch(command):
        try:
            arguments = tuple(shlex.split(found["arguments"]))
            same = run(found["place"], found["name"], found["digest"], arguments) == command
        except ValueError:
            return None
        return Command("run", found["place"], found["name"], found["digest"], arguments) if same else None
    return None
