"""The documentation says what the code says: generated pages are current, links lead somewhere, commands exist, words are ours."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from fleetd.api.app import openapi_document
from fleetd.cli.main import fleetctl
from fleetd.daemon.main import main as fleetd
from fleetd.lifecycle import transitions

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

_LINK = re.compile(r"\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")

# A host is called host and nothing else. A line may say the word for another reason, which stands here.
BANNED = re.compile(r"\b(nodes?|machines?|servers?)\b", re.IGNORECASE)
ALLOWED = {
    "Server-sent events": "the name of the standard",
    "GPU servers": "what everybody outside calls the product's metal; said once, in the one-line summary of the program",
}


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    """docs/generate.py, which is a script and in no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield importlib.import_module("generate")


def test_generated_pages_are_current(generate: ModuleType) -> None:
    assert [str(path.relative_to(ROOT)) for path in generate.stale()] == [], "run `make docs`"


def test_every_reference_page_is_generated(generate: ModuleType) -> None:
    assert {path.name for path in (DOCS / "reference").iterdir()} == set(generate.PAGES)


def test_each_page_says_what_the_code_has(generate: ModuleType) -> None:
    """A page that comes out empty is current too: look for what must stand in it."""
    pages = {name: make() for name, make in generate.PAGES.items()}
    assert all(f"`{state}`" in pages["states.md"] for state in transitions.TABLE)
    assert "| `gpu.count`" not in pages["checks.md"]
    assert "## gpu.count" in pages["checks.md"]
    assert "## wipe@2" in pages["steps.md"]
    assert "## rack-bringup" in pages["playbooks.md"]
    assert "`fleetd_hosts`" in pages["metrics.md"]
    assert pages["metrics.md"].count("| `fleetd_") >= 11
    assert "`bmc_patience`" in pages["config.md"]
    assert "## dell-serial-is-service-tag" in pages["quirks.md"]
    assert "## fleetd serve" in pages["fleetd.md"]


def headings(page: Path, generate: ModuleType) -> set[str]:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return {generate.pages.slug(h.strip()) for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_resolve(page: Path, generate: ModuleType) -> None:
    broken = []
    for target in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in headings(path, generate)):
            broken.append(target)
    assert broken == []


def test_every_page_is_reached_from_the_readme() -> None:
    seen, queue = set(), [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page in seen or not page.exists():
            continue
        seen.add(page)
        if page.is_dir():
            queue.append(page / "README.md")
        elif page.suffix == ".md":
            text = _FENCE.sub("", page.read_text(encoding="utf-8"))
            queue += [
                (page.parent / target.partition("#")[0]).resolve() for target in _LINK.findall(text) if target[0] != "#"
            ]
    assert [name for name, page in zip(NAMES, PAGES, strict=True) if page not in seen] == []


# --- commands ----------------------------------------------------------------------------------------------------------


def typed(page: Path) -> Iterator[str]:
    """Every command of ours that a page shows, in a shell block or as code in a sentence."""
    text = page.read_text(encoding="utf-8")
    for _, language, body in _FENCE.findall(text):
        if language in ("sh", "console"):
            lines = [line.strip().removeprefix("$ ") for line in body.splitlines()]
            yield from (line for line in lines if re.match(r"(fleetctl|fleetd) [a-z]", line))
    for code in _CODE.findall(_FENCE.sub("", text)):
        if re.match(r"(fleetctl|fleetd)\s[a-z]", code):
            yield " ".join(code.split())


def complaint(line: str) -> str:
    """Why the program would not take this command line; empty when it would read it."""
    line = re.split(r" *[|;>#&]", line.replace("$(", "").replace(")", ""))[0]
    words = shlex.split(line.replace("…", "x"))
    command: click.Command = fleetctl if words[0] == "fleetctl" else fleetd
    context = click.Context(command, info_name=words[0])
    rest = words[1:]
    while isinstance(command, click.Group):
        # Options of the group itself do not stand in our pages.
        if not rest:
            return ""
        found = command.get_command(context, rest[0])
        if found is None:
            return f"`{line}`: no command `{rest[0]}`"
        command, rest = found, rest[1:]
        context = click.Context(command, info_name=command.name, parent=context)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    known |= set(context.help_option_names)
    unknown = [w for w in rest if w.startswith("-") and len(w) > 1 and w.partition("=")[0] not in known]
    return f"`{line}`: no option {unknown[0]}" if unknown and not any("," in w for w in unknown) else ""


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_that_a_page_shows_exist(page: Path) -> None:
    assert [why for line in typed(page) if (why := complaint(line))] == []


# --- words -------------------------------------------------------------------------------------------------------------


def helps(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
    texts = [command.help or "", command.short_help or "", command.epilog or ""]
    texts += [getattr(parameter, "help", "") or "" for parameter in command.params]
    yield path, "\n".join(texts)
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from helps(child, f"{path} {name}")


def descriptions(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("description", "summary") and isinstance(inner, str):
                yield f"{path}/{key}", inner
            else:
                yield from descriptions(inner, f"{path}/{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from descriptions(inner, f"{path}/{i}")


def misnamed(texts: Iterator[tuple[str, str]]) -> list[str]:
    found = []
    for place, text in texts:
        plain = text
        for phrase in ALLOWED:
            plain = plain.replace(phrase, "")
        found += [f"{place}: {word}" for word in BANNED.findall(plain)]
    return found


def test_the_commands_speak_the_words_of_the_house() -> None:
    assert misnamed(iter([*helps(fleetctl, "fleetctl"), *helps(fleetd, "fleetd")])) == []


def test_the_api_speaks_the_words_of_the_house() -> None:
    assert misnamed(descriptions(openapi_document())) == []


def test_every_allowed_phrase_is_needed() -> None:
    texts = [text for _, text in (*helps(fleetctl, ""), *helps(fleetd, ""), *descriptions(openapi_document()))]
    assert [phrase for phrase in ALLOWED if not any(phrase in text for text in texts)] == []


def test_no_page_names_a_place_on_somebody_s_disk() -> None:
    places = re.compile(r"/(home|work|root|Users)/")
    assert [
        name for name, page in zip(NAMES, PAGES, strict=True) if places.search(page.read_text(encoding="utf-8"))
    ] == []
