"""The TPM after a tenant, and the picture of a host: raw commands, honest refusals, nothing believed unread."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.probe.host import snapshot, tpm


class FakeTpm:
    """As much of a TPM as clearing needs. `platform`, `lockout`: their passwords."""

    def __init__(self, *, lockout=b"", platform=b"\xff", attributes=0, handles=(), lies=False):
        self.passwords = {tpm.LOCKOUT: lockout, tpm.PLATFORM: platform}
        self.attributes, self.handles, self.lies = attributes | (4 if lockout else 0), list(handles), lies
        self.log = []

    def __call__(self, sent):
        tag, size, code = struct.unpack_from(">HII", sent)
        assert size == len(sent)
        if code == tpm.GET_CAPABILITY:
            return self._capability(*struct.unpack_from(">III", sent, 10))
        assert tag == tpm.SESSIONS
        handle, length, session, nonce, _, password = struct.unpack_from(">IIIHBH", sent, 10)
        assert (session, nonce, length) == (tpm.PASSWORD_SESSION, 0, 9 + password)
        self.log.append((code, handle))
        if sent[27 : 27 + password] != self.passwords[handle]:
            return struct.pack(">HII", tpm.NO_SESSIONS, 10, 0x9A2)
        if code == tpm.CLEAR_CONTROL:
            self.attributes &= ~0x100
        elif self.attributes & 0x100:
            return struct.pack(">HII", tpm.NO_SESSIONS, 10, 0x120)
        elif not self.lies:
            self.attributes, self.handles = 0x400, [h for h in self.handles if h >= 0x81800000]
            self.passwords[tpm.LOCKOUT] = b""
        return struct.pack(">HIIIHBH", tpm.SESSIONS, 19, 0, 0, 0, 1, 0)

    def _capability(self, kind, first, count):
        if kind == 1:
            body = struct.pack(f">I{len(self.handles)}I", len(self.handles), *self.handles)
        else:
            value = {0x200: self.attributes, 0x105: 0x49465800}[first]
            body = struct.pack(">III", 1, first, value)
        return struct.pack(">HIIBI", tpm.NO_SESSIONS, 15 + len(body), 0, 0, kind) + body


def test_a_tpm_without_a_lockout_password_is_cleared_and_looked_at():
    chip = FakeTpm(attributes=3, handles=[0x81000001, 0x81010001, 0x81800001])
    assert tpm.state(chip).left() == "owner password, endorsement password, 2 persistent objects"
    report = tpm.clear(chip)
    assert report == {
        "present": True,
        "cleared": True,
        "method": "TPM2_Clear(lockout)",
        "pending_reboot": False,
        "reason": "",
    }
    assert chip.log == [(tpm.CLEAR, tpm.LOCKOUT)]
    assert chip.handles == [0x81800001]  # the platform's own stays


def test_with_a_lockout_password_the_platform_clears():
    chip = FakeTpm(lockout=b"tenant", platform=b"", attributes=0x101)
    report = tpm.clear(chip)
    assert (report["cleared"], report["method"]) == (True, "TPM2_Clear(platform)")
    assert chip.log == [(0x126, tpm.LOCKOUT), (0x127, tpm.PLATFORM), (0x126, tpm.PLATFORM)]


def test_else_the_firmware_is_asked_and_the_host_must_reboot():
    report = tpm.clear(FakeTpm(lockout=b"tenant"), lambda: "")
    assert (report["cleared"], report["method"], report["pending_reboot"]) == (False, "ppi", True)
    assert "left: lockout password" in report["reason"]


def test_a_tpm_that_stays_owned_is_told_as_owned():
    report = tpm.clear(FakeTpm(lockout=b"tenant"), lambda: "the firmware asks a person")
    assert (report["cleared"], report["method"], report["pending_reboot"]) == (False, "none", False)
    for word in ("lockout password", "a password is set (0x9a2)", "asks a person", "remedy"):
        assert word in report["reason"]


def test_a_tpm_that_says_cleared_and_is_not():
    report = tpm.clear(FakeTpm(attributes=1, handles=[0x81000001], lies=True))
    assert not report["cleared"]
    assert "said done, and there is still: owner password, 1 persistent objects" in report["reason"]
    assert not tpm.clear(FakeTpm(handles=[0x81000001], lies=True))["cleared"]


@given(st.binary(max_size=80), st.booleans())
def test_a_tpm_that_answers_anything_is_an_error(noise, framed):
    data = struct.pack(">HII", 0x8001, 10 + len(noise), 0) + noise if framed else noise
    report = tpm.clear(lambda _: data)
    assert not report["cleared"] or framed
    try:
        state = tpm.state(lambda _: data)
    except OSError:
        return
    assert all(0x81000000 <= h < 0x81800000 for h in state.owned)


def test_the_vendors_letters():
    assert tpm.vendor(FakeTpm()) == "IFX"


@pytest.mark.parametrize(
    ("operations", "why"),
    [
        ("22 4: User not required", ""),
        ("5 4: User not required\n22 3: User required", "asks a person"),
        ("22 2: Blocked for OS by system firmware", "asks a person"),
        ("", "asks a person"),
        (None, "takes no request"),
    ],
)
def test_the_firmware_is_asked_only_where_no_person_is_needed(tmp_path, operations, why):
    (tmp_path / "request").write_text("0\n")
    if operations is not None:
        (tmp_path / "tcg_operations").write_text(operations)
    said = tpm.ask_firmware(str(tmp_path))
    assert (why in said) if why else said == ""
    assert (tmp_path / "request").read_text().strip() == ("0" if why else "22")


def test_the_kind_of_tpm(tmp_path):
    assert tpm.version(str(tmp_path / "absent")) == ""
    assert tpm.version(str(tmp_path)) == "2.0"
    (tmp_path / "tpm_version_major").write_text("1\n")
    assert tpm.version(str(tmp_path)) == "1.2"


# --- the picture of a host -------------------------------------------------------------------------------------------


def test_a_host_that_shows_nothing_has_an_empty_picture(tmp_path):
    picture = snapshot.take(str(tmp_path))
    assert picture["bios"] == {"vendor": "", "version": "", "date": ""}
    assert (picture["drives"], picture["nics"], picture["pci"], picture["efi"]["present"]) == ([], [], [], False)


def test_the_picture_of_a_host(tmp_path):
    dmi, net = tmp_path / "class/dmi/id", tmp_path / "class/net"
    pci = tmp_path / "bus/pci/devices/0000:01:00.0"
    for directory in (dmi, net / "eth0", net / "lo", pci, tmp_path / "drivers/mlx5_core"):
        directory.mkdir(parents=True)
    for name, text in (("bios_vendor", "AMI"), ("bios_version", "1.2\x1b[2J"), ("board_serial", "B1")):
        (dmi / name).write_text(f"{text}\n")
    for name, text in (("vendor", "0x15b3"), ("device", "0x1021"), ("subsystem_vendor", "0x15b3")):
        (pci / name).write_text(f"{text}\n")
    (pci / "subsystem_device").write_text("0x0023\n")
    (pci / "driver").symlink_to(tmp_path / "drivers/mlx5_core")
    (net / "eth0/address").write_text("02:00:00:00:00:01\n")
    (net / "eth0/device").symlink_to(pci)
    picture = snapshot.take(str(tmp_path))
    assert picture["bios"] == {"vendor": "AMI", "version": "1.2?[2J", "date": ""}
    assert picture["board"] == {"vendor": "", "product": "", "serial": "B1"}
    assert picture["nics"] == [
        {"name": "eth0", "mac": "02:00:00:00:00:01", "driver": "mlx5_core", "pci": "0000:01:00.0"}
    ]
    assert picture["pci"] == [{"address": "0000:01:00.0", "id": "15b3:1021", "subsystem": "15b3:0023"}]
