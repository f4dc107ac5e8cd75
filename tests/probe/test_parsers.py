"""The probe's parsers on recorded output, on odd output, and on anything at all."""

from __future__ import annotations

import contextlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.probe.report import devices, kmsg, network, pci, storage, system
from fleetd.probe.report.files import Table, Tree, attempt, text
from fleetd.sim.firmware_tables import health_page, smbios
from tests.host_rig import sample


def as_kmsg(dmesg: str) -> bytes:
    """dmesg text as /dev/kmsg records: the samples were recorded by dmesg."""
    records = []
    for n, line in enumerate(dmesg.splitlines()):
        stamp, _, message = line.partition("] ") if line.startswith("[") else line.partition(" ")
        seconds = re.sub(r"[^0-9.]", "", stamp) if line.startswith("[") else "12.5"
        records.append(f"3,{n},{int(float(seconds or 0) * 1e6)},-;{message}")
    return "\n".join(records).encode()


def test_a_gpu_off_the_bus_in_a_recorded_log():
    found = kmsg.parse(as_kmsg(sample("dmesg-xid79-sxid.log")))
    assert found == [{"code": 79, "pci": "0000:91:00.0", "seconds": pytest.approx(6781741.548779)}]


def test_a_double_bit_error_in_a_recorded_log():
    found = kmsg.parse(as_kmsg(sample("dmesg-xid48-63-94-hbm-dbe.log")))
    assert [x["code"] for x in found[:4]] == [48, 63, 94, 94]
    assert {x["pci"] for x in found} == {"0000:19:00.0"}


def test_recorded_kernel_records_without_an_xid():
    assert kmsg.parse(sample("kmsg-raw.log").encode()) == []
    assert kmsg.parse(sample("kmsg-peermem-invalid-context.log").encode()) == []


def test_a_flood_keeps_its_beginning_and_its_end():
    line = "3,{n},{n}000000,-;NVRM: Xid (PCI:0000:19:00): {code}, pid=1"
    log = "\n".join(line.format(n=n, code=79 if n == 0 else 94) for n in range(5000)).encode()
    found = kmsg.parse(log)
    assert len(found) == kmsg.MOST
    assert (found[0]["code"], found[-1]["seconds"]) == (79, 4999.0)


@given(st.binary(max_size=400))
def test_no_log_does_more_than_hold_no_xid(log):
    assert isinstance(kmsg.parse(log), list)


@pytest.mark.parametrize(
    ("raw", "address"),
    [
        ("0000:19:00", "0000:19:00.0"),
        ("00000000:8B:00.0", "0000:8b:00.0"),
        ("00000008:01:00.0", "0008:01:00.0"),
        ("FFFFFFFF:FF:FF.0", "ffffffff:ff:ff.0"),
    ],
)
def test_one_spelling_of_pci_addresses(raw, address):
    assert kmsg.pci_address(raw) == address


def test_a_recorded_infiniband_class():
    contents = {}
    for entry in sample("sysfs/sys-class-infiniband.h100.flat.txt").splitlines():
        path, _, value = entry.partition(": ")
        if path.startswith("./"):
            contents[f"/sys/class/infiniband/{path[2:]}"] = value.encode() + b"\n"
    nics = {n["name"]: n for n in network.nics(Table(contents, {}))["v"]}
    port = nics["mlx5_0"]["ports"][0]
    assert (port["state"], port["phys_state"], port["rate_gbps"]) == (
        {"v": "4: ACTIVE"},
        {"v": "5: LinkUp"},
        {"v": 400.0},
    )
    assert nics["mlx5_0"]["firmware"] == {"v": "28.41.1000"}
    assert nics["mlx5_0"]["guid"] == {"absent": "no such file or directory"}


def test_a_recorded_smart_log():
    recorded = json.loads(sample("nvme-smart-log.v2.11.json"))
    page = health_page(
        spare=recorded["avail_spare"], threshold=recorded["spare_thresh"], used=recorded["percent_used"], media=7
    )
    assert storage.health(page) == {
        "critical_warning": 0,
        "available_spare": 100,
        "available_spare_threshold": 5,
        "percentage_used": 30,
        "media_errors": 7,
    }


def test_a_short_or_absurd_health_page():
    with pytest.raises(ValueError, match="511"):
        storage.health(bytes(511))
    assert storage.health(b"\xff" * 512)["media_errors"] == 2**63 - 1


def test_the_nvme_command_has_the_size_of_the_kernels_structure():
    assert devices._COMMAND.size == 72
    assert devices.NVME_IOCTL_ADMIN_CMD >> 16 & 0x3FFF == 72


