"""What a host says is bounded and harmless, whatever it says."""

from __future__ import annotations

import json

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.drivers.ssh.keys import new_key_pair
from fleetd.drivers.ssh.output import MAX_LINE, MAX_TALK, TAIL, Talk, most_talk, refusal_in
from fleetd.kit.errors import Garbled


def test_output_past_its_bound_is_garbled():
    talk = Talk(10, None)
    talk.take(b"12345")
    talk.take(b"67890")
    with pytest.raises(Garbled):
        talk.take(b"1")


def test_progress_and_talk_are_told_apart_however_they_are_cut():
    said = b'{"a": 1}\nwarning\n{"b": [2]}\n[3]\n{broken\nlast words'
    for size in (1, 3, 100):
        heard = []
        talk = Talk(0, heard.append)
        for at in range(0, len(said), size):
            talk.hear(said[at : at + size])
        assert heard == [{"a": 1}, {"b": [2]}]
        assert talk.tail == "warning\n[3]\n{broken\nlast words"


def test_talk_without_end_is_garbled_and_a_line_without_end_is_cut():
    talk = Talk(0, None)
    for _ in range(MAX_TALK // 65536):
        talk.hear(b"x" * 65536)
        assert len(talk._line) <= MAX_LINE
    with pytest.raises(Garbled):
        talk.hear(b"x")
    assert len(talk.tail) <= TAIL


def test_a_command_of_many_hours_may_say_more_and_not_without_end():
    hours = 10 * 3600.0
    talk = Talk(0, None, seconds=hours)
    talk.hear(b"x" * (most_talk(hours) - 1))
    assert most_talk(hours) > most_talk(0.0) == MAX_TALK
    with pytest.raises(Garbled):
        talk.hear(b"xx")


@given(st.binary(max_size=300))
def test_nothing_unprintable_reaches_an_error_message(data):
    talk = Talk(0, lambda _: None)
    talk.hear(data)
    assert all(c.isprintable() or c == "\n" for c in talk.tail)


@given(st.binary(max_size=200))
def test_no_output_does_more_than_hold_no_refusal(data):
    try:
        found = refusal_in(b'{"refused":' + data)
    except Garbled:
        return
    assert found is None or (found.code + found.reason).isprintable()


def test_a_refusal_is_read_and_cleaned():
    found = refusal_in(json.dumps({"ok": False, "refused": {"code": "c\x1b", "reason": "r" * 900}}).encode())
    assert (found.code, len(found.reason)) == ("c?", 500)
    assert refusal_in(b'{"refused": null}') is None
    assert refusal_in(b'{"refused": 3}') is None
    assert refusal_in(b"{}") is None


def test_keys_are_ed25519_and_belong_together():
    private, public = new_key_pair("host\nwith a\tbad name")
    assert public.startswith("ssh-ed25519 ")
    assert "\n" not in public
    assert asyncssh.import_private_key(private).public_data == asyncssh.import_public_key(public).public_data
    assert new_key_pair()[0] != private
