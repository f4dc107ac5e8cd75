"""The parts of the build that decide what is in the image: same input, same bytes, and nothing forgotten."""

from __future__ import annotations

import io
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from deploy import archive, build, elf, kernel, media, tree
from deploy.packages import FLAVOURS, Deb, Failed, Part
from tests.deploy.stand import OVERLAY, ROOT


def sample(root: Path, order: list[str], mask: int) -> Path:
    """The same tree, made in another order and under another umask."""
    before = os.umask(mask)
    try:
        root.mkdir(parents=True)
        for name in order:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode() * 3)
            if name.endswith(".sh"):
                path.chmod(0o700)
        (root / "link").symlink_to("etc/a")
        (root / "tmp").mkdir()
    finally:
        os.umask(before)
    return root


def packed(root: Path) -> bytes:
    buffer = io.BytesIO()
    size = archive.write_cpio(root, 1_700_000_000, buffer)
    assert size == len(buffer.getvalue())
    return buffer.getvalue()


def test_the_archive_depends_on_nothing_but_names_and_contents(tmp_path: Path) -> None:
    names = ["etc/a", "etc/shadow", "bin/run.sh", "z"]
    one = packed(sample(tmp_path / "one", names, 0o022))
    assert one == packed(sample(tmp_path / "two", names[::-1], 0o077))
    assert len(one) % 512 == 0
    assert one.startswith(b"070701")


def test_an_entry_says_root_and_the_mode_by_kind(tmp_path: Path) -> None:
    root = sample(tmp_path / "one", ["etc/a", "etc/shadow", "bin/run.sh"], 0o022)
    data = packed(root)
    found: dict[str, tuple[int, ...]] = {}
    at = 0
    while True:
        fields = tuple(int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13))
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        if name == "TRAILER!!!":
            break
        found[name] = fields
        at += -(-(110 + fields[11]) // 4) * 4 + -(-fields[6] // 4) * 4
    modes = {name: fields[1] for name, fields in found.items()}
    assert list(found) == [".", *sorted(name for name in found if name != ".")]
    assert modes["."] == stat.S_IFDIR | 0o755  # the kernel's own root is writable by all, and sshd refuses that
    assert modes["etc/a"] == stat.S_IFREG | 0o644
    assert modes["etc/shadow"] == stat.S_IFREG | 0o600
    assert modes["bin/run.sh"] == stat.S_IFREG | 0o755
    assert modes["tmp"] == stat.S_IFDIR | 0o1777
    assert modes["link"] == stat.S_IFLNK | 0o777
    assert {fields[2:4] for fields in found.values()} == {(0, 0)}
    assert {fields[5] for fields in found.values()} == {1_700_000_000}


def test_a_device_is_not_packed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Failed, match="pipe"):
        packed(tmp_path)


def test_the_placeholder_for_the_url_is_exactly_as_long_as_agreed() -> None:
    fields = re.findall(r"fleetd\.url=(\S*)", media.GRUB_CFG)
    assert fields == ["@FLEETD-URL@".ljust(200, "@")]
    assert media.GRUB_CFG.count("@FLEETD-URL@") == 1
    assert "fleetd.token" not in media.GRUB_CFG


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("./bin/ip", "usr/bin/ip"),
        ("./usr/sbin/sshd", "usr/sbin/sshd"),
        ("lib64/ld.so", "usr/lib64/ld.so"),
        ("./etc/x", "etc/x"),
    ],
)
def test_packages_of_a_split_system_land_in_usr(path: str, place: str) -> None:
    assert tree.merged(path) == place


