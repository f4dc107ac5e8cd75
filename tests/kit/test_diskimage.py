"""What an image file is, measured within bounds; what is damaged, too large or cut off is refused."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from fleetd.kit import diskimage
from fleetd.kit.diskimage import CHUNK, RAW, RAW_GZ, RAW_ZST, Stopped, measure
from fleetd.kit.errors import Invalid, Unsupported

DISK = os.urandom(64 * 1024) + bytes(3 * CHUNK) + os.urandom(512)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zst(data: bytes, *options: str) -> bytes:
    return subprocess.run(["zstd", "-q", "-c", *options], input=data, capture_output=True, check=True).stdout


def packed(form: str, data: bytes = DISK) -> bytes:
    return {RAW: lambda: data, RAW_GZ: lambda: gzip.compress(data, 1), RAW_ZST: lambda: zst(data)}[form]()


@pytest.mark.parametrize("form", [RAW, RAW_GZ, RAW_ZST])
def test_both_digests_in_one_pass(tmp_path: Path, form: str) -> None:
    file = tmp_path / "image"
    data = packed(form)
    file.write_bytes(data)
    told: list[int] = []
    found = measure(file, form, most=len(data), most_raw=len(DISK), progress=told.append)
    assert found == (len(data), sha(data), len(DISK), sha(DISK))
    assert diskimage.format_of(file) == form
    assert told[-1] == len(data)


@pytest.mark.parametrize("form", [RAW_GZ, RAW_ZST])
def test_several_parts_one_after_the_other(tmp_path: Path, form: str) -> None:
    file = tmp_path / "image"
    file.write_bytes(packed(form, DISK[:70_000]) + packed(form, DISK[70_000:]))
    found = measure(file, form, most=10**9, most_raw=len(DISK))
    assert (found.raw_bytes, found.raw_sha256) == (len(DISK), sha(DISK))


@pytest.mark.parametrize("form", [RAW_GZ, RAW_ZST])
@pytest.mark.parametrize("damage", ["cut", "garbage behind", "flipped"])
def test_damage_is_refused(tmp_path: Path, form: str, damage: str) -> None:
    data = bytearray(packed(form))
    if damage == "cut":
        del data[-40:]
    elif damage == "garbage behind":
        data += b"nonsense" * 100
    else:
        data[len(data) // 2] ^= 0xFF
    file = tmp_path / "image"
    file.write_bytes(data)
    with pytest.raises(Invalid, match="unpacked"):
        measure(file, form, most=10**9, most_raw=10**9)


@pytest.mark.parametrize("form", [RAW_GZ, RAW_ZST])
def test_a_bomb_is_not_unpacked_further_than_allowed(tmp_path: Path, form: str) -> None:
    file = tmp_path / "bomb"
    file.write_bytes(packed(form, bytes(256 * CHUNK)))
    began = time.process_time()
    with pytest.raises(Invalid, match="disk in the image is larger"):
        measure(file, form, most=10**9, most_raw=CHUNK)
    assert time.process_time() - began < 0.5
    assert not [t for t in threading.enumerate() if t.name == "image-feeder"]


def test_a_file_that_is_larger_than_announced(tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(DISK)
    with pytest.raises(Invalid, match="image file is larger"):
        measure(file, RAW, most=len(DISK) - 1, most_raw=10**9)


@pytest.mark.parametrize("size", [0, 1, 513])
def test_what_is_no_whole_sectors_is_no_disk(tmp_path: Path, size: int) -> None:
    file = tmp_path / "image"
    file.write_bytes(bytes(size))
    with pytest.raises(Invalid, match="no disk"):
        measure(file, RAW, most=10**6, most_raw=10**6)


@pytest.mark.parametrize("form", [RAW, RAW_GZ, RAW_ZST])
def test_it_stops_when_nobody_wants_it(tmp_path: Path, form: str) -> None:
    file = tmp_path / "image"
    file.write_bytes(packed(form))
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        measure(file, form, most=10**9, most_raw=10**9, stop=stop)


def test_without_zstd_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "image"
    file.write_bytes(packed(RAW_ZST))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported) as caught:
        measure(file, RAW_ZST, most=10**9, most_raw=10**9)
    assert caught.value.remedy == "apt-get install zstd"


def test_a_window_larger_than_hosts_have_memory_for(tmp_path: Path) -> None:
    file = tmp_path / "image"
    noise = os.urandom(CHUNK)
    file.write_bytes(zst(noise * 300, "--long=28", "-1"))
    with pytest.raises(Invalid, match="unpacked"):
        measure(file, RAW_ZST, most=10**9, most_raw=10**9)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be read"):
        measure(tmp_path / "none", RAW, most=1, most_raw=1)
    with pytest.raises(Invalid, match="cannot be read"):
        diskimage.format_of(tmp_path / "none")


def test_an_unknown_format(tmp_path: Path) -> None:
    shutil.copy(__file__, tmp_path / "image")
    with pytest.raises(Invalid, match="not served"):
        measure(tmp_path / "image", "vmdk", most=10**9, most_raw=10**9)
