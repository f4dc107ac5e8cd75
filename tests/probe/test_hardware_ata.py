"""SATA and SAS: the bytes of the commands, and drives with a password, a freeze lock, a sanitize, or nothing at all."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.probe.host import ata, scsi
from fleetd.probe.host.scsi import Answer, Request, Sense
from tests.probe.nvme_rig import at_once

GOOD = Answer(0, 0, 0, b"", b"")
ABORTED = Answer(2, 0, 0, b"", bytes((0x72, 0x0B, 0, 0, 0, 0, 0, 0)))


def registers(*, count=0, lba=0, status=0x50, error=0):
    """A check condition with the ATA Status Return descriptor, as libata gives it."""
    part = lba.to_bytes(6, "little")
    told = (9, 12, 1, error, count >> 8, count & 255, part[3], part[0], part[4], part[1], part[5], part[2], 0, status)
    return Answer(2, 0, 8, b"", bytes((0x72, 1, 0, 0x1D, 0, 0, 0, 14, *told)))


class Sata:
    """A drive that keeps a password, and erases when it is told to."""

    def __init__(self, *, security=0b1, sanitize=0):
        self.security, self.features, self.password = security, sanitize, None
        self.log = []
        self.fails: set[int] = set()
        self.states = [registers()]
        self.sectors, self.native, self.knows = 4096, 4096, ""  # knows: "hpa", "amac"
        self.words: dict[int, int] = {}
        self.short = False  # an adapter that cuts the answer
        self.ends = registers(count=1 << 15)

    def identity(self):
        words = [0] * 256
        words[10:20] = [int.from_bytes(b"SN-1".ljust(20)[i : i + 2], "big") for i in range(0, 20, 2)]
        words[27:47] = [int.from_bytes(b"MODEL X".ljust(40)[i : i + 2], "big") for i in range(0, 40, 2)]
        words[23:27] = [int.from_bytes(b"FW1".ljust(8)[i : i + 2], "big") for i in range(0, 8, 2)]
        words[59], words[128] = self.features, self.security | (self.password is not None) << 1
        words[89], words[90] = 30, 0x8000 | 2
        words[82], words[83] = (self.knows == "hpa") << 10, 1 << 14 | 1 << 10
        words[119] = 1 << 14 | (self.knows == "amac") << 8
        words[100:104] = struct.unpack("<4H", self.sectors.to_bytes(8, "little"))
        words[60:62] = struct.unpack("<2H", self.sectors.to_bytes(4, "little"))
        for at, word in self.words.items():
            words[at] = word
        return struct.pack("<256H", *words)[: 256 if self.short else 512]

    def __call__(self, request):
        cdb = request.cdb
        command, feature = cdb[14], cdb[3] << 8 | cdb[4]
        if command == ata.IDENTIFY:
            return Answer(0, 0, 0, self.identity(), b"")
        if command == ata.SANITIZE and feature == 0:
            return self.states[0] if len(self.states) == 1 else self.states.pop(0)
        self.log.append((command, request.data[:34], request.time))
        if (command, feature, self.knows) in ((0x27, 0, "hpa"), (0x78, 0, "amac")) and command not in self.fails:
            assert cdb[:3] == bytes((0x85, 3 << 1 | 1, 1 << 5))  # no data, extended, the registers back
            assert cdb[13] & 0x40  # LBA
            return registers(lba=self.native - 1)
        if command in self.fails:
            return ABORTED
        if command == ata.SANITIZE:
            self.log[-1] = (command, feature, cdb)
            self.states = [registers(count=1 << 14, lba=0x8000), self.ends]
        elif command == ata.SET_PASSWORD:
            self.password = request.data[2:34]
        elif command in (ata.ERASE_UNIT, ata.DISABLE_PASSWORD):
            if self.password != request.data[2:34]:
                return ABORTED
            self.password = None
        return GOOD

    def commands(self):
        return [entry[0] for entry in self.log]


def test_identify_is_the_bytes_that_the_standard_asks_for():
    request = ata.passthrough(ata.IDENTIFY, ata.PIO_IN)
    assert request.cdb.hex(" ") == "85 08 0e 00 00 00 01 00 00 00 00 00 00 00 ec 00"
    assert (request.direction, request.length) == ("in", 512)


def test_a_sanitize_carries_its_key_where_an_extended_command_has_it():
    request = ata.passthrough(ata.SANITIZE, feature=0x12, count=0x10, lba=0x426B4572, extended=True, tell=True)
    #                                 proto ck    feature count lba: 31:24 7:0, 39:32 15:8, 47:40 23:16
    assert request.cdb.hex(" ") == "85 07 20 00 12 00 10 42 72 00 45 00 6b 40 b4 00"


def test_what_the_drive_says_of_itself():
    drive = Sata(security=0b101011, sanitize=1 << 12 | 1 << 15)
    told = ata.identify(drive)
    assert told[:3] == ("SN-1", "MODEL X", "FW1")
    assert (told.security, told.enabled, told.locked, told.frozen, told.enhanced) == (True, True, False, True, True)
    assert (told.erase_time, told.enhanced_time) == (3600.0, 240.0)
    assert told.sanitize == {"ata-sanitize-block"}


@pytest.mark.parametrize(
    ("security", "features", "expected"),
    [
        (0, 0, []),
        (0, 1 << 15 | 1 << 13, []),  # the method bits count only with the feature set's own
        (1, 0, ["ata-security-erase"]),
        (0b100001, 0, ["ata-security-erase-enhanced", "ata-security-erase"]),
        (1, 1 << 12 | 1 << 13 | 1 << 15, ["ata-sanitize-block", "ata-sanitize-crypto", "ata-security-erase"]),
    ],
)
def test_sata_methods(security, features, expected):
    assert ata.methods(ata.identify(Sata(security=security, sanitize=features))) == expected


@pytest.mark.parametrize(("method", "word"), [("ata-security-erase", 0), ("ata-security-erase-enhanced", 2)])
def test_security_erase_sets_a_password_erases_and_leaves_none(method, word):
    drive = Sata(security=0b100001)
    list(ata.erase(drive, method))
    assert drive.commands() == [ata.SET_PASSWORD, ata.ERASE_PREPARE, ata.ERASE_UNIT]
    assert drive.log[-1][1] == struct.pack("<H", word) + ata.PASSWORD
    assert drive.log[-1][2] == (3600.0 * 2 + 600 if word == 0 else 240.0 * 2 + 600)
    assert drive.password is None


def test_a_frozen_drive_is_refused_with_the_remedy_and_untouched():
    drive = Sata(security=0b1001)
    with pytest.raises(OSError, match="frozen by the firmware; remedy: suspend"):
        list(ata.erase(drive, "ata-security-erase"))
    assert drive.log == []


def test_an_erase_that_fails_leaves_no_password():
    drive = Sata()
    drive.fails = {ata.ERASE_UNIT}
    with pytest.raises(OSError, match=r"SECURITY ERASE UNIT: refused \(sense b/00/00"):
        list(ata.erase(drive, "ata-security-erase"))
    assert drive.commands()[-1] == ata.DISABLE_PASSWORD
    assert drive.password is None


def test_a_password_of_a_tenant_is_told_and_one_of_ours_is_used_again():
    drive = Sata()
    drive.password = b"tenant".ljust(32, b"\0")
    with pytest.raises(OSError, match="remedy: pull the drive"):
        list(ata.erase(drive, "ata-security-erase"))
    drive = Sata()
    drive.password = ata.PASSWORD  # of an erase that was cut off
    list(ata.erase(drive, "ata-security-erase"))
    assert drive.commands() == [ata.ERASE_PREPARE, ata.ERASE_UNIT]


def test_a_drive_that_keeps_the_password_did_not_erase():
    drive = Sata(security=0b11)  # says enabled whatever happens
    drive.password = ata.PASSWORD
    with pytest.raises(OSError, match="still stands"):
        list(ata.erase(drive, "ata-security-erase"))


@pytest.mark.parametrize("knows", ["hpa", "amac"])
@pytest.mark.parametrize(("native", "hidden"), [(4096, 0), (4097, 1), (2**33, 2**33 - 4096)])
def test_what_lies_behind_the_highest_address_is_counted(knows, native, hidden):
    drive = Sata()
    drive.knows, drive.native = knows, native
    assert ata.hidden(drive) == hidden
    assert drive.commands() == [0x27 if knows == "hpa" else 0x78]


def test_a_drive_that_can_hide_sectors_and_does_not_tell_is_no_drive_without():
    drive = Sata()
    assert ata.hidden(drive) == 0
    assert drive.log == []  # it knows no way to hide any
    for knows, command in (("hpa", 0x27), ("amac", 0x78)):
        drive.knows, drive.fails = knows, {command}
        with pytest.raises(OSError, match="does not tell"):
            ata.hidden(drive)
    drive.knows, drive.fails = "hpa", set()
    drive.words = {83: 1 << 14}  # of the time before 48-bit addresses
    with pytest.raises(OSError, match="does not tell"):
        ata.hidden(drive)


@pytest.mark.parametrize("status", [0x51, 0x70, 0x20])
def test_an_answer_with_an_error_in_it_is_none(status):
    drive = Sata()
    drive.knows = "amac"
    told = registers(lba=4095, status=status, error=4)

    def send(request):
        return told if request.cdb[14] == 0x78 else drive(request)

    with pytest.raises(OSError, match="does not tell"):
        ata.hidden(send)


def test_a_short_identity_is_the_drives_fault_and_no_bug():
    """`wipe_drive` takes an OSError as this drive's own; anything else would end the erasing of all the others."""
    drive = Sata()
    drive.short = True
    for call in (lambda: ata.identify(drive), lambda: list(ata.erase(drive, "ata-security-erase"))):
        with pytest.raises(OSError, match="IDENTIFY DEVICE"):
            call()


