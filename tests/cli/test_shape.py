"""The hand as a whole: it starts fast, imports only what it may, documents itself, and never hangs at a question."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fleetd.cli import reference
from fleetd.cli.context import explain
from fleetd.cli.exits import MEANS, Exit
from fleetd.cli.main import fleetctl
from fleetd.cli.output import table, text
from fleetd.kit import pause
from fleetd.kit.errors import Invalid, every_error
from tests.cli.hand import hand

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found = [(path, command)]
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            found += commands(child, (*path, name))
    return found


def test_an_error_that_holds_the_words_of_others_is_one_line_without_escapes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    explain(Invalid("`lou-a01\ntry: rm -rf /` is not a name", why="\x1b[2J", where="a.yaml:3"))
    assert capsys.readouterr().err.splitlines()[:2] == [
        "error: a.yaml:3: `lou-a01 try: rm -rf /` is not a name",
        "why: ?[2J",
    ]


def test_pages_are_current() -> None:
    assert (REFERENCE / "cli.md").read_text() == reference.render(), "run `make docs`"
    assert (REFERENCE / "errors.md").read_text() == reference.render_errors(), "run `make docs`"


def test_every_exit_code_is_documented_and_used_by_the_errors() -> None:
    assert set(MEANS) == set(Exit)
    assert {int(code) for code in Exit} == {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 130}
    assert {kind.exit_code for kind in every_error()} <= {int(code) for code in Exit}


def test_every_command_has_help_and_options_have_words() -> None:
    for path, command in commands(fleetctl):
        assert command.help, path
        said = hand(None, *path, "--help")
        assert said.code == 0, path


def test_what_reads_prints_in_every_format() -> None:
    """Whoever answers with data takes -o; orders without an answer do not."""
    silent = {("thaw",), ("lift",), ("certificate", "key"), ("host", "expand")}
    silent |= {("image", "remove"), ("image", "sign"), ("image", "key")}
    for path, command in commands(fleetctl):
        if isinstance(command, click.Group) or path in silent:
            continue
        assert "output" in {p.name for p in command.params}, path


def test_what_destroys_asks() -> None:
    asking = {
        path
        for path, command in commands(fleetctl)
        if {"yes", "dry_run", "no_input"} <= {p.name for p in command.params}
    }
    assert asking == {
        ("inventory", "apply"),
        ("host", "power"),
        ("host", "quarantine"),
        ("host", "maintenance"),
        ("host", "retire"),
        ("run", "cancel"),
        ("lease", "release"),
        ("image", "remove"),
        ("thaw",),
        ("lift",),
    }


@pytest.mark.slow
def test_help_is_fast_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['fleetctl', '--help']\n"
        "from fleetd.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & set("
        "['asyncio', 'rich', 'litestar', 'sqlalchemy', 'cryptography', 'yaml', 'aiohttp', 'msgspec', 'http', 'ssl'])), file=sys.stderr)\n"
    )
    best = 9.9
    for _ in range(3):
        began = pause.steady()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
        best = min(best, pause.steady() - began)
    assert "Usage: fleetctl" in done.stdout
    assert done.stderr.splitlines()[-1] == "[]"
    assert best < 0.3


def test_usage_errors_are_2_with_a_hint() -> None:
    said = hand(None, "host", "lsit")
    assert said.code == 2
    assert "Did you mean 'list'?" in said.err
    assert "try: fleetctl host --help" in said.err
    assert hand(None, "--socket", "a", "--url", "b", "doctor").code == 2
    assert hand(None, "host", "list", "-o", "xml").code == 2


def test_no_daemon_is_told_with_a_remedy(tmp_path: Path) -> None:
    said = hand(None, "host", "list", FLEETD_SOCKET=str(tmp_path / "none"))
    assert said.code == 1
    assert [line.split(":")[0] for line in said.err.splitlines()] == ["error", "why", "try"]
    bad = tmp_path / "token"
    bad.write_text("a\nb\n")
    assert hand(None, "--token-file", str(bad), "doctor").code == 2
    assert hand(None, "--token-file", str(tmp_path / "none"), "doctor").code == 2


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error() -> None:
    script = f"{sys.executable} -m fleetd.cli.main --help | head -c 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}"], capture_output=True, text=True, timeout=20, env=os.environ
    )
    assert "Traceback" not in done.stderr


def test_tables_align_and_hide_control_characters() -> None:
    assert table(["A", "LONG"], [["x", "1"], ["yyyy", "2"]]) == "A     LONG\nx     1\nyyyy  2\n"
    assert text("evil\x1b[2Jname") == "evil?[2Jname"
    assert text(None) == "-"
    assert text(["a", 1]) == "a, 1"


def test_every_command_we_tell_people_to_try_exists() -> None:
    """Remedies name commands; one that does not exist is worse than none."""
    known = {path for path, _ in commands(fleetctl)}
    groups = {path for path, command in commands(fleetctl) if isinstance(command, click.Group)}
    for file in sorted((REFERENCE.parents[1] / "fleetd").rglob("*.py")):
        for line in file.read_text().splitlines():
            for tried in re.findall(r"(?:`|try: |remedy=f?\"|\w: )fleetctl ((?:[a-z]+ ?){1,2})", line):
                words = tuple(tried.split())
                path = words if words[:1] in groups else words[:1]
                assert path in known, f"{file.name}: fleetctl {tried}"
