"""Which disks a host has, opening one, and erasing it with marks: drives that lie are found out, not zeroed over."""

from __future__ import annotations

import contextlib
import mmap
import os

import pytest

from fleetd.probe.host import devices, nvme, real
from fleetd.probe.host.blockdev import CHUNK, BlockDevice
from fleetd.probe.host.devices import Found
from fleetd.probe.host.order import Refusal
from fleetd.probe.host.wipe import wipe_drive
from tests.probe.imaging import finish
from tests.probe.nvme_rig import FakeNvme
from tests.probe.test_hardware_ata import Sata

MB = 1 << 20


class Sysfs:
    """A /sys of links and small files, as the kernel lays them out."""

    def __init__(self, root):
        self.root = root
        for part in ("block", "class/nvme", "dev/block", "devices"):
            (root / part).mkdir(parents=True)

    def put(self, path, **files):
        at = self.root / "devices" / path
        at.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (at / name).parent.mkdir(parents=True, exist_ok=True)
            (at / name).write_bytes(data if isinstance(data, bytes) else f"{data}\n".encode())
        return at

    def block(self, path, name, number="8:0", size=2048, device=None, **files):
        at = self.put(f"{path}/{name}", size=size, removable=0, dev=number, **files)
        (self.root / "block" / name).symlink_to(at)
        (self.root / "dev/block" / number).symlink_to(at)
        if device:
            (at / "device").symlink_to(device)
        return at

    def sd(self, name, serial, path="pci0000:00/0000:00:1f.2/ata1/host0", vendor="ATA", **more):
        page = b"\0\x80" + len(serial).to_bytes(2, "big") + serial.encode()
        device = self.put(
            f"{path}/{name}-target", vendor=vendor.ljust(8), model="DISK".ljust(16), rev="1.0", vpd_pg80=page
        )
        return self.block(path, name, device=device, **more)

    def nvme(self, n, serial, spaces=(1,), transport="pcie", multipath=False):
        at = self.put(f"pci0000:00/0000:0{n}:00.0/nvme/nvme{n}", serial=serial, model="M", firmware_rev="F")
        (at / "transport").write_text(f"{transport}\n")
        (self.root / "class/nvme" / f"nvme{n}").symlink_to(at)
        for nsid in spaces:
            number = f"259:{n * 10 + nsid}"
            if multipath:
                self.put(f"{at.relative_to(self.root / 'devices')}/nvme{n}c{n}n{nsid}", nsid=nsid)
                head = self.put(f"virtual/nvme-subsystem/nvme-subsys{n}", serial=serial)
                self.block(f"virtual/nvme-subsystem/nvme-subsys{n}", f"nvme{n}n{nsid}", number, device=head)
            else:
                self.block(str(at.relative_to(self.root / "devices")), f"nvme{n}n{nsid}", number, device=at, nsid=nsid)
        return at


@pytest.fixture
def sysfs(tmp_path):
    return Sysfs(tmp_path / "sys")


def names(sysfs):
    return [(d.kind, d.name, d.blocks, d.serial) for d in devices.find(str(sysfs.root))]


def test_every_disk_is_found_in_the_order_of_its_number(sysfs):
    sysfs.nvme(10, "N10")
    sysfs.nvme(2, "N2", spaces=(10, 2))
    sysfs.nvme(3, "N3", multipath=True)
    sysfs.nvme(4, "N4", spaces=())  # its namespaces deleted: still a drive that may hold data
    sysfs.sd("sda", "A1", number="8:0")
    sysfs.sd("sdb", "B1", path="pci/0000:01:00.0/host1/port-1:0/end_device-1:0/target", vendor="SEAGATE", number="8:16")
    sysfs.block("pci/virtio1", "vda", "254:0", serial="V1")
    sysfs.block("pci/mmc0", "mmcblk0", "179:0", device=sysfs.put("pci/mmc0/card", serial="0xaabb", name="EMMC"))
    assert names(sysfs) == [
        ("nvme", "nvme2", ("nvme2n2", "nvme2n10"), "N2"),
        ("nvme", "nvme3", ("nvme3n1",), "N3"),
        ("nvme", "nvme4", (), "N4"),
        ("nvme", "nvme10", ("nvme10n1",), "N10"),
        ("other", "mmcblk0", ("mmcblk0",), "0xaabb"),
        ("ata", "sda", ("sda",), "A1"),
        ("scsi", "sdb", ("sdb",), "B1"),
        ("virtio", "vda", ("vda",), "V1"),
    ]
    [b] = [d for d in devices.find(str(sysfs.root)) if d.name == "sdb"]
    assert (b.model, b.firmware, b.size) == ("SEAGATE DISK", "1.0", 2048 * 512)


