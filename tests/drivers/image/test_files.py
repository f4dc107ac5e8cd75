"""The directory of images: bounded, durable, read-only, and nothing left behind by what failed."""

from __future__ import annotations

import asyncio
import hashlib
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleetd.drivers.image import files
from fleetd.drivers.image.files import ImageFiles
from fleetd.kit.diskimage import CHUNK
from fleetd.kit.errors import Conflict, Invalid, NotFound
from fleetd.model.image import ImageFormat
from fleetd.sim.image import gpt_disk, tiny_image
from tests.images import as_qcow2, manifest_of, stream
from tests.kit.test_qcow2 import needs_qemu

SERVED, RAW = tiny_image("ubuntu")
MANIFEST = manifest_of("ubuntu", SERVED, RAW)


def unpacked(path: Path) -> bytes:
    return subprocess.run(["zstd", "-dqc", path], capture_output=True, check=True, timeout=60).stdout


@pytest.fixture
def store(tmp_path: Path) -> ImageFiles:
    return ImageFiles(tmp_path / "images", reserve=0)


def left(store: ImageFiles) -> list[str]:
    return sorted(p.name for p in (store.folder / "incoming").iterdir())


async def test_what_came_in_is_kept_read_only_under_its_digest(store: ImageFiles) -> None:
    taken = await store.take(stream(SERVED, 777), most=len(SERVED))
    assert (taken.bytes, taken.qcow2) == (len(SERVED), False)
    assert stat.S_IMODE(taken.path.stat().st_mode) == 0o600
    found = await store.measure(taken, MANIFEST)
    assert (found.sha256, found.raw_sha256) == (MANIFEST.sha256, MANIFEST.raw_sha256)
    await store.keep(taken, MANIFEST.sha256)
    kept = store.folder / MANIFEST.sha256
    assert (kept.read_bytes(), stat.S_IMODE(kept.stat().st_mode)) == (SERVED, 0o444)
    assert left(store) == []
    assert store.has(MANIFEST.sha256, len(SERVED))
    assert not store.has(MANIFEST.sha256, len(SERVED) - 1)
    assert await store.verify(MANIFEST) == found
    await store.remove(MANIFEST.sha256)
    await store.remove(MANIFEST.sha256)
    with pytest.raises(NotFound):
        await store.verify(MANIFEST)


async def test_large_pieces_and_many_small_ones_are_the_same(store: ImageFiles) -> None:
    data = bytes(range(256)) * 40_000
    for piece in (len(data), 65536, 8191):
        taken = await store.take(stream(data, piece), most=len(data))
        assert taken.path.read_bytes() == data
        await store.drop(taken)
    assert left(store) == []


async def test_a_byte_too_much_is_refused_and_nothing_stays(store: ImageFiles) -> None:
    with pytest.raises(Invalid, match="longer than announced"):
        await store.take(stream(SERVED), most=len(SERVED) - 1)
    assert left(store) == []


async def test_a_stream_that_breaks_leaves_nothing(store: ImageFiles) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield SERVED[:1000]
        raise Invalid("the caller hung up")

    with pytest.raises(Invalid, match="hung up"):
        await store.take(broken(), most=10**6)
    assert left(store) == []


async def test_one_that_is_cancelled_leaves_nothing(store: ImageFiles) -> None:
    waits = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield SERVED[:1000]
        waits.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(store.take(slow(), most=10**6))
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left(store) == []


async def test_no_room_is_seen_before_and_during(store: ImageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Conflict, match="no room"):
        store.require_room(2**62)
    asked = 0

    def room(*_: object) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise Conflict("there is no room")

    monkeypatch.setattr(files.qcow2, "require_room", room)
    monkeypatch.setattr(files, "ROOM_EACH", 50_000)
    with pytest.raises(Conflict, match="no room"):
        await store.take(stream(bytes(200_000)), most=10**6)
    assert left(store) == []


async def test_leftovers_of_a_crash_go_and_strangers_stay(tmp_path: Path) -> None:
    first = ImageFiles(tmp_path / "images", reserve=0)
    for name in ("0" * 32, "1" * 32 + ".raw", "2" * 32 + ".zst", "notes.txt"):
        (first.folder / "incoming" / name).write_bytes(b"x")
    assert left(ImageFiles(tmp_path / "images")) == ["notes.txt"]


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("a file")
    with pytest.raises(Invalid) as caught:
        ImageFiles(tmp_path / "images")
    assert "images.dir" in caught.value.remedy


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "incoming"])
async def test_only_a_digest_is_a_name(store: ImageFiles, name: str) -> None:
    with pytest.raises(Invalid):
        await store.remove(name)


async def test_a_cancelled_measurement_ends_soon(store: ImageFiles, tmp_path: Path) -> None:
    data = bytes(600 * CHUNK)
    taken = await store.take(stream(data, CHUNK), most=len(data))
    task = asyncio.ensure_future(store.measure(taken, manifest_of("big", data, data, format=ImageFormat.RAW)))
    await asyncio.sleep(0.05)
    task.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await task
    await store.drop(taken)
    assert left(store) == []


@needs_qemu
async def test_qcow2_is_converted_once(store: ImageFiles, tmp_path: Path) -> None:
    disk = gpt_disk("debian")
    data = as_qcow2(tmp_path, disk, "-c")
    manifest = manifest_of("debian", data, disk, format=ImageFormat.RAW_ZST)
    taken = await store.take(stream(data), most=len(data))
    assert taken.qcow2
    assert await store.measure(taken, manifest) == (len(data), hashlib.sha256(data).hexdigest(), 0, "")
    made, found = await store.convert(taken, manifest)
    assert unpacked(made.path) == disk
    packed = made.path.read_bytes()
    assert found == (len(packed), hashlib.sha256(packed).hexdigest(), len(disk), manifest.raw_sha256)
    await store.drop(made)
    await store.drop(taken)
    assert left(store) == []


@needs_qemu
async def test_qcow2_that_claims_more_than_its_manifest_leaves_nothing(store: ImageFiles, tmp_path: Path) -> None:
    data = bytearray(as_qcow2(tmp_path, gpt_disk("huge")))
    data[24:32] = (1024**4).to_bytes(8, "big")  # the disk's size in the header
    taken = await store.take(stream(bytes(data)), most=len(data))
    with pytest.raises(Invalid, match="not taken"):
        await store.convert(taken, manifest_of("huge", bytes(data), bytes(512), format=ImageFormat.RAW_ZST))
    await store.drop(taken)
    assert left(store) == []
