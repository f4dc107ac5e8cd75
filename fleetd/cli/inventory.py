"""`fleetctl inventory`: from a folder of files to a plan, and from the plan to the ledger."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fleetd.cli.confirm import Consent, consent_options
from fleetd.cli.context import Hand, output_option, pass_hand, say
from fleetd.cli.exits import Done, Exit
from fleetd.cli.output import emit, text
from fleetd.kit.errors import Invalid, NotFound, Refused

if TYPE_CHECKING:
    from fleetd.client.resources import Document
    from fleetd.model.resource import ChangeView, PlanView

FOLDERS = ("sites", "racks", "skus")
MAX_FILE = 4 * 1024 * 1024
_FOLDED = 12
folder = click.argument("directory", type=click.Path(file_okay=False, path_type=Path), default="inventory")


@click.group()
def inventory() -> None:
    """The inventory: plan, apply, export."""


def read_folder(directory: Path) -> dict[str, str]:
    """`{relative name: text}` of every YAML file under sites/, racks/ and skus/.

    Raises:
        NotFound: no such folder, or no file in it. Invalid: a file cannot be read, or leads out of the folder.
    """
    if not directory.is_dir():
        raise NotFound(f"there is no folder {directory}", remedy="name the folder that holds sites/, racks/ and skus/")
    root = directory.resolve()
    files: dict[str, str] = {}
    for kind in FOLDERS:
        for path in sorted((directory / kind).rglob("*.y*ml")):
            name = path.relative_to(directory).as_posix()
            if path.suffix not in (".yaml", ".yml") or not path.is_file():
                continue
            if not path.resolve().is_relative_to(root):
                raise Invalid("the file is a link out of the inventory", where=name)
            try:
                content = path.read_bytes()
                if len(content) > MAX_FILE:
                    raise Invalid(f"the file is larger than {MAX_FILE} bytes", where=name)
                files[name] = content.decode()
            except (OSError, UnicodeDecodeError) as error:
                raise Invalid("the file cannot be read", why=str(error), where=name) from error
    if not files:
        raise NotFound(
            f"{directory} holds no inventory",
            why="no YAML file in " + ", ".join(f"{k}/" for k in FOLDERS),
            remedy="see the tutorial for an example",
        )
    return files


def _show(hand: Hand, plan: Document[PlanView]) -> None:
    changes = plan.value.changes
    if hand.format in ("json", "yaml", "name"):
        emit(hand, plan.raw, changes, [], lambda c: c.name)
        return
    groups: defaultdict[tuple[str, ...], list[ChangeView]] = defaultdict(list)
    for change in changes:
        same = (change.action, change.kind, change.field, change.why) if change.action == "add" else (
            change.action, change.kind, change.field, change.before, change.after, change.why,
        )  # fmt: skip
        groups[same].append(change)
    for members in groups.values():
        _block(members)
    refused = sum(c.action == "refused" for c in changes)
    click.echo(
        f"{len(changes) - refused} changes" + (f", {refused} refused" if refused else "") if changes else "no changes"
    )


def _block(members: list[ChangeView]) -> None:
    """One change, or the same change to many, as one line and its names."""
    first = members[0]
    sign = {"add": "+", "edit": "~", "move": ">", "maintenance": "-", "refused": "!"}.get(first.action, "?")
    names = " ".join(text(c.name) for c in members[:_FOLDED]) + (
        f" and {len(members) - _FOLDED} more" if len(members) > _FOLDED else ""
    )
    what = f"{first.kind} {names}" if len(members) == 1 else f"{len(members)} {first.kind}s: {names}"
    detail = ""
    if first.field:
        detail = f"  {first.field}: {text(first.before)} -> {text(first.after)}"
    why = f"  ({text(first.why)})" if first.why else ""
    click.echo(f"{sign} {first.action} {what}{detail}{why}")


@inventory.command()
@folder
@output_option
@pass_hand
def plan(hand: Hand, directory: Path) -> None:
    """Show what a folder would change. Exits 10 when there are changes, 0 when there are none."""
    found = hand.fleet.plan(read_folder(directory))
    _show(hand, found)
    if any(c.action == "refused" for c in found.value.changes):
        say("error: some changes are refused; nothing can be applied before they are taken out")
        raise Done(Exit.CONFLICT)
    if found.value.changes:
        say(f"apply exactly this: fleetctl inventory apply {directory} --plan {found.value.digest}")
        raise Done(Exit.CHANGES)


@inventory.command()
@folder
@click.option("--plan", "expect", metavar="DIGEST", help="Apply only if the plan is still this one.")
@consent_options
@output_option
@pass_hand
def apply(hand: Hand, directory: Path, expect: str | None, consent: Consent) -> None:
    """Bring the ledger to a folder. A host that vanished from the files goes to maintenance; nothing is ever deleted."""
    files = read_folder(directory)
    planned = hand.fleet.plan(files)
    refused = [c for c in planned.value.changes if c.action == "refused"]
    if refused:
        _show(hand, planned)
        raise Refused(
            f"{len(refused)} changes are refused",
            why=refused[0].why,
            remedy="take them out of the files and plan again",
        )
    if not planned.value.changes:
        _show(hand, planned)
        return
    losing = [c for c in planned.value.changes if c.action in ("maintenance", "move", "edit")]
    if losing or consent.dry_run:
        shown = planned.value.changes if consent.dry_run else losing
        lines = [
            f"{c.action} {c.kind} {c.name}" + (f" {c.field}: {c.before or '-'} -> {c.after or '-'}" if c.field else "")
            for c in shown
        ]
        consent.ask(f"apply {len(planned.value.changes)} changes", lines)
    done = hand.fleet.apply(files, expect or planned.value.digest)
    _show(hand, done)
    say("applied")


@inventory.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), required=False)
@output_option
@pass_hand
def export(hand: Hand, directory: Path | None) -> None:
    """Print the ledger's inventory, or write it into a new or empty folder."""
    found = hand.fleet.inventory()
    files = found.value.files
    if directory is None:
        if hand.format == "table":
            for name, content in sorted(files.items()):
                click.echo(f"# {name}\n{content}")
            return
        rows: list[Any] = sorted(files)
        emit(hand, found.raw, rows, [], str)
        return
    if directory.exists() and any(directory.iterdir()):
        raise Refused(f"{directory} is not empty", remedy="name a new folder")
    root = directory.resolve()
    for name, content in files.items():
        path = (directory / name).resolve()
        if not path.is_relative_to(root):
            raise Invalid("the daemon sent a name that leads out of the folder", why=text(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    say(f"{len(files)} files written to {directory}")
