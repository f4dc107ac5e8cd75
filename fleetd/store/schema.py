"""Migrations without a file to configure: Alembic writes the SQL, the engine runs it in one transaction.

Alembic's offline mode is used on purpose. It needs no second driver for PostgreSQL (asyncpg is the only one fleetd
brings), the text can be shown before it is run, and on both databases a migration is applied whole or not at all.
A migration is therefore written in operations and SQL, never in Python that reads rows.
"""

from __future__ import annotations

import io
import sqlite3
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from fleetd.kit.errors import Refused

FOLDER: Final = Path(__file__).parent / "migrations"


class Migration(NamedTuple):
    """From one revision (None: empty ledger) to another, and the statements between."""

    before: str | None
    after: str
    statements: tuple[str, ...]


def _config(output: io.StringIO) -> Config:
    config = Config(output_buffer=output, stdout=output)
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@cache
def head() -> str:
    """The revision that this fleetd works with."""
    newest = ScriptDirectory.from_config(_config(io.StringIO())).get_current_head()
    assert newest is not None
    return newest


@cache
def _known() -> frozenset[str]:
    return frozenset(step.revision for step in ScriptDirectory.from_config(_config(io.StringIO())).walk_revisions())


@cache
def migration(dialect: str, before: str | None, after: str | None = None) -> Migration:
    """What leads from `before` to the newest schema, or to `after`; no statements when there is nothing to do.

    Raises:
        Refused: the ledger was written by a newer fleetd.
    """
    target = after or head()
    if before == target:
        return Migration(before, before, ())
    if before is not None and before not in _known():
        raise Refused(
            f"the ledger has schema {before}, which this fleetd does not know",
            why="a newer fleetd wrote it",
            remedy="run that version again, or restore the backup made before the upgrade",
        )
    output = io.StringIO()
    config = _config(output)
    config.attributes["dialect"] = dialect
    command.upgrade(config, f"{before or 'base'}:{target}", sql=True)
    return Migration(before, target, _split(output.getvalue()))


def _split(script: str) -> tuple[str, ...]:
    """Single statements of a script; comment lines dropped. SQLite's own judgement of where a statement ends."""
    statements: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        if not pending and (not line.strip() or line.startswith("--")):
            continue
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending.strip())
            pending = ""
    if pending.strip():
        statements.append(pending.strip())
    return tuple(statements)