@pytest.mark.parametrize(
    ("told", "limit"), [(0x8000 | 900, 900 * 240 + 600.0), (0x8000 | 0x7FFE, ata.LONGEST), (0, ata.LONGEST)]
)
def test_a_large_drive_gets_the_time_it_asks_for(told, limit):
    """900 x 2 minutes are 30 hours: a disk of 20 TB."""
    drive = Sata()
    drive.words = {89: told}
    list(ata.erase(drive, "ata-security-erase"))
    assert drive.log[-1][2] == limit


def test_ata_sanitize_to_its_end():
    drive = Sata()
    assert list(ata.erase(drive, "ata-sanitize-crypto", poll=at_once)) == [0.5]
    assert [entry[:2] for entry in drive.log] == [(ata.SANITIZE, 0x0011)]


@pytest.mark.parametrize(
    ("ends", "why"),
    [
        (registers(count=0, status=0x51, error=4), "reports that it failed"),
        (registers(count=0), "reports that it failed"),
        (ABORTED, "did not come back"),
    ],
)
def test_ata_sanitize_that_did_not_complete(ends, why):
    drive = Sata()
    drive.ends = ends
    with pytest.raises(OSError, match=why):
        list(ata.erase(drive, "ata-sanitize-block", poll=at_once))


def test_ata_sanitize_of_a_frozen_drive():
    drive = Sata()
    drive.states = [registers(count=1 << 13)]
    with pytest.raises(OSError, match="remedy"):
        list(ata.erase(drive, "ata-sanitize-block", poll=at_once))
    assert drive.log == []


