"""Writes the pages of the reference that come from code; with --check it only says which are stale, and fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from fleetd.api.app import openapi_document
from fleetd.cli.reference import render, render_errors

REFERENCE = Path(__file__).parent / "reference"


def openapi() -> str:
    """The API, as OpenAPI 3.1."""
    return json.dumps(openapi_document(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": render,
    "errors.md": render_errors,
    "openapi.json": openapi,
}


def stale() -> list[str]:
    """Names of the pages that are not what the code says."""
    found = []
    for name, make in PAGES.items():
        path = REFERENCE / name
        if not path.exists() or path.read_text(encoding="utf-8") != make():
            found.append(name)
    return found


def main() -> int:
    """Returns the exit code."""
    if "--check" in sys.argv[1:]:
        old = stale()
        for name in old:
            print(f"docs/reference/{name} is stale: run `make docs`", file=sys.stderr)  # noqa: T201
        return 1 if old else 0
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (REFERENCE / name).write_text(make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
