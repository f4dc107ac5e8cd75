"""NVMe admin commands: the bytes that go to the kernel, what a controller says it can, and drives that fail or lie."""

from __future__ import annotations

import struct
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.probe.host import nvme
from fleetd.probe.host.patience import background, polled
from tests.probe.nvme_rig import FakeNvme, at_once

BLOCK, CRYPTO, OVERWRITE = 0b010, 0b001, 0b100


def test_a_command_is_the_kernels_72_bytes():
    packed = nvme.Command(0x80, nsid=0xFFFFFFFF, cdw10=0x200, cdw11=7, length=4096, time=2.5).pack(0x1122334455667788)
    assert (len(packed), nvme.ADMIN_CMD >> 16 & 0x3FFF) == (72, 72)
    assert packed[0] == 0x80
    assert struct.unpack_from("<I", packed, 4) == (0xFFFFFFFF,)  # nsid
    assert struct.unpack_from("<Q", packed, 24) == (0x1122334455667788,)  # addr
    assert struct.unpack_from("<I", packed, 36) == (4096,)  # data_len
    assert struct.unpack_from("<II", packed, 40) == (0x200, 7)  # cdw10, cdw11
    assert struct.unpack_from("<II", packed, 64) == (2500, 0)  # timeout_ms, result


@pytest.mark.parametrize(
    ("sanicap", "oacs", "fna", "expected"),
    [
        (0, 0, 0, []),
        (0, 0x10A, 0, ["nvme-format-user-data"]),  # QEMU 7.2
        (0, 0b10, 0b100, ["nvme-format-crypto", "nvme-format-user-data"]),
        (0, 0, 0b100, []),
        (CRYPTO, 0b10, 0, ["nvme-sanitize-crypto", "nvme-format-user-data"]),
        (
            BLOCK | CRYPTO | OVERWRITE,
            0b10,
            0b100,
            [
                "nvme-sanitize-block",
                "nvme-sanitize-crypto",
                "nvme-format-crypto",
                "nvme-format-user-data",
                "nvme-sanitize-overwrite",
            ],
        ),
    ],
)
def test_methods_follow_the_capabilities_best_first(sanicap, oacs, fna, expected):
    assert nvme.methods(nvme.identify(FakeNvme(sanicap=sanicap, oacs=oacs, fna=fna))) == expected


@pytest.mark.parametrize(
    ("method", "cdw10"),
    [("nvme-sanitize-block", 0x0A), ("nvme-sanitize-crypto", 0x0C), ("nvme-sanitize-overwrite", 0x1B)],
)
def test_sanitize_waits_for_the_end_that_the_drive_tells(method, cdw10):
    drive = FakeNvme()
    assert list(nvme.erase(drive, method, poll=at_once)) == [0.25, 0.5]
    # AUSE is set; the overwrite is one pass, and 0 would be sixteen
    assert [(c.opcode, c.cdw10, c.nsid) for c in drive.log] == [(nvme.SANITIZE, cdw10, 0)]


def test_a_sanitize_of_an_order_that_was_cut_off_is_waited_out_first():
    drive = FakeNvme()
    drive.states = [(0xC000, 2, 0x0A), (0xFFFF, 1, 0x0A)]
    assert list(nvme.erase(drive, "nvme-sanitize-crypto", poll=at_once)) == [0.75, 0.25, 0.5]
    assert [c.cdw10 for c in drive.log] == [0x0C]


def test_a_failed_sanitize_says_so_and_leaves_failure_mode():
    drive = FakeNvme()
    drive.ends = 3
    with pytest.raises(OSError, match="reports that it failed"):
        list(nvme.erase(drive, "nvme-sanitize-block", poll=at_once))
    assert [c.cdw10 for c in drive.log] == [0x0A, 0b001]


def test_a_sanitize_that_was_accepted_and_never_ran_is_no_success():
    drive = FakeNvme()
    drive.ends = 0
    with pytest.raises(OSError, match="not carried out"):
        list(nvme.erase(drive, "nvme-sanitize-block", poll=at_once))
    # nor is the success of another one, of long ago
    drive.act = lambda _: setattr(drive, "states", [(0xFFFF, 1, 0x0C)])
    with pytest.raises(OSError, match="not carried out"):
        list(nvme.erase(drive, "nvme-sanitize-block", poll=at_once))


def test_a_refusal_carries_the_status_and_its_name():
    drive = FakeNvme()
    drive.refuses[nvme.SANITIZE] = 0x4001
    with pytest.raises(OSError, match=r"Invalid Command Opcode \(status 0x001\)"):
        list(nvme.erase(drive, "nvme-sanitize-block", poll=at_once))