def test_what_is_no_drive_of_this_host_is_left_out(sysfs):
    sysfs.sd("sda", "USB", path="pci/0000:00:14.0/usb1/1-2/host5", number="8:0")
    sysfs.sd("sdb", "SAN", path="platform/host6/session1/target6", number="8:16")
    sysfs.sd("sdc", "FC", path="pci/host7/rport-7:0-1/target7", number="8:32")
    (sysfs.sd("sdd", "CARD", number="8:48") / "removable").write_text("1\n")
    for i, name in enumerate(("loop0", "zram0", "dm-0", "md127", "sr0", "fd0", "ram3", "nbd0", "mmcblk0boot0")):
        sysfs.block(f"virtual/block{i}", name, f"7:{i}")
    sysfs.block("virtual/block", "pretender", "252:0", serial="X")
    sysfs.nvme(5, "FABRIC", transport="tcp")
    assert names(sysfs) == []


@pytest.mark.parametrize("serial", ["", "0", "None", "To Be Filled By O.E.M.", "00000000", "  "])
def test_a_placeholder_is_no_serial(sysfs, serial, monkeypatch):
    sysfs.nvme(0, serial)
    sysfs.sd("sda", serial)
    found = devices.find(str(sysfs.root))
    assert [d.serial for d in found] == ["", ""]
    monkeypatch.setattr(devices, "find", lambda: found)
    with pytest.raises(Refusal) as refused:
        real.RealMachine().drives()
    assert refused.value.code == "drive-no-serial"


def test_two_drives_of_one_serial_are_refused(sysfs, monkeypatch):
    sysfs.nvme(0, "SAME")
    sysfs.sd("sda", "SAME")
    found = devices.find(str(sysfs.root))
    monkeypatch.setattr(devices, "find", lambda: found)
    with pytest.raises(Refusal, match="nvme0 and sda have the serial 'SAME'"):
        real.RealMachine().drives()


def test_what_a_device_says_is_bounded_and_printable(sysfs):
    at = sysfs.nvme(0, "S")
    (at / "model").write_bytes(b"\x1b[2Jevil\xff" + b"x" * 9000)
    [found] = devices.find(str(sysfs.root))
    assert found.model.startswith("?[2Jevil?x")
    assert len(found.model) <= 128


def test_what_holds_a_disk_is_named(sysfs, tmp_path):
    at = sysfs.sd("sda", "A1", number="8:0")
    (tmp_path / "self").mkdir()
    mounts = tmp_path / "self/mountinfo"
    mounts.write_text("22 1 0:20 / /proc rw - proc proc rw\n")

    def held():
        return devices.in_use("sda", str(sysfs.root), str(tmp_path))

    assert held() == ""
    part = at / "sda1"
    part.mkdir()
    (part / "dev").write_text("8:1\n")
    mounts.write_text("30 1 8:1 / /mnt/tenant rw - ext4 /dev/sda1 rw\n")
    assert held() == "mounted on /mnt/tenant"
    (part / "holders/md0").mkdir(parents=True)
    assert held() == "held by md0"


def test_a_file_behaves_as_a_disk(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(9 * MB))
    with BlockDevice(str(path)) as blocks:
        assert (blocks.size, blocks.sector) == (9 * MB, 512)
        data = os.urandom(5 * MB)
        blocks.write(512, data)
        assert blocks.read(512, len(data)) == data
        memory = mmap.mmap(-1, 2 * CHUNK)
        memory[: len(data)] = data
        blocks.write(MB, memoryview(memory)[: len(data)])  # page aligned: not copied
        blocks.write(MB, memoryview(memory)[100 : 100 + MB])  # not aligned: copied
        blocks.flush()
        assert blocks.read(MB, 5 * MB) == data[100 : 100 + MB] + data[MB:]
        blocks.zero(0, 2 * MB)
        assert blocks.read(0, 2 * MB) == bytes(2 * MB)
        for offset, length in ((-512, 512), (9 * MB, 512), (9 * MB - 512, 1024), (1, 512), (0, 100)):
            with pytest.raises(OSError, match=r"beyond its|not whole sectors"):
                blocks.read(offset, length)
        with pytest.raises(OSError, match="not whole sectors"):
            blocks.write(0, b"x")
    blocks.close()
    assert path.stat().st_size == 9 * MB


