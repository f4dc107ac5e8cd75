"""`fleetctl certificate`: show the proof of a host, and verify one offline against a key that came another way."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from fleetd.cli.context import Hand, output_option, pass_hand, say
from fleetd.cli.exits import Done, Exit
from fleetd.cli.output import Column, emit, emit_one, left, text
from fleetd.kit.errors import Garbled, Invalid

COLUMNS: list[Column[Any]] = [
    Column("ID", lambda c: c.id),
    Column("HOST", lambda c: c.host),
    Column("SUITE", lambda c: c.suite),
    Column("ISSUED", lambda c: c.issued),
    Column("EXPIRES", lambda c: left(c.expires)),
    Column("REVOKED", lambda c: c.revoked),
    Column("REASON", lambda c: c.reason),
]
MAX_FILE = 4 * 1024 * 1024


@click.group()
def certificate() -> None:
    """Certificates: show, list, verify."""


@certificate.command()
@click.argument("host")
@output_option
@pass_hand
def show(hand: Hand, host: str) -> None:
    """Show the newest certificate of a host. `-o json` is the signed file itself: save it, verify it anywhere."""
    found = hand.fleet.certificate(host)
    said = found.value.get("statement")
    if not isinstance(said, dict) or not isinstance(said.get("verdicts"), list):
        raise Garbled("the daemon's answer is no certificate")
    verdicts = said["verdicts"]
    pairs: list[tuple[str, object]] = [
        ("id", said.get("id")),
        ("host", said.get("host_name")),
        ("serial", said.get("serial")),
        ("sku", said.get("sku")),
        ("suite", said.get("suite")),
        ("issued", said.get("issued")),
        ("expires", f"{said.get('expires')} ({left(said.get('expires'))})"),
        ("fingerprint", said.get("fingerprint")),
        ("key", found.value.get("key_id")),
        ("probe", said.get("probe")),
        ("verdicts", "\n".join(f"{v['outcome']}  {v['check']}: {v['measured']}" for v in verdicts)),
    ]
    emit_one(hand, found.raw, pairs, str(said.get("id")))


@certificate.command("list")
@click.argument("host")
@output_option
@pass_hand
def list_certificates(hand: Hand, host: str) -> None:
    """All certificates a host ever had, and why those that were revoked were."""
    found = hand.fleet.certificates(host)
    emit(hand, found.raw, found.items, COLUMNS, lambda c: c.id, empty="it was never proven")


@certificate.command()
@pass_hand
def key(hand: Hand) -> None:
    """Print this site's public key. Give it to verifiers by another way than the certificates."""
    click.echo(hand.fleet.public_key().value.pem, nl=False)


@certificate.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--trust", required=True, type=click.Path(path_type=Path), metavar="KEYFILE", help="Public keys (PEM) you trust."
)
@output_option
@pass_hand
def verify(hand: Hand, file: Path, trust: Path) -> None:
    """Verify a certificate offline. FILE may be `-`. Exits 9 when it is not good: a key in the file is never trusted."""
    from fleetd.kit import pause
    from fleetd.model import proof

    found = proof.read_certificate(_bytes(file), str(file))
    problems = proof.verify(found, proof.load_public_keys(_bytes(trust), str(trust)), pause.wall())
    said = found.statement
    raw = {"good": not problems, "problems": problems, "id": said.id, "host": said.host_name, "expires": said.expires}
    pairs: list[tuple[str, object]] = [
        ("verdict", "not good" if problems else "good"),
        ("problems", "\n".join(problems)),
        ("id", said.id),
        ("host", f"{said.host_name} ({said.serial})"),
        ("sku", said.sku),
        ("expires", said.expires),
        ("checks", f"{len(said.verdicts)} passed" if not problems else ""),
    ]
    emit_one(hand, raw, pairs, said.id)
    if problems:
        say(f"error: this certificate proves nothing: {text(problems[0])}")
        raise Done(Exit.VERDICT)


def _bytes(path: Path) -> bytes:
    try:
        if str(path) == "-":
            return sys.stdin.buffer.read(MAX_FILE)
        with path.open("rb") as file:
            return file.read(MAX_FILE)
    except OSError as error:
        raise Invalid("the file cannot be read", why=str(error), where=str(path)) from error
