"""Writing an image: what stands on the drive afterwards, and that no failure and no cut leaves a disk that boots."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import threading

import pytest

from fleetd.probe.host import decompress, partition, seed
from fleetd.probe.host import write as writing
from fleetd.probe.host.order import Seed
from fleetd.probe.host.simulated import SimulatedBlocks
from fleetd.probe.host.standin import unpack
from fleetd.probe.host.write import Tally, WriteFailed, write_image
from tests.probe.imaging import SEED, Bench, described, disk_image, drive, finish, kinds, packed, serving

MIB = 1 << 20
FILES = seed.render(Seed(**SEED | {"authorized_keys": tuple(SEED["authorized_keys"])}))
SMALL, LARGE = disk_image(), disk_image(21 * MIB)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith("fleetd")]
    assert left == []


def write(on, image, **options):
    tally = Tally()
    digest, progress = finish(write_image(image, FILES, on, Bench(on, **options), tally))
    return digest, progress, tally


def unbootable(on):
    """Neither a table nor anything at the ends of the disk."""
    with on.open() as blocks:
        ends = [blocks.read(0, MIB), blocks.read(blocks.size - MIB, MIB)]
        return partition.find(blocks, "cidata") is None and ends == [bytes(MIB)] * 2


def seeded(on):
    with on.open() as blocks:
        part = partition.find(blocks, "cidata")
        return None if part is None else unpack(blocks.read(part.start, 65536))


@pytest.mark.parametrize("content", ["blank", "tenant:x"])
@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("disk", [SMALL, LARGE], ids=["small", "large"])
def test_the_disk_holds_the_image_and_its_seed(disk, kind, content):
    served = packed(disk, kind)
    on = drive(content=content)
    with serving(lambda request: request.give(served)) as server:
        digest, progress, tally = write(on, described(served, disk, kind, server.url))
    assert digest == hashlib.sha256(disk).hexdigest()
    with on.open() as blocks:
        back = blocks.read(0, len(disk))
    assert back[34 * 512 : len(disk)] == disk[34 * 512 :]  # all but the table
    assert seeded(on) == FILES
    assert tally.wrote_bytes + tally.zero_bytes == tally.read_bytes == len(disk)
    assert (tally.zero_bytes > 0) == (disk is LARGE)
    assert (tally.url, tally.resumed) == (server.url, 0)
    assert (
        progress[-1] == {"event": "progress", "what": "read-back", "done": len(disk), "of": len(disk)} or disk is SMALL
    )


def test_a_cut_stream_goes_on_and_is_counted():
    served = packed(LARGE, "raw.gz")
    cuts = iter([1000, 5000])
    with serving(lambda request: request.give(served, cut=next(cuts, None))) as server:
        _, _, tally = write(drive(), described(served, LARGE, "raw.gz", server.url))
    assert tally.resumed == 2


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("disk", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("content", ["blank", "tenant:x"])
def test_changed_bytes_leave_an_unbootable_disk(kind, disk, content):
    served = packed(disk, kind)
    for at in (0, len(served) // 2, len(served) - 1):
        spoilt = served[:at] + bytes([served[at] ^ 1]) + served[at + 1 :]
        on = drive(content=content)
        with (
            serving(lambda request, spoilt=spoilt: request.give(spoilt)) as server,
            pytest.raises(WriteFailed) as failed,
        ):
            write(on, described(served, disk, kind, server.url))
        assert failed.value.code == "image-checksum"
        assert "the disk is unbootable" in failed.value.reason
        assert unbootable(on)


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("disk", [SMALL, LARGE], ids=["small", "large"])
def test_another_length_than_the_manifests_is_a_broken_image(kind, disk):
    for wrong in (disk + bytes(512), disk[:-512], disk + bytes(64 * MIB)):
        served = packed(wrong, kind)
        on = drive(content="tenant:x")
        with (
            serving(lambda request, served=served: request.give(served)) as server,
            pytest.raises(WriteFailed) as failed,
        ):
            write(on, described(served, wrong, kind, server.url, raw_bytes=len(disk)))
        assert failed.value.code == "image-stream"
        assert ("longer" if len(wrong) > len(disk) else "ends after") in failed.value.reason
        assert unbootable(on)


@pytest.mark.parametrize("kind", [k for k in kinds() if k != "raw"])
def test_what_cannot_be_unpacked_is_a_broken_image_and_not_a_bad_line(kind):
    served = packed(LARGE, kind)
    for broken in (served[: len(served) // 2], served[:-1], served + b"garbage", b"garbage" * 100):
        on = drive()
        with (
            serving(lambda request, broken=broken: request.give(broken)) as server,
            pytest.raises(WriteFailed) as failed,
        ):
            write(on, described(broken, LARGE, kind, server.url))
        assert failed.value.code == "image-stream", failed.value.reason
        assert unbootable(on)


def test_a_manifest_that_names_another_disk_is_found_before_the_drive_is_blamed():
    served = packed(SMALL, "raw.gz")
    on = drive()
    with serving(lambda request: request.give(served)) as server, pytest.raises(WriteFailed) as failed:
        write(on, described(served, SMALL, "raw.gz", server.url, raw_sha256="0" * 64))
    assert failed.value.code == "image-checksum"
    assert unbootable(on)


def test_a_mirror_that_has_it_wrong_gives_way_to_one_that_has_it_right():
    served = packed(LARGE, "raw.gz")
    spoilt = served[:5000] + b"x" + served[5001:]
    with serving(lambda request: request.give(spoilt)) as bad, serving(lambda request: request.give(served)) as good:
        digest, progress, tally = write(drive(), described(served, LARGE, "raw.gz", bad.url, good.url))
    assert digest == hashlib.sha256(LARGE).hexdigest()
    assert tally.url == good.url
    assert [p["event"] for p in progress if p["event"] != "progress"] == ["again"]


def test_several_gzip_members_are_one_image():
    served = gzip.compress(LARGE[: 5 * MIB + 7], 1) + gzip.compress(LARGE[5 * MIB + 7 :], 1)
    with serving(lambda request: request.give(served)) as server:
        digest, _, _ = write(drive(), described(served, LARGE, "raw.gz", server.url))
    assert digest == hashlib.sha256(LARGE).hexdigest()


def test_a_bomb_is_not_unpacked_beyond_the_manifest():
    disk = SMALL + bytes(256 << 20)
    served = subprocess.run(["gzip", "-1"], input=disk, capture_output=True, check=True).stdout
    with serving(lambda request: request.give(served)) as server, pytest.raises(WriteFailed, match="longer"):
        write(drive(), described(served, SMALL, "raw.gz", server.url))


@pytest.mark.parametrize("disk", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("at", [0, 50, 70, 100])
def test_a_write_error_is_the_drives(disk, at):
    served = packed(disk, "raw.gz")
    on = drive(content="tenant:x", write_error_at=at)
    on.begin_image("x", len(disk))
    with serving(lambda request: request.give(served)) as server, pytest.raises(WriteFailed) as failed:
        write(on, described(served, disk, "raw.gz", server.url))
    assert failed.value.code == "drive-write"
    assert "media error" in failed.value.reason
    assert unbootable(on)


@pytest.mark.parametrize("disk", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("at", [0, 40, 90])
def test_one_bit_that_the_drive_has_wrong_is_found(disk, at):
    served = packed(disk, "raw.gz")
    on = drive(flip_at=at)
    on.begin_image("x", len(disk))
    with serving(lambda request: request.give(served)) as server, pytest.raises(WriteFailed) as failed:
        write(on, described(served, disk, "raw.gz", server.url))
    assert failed.value.code == "drive-read-back"
    assert unbootable(on)


def test_a_drive_that_keeps_what_it_had_at_its_ends_is_told():
    class Stubborn(SimulatedBlocks):
        def write(self, offset, data):
            if MIB <= offset < self.size - MIB:
                super().write(offset, data)

        def zero(self, offset, length):
            if MIB <= offset < self.size - MIB:
                super().zero(offset, length)

    served = packed(SMALL, "raw.gz")
    on = drive(content="tenant:x")
    on.open = lambda: Stubborn(on)
    with serving(lambda request: request.give(served)) as server, pytest.raises(WriteFailed, match="MAY STILL BOOT"):
        write(on, described(served, SMALL, "raw.gz", server.url))


def test_a_drive_that_is_too_small_or_in_use_is_not_touched():
    served = packed(SMALL, "raw.gz")
    with serving(lambda request: request.give(served)) as server:
        image = described(served, SMALL, "raw.gz", server.url)
        small = drive(len(SMALL) + partition.ROOM - 4096, content="tenant:x")
        with pytest.raises(WriteFailed) as failed:
            write(small, image)
        assert failed.value.code == "drive-too-small"
        used = drive(content="tenant:x")
        with used.open(), pytest.raises(WriteFailed, match="in use"):
            write(used, image)
        assert server.asked == []
    for on in (small, used):
        assert on.pages.dump() == {"base": "tenant:x", "pages": {}, "zeros": []}


def test_without_a_source_nothing_is_written():
    on = drive(content="tenant:x")
    with (
        serving(lambda request: request.say(403, {"Content-Length": "0"})) as server,
        pytest.raises(WriteFailed, match="nothing was written") as failed,
    ):
        write(on, described(b"x", SMALL, "raw", f"{server.url}?ticket=SECRET"))
    assert failed.value.code == "image-source"
    assert "SECRET" not in failed.value.reason
    assert on.pages.dump()["pages"] == {}


@pytest.mark.parametrize("kind", kinds())
def test_a_server_that_dies_in_the_middle_leaves_an_unbootable_disk(kind):
    served = packed(LARGE, kind)
    requests = []

    def script(request):
        requests.append(request.start())
        if len(requests) == 1:
            request.give(served, cut=len(served) * 3 // 4)
        else:
            request.say(404, {"Content-Length": "0"})

    on = drive(content="tenant:x")
    with serving(script) as server, pytest.raises(WriteFailed) as failed:
        write(on, described(served, LARGE, kind, server.url))
    assert failed.value.code == "image-source"
    assert unbootable(on) or "nothing was written" in failed.value.reason


@pytest.mark.parametrize(
    ("disk", "said"),
    [(bytes(4 * MIB), "protective MBR"), (bytes(510) + b"\x55\xaa" + bytes(4 * MIB), "protective MBR")],
)
def test_an_image_without_a_gpt_is_refused(disk, said):
    served = packed(disk, "raw.gz")
    on = drive()
    with serving(lambda request: request.give(served)) as server, pytest.raises(WriteFailed, match=said) as failed:
        write(on, described(served, disk, "raw.gz", server.url))
    assert failed.value.code == "partition-table"
    assert unbootable(on)


def test_a_seed_that_cannot_be_made_leaves_an_unbootable_disk():
    class Without(Bench):
        def seed_volume(self, files, length, sector):
            raise OSError(5, "/usr/sbin/mkfs.vfat: no")

    served = packed(SMALL, "raw.gz")
    on = drive()
    with serving(lambda request: request.give(served)) as server, pytest.raises(WriteFailed) as failed:
        finish(write_image(described(served, SMALL, "raw.gz", server.url), FILES, on, Without(on), Tally()))
    assert failed.value.code == "seed"
    assert unbootable(on)


def test_a_missing_zstd_is_said(monkeypatch):
    monkeypatch.setattr(decompress, "ZSTD", "/nowhere/zstd")
    with serving(lambda request: request.give(b"x" * 10)) as server, pytest.raises(WriteFailed, match="unpacker"):
        write(drive(), described(b"x" * 10, SMALL, "raw.zst", server.url))


class _Cut(Exception):
    """The power went."""


@pytest.mark.parametrize("pages", [0, 1, 3, 300])
@pytest.mark.parametrize("disk", [SMALL, LARGE], ids=["small", "large"])
def test_a_power_cut_in_any_write_leaves_no_disk_that_boots_halfway(disk, pages):
    """Cut in each write, of which some pages came through: the whole image and its seed, or nothing that starts."""
    left = 0

    class Mortal(SimulatedBlocks):
        def write(self, offset, data):
            nonlocal left
            if left == 0:
                if torn := bytes(data)[: pages * 4096]:
                    super().write(offset, torn)
                raise _Cut
            left -= 1
            super().write(offset, data)

        zero = SimulatedBlocks.zero

    served = packed(disk, "raw.gz")
    with serving(lambda request: request.give(served)) as server:
        for after in range(64):
            on, left = drive(content="tenant:x"), after
            on.open = lambda on=on: Mortal(on)
            try:
                write(on, described(served, disk, "raw.gz", server.url))
            except _Cut:
                on.opened = False
                with SimulatedBlocks(on) as blocks:
                    back = blocks.read(0, len(disk))
                    part = partition.find(blocks, "cidata")
                    whole = part is not None and unpack(blocks.read(part.start, 65536)) == FILES
                if any(back[:512]):
                    assert whole  # whoever starts this starts all of it
                    assert back[MIB:] == disk[MIB:]
                continue
            break
    assert 2 < after < 63
    assert seeded(on) == FILES


@pytest.mark.parametrize("kind", kinds())
def test_whoever_stops_listening_ends_every_thread_and_process(kind, monkeypatch):
    monkeypatch.setattr(writing, "_Pace", lambda what, of: type("P", (), {"due": lambda s, d: iter([{"done": d}])})())
    served = packed(LARGE, kind)
    over = threading.Event()

    def script(request):
        request.say(200, {"Content-Length": str(len(served))}, served[: len(served) * 3 // 4])
        over.wait(20)

    with serving(script) as server:
        work = write_image(described(served, LARGE, kind, server.url), FILES, on := drive(), Bench(on), Tally())
        assert next(work)["done"] > 0
        work.close()
        over.set()


def test_sectors_of_4096_bytes():
    disk = bytearray(LARGE)
    served = packed(bytes(disk), "raw")
    on = drive(2 * 10**9 // 4096 * 4096, sector=4096)
    with serving(lambda request: request.give(served)) as server, pytest.raises(WriteFailed, match="sectors of 512"):
        write(on, described(served, bytes(disk), "raw", server.url))
    assert unbootable(on)


def test_the_seed_is_nowhere_in_what_is_told():
    served = packed(SMALL, "raw.gz")
    with serving(lambda request: request.give(served)) as server:
        _, progress, tally = write(drive(), described(served, SMALL, "raw.gz", f"{server.url}?ticket=SECRET"))
    assert "SECRET" not in json.dumps(progress) + repr(tally)
