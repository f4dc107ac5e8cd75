"""What every command shares: where the daemon is, how to print, and how a failure becomes words and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from fleetd.cli.exits import Done, Exit
from fleetd.kit.errors import FleetError, Invalid, NotFound

if TYPE_CHECKING:
    from fleetd.client.http import Endpoint
    from fleetd.client.resources import Fleet

DEFAULT_SOCKET = "/run/fleetd/fleetd.sock"
FORMATS = ("table", "wide", "json", "yaml", "name")
F = TypeVar("F", bound=Callable[..., Any])


class Hand:
    """The settings of one call; `fleet` connects when it is first used."""

    def __init__(self) -> None:
        self.socket: str | None = None
        self.url: str | None = None
        self.token_file: str | None = None
        self.context: str | None = None
        self.format = "table"
        self._fleets: dict[str, Fleet] = {}

    @property
    def fleet(self) -> Fleet:
        """The one daemon this call is about. Raises Invalid when several contexts were named."""
        endpoints = self.endpoints()
        if len(endpoints) > 1:
            raise Invalid(
                "this command speaks to one context", why="named: " + ", ".join(map(str, endpoints)), where="--context"
            )
        return self.connect(endpoints[0])

    def connect(self, endpoint: Endpoint) -> Fleet:
        """A kept connection to a daemon."""
        from fleetd.client.resources import Fleet

        return self._fleets.setdefault(str(endpoint), Fleet(endpoint))

    def close(self) -> None:
        """Drop every connection."""
        for fleet in self._fleets.values():
            fleet.close()

    def endpoints(self) -> list[Endpoint]:
        """Where to go: --socket, --url, --context in that order, then the environment, then the usual socket."""
        from fleetd.client.http import Endpoint

        token = self._token(self.token_file or os.environ.get("FLEETD_TOKEN_FILE"))
        if self.socket is not None:
            return [Endpoint(socket=self.socket, token=token if self.token_file else None)]
        if self.url is not None:
            return [Endpoint(url=self.url, token=token, ca=os.environ.get("FLEETD_CA"))]
        context = self.context or os.environ.get("FLEETD_CONTEXT")
        if context:
            return self._contexts(context)
        if os.environ.get("FLEETD_SOCKET"):
            return [Endpoint(socket=os.environ["FLEETD_SOCKET"], token=token if self.token_file else None)]
        if os.environ.get("FLEETD_URL"):
            return [Endpoint(url=os.environ["FLEETD_URL"], token=token, ca=os.environ.get("FLEETD_CA"))]
        return [Endpoint(socket=DEFAULT_SOCKET, token=token if self.token_file else None)]

    @staticmethod
    def _token(name: str | None) -> str | None:
        if name is None:
            return None
        try:
            text = Path(name).expanduser().read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Invalid("the token file cannot be read", why=str(error), where=name) from error
        if not text or "\n" in text or len(text) > 200:
            raise Invalid("the token file holds no token", why="one line is expected", where=name)
        return text

    def _contexts(self, wanted: str) -> list[Endpoint]:
        """`name`, `a,b` or `all`, from the contexts file."""
        from fleetd.client.http import Endpoint
        from fleetd.kit.yamlfile import parse

        path = Path(os.environ.get("FLEETD_CONTEXTS", "~/.config/fleetd/contexts.yaml")).expanduser()
        try:
            document = parse(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise Invalid("the contexts file cannot be read", why=str(error), where=str(path)) from error
        known = document.value.get("contexts") if isinstance(document.value, dict) else None
        if not isinstance(known, dict) or not all(isinstance(v, dict) for v in known.values()):
            raise Invalid(
                "the contexts file holds no contexts",
                where=document.where(),
                remedy="contexts: {NAME: {url: …, token_file: …}}",
            )
        names = list(known) if wanted == "all" else wanted.split(",")
        found = []
        for name in names:
            if name not in known:
                raise NotFound(
                    f"there is no context {name}",
                    why=f"known: {', '.join(known)}",
                    where=str(path),
                    remedy=f"add it to {path}",
                )
            entry = known[name]
            odd = set(entry) - {"socket", "url", "token_file", "ca"}
            if odd or ("socket" in entry) == ("url" in entry):
                raise Invalid(
                    f"context {name} needs either socket or url, and may have token_file and ca",
                    where=document.where(("contexts", name)),
                )
            found.append(
                Endpoint(
                    socket=entry.get("socket"),
                    url=entry.get("url"),
                    token=self._token(self.token_file or entry.get("token_file")),
                    ca=entry.get("ca"),
                    name=name,
                )
            )
        return found


pass_hand = click.make_pass_decorator(Hand, ensure=True)


def say(text: str) -> None:
    """Talk: stderr, so that stdout stays data."""
    click.echo(text, err=True)


def explain(error: FleetError) -> None:
    """What, why, and what to try."""
    # Names of others may be in it: no escape sequence reaches the terminal, and no line is one that we did not write.
    what, why, remedy = map(
        _one_line, (f"{error.where}: {error.what}" if error.where else error.what, error.why, error.remedy)
    )
    say(click.style("error: ", fg="red", bold=True) + what if colour(sys.stderr) else f"error: {what}")
    if why:
        say(f"why: {why}")
    if remedy:
        say(f"try: {remedy}")


def _one_line(said: str) -> str:
    return "".join(c if c.isprintable() else " " if c == "\n" else "?" for c in said)


def colour(stream: Any) -> bool:
    """May we colour this stream? Only a terminal, and not with NO_COLOR."""
    return bool(not os.environ.get("NO_COLOR") and stream.isatty() and os.environ.get("TERM") != "dumb")


class Main(click.Group):
    """The root group: it alone turns exceptions into words and exit codes."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """As click's stand-alone mode, but every failure goes through here."""
        call = super().main
        self._leave(lambda: call(args, prog_name, complete_var, standalone_mode=False, **extra))

    @staticmethod
    def _leave(call: Callable[[], Any]) -> NoReturn:
        code: int = Exit.OK
        try:
            result = call()
            code = result if isinstance(result, int) else Exit.OK
            sys.stdout.flush()
        except Done as done:
            code = done.code
        except FleetError as error:
            explain(error)
            code = error.exit_code
        except click.UsageError as error:
            say(f"error: {error.format_message()}")
            if error.ctx is not None:
                say(f"try: {error.ctx.command_path} --help")
            code = Exit.USAGE
        except click.ClickException as error:
            say(f"error: {error.format_message()}")
            code = Exit.FAILED
        except (KeyboardInterrupt, click.Abort):
            say("interrupted")
            code = Exit.INTERRUPTED
        except BrokenPipeError:
            # The reader (`| head`) has enough; leave without a second complaint at interpreter exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = Exit.OK
        sys.exit(int(code))


def _set_format(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Hand).format = value


def output_option(function: F) -> F:
    """-o, on the command as well as before it."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        expose_value=False,
        callback=_set_format,
        help="How to print: table (default), wide, json, yaml, or only the names.",
    )(function)
