"""Before something is lost: say what, for whom, and ask. A program says --yes; nobody is ever left hanging at a question."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from fleetd.cli.context import say
from fleetd.cli.exits import Done, Exit
from fleetd.cli.output import interactive
from fleetd.kit.errors import Invalid

F = TypeVar("F", bound=Callable[..., Any])
SHOWN = 20


class Consent:
    """How the question is to be answered."""

    def __init__(self, *, yes: bool, dry_run: bool, no_input: bool) -> None:
        self.yes, self.dry_run, self.no_input = yes, dry_run, no_input

    def ask(self, act: str, losses: Sequence[str], *, stdin_used: bool = False) -> None:
        """Return when it may be done.

        Raises:
            Done: it was a dry run (0), or the person said no (1).
            Invalid: nobody is there to ask, and --yes was not given.
        """
        say(f"{'would ' if self.dry_run else ''}{act}" + (":" if losses else ""))
        for line in losses[:SHOWN]:
            say(f"  {line}")
        if len(losses) > SHOWN:
            say(f"  … and {len(losses) - SHOWN} more")
        if self.dry_run:
            say("dry run: nothing was changed")
            raise Done(Exit.OK)
        if self.yes:
            return
        if self.no_input or stdin_used or not interactive():
            raise Invalid(
                "this needs a yes",
                why="nobody is there to ask",
                remedy="add --yes when you mean it, or --dry-run to look",
            )
        if not click.confirm("Do it?", default=False, err=True):
            say("nothing was changed")
            raise Done(Exit.FAILED)


def consent_options(function: F) -> F:
    """--yes, --dry-run, --no-input; the command gets them as `consent`."""

    @functools.wraps(function)
    def with_consent(*args: Any, yes: bool, dry_run: bool, no_input: bool, **rest: Any) -> Any:
        return function(*args, consent=Consent(yes=yes, dry_run=dry_run, no_input=no_input), **rest)

    wrapped: Any = with_consent
    for option in (
        click.option("--no-input", is_flag=True, help="Never ask; fail instead."),
        click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
        click.option("-y", "--yes", is_flag=True, help="Do not ask."),
    ):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]
