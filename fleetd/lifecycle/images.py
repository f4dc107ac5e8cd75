"""The desk for images: what may be written to a disk comes in only signed, measured, and under a name of its own.

A qcow2 file comes with a manifest whose `source_sha256` is its own `sha256`: it names the file that was signed and the
disk it must unpack to. It is converted once, and the manifest of what is served is signed with this site's key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fleetd.drivers.image.capabilities import ImageStore, Measured, Stranger, Taken
from fleetd.kit.clock import Clock
from fleetd.kit.errors import Busy, Conflict, DeadlineExceeded, Invalid, NotFound
from fleetd.kit.ids import new_id
from fleetd.model import image as model
from fleetd.model.access import Principal
from fleetd.model.event import Event
from fleetd.model.image import Image, ImageFormat, Manifest, SignedManifest
from fleetd.model.run import RunState
from fleetd.store import events, inventory
from fleetd.store import images as rows
from fleetd.store import leases as lease_rows
from fleetd.store import runs as run_rows
from fleetd.store.database import Database

AT_ONCE: Final = 2  # images taken in or measured at the same time: each costs a processor
STREAM_LEAST: Final = 120.0  # seconds that a stream may take, and then so many bytes a second:
STREAM_RATE: Final = 64 * 1024
ORDERED: Final = "image"  # where a host's place in its run keeps what is being written


class Ordered(msgspec.Struct, frozen=True, kw_only=True):
    """The image of one order: it is judged by this, and this is needed until then. `step`: the index in the run."""

    intent: str
    step: int
    manifest: Manifest


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """The directory against the ledger. `gone`: images whose file is not there, or of another size; `strangers`: what no
    image names."""

    kept: int = 0
    gone: tuple[str, ...] = ()
    strangers: tuple[Stranger, ...] = ()


class ImageDesk:
    """Images of one site.

    Args:
        trusted: public keys by id whose manifests are believed.
        signer: this site's key; it signs the manifests of what was converted here, and is believed for those.
        allow_unsigned: take images without a signature too.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        files: ImageStore,
        *,
        trusted: Mapping[str, Ed25519PublicKey],
        signer: Ed25519PrivateKey,
        allow_unsigned: bool = False,
    ) -> None:
        self._db, self._clock, self._files = db, clock, files
        self._trusted, self._signer = dict(trusted), signer
        self._allow_unsigned = allow_unsigned
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._damaged: set[str] = set()  # sha256 of files that `verify` found to be something else: they may come again
        self._coming: set[str] = set()  # names that a stream is taken in for
        self._writing = asyncio.Lock()  # a file is kept or deleted together with the row that names it

    # --- asking -----------------------------------------------------------------------------------------------------

    async def manifest(self, name: str) -> Manifest:
        """What is written to a disk for this name, as it is served. Raises NotFound."""
        image = await self.show(name)
        if not self._files.has(image.manifest.sha256, image.manifest.bytes):
            raise NotFound(
                f"the file of image {name} is gone, or has another size",
                why=f"{image.manifest.sha256[:12]}…, {image.manifest.bytes} bytes",
                remedy=f"add it again: `fleetctl image add FILE --name {name}`",
            )
        return image.manifest

    async def show(self, name: str) -> Image:
        """Raises NotFound."""
        image = await rows.by_name(self._db, name)
        if image is None:
            raise NotFound(f"there is no image {name[:80]}", remedy=f"fleetctl image add FILE --name {name[:64]}")
        return image

    async def every(self) -> list[Image]:
        """All that are not removed, by name."""
        return await rows.every(self._db)

    async def names(self) -> frozenset[str]:
        """Of all that are not removed."""
        return frozenset(image.manifest.name for image in await rows.every(self._db))

    async def survey(self) -> Survey:
        """Compare the directory with the ledger; quick, for no file is read. Raises Permanent when it cannot be listed."""
        async with self._writing:
            images = await rows.every(self._db)
            strangers = await self._files.strangers({image.manifest.sha256 for image in images})
        said = [image.manifest for image in images]
        gone = tuple(one.name for one in said if not self._files.has(one.sha256, one.bytes))
        return Survey(kept=len(said), gone=gone, strangers=tuple(strangers))

    async def users(self) -> dict[str, list[str]]:
        """Who needs which image: SKUs, leases that are not over, runs that name it or are writing it."""
        found: dict[str, list[str]] = {}
        for key, sku in (await inventory.skus(self._db)).items():
            found.setdefault(sku.image, []).append(f"SKU {key}")
        for lease in await lease_rows.every(self._db, live=True):
            if lease.request.image is not None:
                found.setdefault(lease.request.image, []).append(f"lease {lease.id}")
        for run in await run_rows.every(self._db, limit=1000, state=RunState.RUNNING):
            for name in {step.params.get("image") for step in run.steps}:
                if isinstance(name, str):
                    found.setdefault(name, []).append(f"run {run.id}")
        for place in await run_rows.active_hosts(self._db):
            if (written := place.data.get(ORDERED)) is not None:
                ordered = msgspec.convert(written, Ordered)
                users = found.setdefault(ordered.manifest.name, [])
                if ordered.step == place.step and f"run {place.run}" not in users:
                    users.append(f"run {place.run}")
        return {name: users for name, users in found.items() if users}

    # --- ordering ---------------------------------------------------------------------------------------------------

    async def offer(self, signed: SignedManifest) -> Image | None:
        """Judge an image by its manifest alone: the one we have already, or None: send it.

        Raises:
            Invalid: not signed by a key that is trusted. Conflict: another image has its name, or there is no room.
        """
        self._signed_by(signed)
        known = await self._known(signed.manifest)
        if known is None:
            self._files.require_room(signed.manifest.bytes)
        return known

    async def add(self, signed: SignedManifest, stream: AsyncIterator[bytes], *, who: Principal) -> Image:
        """Take the image in; the same once more changes nothing.

        Raises:
            Invalid: the manifest is not believed, or the content is not what it says.
            Conflict: another image has this name, or there is no room.
            Busy: it is just coming in. DeadlineExceeded: the stream is too slow.
        """
        signer = self._signed_by(signed)
        asked = signed.manifest
        if (known := await self.offer(signed)) is not None:
            return known
        if asked.name in self._coming or len(self._coming) >= AT_ONCE:
            raise Busy(
                "images are coming in already",
                why=", ".join(sorted(self._coming)),
                remedy="try again when they are in: `fleetctl image list`",
            )
        self._coming.add(asked.name)
        try:
            taken = await self._take(asked, stream)
            try:
                return await self._judge(signed, signer, taken, who)
            finally:
                await self._files.drop(taken)
        finally:
            self._coming.discard(asked.name)

    async def verify(self, name: str, *, who: Principal) -> tuple[Image, list[str]]:
        """Read the file anew; what is not as the manifest says, empty when all is. Raises NotFound."""
        image = await self.show(name)
        async with self._gate:
            try:
                wrong = _differences(image.manifest, await self._files.verify(image.manifest))
            except (Invalid, NotFound) as error:
                wrong = [str(error)]
        # It may be in use, so it cannot be removed first: then the same image, sent again, takes its place.
        (self._damaged.add if wrong else self._damaged.discard)(image.manifest.sha256)
        await self._db.commit(
            [events.append(self._event("image.damaged" if wrong else "image.verified", image, who, wrong=wrong[:3]))]
        )
        return image, wrong

    async def remove(self, name: str, *, who: Principal) -> Image:
        """Take the name away, and the file with it when no other name needs it.

        Raises:
            NotFound. Conflict: a SKU, a lease or a run needs it; `why` names them.
        """
        image = await self.show(name)
        users = (await self.users()).get(name, [])
        if users:
            raise Conflict(
                f"image {name} is in use",
                why=", ".join(users[:8]) + (f" and {len(users) - 8} more" if len(users) > 8 else ""),
                remedy="give those another image first; what runs, ends first",
            )
        now = self._clock.wall()
        async with self._writing:
            await self._db.commit([rows.remove(image, now), events.append(self._event("image.removed", image, who))])
            await self._unless_needed(image.manifest.sha256)
        return await rows.get(self._db, image.id)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _signed_by(self, signed: SignedManifest) -> str:
        """The key's id; empty for an unsigned one where that is allowed. Raises Invalid."""
        manifest = model.checked(signed.manifest)
        if signed.signature is None and self._allow_unsigned:
            return ""
        trusted = self._trusted
        if manifest.source_sha256 and manifest.source_sha256 != manifest.sha256:
            site = self._signer.public_key()
            trusted = {**trusted, model.key_id(site): site}
        return model.verify(signed, trusted)

    async def _known(self, asked: Manifest) -> Image | None:
        image = await rows.by_name(self._db, asked.name)
        if image is None:
            return None
        if _same(image.manifest, asked):
            ours = image.manifest
            good = self._files.has(ours.sha256, ours.bytes) and ours.sha256 not in self._damaged
            return image if good else None  # its file is gone or damaged: it may come again
        raise Conflict(
            f"another image is called {asked.name}",
            why=f"it is {image.manifest.sha256[:12]}…, this one {asked.sha256[:12]}…",
            remedy=f"give this one another name, or first `fleetctl image remove {asked.name}`",
        )

    async def _take(self, asked: Manifest, stream: AsyncIterator[bytes]) -> Taken:
        seconds = STREAM_LEAST + asked.bytes / STREAM_RATE
        try:
            async with asyncio.timeout(seconds):
                return await self._files.take(stream, most=asked.bytes)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"image {asked.name} does not come in",
                why=f"{asked.bytes} bytes took longer than {seconds:.0f} s",
                remedy="send it from a machine nearer to this one",
            ) from error

    async def _judge(self, signed: SignedManifest, signer: str, taken: Taken, who: Principal) -> Image:
        """Measure, convert where it is qcow2, keep, and write it down."""
        asked = signed.manifest
        is_source = asked.source_sha256 == asked.sha256
        if taken.qcow2 != is_source:
            raise Invalid(
                f"image {asked.name} is not of the format its manifest says",
                why="the file is qcow2" if taken.qcow2 else "the file is no qcow2",
                remedy="make its manifest with `fleetctl image sign`",
                where="manifest.format",
            )
        if taken.bytes != asked.bytes:
            raise _unlike(asked, [f"{taken.bytes} bytes came, it says {asked.bytes}"])
        async with self._gate:
            measured = await self._files.measure(taken, asked)
            wrong = _differences(asked, measured, raw=not is_source)
            if not wrong and is_source:
                converted, measured = await self._files.convert(taken, asked)
                try:
                    wrong = _differences(asked, measured, outer=False)
                    if not wrong:
                        return await self._write(self._derived(asked, measured), signer, converted, who)
                finally:
                    await self._files.drop(converted)
        if wrong:
            raise _unlike(asked, wrong)
        return await self._write(signed, signer, taken, who)

    def _derived(self, source: Manifest, measured: Measured) -> SignedManifest:
        made = msgspec.structs.replace(
            source,
            format=ImageFormat.RAW_ZST,
            bytes=measured.bytes,
            sha256=measured.sha256,
            source_sha256=source.sha256,
        )
        return model.sign(made, self._signer)

    async def _write(self, signed: SignedManifest, signer: str, taken: Taken, who: Principal) -> Image:
        manifest = signed.manifest
        now = self._clock.wall()
        image = Image(
            id=new_id("image", now),
            manifest=manifest,
            signature=signed.signature,
            signed_by=signer,
            added=now,
            added_by=who.name,
        )
        async with self._writing:
            await self._files.keep(taken, manifest.sha256)
            self._damaged.discard(manifest.sha256)
            known = await rows.by_name(self._db, manifest.name)
            if known is not None and known.manifest == manifest:
                return known  # only its file had been lost or damaged
            # One that was converted here, lost, and converted anew may pack to other bytes.
            again = [rows.remove(known, now)] if known is not None and _same(known.manifest, manifest) else []
            try:
                await self._db.commit(
                    [*again, rows.insert(image), events.append(self._event("image.added", image, who))]
                )
            except BaseException:  # cancelled too: whether the row came to be, the ledger tells
                await self._unless_needed(manifest.sha256)
                raise
            if known is not None:  # replaced; a damaged file of it may still stand there
                await self._unless_needed(known.manifest.sha256)
        return image

    async def _unless_needed(self, sha256: str) -> None:
        if not await rows.by_digest(self._db, sha256):
            await self._files.remove(sha256)

    def _event(self, kind: str, image: Image, who: Principal, **data: object) -> Event:
        said = {"image": image.manifest.name, "sha256": image.manifest.sha256, "signed_by": image.signed_by}
        return Event(kind=kind, at=self._clock.wall(), principal=who.name, data={**said, **data})


def _unlike(asked: Manifest, wrong: list[str]) -> Invalid:
    return Invalid(
        f"image {asked.name} is not what its manifest says",
        why="; ".join(wrong),
        remedy="fetch image and manifest again from where they were built",
        where="body",
    )


def _same(ours: Manifest, asked: Manifest) -> bool:
    """The same image: the same file, or made from the same qcow2 file."""
    from_it = ours.source_sha256 != "" and ours.source_sha256 == asked.source_sha256
    return ours == asked or (from_it and ours.raw_sha256 == asked.raw_sha256)


def _differences(said: Manifest, is_: Measured, *, outer: bool = True, raw: bool = True) -> list[str]:
    """What is not as the manifest says, each in one sentence."""
    found = []
    for wanted, name, expected, got in (
        (outer, "bytes", said.bytes, is_.bytes),
        (outer, "sha256", said.sha256, is_.sha256),
        (raw, "raw_bytes", said.raw_bytes, is_.raw_bytes),
        (raw, "raw_sha256", said.raw_sha256, is_.raw_sha256),
    ):
        if wanted and expected != got:
            found.append(f"{name} is {got}, the manifest says {expected}")
    return found
