"""`fleetctl` as a script calls it, in this process: exit code, stdout, stderr."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from click.testing import CliRunner

from fleetd.cli.main import fleetctl
from tests.house import House


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def hand(daemon: House | None, *words: str, role: str | None = None, stdin: str | None = None, **env: str) -> Said:
    """Call it: on the socket as this user, or over TCP with the token of a role."""
    where: list[str] = []
    if daemon is not None and role is None:
        where = ["--socket", str(daemon.socket)]
    elif daemon is not None and role is not None:
        where = ["--url", f"http://127.0.0.1:{daemon.port}", "--token-file", str(daemon.token_file(role))]
    clean: dict[str, str | None] = dict.fromkeys(
        ("FLEETD_SOCKET", "FLEETD_URL", "FLEETD_CONTEXT", "FLEETD_TOKEN_FILE", "FLEETD_CONTEXTS", "FLEETD_CA")
    )
    got = CliRunner().invoke(fleetctl, [*where, *words], input=stdin, env=clean | env)
    if got.exception is not None and not isinstance(got.exception, SystemExit):
        raise got.exception
    return Said(got.exit_code, got.stdout, got.stderr)