def deb(folder: Path, name: str, files: dict[str, str], links: dict[str, str]) -> Deb:
    """A package made by hand."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb here")
    root = folder / name
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    )
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    for path, where in links.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(where)
    (root / "DEBIAN").chmod(0o755)
    target = folder / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(root), str(target)], check=True, capture_output=True)
    return Deb(name, "1", target)


@pytest.mark.slow
def test_parts_are_what_is_named_and_no_documentation(tmp_path: Path) -> None:
    one = deb(
        tmp_path,
        "tool1.2-small",
        {"bin/tool": "x", "bin/other": "x", "usr/share/doc/tool/copyright": "x", "etc/init.d/tool": "x"},
        {"sbin/alias": "/bin/tool", "usr/bin/again": "../../bin/tool"},
    )
    root = tmp_path / "root"
    tree.unpack_parts([one], [Part("tool*-small", without=("usr/bin/other",))], root)
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir())
    assert found == ["usr/bin/again", "usr/bin/tool", "usr/sbin/alias"]
    assert os.readlink(root / "usr/sbin/alias") == "../bin/tool"
    assert (root / "usr/bin/again").read_text() == "x"
    with pytest.raises(Failed, match="no package fits"):
        tree.unpack_parts([one], [Part("gone")], root)
    with pytest.raises(Failed, match="nothing of"):
        tree.unpack_parts([one], [Part("tool*", ("usr/bin/renamed",))], root)


@pytest.mark.slow
def test_a_library_that_nobody_brings_stops_the_build(tmp_path: Path) -> None:
    root = tmp_path / "root/usr/bin"
    root.mkdir(parents=True)
    shutil.copy("/bin/ls", root / "ls")
    assert "libc.so.6" in elf.needed(root / "ls")
    with pytest.raises(Failed, match="which no package of the closure brings"):
        tree.add_libraries([], tmp_path / "root", tmp_path / "scratch")


def test_a_text_needs_no_library(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("#!/bin/sh\n")
    assert elf.needed(tmp_path / "text") == []


def fake_kernel(folder: Path) -> kernel.Kernel:
    (folder / "modules.dep").write_text(
        "kernel/fs/fat/vfat.ko: kernel/fs/fat/fat.ko\n"
        "kernel/fs/fat/fat.ko:\n"
        "kernel/drivers/net/virtio_net.ko: kernel/net/failover.ko\n"
        "kernel/net/failover.ko:\n"
        "kernel/drivers/ata/ahci.ko.xz: kernel/drivers/ata/libahci.ko.xz kernel/drivers/ata/libata.ko.xz\n"
        "kernel/drivers/ata/libahci.ko.xz: kernel/drivers/ata/libata.ko.xz\n"
        "kernel/drivers/ata/libata.ko.xz:\n"
        "kernel/sound/snd.ko:\n"
    )
    return kernel.Kernel("6.1", folder / "vmlinuz", folder)


def test_modules_come_with_all_they_need_and_nothing_else(tmp_path: Path) -> None:
    found = fake_kernel(tmp_path)
    assert kernel.choose(found, ["vfat", "virtio-net", "absent"]) == [
        "kernel/drivers/net/virtio_net.ko",
        "kernel/fs/fat/fat.ko",
        "kernel/fs/fat/vfat.ko",
        "kernel/net/failover.ko",
    ]
    assert [path.rsplit("/", 1)[1] for path in kernel.choose(found, ["ahci"])] == [
        "ahci.ko.xz",
        "libahci.ko.xz",
        "libata.ko.xz",
    ]
    assert kernel.choose(found, ["kernel/drivers/ata/"]) == kernel.choose(found, ["ahci"])


def module_that_asks_for(*firmware: str) -> bytes:
    """An ELF file of two sections, as a kernel module names its firmware."""
    info = b"license=GPL\0" + b"".join(b"firmware=" + name.encode() + b"\0" for name in firmware)
    names = b"\0.modinfo\0.names\0"
    head = bytearray(64)
    head[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", head, 0x28, 64 + len(info) + len(names))
    struct.pack_into("<HHH", head, 0x3A, 64, 2, 1)
    sections = struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, 64, len(info), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, 64 + len(info), len(names), 0, 0, 1, 0)
    return bytes(head) + info + names + sections


@pytest.mark.slow
def test_firmware_of_compressed_modules_is_taken_too_and_what_no_package_has_is_told(tmp_path: Path) -> None:
    if shutil.which("zstd") is None:
        pytest.skip("no zstd here")
    plain = module_that_asks_for("a/plain.bin")
    (tmp_path / "a.ko").write_bytes(plain)
    (tmp_path / "b.ko.xz").write_bytes(lzma.compress(module_that_asks_for("b/*.pkg", "b/gone.bin")))
    (tmp_path / "c.ko").write_bytes(module_that_asks_for("c/packed.bin"))
    subprocess.run(["zstd", "-q", "--rm", str(tmp_path / "c.ko")], check=True)
    files = {f"lib/firmware/{name}": "x" for name in ("a/plain.bin", "b/one.pkg", "c/packed.bin", "other.bin")}
    root = tmp_path / "root"
    count, absent = kernel.install_firmware(
        kernel.Kernel("6.1", tmp_path / "vmlinuz", tmp_path),
        ["a.ko", "b.ko.xz", "c.ko.zst"],
        [deb(tmp_path, "firmware", files, {})],
        root,
    )
    found = sorted(path.relative_to(root / "usr/lib/firmware").as_posix() for path in root.rglob("*.*"))
    assert found == ["a/plain.bin", "b/one.pkg", "c/packed.bin"]
    assert (count, absent) == (3, ["b/gone.bin"])


def test_every_flavour_has_what_the_host_side_calls() -> None:
    for flavour in FLAVOURS.values():
        asked, parts = set(flavour.ask), {part.package for part in flavour.parts}
        for need in ("zstd", "gdisk", "dosfstools", "mtools", "efibootmgr", "kmod", "iproute2", "util-linux"):
            assert need in asked, flavour.name
            assert need in parts, flavour.name


def test_fat_times_are_stamped_in_every_folder(tmp_path: Path) -> None:
    if shutil.which("mformat") is None:
        pytest.skip("no mtools here")
    source = tmp_path / "a"
    source.write_text("hello")
    images = []
    for number, stamp in enumerate((1, 2_000_000_000)):
        os.utime(source, (stamp, stamp))
        image = tmp_path / f"{number}.img"
        media.fat_image(image, "TEST", {"EFI/BOOT/A.EFI": source, "b": source}, 1_700_000_000)
        data = bytearray(image.read_bytes())
        at = data.index(b"A       EFI")
        assert struct.unpack_from("<H", data, at + 24)[0] >> 9 == 2023 - 1980
        images.append(bytes(data))
    assert images[0] == images[1]


def test_the_overlay_evaluates_nothing_and_names_no_registry() -> None:
    for path in [*OVERLAY.rglob("*"), *(ROOT / "deploy").glob("*.py")]:
        if path.is_file() and "__pycache__" not in path.parts:
            text = path.read_text()
            assert not re.search(r"(^|[\s;])(eval|source)\s+[\"'$/]", text), path
            assert not re.search(r"(deb|security|snapshot)\.debian\.org", text), path


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "fetch", lambda *_: build.Fetched(debs=[], loaders=[], firmware=[], absent=[]))
    (tmp_path / "file").write_text("x")
    assert build.main(["--out", str(tmp_path / "file" / "out"), "--cache", str(tmp_path)]) == 1
    told = capsys.readouterr().err.splitlines()
    assert "Not a directory" in told[-1]
    assert "manifest.json" in told[-1]
