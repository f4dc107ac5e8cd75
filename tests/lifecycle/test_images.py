"""The desk for images: only what is signed and proven comes in, one of a name, and nothing that is needed goes out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleetd.drivers.image.capabilities import Stranger
from fleetd.drivers.image.files import ImageFiles
from fleetd.kit.errors import Busy, Conflict, DeadlineExceeded, Invalid, NotFound
from fleetd.lifecycle import images as module
from fleetd.lifecycle.images import ImageDesk, Survey
from fleetd.model import proof
from fleetd.model.image import ImageFormat, SignedManifest, key_id, sign
from fleetd.sim.image import gpt_disk, tiny_image
from tests.images import WHO, add_images, as_qcow2, manifest_of, signed_image, stream
from tests.kit.test_qcow2 import needs_qemu
from tests.lifecycle.fleet import H100, Fleet, inventory, ledger

KEY, OTHER, SITE = proof.new_key(), proof.new_key(), proof.new_key()


class Rig:
    def __init__(self, fleet: Fleet, desk: ImageDesk, folder: Path) -> None:
        self.fleet, self.desk, self.folder = fleet, desk, folder

    def files(self) -> list[str]:
        return sorted(p.name for p in self.folder.rglob("*") if p.is_file())

    async def events(self, kind: str) -> list[dict[str, Any]]:
        return [event.data for event in await self.fleet.said(kind)]


@contextlib.asynccontextmanager
async def rig(folder: Path, **options: Any) -> AsyncIterator[Rig]:
    async with ledger() as db:
        fleet = Fleet(db)
        files = ImageFiles(folder / "images", reserve=0)
        trusted = {key_id(KEY.public_key()): KEY.public_key()}
        desk = ImageDesk(db, fleet.clock, files, trusted=trusted, signer=SITE, **options)
        yield Rig(fleet, desk, folder / "images")


async def test_a_signed_image_comes_in_and_is_told(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        signed, served = signed_image("ubuntu", KEY)
        assert await r.desk.offer(signed) is None
        image = await r.desk.add(signed, stream(served), who=WHO)
        assert (image.signed_by, image.added_by) == (key_id(KEY.public_key()), "builder")
        assert await r.desk.manifest("ubuntu") == signed.manifest
        assert await r.desk.offer(signed) == image
        assert await r.desk.every() == [image]
        assert await r.desk.names() == {"ubuntu"}
        assert r.files() == [signed.manifest.sha256]
        assert [e["image"] for e in await r.events("image.added")] == ["ubuntu"]


async def test_the_same_once_more_changes_nothing(tmp_path: Path) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    async with rig(tmp_path) as r:
        signed, served = signed_image("ubuntu", KEY)
        image = await r.desk.add(signed, stream(served), who=WHO)
        assert await r.desk.add(signed, never(), who=WHO) == image
        assert len(await r.events("image.added")) == 1


async def test_another_content_under_the_same_name_is_a_conflict(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        await add_images(r.desk, KEY, ["ubuntu"])
        served, raw = tiny_image("something else")
        other = sign(manifest_of("ubuntu", served, raw), KEY)
        with pytest.raises(Conflict) as caught:
            await r.desk.add(other, stream(served), who=WHO)
        assert "image remove ubuntu" in caught.value.remedy
        assert len(r.files()) == 1


async def test_unsigned_and_foreign_and_forged_are_refused(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        signed, served = signed_image("ubuntu", KEY)
        unsigned = SignedManifest(manifest=signed.manifest)
        foreign, _ = signed_image("ubuntu", OTHER)
        forged = msgspec.structs.replace(signed, manifest=msgspec.structs.replace(signed.manifest, name="debian"))
        by_site = sign(signed.manifest, SITE)  # believed only for what was converted here
        for bad, why in (
            (unsigned, "not signed"),
            (foreign, "not trusted"),
            (forged, "does not fit"),
            (by_site, "not trusted"),
        ):
            with pytest.raises(Invalid, match=why):
                await r.desk.add(bad, stream(served), who=WHO)
        assert r.files() == []


async def test_unsigned_may_come_where_that_is_allowed_but_a_bad_signature_never(tmp_path: Path) -> None:
    async with rig(tmp_path, allow_unsigned=True) as r:
        signed, served = signed_image("ubuntu", OTHER)
        with pytest.raises(Invalid, match="not trusted"):
            await r.desk.add(signed, stream(served), who=WHO)
        image = await r.desk.add(SignedManifest(manifest=signed.manifest), stream(served), who=WHO)
        assert image.signed_by == ""


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sha256": "0" * 64}, "sha256 is"),
        ({"raw_sha256": "0" * 64}, "raw_sha256 is"),
        ({"bytes": 10**6}, "bytes came"),
        ({"raw_bytes": 512 * 1000}, "raw_bytes is"),
        ({"raw_bytes": 512}, "larger than allowed"),
        ({"bytes": 512}, "longer than announced"),
        ({"format": ImageFormat.RAW_ZST}, "unpacked"),
    ],
)
async def test_content_that_is_not_what_was_signed_is_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    served, raw = tiny_image("ubuntu")
    signed = sign(manifest_of("ubuntu", served, raw, **change), KEY)
    async with rig(tmp_path) as r:
        with pytest.raises(Invalid) as caught:
            await r.desk.add(signed, stream(served), who=WHO)
        assert why in str(caught.value)
        assert r.files() == []
        with pytest.raises(NotFound):
            await r.desk.show("ubuntu")


@pytest.mark.parametrize("name", ["../x", "Ubuntu", "", "a b", "x" * 65, "ubuntu\n"])
async def test_names_are_bounded(tmp_path: Path, name: str) -> None:
    async with rig(tmp_path) as r:
        signed, served = signed_image(name, KEY)
        with pytest.raises(Invalid, match="name"):
            await r.desk.add(signed, stream(served), who=WHO)


async def test_an_unknown_image_says_how_to_add_it(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        with pytest.raises(NotFound) as caught:
            await r.desk.manifest("ubuntu")
        assert "fleetctl image add FILE --name ubuntu" in caught.value.remedy


async def test_a_lost_file_is_told_and_may_come_again(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        signed, served = signed_image("ubuntu", KEY)
        image = await r.desk.add(signed, stream(served), who=WHO)
        (r.folder / signed.manifest.sha256).unlink()
        with pytest.raises(NotFound, match="is gone"):
            await r.desk.manifest("ubuntu")
        assert (await r.desk.verify("ubuntu", who=WHO))[1][0].startswith("the file of image ubuntu is gone")
        assert await r.desk.offer(signed) is None
        assert await r.desk.add(signed, stream(served), who=WHO) == image
        assert await r.desk.manifest("ubuntu") == signed.manifest


async def test_verify_reads_it_anew(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        signed, served = signed_image("ubuntu", KEY)
        await r.desk.add(signed, stream(served), who=WHO)
        assert (await r.desk.verify("ubuntu", who=WHO))[1] == []
        path = r.folder / signed.manifest.sha256
        path.chmod(0o644)
        damaged = bytearray(served)
        damaged[5000] ^= 1
        path.write_bytes(damaged)
        _, wrong = await r.desk.verify("ubuntu", who=WHO)
        assert wrong
        assert [e["image"] for e in await r.events("image.damaged")] == ["ubuntu"]
        assert len(await r.events("image.verified")) == 1


async def test_a_damaged_file_is_mended_by_adding_it_again_though_it_is_in_use(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        await r.fleet.fill(inventory({"lou-a01": 1}))
        signed, served = signed_image("ubuntu-24.04-gpu", KEY)
        image = await r.desk.add(signed, stream(served), who=WHO)
        with pytest.raises(Conflict):  # a SKU names it, so it cannot be removed first
            await r.desk.remove("ubuntu-24.04-gpu", who=WHO)
        path = r.folder / signed.manifest.sha256
        path.chmod(0o644)
        path.write_bytes(served[:-1] + bytes([served[-1] ^ 1]))
        assert (await r.desk.verify("ubuntu-24.04-gpu", who=WHO))[1]
        assert await r.desk.offer(signed) is None  # it is asked for
        assert await r.desk.add(signed, stream(served), who=WHO) == image
        assert path.read_bytes() == served
        assert (await r.desk.verify("ubuntu-24.04-gpu", who=WHO))[1] == []
        assert await r.desk.offer(signed) == image


async def test_files_that_no_image_names_and_images_without_a_file_are_told(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        assert await r.desk.survey() == Survey()
        one, two = await add_images(r.desk, KEY, ["one", "two"])
        (r.folder / one.manifest.sha256).unlink()
        (r.folder / ("a" * 64)).write_bytes(b"left by a crash")
        (r.folder / "notes.txt").write_bytes(b"x")
        (r.folder / "lost+found").mkdir()
        (r.folder / "incoming" / "taken").write_bytes(b"x")
        found = await r.desk.survey()
        assert found == Survey(
            kept=2, gone=("one",), strangers=(Stranger(name="a" * 64, bytes=15), Stranger(name="notes.txt", bytes=1))
        )
        await r.desk.remove("two", who=WHO)
        assert {"a" * 64, "notes.txt"} <= set(r.files())  # what nobody names is told, never deleted
        assert two.manifest.sha256 not in r.files()


async def test_two_names_share_a_file_until_both_are_gone(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        served, raw = tiny_image("same")
        for name in ("one", "two"):
            await r.desk.add(sign(manifest_of(name, served, raw), KEY), stream(served), who=WHO)
        assert len(r.files()) == 1
        await r.desk.remove("one", who=WHO)
        assert (await r.desk.verify("two", who=WHO))[1] == []
        gone = await r.desk.remove("two", who=WHO)
        assert gone.removed is not None
        assert r.files() == []
        assert len(await r.events("image.removed")) == 2


async def test_what_a_sku_or_a_lease_or_a_run_needs_stays(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        await r.fleet.fill(inventory({"lou-a01": 2}))
        await add_images(r.desk, KEY, ["ubuntu-24.04-gpu", "special"])
        with pytest.raises(Conflict) as caught:
            await r.desk.remove("ubuntu-24.04-gpu", who=WHO)
        assert f"SKU {H100}" in caught.value.why
        r.fleet.leases._images = r.desk.names
        lease = await r.fleet.claim(1, image="special")
        with pytest.raises(Conflict) as caught:
            await r.desk.remove("special", who=WHO)
        assert f"lease {lease.id}" in caught.value.why
        with pytest.raises(Invalid, match="not known"):
            await r.fleet.claim(1, image="unheard-of")


async def test_one_that_is_cancelled_before_it_is_written_down_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancelled(*_: object) -> None:
        raise asyncio.CancelledError

    async with rig(tmp_path) as r:
        signed, served = signed_image("ubuntu", KEY)
        with monkeypatch.context() as patch:
            patch.setattr(r.desk._db, "commit", cancelled)
            with pytest.raises(asyncio.CancelledError):
                await r.desk.add(signed, stream(served), who=WHO)
        assert r.files() == []
        await r.desk.add(signed, stream(served), who=WHO)
        assert r.files() == [signed.manifest.sha256]


async def test_two_streams_for_one_name_are_not_taken_at_once(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        signed, served = signed_image("ubuntu", KEY)

        async def meddling() -> AsyncIterator[bytes]:
            with pytest.raises(Busy, match="coming in"):
                await r.desk.add(signed, stream(served), who=WHO)
            yield served

        await r.desk.add(signed, meddling(), who=WHO)


async def test_a_stream_that_trickles_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STREAM_LEAST", 0.05)
    monkeypatch.setattr(module, "STREAM_RATE", 10**9)

    async def trickle() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.01)

    async with rig(tmp_path) as r:
        with pytest.raises(DeadlineExceeded):
            await r.desk.add(signed_image("ubuntu", KEY)[0], trickle(), who=WHO)
        assert r.files() == []


@needs_qemu
async def test_qcow2_is_converted_and_signed_by_the_site(tmp_path: Path) -> None:
    disk = gpt_disk("debian")
    data = as_qcow2(tmp_path, disk)
    source = manifest_of("debian", data, disk, format=ImageFormat.RAW_ZST)
    source = msgspec.structs.replace(source, source_sha256=source.sha256)
    async with rig(tmp_path) as r:
        signed = sign(source, KEY)
        image = await r.desk.add(signed, stream(data), who=WHO)
        made = image.manifest
        assert made.source_sha256 == source.sha256
        assert (made.raw_sha256, made.raw_bytes, made.format) == (source.raw_sha256, len(disk), ImageFormat.RAW_ZST)
        assert image.signed_by == key_id(KEY.public_key())
        assert image.signature is not None
        assert image.signature.key == key_id(SITE.public_key())
        assert r.files() == [made.sha256]
        assert await r.desk.offer(signed) == image
        # What the site made may come back to it, or go to a daemon of the same site, under the site's signature.
        derived = SignedManifest(manifest=made, signature=image.signature)
        assert await r.desk.offer(derived) == image

        wrong = msgspec.structs.replace(source, name="other", raw_sha256="0" * 64)
        with pytest.raises(Invalid, match="not what its manifest says"):
            await r.desk.add(sign(wrong, KEY), stream(data), who=WHO)
        as_raw = manifest_of("other", data, disk, format=ImageFormat.RAW_ZST)
        with pytest.raises(Invalid, match="not of the format"):
            await r.desk.add(sign(as_raw, KEY), stream(data), who=WHO)
        assert r.files() == [made.sha256]