class Sas:
    def __init__(self, knows=(2, 3)):
        self.knows, self.log = knows, []
        self.states = [bytes(18)]
        self.ends = b"\x70".ljust(18, b"\0")

    def __call__(self, request):
        cdb = request.cdb
        if cdb[0] == scsi.MAINTENANCE_IN:
            assert (cdb[1], cdb[2], cdb[3], request.length) == (0x0C, 0x03, scsi.SANITIZE, 64)
            known = int.from_bytes(cdb[4:6], "big") in self.knows
            return Answer(0, 0, 0, bytes((0, 0b011 if known else 0b001, 0, 0)), b"")
        if cdb[0] == scsi.REQUEST_SENSE:
            return Answer(0, 0, 0, self.states[0] if len(self.states) == 1 else self.states.pop(0), b"")
        self.log.append(cdb.hex(" "))
        if cdb[1] & 0x1F != 0x1F:
            running = bytes((0x70, 0, 2, 0, 0, 0, 0, 10, 0, 0, 0, 0, 4, 0x1B, 0, 0x80, 0x40, 0))
            self.states = [running, self.ends]
        return GOOD


def test_sas_methods_are_what_the_drive_reports():
    assert scsi.methods(Sas()) == ["scsi-sanitize-block", "scsi-sanitize-crypto"]
    assert scsi.methods(Sas(knows=(3,))) == ["scsi-sanitize-crypto"]
    assert scsi.methods(lambda _: ABORTED) == []

    def deaf(_):
        raise OSError(5, "did not reach the drive")

    assert scsi.methods(deaf) == []


def test_sas_sanitize_to_its_end_and_to_its_failure():
    drive = Sas()
    assert list(scsi.erase(drive, "scsi-sanitize-block", poll=at_once)) == [0.25]
    assert drive.log == ["48 a2 00 00 00 00 00 00 00 00"]
    drive = Sas()
    drive.ends = bytes((0x70, 0, 3, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x31, 3, 0, 0, 0, 0))
    with pytest.raises(OSError, match="reports that it failed"):
        list(scsi.erase(drive, "scsi-sanitize-crypto", poll=at_once))
    assert drive.log == ["48 a3 00 00 00 00 00 00 00 00", "48 1f 00 00 00 00 00 00 00 00"]


def test_the_kernels_header_is_88_bytes_with_the_addresses_in_place():
    header = Request(b"\x12" * 6, "in", length=36, time=3.0).pack(0x1000, 0x2000, 0x3000)
    assert len(header) == 88
    assert struct.unpack_from("=iiBB", header) == (ord("S"), -3, 6, 64)
    assert struct.unpack_from("=I", header, 12) == (36,)
    assert struct.unpack_from("=QQQI", header, 16) == (0x1000, 0x2000, 0x3000, 3000)
    done = bytearray(header)
    done[64], done[67] = 2, 8  # status, sb_len_wr
    struct.pack_into("=HHi", done, 68, 0, 8, 30)  # host, driver, resid
    answer = Answer.parse(bytes(done), bytes(36), bytes(64))
    assert (answer.status, answer.host, answer.driver, len(answer.data), len(answer.sense)) == (2, 0, 8, 6, 8)


@given(st.binary(max_size=300))
def test_sense_of_any_bytes(data):
    sense = Sense.parse(data)
    assert sense.key < 16
    assert sense.progress is None or 0 <= sense.progress < 1
    found = ata.Registers.parse(data)
    assert found is None or found.lba < 1 << 48


def test_methods_of_one_kind_are_mistakes_for_another():
    with pytest.raises(ValueError, match="no erase of ATA"):
        list(ata.erase(Sata(), "scsi-sanitize-block"))
    with pytest.raises(ValueError, match="no erase of SCSI"):
        list(scsi.erase(Sas(), "ata-security-erase"))