@pytest.mark.parametrize(
    ("fna", "targets"),
    [(0, [1, 2, 7]), (0b01, [nvme.ALL]), (0b10, [nvme.ALL]), (0b1010, [1]), (0b1000, [1, 2, 7])],
)
def test_format_reaches_every_namespace(fna, targets):
    drive = FakeNvme(oacs=0b10, fna=fna, namespaces=(1, 2, 7))
    fractions = list(nvme.erase(drive, "nvme-format-user-data"))
    assert [c.nsid for c in drive.log] == targets
    assert {(c.opcode, c.cdw10) for c in drive.log} == {(nvme.FORMAT, 1 << 9)}
    assert all(0 <= f < 1 for f in fractions)
    assert all(c.time >= 3600 for c in drive.log)


@pytest.mark.parametrize(
    ("formats", "used", "kept"),
    [
        (((0, 9), (0, 12)), 1, 1),  # as it is
        (((0, 12), (8, 9), (0, 9)), 1, 2),  # a tenant's metadata goes, the sector size stays
        (((0, 12), (8, 9)), 1, 0),
        (((8, 9),), 0, 0),  # no other choice
        (((0, 0), (8, 9), (0, 12)), 1, 2),  # a format of 2**0 bytes is not available
        (tuple((0, 9) for _ in range(40)), 37, 37),
    ],
)
def test_format_keeps_the_sector_size_and_drops_metadata(formats, used, kept):
    drive = FakeNvme(oacs=0b10, formats=formats, used=used)
    list(nvme.erase(drive, "nvme-format-crypto"))
    [command] = drive.log
    assert command.cdw10 & 0xF | (command.cdw10 >> 12 & 3) << 4 == kept
    assert command.cdw10 >> 9 & 0b111 == 2


def test_a_format_that_is_refused_half_way_fails():
    drive = FakeNvme(oacs=0b10, namespaces=(1, 2))
    drive.act = lambda _: drive.refuses.update({nvme.FORMAT: 0x10A})
    with pytest.raises(OSError, match="Invalid Format"):
        list(nvme.erase(drive, "nvme-format-user-data"))


def test_a_drive_without_namespaces_is_not_formatted():
    with pytest.raises(OSError, match="no namespace"):
        list(nvme.erase(FakeNvme(oacs=0b10, namespaces=()), "nvme-format-user-data"))


def test_namespaces_that_no_block_device_shows_are_found():
    drive = FakeNvme(oacs=0b1010, namespaces=(1,), allocated=(1, 3))
    assert nvme.hidden(drive, nvme.identify(drive)) == [3]
    plain = FakeNvme(oacs=0b10, namespaces=(1,), allocated=(1, 3))
    assert nvme.hidden(plain, nvme.identify(plain)) == []  # it does not know the list


def test_a_method_of_another_kind_of_drive_is_a_mistake_of_ours():
    with pytest.raises(ValueError, match="no erase of NVMe"):
        list(nvme.erase(FakeNvme(), "overwrite"))


@given(st.binary(max_size=64), st.binary(min_size=0, max_size=5000))
def test_what_a_drive_says_of_itself_is_bounded(head, tail):
    data = (head + tail).ljust(4096, b"\xff")
    controller, namespace = nvme.Controller.parse(data), nvme.Namespace.parse(data)
    assert all(s.isprintable() and len(s) <= 40 for s in controller[:3])
    assert len(namespace.formats) <= 64
    assert 0 <= namespace.plain_format() < 64
    assert 0 <= nvme.SanitizeStatus.parse(data).fraction < 1
    for kind in (nvme.Controller, nvme.Namespace):
        with pytest.raises(ValueError, match="4096"):
            kind.parse(data[:4095])


def test_a_drive_that_stands_still_is_given_up():
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    with pytest.raises(OSError, match="stuck at 10%"):
        list(polled(lambda: 0.1, "Sanitize", stall=10, clock=lambda: now[0], sleep=sleep))
    assert 10 < now[0] < 13
    now[0] = 0.0
    moving = iter([*(i / 1000 for i in range(900)), None])
    assert len(list(polled(lambda: next(moving), "Sanitize", stall=10, clock=lambda: now[0], sleep=sleep))) == 900


def test_a_call_that_blocks_gives_signs_of_life_and_its_error():
    go = Event()
    beats = background(lambda: go.wait(10), beat=0.01)
    assert [next(beats) for _ in range(3)] == [0.0] * 3
    go.set()
    list(beats)

    def fails():
        raise OSError(5, "no")

    with pytest.raises(OSError, match="no"):
        list(background(fails, beat=0.01))
