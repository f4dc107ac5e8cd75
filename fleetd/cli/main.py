"""The root of `fleetctl`: global options, and the commands, one module a noun."""

from __future__ import annotations

import click

from fleetd import __version__
from fleetd.cli import brake, catalogue, doctor, events, wait
from fleetd.cli.boot import boot
from fleetd.cli.capacity import capacity
from fleetd.cli.certificate import certificate
from fleetd.cli.context import DEFAULT_SOCKET, Hand, Main, output_option
from fleetd.cli.exits import MEANS
from fleetd.cli.host import host
from fleetd.cli.image import image
from fleetd.cli.inventory import inventory
from fleetd.cli.lease import lease
from fleetd.cli.rack import rack
from fleetd.cli.run import run

_EPILOG = (
    "HOSTS is a host range: lou-a01-[01-18], rack=lou-a01, state=available,sku=dell.*, -lou-a01-03, all, @FILE, or - for"
    " standard input.\n\nExit codes: "
    + "; ".join(f"{int(code)} {means.split(';')[0]}" for code, means in MEANS.items())
    + "."
)


@click.group(
    cls=Main, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option("--socket", metavar="PATH", help=f"The daemon's unix socket. [env FLEETD_SOCKET; {DEFAULT_SOCKET}]")
@click.option("--url", metavar="URL", help="The daemon's address instead. [env FLEETD_URL]")
@click.option("--token-file", metavar="FILE", help="A file that holds an API token. [env FLEETD_TOKEN_FILE]")
@click.option(
    "--context",
    metavar="NAMES",
    help="Named daemons of ~/.config/fleetd/contexts.yaml: one, a,b or all. [env FLEETD_CONTEXT]",
)
@output_option
@click.version_option(__version__, prog_name="fleetctl", message="%(prog)s %(version)s")
@click.pass_context
def fleetctl(
    ctx: click.Context, socket: str | None, url: str | None, token_file: str | None, context: str | None
) -> None:
    """Turn racked GPU servers into rentable compute, and keep proving that they are."""
    if sum(x is not None for x in (socket, url, context)) > 1:
        raise click.UsageError("give only one of --socket, --url and --context", ctx)
    hand = ctx.ensure_object(Hand)
    ctx.call_on_close(hand.close)
    hand.socket, hand.url, hand.token_file, hand.context = socket, url, token_file, context


for command in (
    inventory,
    catalogue.site,
    rack,
    catalogue.sku,
    image,
    host,
    boot,
    run,
    catalogue.playbook,
    catalogue.check,
    lease,
    capacity,
    certificate,
    wait.wait,
    events.events,
    brake.freeze,
    brake.thaw,
    brake.brakes,
    brake.lift,
    doctor.doctor,
):
    fleetctl.add_command(command)


def main() -> None:
    """Entry point of the console script."""
    fleetctl.main(prog_name="fleetctl")


if __name__ == "__main__":
    main()
