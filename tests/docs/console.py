"""Runs the `console` blocks of a page in one shell, and compares what they print with what the page shows.

A line that begins with `$ ` is a command (a here-document belongs to it), the rest is output. A comment `# exits 9`
behind a command names the exit code it must have. In shown output `...` stands for anything, a line that is only `...`
for any lines. What differs from run to run (ids, times, digests, widths of columns) is compared as its kind.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_HERE = re.compile(r"<<'(\w+)'")
_EXITS = re.compile(r"# exits (\d+)")
_MARK = "@@fleetd-docs@@"
_KINDS = [
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r"\b(run|lease|host|certificate|intent|boot)-[0-9a-z]{22}\b"), r"\1-ID"),
    (re.compile(r"\b[0-9a-f]{16,64}\b"), "HEX"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "TIME"),
    (re.compile(r"\.py:\d+"), ".py:N"),
    (re.compile(r"\b\d+ (ms|s|m|h|d)\b( \d+ (s|m|h)\b)?"), "SPAN"),
    (re.compile(r"-{2,}"), "--"),
    (re.compile(r"\s+"), " "),
]


class Command(NamedTuple):
    """One command of a page: where it stands, what is typed, what is shown, how it must end."""

    line: int
    text: str
    shown: tuple[str, ...]
    code: int


def commands(page: Path) -> list[Command]:
    """All commands of the console blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in _BLOCK.finditer(text):
        number = text.count("\n", 0, block.start(1)) + 1
        lines = block[1].splitlines()
        i = 0
        while i < len(lines):
            assert lines[i].startswith("$ "), f"{page.name}:{number + i}: a console block begins with a command"
            start, typed = i, [lines[i][2:]]
            i += 1
            if here := _HERE.search(typed[0]):
                while typed[-1] != here[1]:
                    typed.append(lines[i])
                    i += 1
            shown = []
            while i < len(lines) and not lines[i].startswith("$ "):
                shown.append(lines[i])
                i += 1
            exits = _EXITS.search(typed[0])
            found.append(Command(number + start, "\n".join(typed), tuple(shown), int(exits[1]) if exits else 0))
    return found


def plain(line: str) -> str:
    """The line with what differs from run to run replaced by its kind."""
    for pattern, kind in _KINDS:
        line = pattern.sub(kind, line)
    return line.strip()


def matches(shown: tuple[str, ...], said: list[str]) -> bool:
    """Whether the output is what the page shows."""
    pattern = ""
    for line in shown:
        if line.strip() == "...":
            pattern += r"(?:.*\n)*"
        else:
            pattern += ".*".join(re.escape(plain(part)) for part in line.split("...")) + r"\n"
    # Spaces beside a `...` are part of what it stands for.
    return (
        re.fullmatch(pattern.replace(r"\ .*", ".*").replace(r".*\ ", ".*"), "".join(plain(x) + "\n" for x in said))
        is not None
    )


def play(page: Path, folder: Path, replace: dict[str, str], *, seconds: float) -> list[str]:
    """Run a page in `folder`. `replace`: texts of the page to exchange for this run. Returns what was wrong."""
    todo = commands(page)
    script = ["set +m", f"export PATH={Path(sys.executable).parent}:$PATH NO_COLOR=1", f"cd {folder}"]
    for i, command in enumerate(todo):
        typed = command.text
        for old, new in replace.items():
            typed = typed.replace(old, new)
        script += [typed, f"printf '\\n{_MARK} {i} %s\\n' $?"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FLEETD_", "KEEP", "SEED"))}
    environment |= {"HOME": str(folder), "TMPDIR": str(folder), "COLUMNS": "200"}
    typed_here = folder / "page.sh"
    typed_here.write_text("\n".join(script) + "\n", encoding="utf-8")
    shell = subprocess.Popen(
        ["bash", str(typed_here)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
    )
    try:
        output, _ = shell.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGKILL)
        output, _ = shell.communicate()
    finally:
        # Whatever the page left running is of the session we started.
        if subprocess.run(["kill", "-0", "--", f"-{shell.pid}"], capture_output=True, check=False).returncode == 0:
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    for old, new in replace.items():
        output = output.replace(new, old)
    return _judge(page, todo, output)


def _judge(page: Path, todo: list[Command], output: str) -> list[str]:
    wrong: list[str] = []
    rest = output
    for i, command in enumerate(todo):
        said, mark, rest = rest.partition(f"\n{_MARK} {i} ")
        place = f"{page.name}:{command.line}: $ {command.text.splitlines()[0]}"
        if not mark:
            return [*wrong, f"{place}\ndid not end; it said:\n{said[-3000:]}"]
        code, _, rest = rest.partition("\n")
        lines = [line for line in said.splitlines() if line.strip()]
        if int(code) != command.code:
            wrong.append(f"{place}\nexited {code}, not {command.code}:\n{said[-3000:]}")
        elif command.shown and not matches(tuple(x for x in command.shown if x.strip()), lines):
            wrong.append(f"{place}\nshown:\n" + "\n".join(command.shown) + f"\nsaid:\n{said}")
    return wrong