def test_namespaces_of_a_multipath_drive():
    contents = {
        "/sys/class/nvme/nvme1/serial": b"S1\n",
        "/sys/class/nvme/nvme1/nvme1c1n1/x": b"",
        "/sys/block/nvme1n1/size": b"1000\n",
    }
    drive = storage.drives(Table(contents, {}))["v"][0]
    assert drive["bytes"] == {"v": 512_000}
    assert drive["critical_warning"] == {"absent": "no such file or directory"}


def test_link_speeds():
    assert [pci.speed(s) for s in ("32.0 GT/s PCIe", "2.5 GT/s", "Unknown", "")] == [32.0, 2.5, 0.0, 0.0]


def test_a_pci_device_that_goes_while_it_is_read_and_a_link_that_is_down():
    at = "/sys/bus/pci/devices/0000:01:00.0"
    contents = {
        f"{at}/vendor": b"0x10de\n",
        f"{at}/device": b"0x2330\n",
        f"{at}/class": b"0x030200\n",
        f"{at}/current_link_width": b"63\n",
        f"{at}/current_link_speed": b"Unknown\n",
        "/sys/bus/pci/devices/0000:02:00.0/class": b"0x030200\n",
        "/sys/bus/pci/devices/rubbish/vendor": b"0x1\n",
    }
    found = pci.devices(Table(contents, {}))["v"]
    assert [(d["address"], d["width"], d["speed"], d["numa"]) for d in found] == [("0000:01:00.0", 0, 0.0, -1)]


@given(st.integers(0, 40), st.integers(1, 4_000_000), st.integers(0, 20_000))
def test_dimms_read_as_the_table_was_built(count, mib, speed):
    found = system.dimms(smbios(count, mib, speed))
    assert [(d["mib"], d["mt_s"]) for d in found] == [(mib, speed)] * count
    assert len({d["slot"] for d in found}) == count


@given(st.binary(max_size=300))
def test_no_table_does_more_than_be_refused(table):
    with contextlib.suppress(ValueError):
        system.dimms(table)


@given(st.integers(0, 300), st.integers(0, 200))
def test_a_table_cut_anywhere_gives_no_more_dimms_than_it_held(cut, at):
    table = smbios(4, 65536, 4800)[:cut]
    with contextlib.suppress(ValueError):
        assert len(system.dimms(table)) <= 4


def test_cpus_of_two_sockets_and_of_an_arm_without_any():
    entry = "processor : {}\nphysical id : {}\ncpu cores : 56\n\n"
    assert system.cpus_of_cpuinfo("".join(entry.format(i, i % 2) for i in range(224))) == (2, 112)
    with pytest.raises(ValueError, match="sockets"):
        system.cpus_of_cpuinfo("processor : 0\nCPU implementer : 0x41\n")


@pytest.mark.parametrize("raw", ["", "3-1", "0-99999", "a", "1,,2", "0-", "-1", "9999999"])
def test_odd_cpu_lists(raw):
    with pytest.raises(ValueError, match="CPU list"):
        system.cpu_list(raw)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=20, unique=True))
def test_cpu_lists(cpus):
    assert system.cpu_list(",".join(map(str, cpus))) == cpus


def test_threads_of_a_core_are_one_core():
    base = "/sys/devices/system/cpu"
    contents = {f"{base}/online": b"0-3\n"}
    for cpu in range(4):
        contents[f"{base}/cpu{cpu}/topology/package_cpus_list"] = b"0-3\n"
        contents[f"{base}/cpu{cpu}/topology/core_cpus_list"] = f"{cpu % 2},{cpu % 2 + 2}\n".encode()
    assert system.cpus_of_sysfs(Table(contents, {})) == (1, 2)


def test_the_boot_token_does_not_travel():
    assert system.without_token("a fleetd.token=SeCrEt b") == "a fleetd.token=*** b"


@given(st.binary(max_size=200))
def test_text_is_one_bounded_printable_line(data):
    reading = attempt(lambda: text(data, 20))
    if "v" in reading:
        assert 0 < len(reading["v"]) <= 20
        assert reading["v"].isprintable()


def test_a_tree_under_another_root_never_asks_a_device(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "kmsg").write_bytes(b"3,1,5,-;NVRM: Xid (PCI:0000:19:00): 31, x")
    assert kmsg.xids(Tree(str(tmp_path)))["v"][0]["code"] == 31
    with pytest.raises(FileNotFoundError):
        Tree(str(tmp_path)).smart("nvme0")


def test_the_kernel_device_is_read_to_its_end_without_waiting(tmp_path):
    path = tmp_path / "kmsg"
    path.write_bytes(b"3,1,5,-;NVRM: Xid (PCI:0000:19:00): 48, pid=1\n SUBSYSTEM=pci\n")
    assert devices.read_device(str(path), 10_000) == b"3,1,5,-;NVRM: Xid (PCI:0000:19:00): 48, pid=1\n"
