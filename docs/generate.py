"""Writes the pages of the reference that come from code; with --check it only says which are stale, and fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pages  # stands beside this file: both are no package

from fleetd.api.app import openapi_document
from fleetd.cli.reference import render, render_errors
from fleetd.model import schemas

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
REFERENCE = DOCS / "reference"


def openapi() -> str:
    """The API, as OpenAPI 3.1."""
    return json.dumps(openapi_document(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "checks.md": pages.checks,
    "cli.md": render,
    "config.md": pages.config,
    "errors.md": render_errors,
    "exit-codes.md": pages.exit_codes,
    "faults.md": pages.faults,
    "fleetd.md": pages.daemon_commands,
    "inventory.md": pages.inventory,
    "metrics.md": pages.metrics,
    "openapi.json": openapi,
    "playbooks.md": pages.playbooks,
    "quirks.md": pages.quirks,
    "states.md": pages.states,
    "steps.md": pages.steps,
}


def targets() -> dict[Path, Callable[[], str]]:
    """Every generated file, and what it must hold."""
    found = {REFERENCE / name: make for name, make in PAGES.items()}
    life = DOCS / "explanation" / "one-hosts-life.md"
    found[life] = lambda: pages.with_picture(life.read_text(encoding="utf-8"))
    for name, text in schemas.render().items():
        found[ROOT / "inventory" / "schema" / name] = lambda text=text: text  # type: ignore[misc]
    return found


def stale() -> list[Path]:
    """The files that are not what the code says."""
    return [path for path, make in targets().items() if not path.exists() or path.read_text(encoding="utf-8") != make()]


def main() -> int:
    """Returns the exit code."""
    if "--check" in sys.argv[1:]:
        old = stale()
        for path in old:
            print(f"{path.relative_to(ROOT)} is stale: run `make docs`", file=sys.stderr)  # noqa: T201
        return 1 if old else 0
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for path, make in targets().items():
        path.write_text(make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
