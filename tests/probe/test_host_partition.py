"""Fitting a GPT to a larger disk and adding the seed's partition; judged by the rules, and by sgdisk and sfdisk."""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
import uuid
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetd.probe.host import partition
from fleetd.probe.host.partition import BadTable, fit, read
from tests.probe.imaging import blocks, disk_image

MIB = 1 << 20


def table(sector: int, size: int, parts: list[tuple[int, int, str]], *, slots: int = 128, width: int = 128) -> bytes:
    """A disk's first sectors with a primary GPT; `parts` as (first, last sector, name)."""
    span = -(-slots * width // sector)
    entries = b"".join(
        struct.pack(
            "<16s16sQQQ72s",
            partition.EFI_SYSTEM.bytes_le if name == "esp" else uuid.uuid5(uuid.NAMESPACE_DNS, "linux").bytes_le,
            uuid.uuid5(uuid.NAMESPACE_DNS, name).bytes_le,
            first,
            last,
            0,
            name.encode("utf-16-le"),
        ).ljust(width, b"\0")
        for first, last, name in parts
    ).ljust(slots * width, b"\0")
    last = size // sector - 1
    fields = (1, last, 2 + span, last - span - 1, uuid.uuid5(uuid.NAMESPACE_DNS, "disk").bytes_le, 2, slots, width)
    packed = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *fields, zlib.crc32(entries))
    header = packed[:16] + struct.pack("<I", zlib.crc32(packed)) + packed[20:]
    mbr = bytes(range(256)) + bytes(190) + struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff" * 3, 1, last)
    return (mbr.ljust(510, b"\0") + b"\x55\xaa").ljust(sector, b"\0") + header.ljust(sector, b"\0") + entries


