"""`fleetctl image`: sign an image where it is built, bring it to the daemon, and see what is there."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fleetd.cli.confirm import Consent, consent_options
from fleetd.cli.context import Hand, output_option, pass_hand, say
from fleetd.cli.exits import Done, Exit
from fleetd.cli.output import Column, age, emit, emit_one, sized, text
from fleetd.cli.progress import bar, waiting
from fleetd.kit.errors import Conflict, Invalid

if TYPE_CHECKING:
    from fleetd.model.image import Manifest, SignedManifest

SUFFIX = ".manifest.json"
_file = click.argument("file", type=click.Path(path_type=Path))


COLUMNS: list[Column[Any]] = [
    Column("NAME", lambda i: i.name),
    Column("FORMAT", lambda i: i.format),
    Column("SIZE", lambda i: sized(i.bytes)),
    Column("DISK", lambda i: sized(i.raw_bytes)),
    Column("SIGNED", lambda i: i.signed_by or "no"),
    Column("ADDED", lambda i: f"{age(i.added)} ago"),
    Column("USED BY", lambda i: len(i.used_by)),
    Column("SHA256", lambda i: i.sha256, wide=True),
    Column("DESCRIPTION", lambda i: i.description, wide=True),
]


@click.group()
def image() -> None:
    """Images: add, list, show, verify, remove; sign and key work offline."""


@image.command("list")
@output_option
@pass_hand
def list_images(hand: Hand) -> None:
    """List images."""
    found = hand.fleet.images()
    emit(hand, found.raw, found.items, COLUMNS, lambda i: i.name, empty="no images")


@image.command()
@click.argument("name")
@output_option
@pass_hand
def show(hand: Hand, name: str) -> None:
    """Show one image: both digests, who signed it, who needs it."""
    found = hand.fleet.image(name)
    _show(hand, found.raw, found.value)


def _show(hand: Hand, raw: Any, value: Any) -> None:
    pairs: list[tuple[str, object]] = [
        ("name", value.name),
        ("description", value.description),
        ("format", value.format),
        ("file", f"{value.bytes} bytes, sha256 {value.sha256}"),
        ("disk", f"{value.raw_bytes} bytes, sha256 {value.raw_sha256}"),
        ("source", value.source_sha256),
        ("signed by", value.signed_by or "nobody"),
        ("added", f"{value.added} by {value.added_by}"),
        ("used by", "\n".join(value.used_by)),
    ]
    emit_one(hand, raw, pairs, value.name)


@image.command()
@_file
@click.option("--name", help="What to call it, for a file without a manifest.")
@click.option(
    "--manifest",
    "manifest_file",
    type=click.Path(path_type=Path),
    metavar="M",
    help=f"The signed manifest; FILE{SUFFIX} when that is there.",
)
@click.option("--dry-run", is_flag=True, help="Ask the daemon whether it would take it, and send nothing.")
@output_option
@pass_hand
def add(hand: Hand, file: Path, name: str | None, manifest_file: Path | None, dry_run: bool) -> None:
    """Bring an image to the daemon: raw, raw.zst, raw.gz, or qcow2, which it converts once.

    The daemon takes it only with a manifest signed by a key it trusts (`image sign`), unless it is configured to take
    unsigned ones. The same image once more changes nothing.
    """
    signed = _manifest_for(file, name, manifest_file)
    said = signed.manifest
    _fits(file, said)
    offer = hand.fleet.offer_image(_builtins(signed))
    if offer.value.image is not None:
        say(f"image {said.name} is there already")
        _show(hand, hand.fleet.image(said.name).raw, offer.value.image)
        return
    if dry_run:
        if hand.format in ("json", "yaml", "name"):
            emit_one(hand, offer.raw, [], said.name)
        say(f"would add {file} as image {said.name}: {sized(said.bytes)}, a disk of {sized(said.raw_bytes)}")
        say("dry run: nothing was changed")
        return
    try:
        with file.open("rb") as stream, _sending(file, said) as sent:
            made = hand.fleet.upload_image(
                offer.value.upload, _json(signed), stream, said.bytes, disk=said.raw_bytes, sent=sent
            )
    except KeyboardInterrupt:
        say("\ninterrupted; if all was sent already, the daemon may still take it: `fleetctl image list`")
        raise Done(Exit.INTERRUPTED) from None
    except OSError as error:
        raise Invalid("the image cannot be read", why=error.strerror or str(error), where=str(file)) from error
    say(f"image {said.name} added, both digests proven")
    _show(hand, made.raw, made.value)


@image.command()
@click.argument("name")
@output_option
@pass_hand
def verify(hand: Hand, name: str) -> None:
    """Let the daemon read the file anew and compare both digests. Exits 9 when it is not what was added."""
    it = hand.fleet.image(name).value
    with waiting(f"the daemon reads {text(it.name)}: {sized(it.bytes)}, a disk of {sized(it.raw_bytes)}"):
        found = hand.fleet.verify_image(name)
    said = found.value
    pairs: list[tuple[str, object]] = [
        ("name", said.name),
        ("verdict", "good" if said.good else "not good"),
        ("problems", "\n".join(said.problems)),
    ]
    emit_one(hand, found.raw, pairs, said.name)
    if not said.good:
        say(f"error: image {text(said.name)} is not what was added")
        say(
            "try: `fleetctl image add` it again from where it was built: it takes this one's place; look at the disk under it"
        )
        raise Done(Exit.VERDICT)


@image.command()
@click.argument("name")
@consent_options
@pass_hand
def remove(hand: Hand, name: str, consent: Consent) -> None:
    """Remove an image that nobody needs; refused while a SKU, a lease or a run names it."""
    found = hand.fleet.image(name).value
    if found.used_by:
        raise Conflict(
            f"image {found.name} is in use",
            why=", ".join(found.used_by[:8]),
            remedy="give those another image first; what runs, ends first",
        )
    consent.ask(f"remove image {found.name}", [f"{sized(found.bytes)}, sha256 {found.sha256}"])
    hand.fleet.remove_image(name)
    say(f"image {found.name} removed")


# --- offline --------------------------------------------------------------------------------------------------------


@image.command()
@_file
@click.option("--name", required=True, help="What it is called wherever it is added.")
@click.option(
    "--key", "key_file", required=True, type=click.Path(path_type=Path), metavar="KEY.pem", help="Your private key."
)
@click.option("--out", type=click.Path(path_type=Path), metavar="M", help=f"Default: FILE{SUFFIX}")
@click.option("--description", default="", help="One line for people.")
def sign(file: Path, name: str, key_file: Path, out: Path | None, description: str) -> None:
    """Write the signed manifest of an image: what the file is, and what disk it unpacks to. Needs no daemon."""
    from fleetd.model import image as model
    from fleetd.model import proof

    key = proof.load_private_key(_private(key_file), str(key_file))
    target = out or Path(f"{file}{SUFFIX}")
    if not os.access(target.parent, os.W_OK):  # said before minutes of reading, not after
        raise Invalid("the manifest cannot be written there", where=str(target), remedy="name another place: --out M")
    signed = model.sign(_measured(file, name, description), key)
    _write(target, json.dumps(json.loads(_json(signed)), indent=2).encode() + b"\n", 0o644, fresh=False)
    say(f"signed with key {model.key_id(key.public_key())}; manifest in {target}")


@image.command("key")
@_file
def make_key(file: Path) -> None:
    """Make a key pair to sign images with: FILE (private, 0600) and FILE.pub for `images.trust` of fleetd.yaml."""
    from fleetd.model import image as model
    from fleetd.model import proof

    key = proof.new_key()
    public = Path(f"{file}.pub")
    if public.exists():
        raise Conflict(f"{public} exists", remedy="take another name; a key is never overwritten")
    _write(file, proof.private_pem(key), 0o600)
    _write(public, proof.public_pem(key.public_key()), 0o644)
    say(f"key {model.key_id(key.public_key())}: keep {file} to yourself, put {public} under images.trust")


@contextlib.contextmanager
def _sending(file: Path, said: Manifest) -> Iterator[Callable[[int], None]]:
    """Told how many bytes are out: a bar, and when all are, that now the daemon reads them."""
    with contextlib.ExitStack() as shown:
        told = shown.enter_context(bar(f"sending {file.name}", said.bytes))

        def sent(done: int) -> None:
            told(done)
            if done >= said.bytes:
                shown.pop_all().close()
                shown.enter_context(waiting(f"all sent; the daemon proves both digests of {said.name}"))

        yield sent


def _manifest_for(file: Path, name: str | None, manifest_file: Path | None) -> SignedManifest:
    """The manifest that was given, or stands beside the file; else an unsigned one, measured here."""
    from fleetd.model.image import MAX_MANIFEST, SignedManifest, read_manifest

    beside = Path(f"{file}{SUFFIX}")
    if manifest_file is None and beside.exists():
        manifest_file = beside
    if manifest_file is None:
        if name is None:
            raise Invalid(
                "the image has neither manifest nor name",
                where="--name",
                remedy=f"sign it: `fleetctl image sign {file} --name NAME --key KEY.pem`; or give --name to add it unsigned",
            )
        return SignedManifest(manifest=_measured(file, name, ""))
    signed = read_manifest(_bytes(manifest_file, MAX_MANIFEST))
    if name not in (None, signed.manifest.name):
        raise Invalid(
            f"the manifest is of image {signed.manifest.name}",
            why="the name is signed with the rest",
            where=str(manifest_file),
            remedy=f"sign it anew: `fleetctl image sign {file} --name {name} --key KEY.pem`",
        )
    return signed


def _fits(file: Path, said: Manifest) -> None:
    """Not proven, only a look: a wrong file need not travel to be refused."""
    try:
        size = file.stat().st_size
    except OSError as error:
        raise Invalid("the image cannot be read", why=error.strerror or str(error), where=str(file)) from error
    if size != said.bytes:
        raise Invalid(
            f"the file is not the one of the manifest of {said.name}",
            why=f"it has {size} bytes, the manifest says {said.bytes}",
            where=str(file),
            remedy="fetch image and manifest again from where they were built, or sign it anew",
        )


def _measured(file: Path, name: str, description: str) -> Manifest:
    """Both digests, by reading all of it."""
    from fleetd.kit import diskimage, qcow2
    from fleetd.model.image import MAX_DISK, MAX_IMAGE, ImageFormat, Manifest, checked

    blank = Manifest(
        name=name,
        description=description,
        format=ImageFormat.RAW,
        bytes=1,
        sha256="0" * 64,
        raw_bytes=512,
        raw_sha256="0" * 64,
    )
    checked(blank)  # what was typed is judged before minutes of reading, not after
    form = diskimage.format_of(file)
    size = file.stat().st_size
    with bar(f"reading {file.name}", size) as done:
        if form == diskimage.QCOW2:
            found = qcow2.measure(file, most=MAX_IMAGE, most_raw=MAX_DISK, progress=done)
        else:
            found = diskimage.measure(file, form, most=MAX_IMAGE, most_raw=MAX_DISK, progress=done)
    source = found.sha256 if form == diskimage.QCOW2 else ""
    return checked(
        Manifest(
            name=name,
            format=ImageFormat.RAW_ZST if source else ImageFormat(form),
            bytes=found.bytes,
            sha256=found.sha256,
            raw_bytes=found.raw_bytes,
            raw_sha256=found.raw_sha256,
            source_sha256=source,
            description=description,
        )
    )


def _json(signed: SignedManifest) -> bytes:
    import msgspec

    return msgspec.json.encode(signed)


def _builtins(signed: SignedManifest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_json(signed))
    return found


def _bytes(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise Invalid("the file cannot be read", why=error.strerror or str(error), where=str(path)) from error


def _private(path: Path) -> bytes:
    from fleetd.model.proof import MAX_PEM

    data = _bytes(path, MAX_PEM)
    if path.stat().st_mode & 0o077:
        say(f"warning: others may read {path}; `chmod 600 {path}`")
    return data


def _write(path: Path, data: bytes, mode: int, *, fresh: bool = True) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if fresh else os.O_TRUNC)
    try:
        with os.fdopen(os.open(path, flags, mode), "wb") as file:
            file.write(data)
    except FileExistsError as error:
        raise Conflict(f"{path} exists", remedy="take another name; a key is never overwritten") from error
    except OSError as error:
        raise Invalid("the file cannot be written", why=error.strerror or str(error), where=str(path)) from error
