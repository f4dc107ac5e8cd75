"""What the end-to-end tests print at their end, and what they keep when they fail."""

from __future__ import annotations

from typing import Any

from tests.e2e.progress import STAGES


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if STAGES.took:
        terminalreporter.section("stages of make e2e")
        terminalreporter.write_line(STAGES.table())
