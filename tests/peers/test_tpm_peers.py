"""Our raw TPM commands against swtpm, an implementation of the specification that nobody here wrote. Package: swtpm."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import time

import pytest

from fleetd.probe.host import tpm

pytestmark = [pytest.mark.peers, pytest.mark.slow]

STARTUP, HIERARCHY_CHANGE_AUTH, CREATE_PRIMARY, EVICT = 0x144, 0x129, 0x131, 0x120
FLAGS = ("--flags", "not-need-init")
OWNER, ENDORSEMENT = 0x40000001, 0x4000000B
# TPM2B_PUBLIC of a restricted ECC P-256 storage key (part 2, section 12.2.4)
STORAGE_KEY = (
    struct.pack(">HHIH", 0x23, 0x0B, 0x00030072, 0) + struct.pack(">HHHHHH", 6, 128, 0x43, 0x10, 3, 0x10) + bytes(4)
)


@pytest.fixture
def chip(tmp_path):
    """`tpm.Transmit` to a fresh TPM, started as firmware would; the commands go over a socket pair of ours."""
    program = shutil.which("swtpm")
    if program is None:
        why = "no swtpm; apt install swtpm"
        pytest.fail(why) if os.environ.get("CI") == "1" else pytest.skip(why)
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    process = subprocess.Popen(
        [program, "socket", "--tpm2", *("--tpmstate", f"dir={tmp_path}"), *("--fd", str(theirs.fileno())), *FLAGS],
        pass_fds=[theirs.fileno()],
    )
    theirs.close()

    def transmit(sent):
        ours.sendall(sent)
        return ours.recv(tpm.MAX_ANSWER)

    try:
        tpm.answer(transmit, "TPM2_Startup", tpm.command(STARTUP, b"\0\0"))
        yield transmit
    finally:
        ours.close()
        process.terminate()
        process.wait(10)


def set_password(chip, hierarchy, new, old=b""):
    parameters = struct.pack(">H", len(new)) + new
    tpm.answer(chip, "change", tpm.with_password(HIERARCHY_CHANGE_AUTH, hierarchy, parameters, old))


def persist(chip, handle):
    """A storage key of the owner's at a persistent handle."""
    sensitive = struct.pack(">HHH", 4, 0, 0)
    public = struct.pack(">H", len(STORAGE_KEY)) + STORAGE_KEY
    body = tpm.answer(chip, "create", tpm.with_password(CREATE_PRIMARY, OWNER, sensitive + public + b"\0\0" + bytes(4)))
    key = struct.unpack_from(">I", body)[0]
    session = struct.pack(">IHBH", tpm.PASSWORD_SESSION, 0, 0, 0)
    both = struct.pack(">III", OWNER, key, len(session)) + session + struct.pack(">I", handle)
    tpm.answer(chip, "evict", tpm.command(EVICT, both, tpm.SESSIONS))


def test_a_fresh_tpm_is_clean_and_says_who_made_it(chip):
    assert tpm.vendor(chip) == "IBM"
    assert tpm.state(chip).clean


def test_an_owned_tpm_is_cleared(chip):
    persist(chip, 0x81000001)
    set_password(chip, ENDORSEMENT, b"tenant")
    set_password(chip, OWNER, b"tenant")
    before = tpm.state(chip)
    assert (before.owned, before.clean) == ((0x81000001,), False)
    assert before.left() == "owner password, endorsement password, 1 persistent objects"
    report = tpm.clear(chip)
    assert (report["cleared"], report["method"], report["reason"]) == (True, "TPM2_Clear(lockout)", "")
    assert tpm.state(chip) == tpm.State(tpm.state(chip).attributes, ())
    set_password(chip, OWNER, b"next")  # nobody's password stands in the way of the next owner


def test_a_lockout_password_is_passed_by_the_platform_where_the_firmware_left_that_open(chip):
    set_password(chip, tpm.LOCKOUT, b"tenant")
    report = tpm.clear(chip)
    assert (report["cleared"], report["method"]) == (True, "TPM2_Clear(platform)")
    assert tpm.state(chip).clean


def test_with_the_platform_closed_it_stays_owned_and_says_so(chip):
    set_password(chip, tpm.PLATFORM, b"firmware")  # as every real firmware does before it boots a system
    set_password(chip, tpm.LOCKOUT, b"tenant")
    set_password(chip, OWNER, b"tenant")
    report = tpm.clear(chip, lambda: "the firmware asks a person")
    assert (report["cleared"], report["method"], report["pending_reboot"]) == (False, "none", False)
    assert "left: owner password, lockout password" in report["reason"]
    assert "a password is set" in report["reason"]
    asked = tpm.clear(chip, lambda: "")
    assert (asked["cleared"], asked["method"], asked["pending_reboot"]) == (False, "ppi", True)


def test_a_clear_that_the_owner_forbade_is_lifted_by_the_platform(chip):
    tpm.answer(chip, "forbid", tpm.with_password(tpm.CLEAR_CONTROL, tpm.LOCKOUT, b"\1"))
    assert "clearing disabled" in tpm.state(chip).left()
    report = tpm.clear(chip)
    assert (report["cleared"], report["method"]) == (True, "TPM2_Clear(platform)")


def test_a_tpm_that_dies_in_the_middle_is_an_error_and_no_success(chip):
    began = time.monotonic()
    answers = iter([b"", b"\x80\x01"])
    report = tpm.clear(lambda sent: next(answers, b""))
    assert not report["cleared"]
    assert "too short" in report["reason"]
    assert time.monotonic() - began < 5