def test_a_link_in_the_place_of_a_disk_is_not_followed(tmp_path):
    (tmp_path / "real").write_bytes(bytes(MB))
    (tmp_path / "disk").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="symbolic link"):
        BlockDevice(str(tmp_path / "disk"))


def test_marks_cover_a_drive_from_end_to_end():
    for size in (4096, 8192, 100 * 4096, 10 * MB, 7_681_501_126_656):
        at = real.places(size)
        assert at[0] == 0
        assert at[-1] == size // 4096 * 4096 - 4096
        assert len(at) == min(64, size // 4096)
        assert all(offset % 4096 == 0 for offset in at)


# --- RealDrive over files, with a controller of our own --------------------------------------------------------------


@pytest.fixture
def rig(tmp_path, monkeypatch):
    """(drive, controller, paths of its two namespaces)"""
    paths = [tmp_path / "nvme0n1", tmp_path / "nvme0n2"]
    for path in paths:
        path.write_bytes(os.urandom(2 * MB))
    controller = FakeNvme(oacs=0b10, namespaces=(1, 2))
    monkeypatch.setattr(nvme, "Device", lambda path: controller)
    found = Found("nvme", "nvme0", ("nvme0n1", "nvme0n2"), "S1", "MODEL", "FW", 2 * MB)
    return real.RealDrive(found, dev=str(tmp_path)), controller, paths


def fill(paths, data):
    for path in paths:
        path.write_bytes(data(2 * MB))


def test_a_drive_of_two_namespaces_is_erased_whole(rig):
    drive, controller, paths = rig
    assert (drive.name, drive.methods()) == ("nvme0n1,nvme0n2", ["nvme-format-user-data", "overwrite"])
    controller.act = lambda command: paths[command.nsid - 1].write_bytes(bytes(2 * MB))
    assert list(drive.erase("nvme-format-user-data", "i"))[-1] == 1.0
    assert [path.read_bytes() for path in paths] == [bytes(2 * MB)] * 2
    assert controller.closed


def test_what_a_crypto_erase_leaves_is_zeroed(rig):
    drive, controller, paths = rig
    controller.act = lambda command: fill(paths[command.nsid - 1 : command.nsid], os.urandom)
    list(drive.erase("nvme-format-crypto", "i"))
    assert [path.read_bytes() for path in paths] == [bytes(2 * MB)] * 2


def test_a_format_that_changes_the_size_is_no_proof_yet(rig, tmp_path):
    drive, controller, paths = rig
    controller.act = lambda command: paths[command.nsid - 1].write_bytes(bytes(3 * MB))
    with pytest.raises(OSError, match="had 2097152 bytes and has 3145728 now; remedy: wipe once more"):
        list(drive.erase("nvme-format-user-data", "i"))


@pytest.mark.parametrize("kept", [0, 1])
def test_a_drive_that_lies_is_found_out_and_not_zeroed_over(rig, kept):
    drive, controller, paths = rig
    before = paths[kept].read_bytes()

    def act(command):
        if command.nsid - 1 != kept:
            fill(paths[command.nsid - 1 : command.nsid], bytes)

    controller.act = act
    with pytest.raises(OSError, match=f"the drive said erased, and 64 of 64 marks are still on nvme0n{kept + 1}"):
        list(drive.erase("nvme-format-user-data", "i"))
    marks = set(real.places(2 * MB))
    after = paths[kept].read_bytes()
    assert all(after[at : at + 4096] == before[at : at + 4096] for at in range(0, 2 * MB, 4096) if at not in marks)


def test_a_drive_that_took_no_marks_is_not_zeroed_over_either(rig, monkeypatch):
    """Nothing tells then whether what it holds now is noise of an erase or data of before."""
    drive, _, paths = rig
    before = [path.read_bytes() for path in paths]

    def full(self, offset, data):
        raise OSError(5, "no more writes")

    monkeypatch.setattr(BlockDevice, "write", full)
    with pytest.raises(OSError, match="took no marks"):
        list(drive.erase("nvme-format-crypto", "i"))
    assert [path.read_bytes() for path in paths] == before


def test_a_drive_that_kept_a_part_is_found_out(rig):
    drive, controller, paths = rig

    def half(command):
        for path in paths:
            path.write_bytes(bytes(2 * MB - 4096) + path.read_bytes()[-4096:])

    controller.act = half
    with pytest.raises(OSError, match="1 of 64 marks"):
        list(drive.erase("nvme-format-user-data", "i"))


def test_overwrite_reaches_all_namespaces_and_tells_how_far_it_is(rig, monkeypatch):
    drive, _, paths = rig
    monkeypatch.setattr(real, "STEP", MB)
    assert list(drive.erase("overwrite", "i")) == [0.25, 0.5, 0.75, 1.0]
    assert [path.read_bytes() for path in paths] == [bytes(2 * MB)] * 2


@pytest.mark.parametrize("method", ["overwrite", "nvme-format-user-data"])
def test_a_namespace_that_nothing_shows_stops_all_but_sanitize(rig, method):
    drive, controller, _paths = rig
    controller.oacs, controller.allocated = 0b1010, [1, 2, 5]
    with pytest.raises(OSError, match="namespaces 5 are not attached; remedy"):
        list(drive.erase(method, "i"))
    controller.allocated, controller.namespaces = [1, 2], [1, 2, 3]
    with pytest.raises(OSError, match="not every namespace has a block device"):
        list(drive.erase(method, "i"))
    assert controller.log == []


def test_another_drive_under_the_same_name_is_not_touched(rig):
    drive, controller, paths = rig
    controller.serial = "S2"
    before = [path.read_bytes() for path in paths]
    with pytest.raises(OSError, match="is now the drive 'S2'"):
        list(drive.erase("overwrite", "i"))
    assert [path.read_bytes() for path in paths] == before
    with pytest.raises(OSError, match="is now the drive 'S2'"):
        list(drive.erase("nvme-format-user-data", "i"))
    assert controller.log == []


def test_a_drive_in_use_is_not_touched_through_its_controller_either(rig, monkeypatch):
    drive, controller, _ = rig
    opened = real.BlockDevice

    def held(path, **more):
        if path.endswith("nvme0n2"):
            raise OSError(16, f"{path} is in use: mounted on /mnt")
        return opened(path, **more)

    monkeypatch.setattr(real, "BlockDevice", held)
    with pytest.raises(OSError, match="in use"):
        list(drive.erase("nvme-format-user-data", "i"))
    assert controller.log == []


def test_a_disk_without_an_erase_of_its_own_is_overwritten_only(tmp_path):
    (tmp_path / "vda").write_bytes(os.urandom(MB))
    drive = real.RealDrive(Found("virtio", "vda", ("vda",), "V1", "virtio", "", MB), dev=str(tmp_path))
    assert drive.methods() == ["overwrite"]
    with pytest.raises(OSError, match="does not know nvme-format-crypto"):
        list(drive.erase("nvme-format-crypto", "i"))
    list(drive.erase("overwrite", "i"))
    assert not any((tmp_path / "vda").read_bytes())


@pytest.fixture
def sata(tmp_path, monkeypatch):
    """(drive, what answers its commands, path)"""
    path = tmp_path / "sda"
    path.write_bytes(os.urandom(MB))
    inside = Sata(security=0)

    @contextlib.contextmanager
    def generic(self):
        yield inside

    monkeypatch.setattr(real.RealDrive, "_generic", generic)
    return real.RealDrive(Found("ata", "sda", ("sda",), "SN-1", "M", "F", MB), dev=str(tmp_path)), inside, path


def test_an_overwrite_that_cannot_reach_all_of_a_drive_is_none(sata):
    """What a tenant put behind the highest address (HPA) would be there for the next one."""
    drive, inside, path = sata
    inside.knows, inside.native = "hpa", inside.sectors + 2048
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"2048 sectors .* remedy: .*pull the drive"):
        list(drive.erase("overwrite", "i"))
    assert path.read_bytes() == before
    result = finish(wipe_drive(drive, "i"))[0]
    assert (result["erased"], result["method"]) == (False, "")
    assert "2048 sectors" in result["reason"]
    inside.native = inside.sectors
    result = finish(wipe_drive(drive, "i"))[0]
    assert (result["erased"], result["method"]) == (True, "overwrite")


def test_a_controller_without_namespaces_cannot_be_opened():
    with pytest.raises(OSError, match="no namespace"):
        real.RealDrive(Found("nvme", "nvme0", (), "S1", "M", "F", 0)).open()