def disk(sector=512, image=64 * MIB, size=2 * 10**9, parts=None, **more):
    on = blocks(size // 4096 * 4096, sector=sector)
    data = table(sector, image, parts if parts is not None else [(64, 2047, "root")], **more)
    on.write(0, data.ljust(-(-len(data) // sector) * sector, b"\0"))
    return on


@st.composite
def layouts(draw):
    """(sector, image bytes, disk bytes, partitions that do not overlap)."""
    sector = draw(st.sampled_from([512, 4096]))
    image = draw(st.integers(4, 256)) * MIB
    size = image + partition.ROOM + draw(st.integers(0, 1 << 34)) // 4096 * 4096
    low, high = 2 + -(-16384 // sector), image // sector - 2 - -(-16384 // sector)
    marks = sorted(draw(st.sets(st.integers(low, high), min_size=2, max_size=12)))
    parts = [(a, b - 1, f"p{a}") for a, b in zip(marks[::2], marks[1::2], strict=False)]
    return sector, image, size, parts


@settings(max_examples=120, deadline=None)
@given(layouts())
def test_both_tables_are_good_and_no_partition_moved(layout):
    sector, image, size, parts = layout
    on = disk(sector, image, size, parts)
    boot_code = on.read(0, sector)[:446]
    added = fit(on, beyond=image)
    after = read(on)
    assert on.read(0, sector)[:446] == boot_code
    found = after.partitions(sector)
    assert [
        (p.start // sector, (p.start + p.length) // sector - 1, p.name) for p in found if p.name != "cidata"
    ] == parts
    assert added in found
    assert (added.name, added.kind, added.length) == ("cidata", partition.BASIC_DATA, partition.SEED_BYTES)
    assert added.start % MIB == 0
    assert added.start >= image
    assert added.start + added.length <= (after.last + 1) * sector
    last = on.size // sector - 1
    backup = on.read(last * sector, sector)
    fields = struct.unpack_from("<8sIIIIQQQQ16sQIII", backup)
    assert (fields[5], fields[6], fields[8]) == (last, 1, after.last)
    crc = zlib.crc32(backup[:16] + bytes(4) + backup[20:92])
    assert fields[3] == crc
    entries = on.read(fields[10] * sector, -(-16384 // sector) * sector)[:16384]
    assert zlib.crc32(entries) == fields[13]
    assert entries == after.entries
    protective = on.read(0, sector)[446:462]
    assert struct.unpack_from("<I", protective, 12)[0] == min(0xFFFFFFFF, last)


@given(st.binary(min_size=1, max_size=64), st.integers(0, 34 * 512 - 64))
@settings(max_examples=200, deadline=None)
def test_a_damaged_table_is_refused_or_is_the_same(noise, at):
    on = disk()
    whole = bytearray(on.read(0, 34 * 512))
    before = read(on)
    whole[at : at + len(noise)] = noise
    on.write(0, bytes(whole))
    try:
        assert read(on) == before
    except BadTable:
        return


@given(st.binary(max_size=4096))
def test_no_bytes_make_it_do_anything_else_than_refuse(data):
    on = blocks(64 * MIB)
    on.write(0, data.ljust(4096, b"\xee"))
    with pytest.raises(BadTable):
        fit(on)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_hostile_numbers_with_right_checksums_are_refused(at, first, slots, width):
    on = disk()
    header = bytearray(on.read(512, 512))
    struct.pack_into("<QII", header, 72, at, slots, width)
    struct.pack_into("<Q", header, 40, first)
    header[16:20] = bytes(4)
    struct.pack_into("<I", header, 16, zlib.crc32(bytes(header[:92])))
    on.write(512, bytes(header))
    with pytest.raises(BadTable):
        read(on)


def test_what_holds_no_gpt_is_refused_with_the_reason():
    bare = blocks(64 * MIB)
    bare.write(1024, b"\x53\xef".rjust(58, b"\0").ljust(512, b"\0"))  # an ext4 superblock
    with pytest.raises(BadTable, match="no protective MBR"):
        fit(bare)
    mbr = blocks(64 * MIB)
    mbr.write(0, (bytes(446) + b"\x80\0\0\0\x83" + bytes(59)) + b"\x55\xaa")
    with pytest.raises(BadTable, match="no protective MBR"):
        fit(mbr)
    protective = blocks(64 * MIB)
    protective.write(0, disk().read(0, 512))
    with pytest.raises(BadTable, match="no GPT"):
        fit(protective)


def test_an_image_for_other_sectors_says_so():
    small = disk(512)
    other = blocks(2 * 10**9 // 4096 * 4096, sector=4096)
    other.write(0, small.read(0, 64 * 512))
    with pytest.raises(BadTable, match="made for sectors of 512 bytes"):
        fit(other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 70 * MIB, "parts": [(64, 64 * 2048 - 100, "root")]}, "no room"),
        ({"parts": [(64, 2047, "cidata")]}, "already"),
        ({"parts": [(64, 2047, "CIDATA")]}, "already"),
        ({"parts": [(64, 2047, "a"), (2000, 4000, "b")]}, "overlap"),
        ({"parts": [(64, 10**7, "a")]}, "bounds"),
        ({"parts": [(4000, 100, "a")]}, "bounds"),
        ({"parts": [(64 + i, 64 + i, f"p{i}") for i in range(128)]}, "no free entry"),
    ],
)
def test_no_room_of_any_kind_is_refused_untouched(change, said):
    on = disk(**change)
    before = on.read(0, 64 * 512)
    with pytest.raises(BadTable, match=said):
        fit(on)
    assert on.read(0, 64 * 512) == before


def test_beyond_the_image_means_beyond_its_old_backup_too():
    on = disk(image=64 * MIB, size=64 * MIB + partition.ROOM)
    assert fit(on, beyond=64 * MIB).start >= 64 * MIB
    with pytest.raises(BadTable, match="no room"):
        fit(disk(image=64 * MIB, size=80 * MIB), beyond=64 * MIB)


def test_the_system_partition_is_found():
    assert partition.system_partition(blocks(64 * MIB)) is None
    on = disk(parts=[(2048, 4095, "root"), (4096, 8191, "esp")])
    found = partition.system_partition(on)
    assert (found.number, found.start, found.length) == (2, 4096 * 512, 4096 * 512)


@pytest.mark.peers
@pytest.mark.skipif(not (shutil.which("sgdisk") and shutil.which("sfdisk")), reason="gdisk and fdisk are not installed")
@pytest.mark.parametrize("seed", range(4))
def test_sgdisk_and_sfdisk_find_nothing_wrong(seed, tmp_path):
    rng = random.Random(seed)
    path = tmp_path / "disk"
    image = rng.randrange(8, 32) * MIB
    size = image + partition.ROOM + rng.randrange(0, 40 * MIB) // 4096 * 4096
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(image)
    subprocess.run(
        ["sgdisk", "-n", "1:2048:+2M", "-t", "1:ef00", "-n", "2:0:0", "-c", "2:root", str(path)],
        check=True,
        capture_output=True,
    )
    on = blocks(size)
    on.write(0, path.read_bytes())
    added = fit(on, beyond=image)
    path.write_bytes(on.read(0, size // 4096 * 4096) + on.read(size // 4096 * 4096, size % 4096))
    verified = subprocess.run(["sgdisk", "-v", str(path)], capture_output=True, text=True, check=False)
    assert "No problems found" in verified.stdout, verified.stdout
    said = json.loads(subprocess.run(["sfdisk", "-J", str(path)], capture_output=True, check=True).stdout)
    last = said["partitiontable"]["partitions"][-1]
    assert (last["name"], last["start"] * 512, last["size"] * 512) == ("cidata", added.start, added.length)
    assert uuid.UUID(last["type"]) == partition.BASIC_DATA
    assert [p["name"] for p in said["partitiontable"]["partitions"] if "name" in p] == ["root", "cidata"]


def test_the_tiny_image_of_the_demo_fits():
    on = blocks()
    on.write(0, disk_image())
    assert fit(on, beyond=192 * 1024).number == 2
