"""qcow2 from strangers: what leans on other files, lies about its size or is damaged is refused, mostly unseen by qemu-img."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from fleetd.kit import qcow2
from fleetd.kit.errors import Conflict, Invalid, Unsupported

MIB = 1024**2
MOST = 64 * MIB
needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-img") is None and os.environ.get("CI") != "1", reason="apt-get install qemu-utils"
)


def disk(tmp_path: Path, *options: str, size: int = 4 * MIB) -> tuple[Path, bytes]:
    """A qcow2 file made by qemu-img, and the disk in it."""
    raw = os.urandom(size // 4) + bytes(size // 4) + os.urandom(size // 2)
    (tmp_path / "raw").write_bytes(raw)
    path = tmp_path / "image.qcow2"
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, str(tmp_path / "raw"), str(path)], check=True
    )
    return path, raw


def header(**changed: int) -> bytes:
    """A version 3 header, well-formed but for what is changed."""
    fields = {
        "version": 3, "backing": 0, "backing_size": 0, "cluster_bits": 16, "size": MIB, "crypt": 0, "incompatible": 0,
        "length": 104,
    }  # fmt: skip
    assert set(changed) <= set(fields)
    f = fields | changed
    fixed = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", f["version"], f["backing"], f["backing_size"], f["cluster_bits"], f["size"],
        f["crypt"], 1, 0x30000, 0x10000, 1, 0, 0,
    )  # fmt: skip
    return fixed + struct.pack(">QQQII", f["incompatible"], 0, 0, 4, f["length"]) + bytes(64)


def test_a_plain_header_is_read() -> None:
    assert qcow2.read_header(header(), MOST) == (3, MIB, 16)
    assert qcow2.read_header(header(version=2)[:72], MOST) == (2, MIB, 16)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"version": 4}, "version"),
        ({"backing": 512, "backing_size": 11}, "backing file"),
        ({"backing_size": 11}, "backing file"),
        ({"crypt": 2}, "encrypted"),
        ({"cluster_bits": 63}, "clusters"),
        ({"size": 0}, "its disk has 0"),
        ({"size": MOST + 512}, "its disk has"),
        ({"size": 1000}, "its disk has 1000"),
        ({"size": 2**63}, "its disk has"),
        ({"incompatible": 4}, "another file"),
        ({"incompatible": 2}, "damaged"),
        ({"incompatible": 1 << 40}, "features nobody"),
        ({"length": 0}, "cut off"),
        ({"length": 2**31}, "cut off"),
    ],
)
def test_headers_that_are_refused(changed: dict[str, int], why: str) -> None:
    with pytest.raises(Invalid) as caught:
        qcow2.read_header(header(**changed), MOST)
    assert why in caught.value.why
    assert caught.value.remedy


def test_a_data_file_named_in_an_extension_is_refused() -> None:
    plain = header()[:104]
    named = plain + struct.pack(">II", 0x44415441, 11) + b"/etc/shadow".ljust(16, b"\0") + bytes(64)
    with pytest.raises(Invalid) as caught:
        qcow2.read_header(named, MOST)
    assert "names another file" in caught.value.why
    endless = plain + struct.pack(">II", 0x6803F857, 2**32 - 8) + bytes(64)
    with pytest.raises(Invalid) as caught:
        qcow2.read_header(endless, MOST)
    assert "cut off" in caught.value.why


@pytest.mark.parametrize("data", [b"", b"QFI", b"\0" * 4096, b"QFI\xfb" + b"\xff" * 100])
def test_nonsense_is_no_qcow2(data: bytes) -> None:
    with pytest.raises(Invalid):
        qcow2.read_header(data, MOST)


@needs_qemu
@pytest.mark.parametrize("options", [(), ("-c",), ("-o", "compat=0.10"), ("-o", "compression_type=zstd", "-c")])
def test_a_good_one_becomes_raw(tmp_path: Path, options: tuple[str, ...]) -> None:
    path, raw = disk(tmp_path, *options)
    target = tmp_path / "out.raw"
    assert qcow2.to_raw(path, target, most=MOST, seconds=60, reserve=0) == len(raw)
    assert target.read_bytes() == raw
    found = qcow2.measure(path, most=MOST, most_raw=MOST)
    data = path.read_bytes()
    assert found == (len(data), hashlib.sha256(data).hexdigest(), len(raw), hashlib.sha256(raw).hexdigest())


@needs_qemu
def test_a_backing_file_made_by_qemu_img_is_refused(tmp_path: Path) -> None:
    path, _ = disk(tmp_path)
    child = tmp_path / "child.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(path), "-F", "qcow2", str(child)], check=True)
    with pytest.raises(Invalid) as caught:
        qcow2.to_raw(child, tmp_path / "out", most=MOST, seconds=60, reserve=0)
    assert "backing" in caught.value.why


@needs_qemu
def test_an_external_data_file_made_by_qemu_img_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outside.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", str(path), "1M"], check=True
    )
    with pytest.raises(Invalid) as caught:
        qcow2.to_raw(path, tmp_path / "out", most=MOST, seconds=60, reserve=0)
    assert "another file" in caught.value.why


@needs_qemu
def test_damage_behind_the_header_is_refused(tmp_path: Path) -> None:
    path, _ = disk(tmp_path)
    data = bytearray(path.read_bytes())
    data[65536 * 3 : 65536 * 4] = b"\xff" * 65536  # the tables of clusters
    path.write_bytes(data)
    with pytest.raises(Invalid, match="not taken"):
        qcow2.to_raw(path, tmp_path / "out", most=MOST, seconds=60, reserve=0)


@needs_qemu
def test_no_room_is_said_before_the_disk_is_full(tmp_path: Path) -> None:
    with pytest.raises(Conflict) as caught:
        qcow2.require_room(tmp_path, 0, 2**62)
    assert "image" in caught.value.remedy


def test_without_qemu_img_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.qcow2"
    path.write_bytes(header())
    prlimit = shutil.which("prlimit")
    assert prlimit is not None
    (tmp_path / "prlimit").symlink_to(prlimit)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported) as caught:
        qcow2.inspect(path, MOST)
    assert caught.value.remedy == "apt-get install qemu-utils"
