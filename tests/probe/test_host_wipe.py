"""Erasing with proof: drives that lie, half-erase, refuse, answer with noise, or take no writes."""

from __future__ import annotations

import itertools
import json
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.drivers.ssh.output import most_talk
from fleetd.lifecycle.steps.wipe import ABREAST, MOST_SECONDS, Wipe
from fleetd.probe.host import partition, wipe
from fleetd.probe.host.real import RealMachine
from fleetd.probe.host.simulated import SimulatedBlocks
from fleetd.probe.host.wipe import BLOCK, SAMPLES, pattern, pause, sample_offsets, wipe_drive, wipe_drives
from tests.probe.imaging import drive, finish


@given(st.integers(8192 // 512, 2**43 // 512).map(lambda n: n * 512), st.text(max_size=20))
def test_samples_lie_on_the_drive_at_both_ends_and_never_overlap(size, intent):
    offsets = sample_offsets(size, intent, "D")
    assert offsets == sorted(set(offsets))
    assert offsets[0] == 0
    assert offsets[-1] == size - BLOCK
    assert all(after - before >= BLOCK for before, after in itertools.pairwise(offsets))
    assert all(offset % 512 == 0 for offset in offsets)


@given(st.integers(10**9 // 4096, 2**43 // 4096).map(lambda n: n * 4096), st.text(max_size=5))
def test_samples_are_spread_and_hold_a_backup_table(size, intent):
    offsets = sample_offsets(size, intent, "D")
    assert len(offsets) >= SAMPLES
    part = size // SAMPLES
    # parts are counted in whole blocks there, in bytes here
    assert all(any(part * i - 2 * BLOCK <= o < part * (i + 1) + 2 * BLOCK for o in offsets) for i in range(SAMPLES))
    assert partition.backup_area(size) in offsets
    assert sample_offsets(size, intent + "x", "D") != offsets
    assert sample_offsets(size, intent, "E") != offsets


@given(size=st.integers(1 << 20, 1 << 45), begin=st.floats(0, 1), intent=st.text("abcdef", min_size=1, max_size=8))
def test_a_part_that_an_erase_left_out_is_met_when_it_is_a_thirty_second_of_the_drive(size, begin, intent):
    """Decision 0013 tells it so; smaller ones are met by chance."""
    size = size // BLOCK * BLOCK
    hole = size // 32 + 2 * BLOCK
    at = int(begin * (size - hole))
    assert any(at <= offset and offset + BLOCK <= at + hole for offset in sample_offsets(size, intent, "S"))


def test_patterns_are_never_zero_and_never_alike():
    seen = {pattern(i, s, o) for i in ("a", "b") for s in ("D", "E") for o in (0, 4096)}
    assert len(seen) == 8
    assert all(any(p) and len(p) == BLOCK for p in seen)


@pytest.mark.parametrize("content", ["blank", "tenant:x"])
def test_a_good_drive_is_erased_and_proven(content):
    result, _ = finish(wipe_drive(drive(content=content), "i"))
    assert result["erased"]
    assert (result["method"], result["reason"], result["nonzero"], result["pattern_left"]) == (
        "simulated-format",
        "",
        0,
        0,
    )
    assert result["pattern_written"] == result["samples"] >= SAMPLES


@pytest.mark.parametrize("content", ["blank", "tenant:x"])
def test_a_drive_that_lies_is_caught_even_when_it_was_blank(content):
    result, _ = finish(wipe_drive(drive(content=content, erase="lies"), "i"))
    assert not result["erased"]
    assert [t["method"] for t in result["tried"]] == ["simulated-format", "overwrite"]
    assert all("still there" in t["reason"] for t in result["tried"])
    assert result["pattern_left"] == result["samples"]
    assert result["method"] == ""


class Odd:
    """A drive whose erase does as a test says."""

    def __init__(self, **acts):
        self.inner = drive(content="tenant:x")
        self.name, self.serial, self.model, self.firmware, self.size = "n", "D0", "M", "1", self.inner.size
        self.acts = acts
        self.open = self.inner.open

    def methods(self):
        return list(self.acts)

    def erase(self, method, intent):
        yield from self.acts[method](self.inner) or ()


def everything(inner):
    inner.pages.fill("blank")


def nothing(inner):
    return None


def refuses(inner):
    raise OSError(5, "Invalid Opcode")


def noise(inner):
    inner.pages.fill("new key")


def half(inner):
    with inner.open() as blocks:
        blocks.zero(0, inner.size // 2 // 4096 * 4096)
    raise OSError(5, "aborted half way")


@pytest.mark.parametrize(
    ("first", "said"), [(refuses, "Invalid Opcode"), (nothing, "still there"), (noise, "not zero"), (half, "half way")]
)
def test_the_next_method_is_tried_and_both_stand_in_the_report(first, said):
    result, _ = finish(wipe_drive(Odd(crypto=first, overwrite=everything), "i"))
    assert (result["erased"], result["method"], result["reason"]) == (True, "overwrite", "")
    assert [t["method"] for t in result["tried"]] == ["crypto", "overwrite"]
    assert said in result["tried"][0]["reason"]
    assert result["tried"][1]["reason"] == ""


def test_what_one_method_erased_does_not_speak_for_the_next():
    """The first zeroes every sample and fails; the second does nothing and says done."""

    def samples_only(inner):
        inner.pages.fill("blank")
        raise OSError(5, "failed in the end")

    result, _ = finish(wipe_drive(Odd(a=samples_only, b=nothing), "i"))
    assert not result["erased"]
    assert "still there" in result["tried"][1]["reason"]


def test_without_a_pattern_zeros_prove_nothing():
    class Protected(SimulatedBlocks):
        def write(self, offset, data):
            raise OSError(30, "write protected")

    on = drive()
    on.open = lambda: Protected(on)
    result, _ = finish(wipe_drive(on, "i"))
    assert not result["erased"]
    assert (result["samples"] > 0, result["nonzero"]) == (True, 0)
    assert "write protected; so its zeros prove nothing" in result["reason"]


def test_a_drive_that_swallows_writes_is_not_proven():
    class Swallows(SimulatedBlocks):
        def write(self, offset, data):
            """Says done."""

    on = drive()
    on.open = lambda: Swallows(on)
    result, _ = finish(wipe_drive(on, "i"))
    assert not result["erased"]
    assert "did not read back" in result["reason"]


def test_a_drive_that_cannot_be_read_afterwards_is_not_erased():
    class Unreadable(SimulatedBlocks):
        def read(self, offset, length):
            raise OSError(5, "unrecovered read error")

    on = drive()
    on.open = lambda: Unreadable(on)
    result, _ = finish(wipe_drive(on, "i"))
    assert not result["erased"]
    assert "read" in result["reason"]


def test_no_method_and_no_answer_keep_a_drive():
    result, _ = finish(wipe_drive(Odd(), "i"))
    assert (result["erased"], result["tried"]) == (False, [])
    assert "no way" in result["reason"]
    mute = Odd()
    mute.methods = lambda: refuses(None)
    result, _ = finish(wipe_drive(mute, "i"))
    assert not result["erased"]
    assert "Invalid Opcode" in result["reason"]


@pytest.mark.parametrize("lanes", [1, 2, 16])
def test_lanes_change_the_time_and_nothing_else(lanes):
    on = [drive(serial=f"D{i}", erase="lies" if i == 3 else "ok") for i in range(6)]
    results, progress = finish(wipe_drives(on, "i", lanes))
    assert [r["serial"] for r in results] == [d.serial for d in on]
    assert [r["erased"] for r in results] == [i != 3 for i in range(6)]
    assert sorted(p["drive"] for p in progress if p["event"] == "erasing") == sorted(d.serial for d in on)


def test_lanes_really_work_at_once():
    meeting = threading.Barrier(3, timeout=10)

    def together(inner):
        meeting.wait()
        inner.pages.fill("blank")

    results, _ = finish(wipe_drives([Odd(a=together) for _ in range(3)], "i", 3))
    assert all(r["erased"] for r in results)


def test_a_lane_that_breaks_is_heard():
    def broken(inner):
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        finish(wipe_drives([Odd(a=broken), Odd(a=everything)], "i", 2))


@pytest.mark.parametrize("until", [Wipe.seconds, MOST_SECONDS])
def test_sixteen_slow_drives_say_less_than_a_listener_takes(until):
    """Else a good host would be out, after days of a wipe, for having told how far it was."""
    lines, at = 0, 0.0
    while (at := at + pause(at)) < until:
        lines += 1
    line = {"event": "progress", "what": "erase", "drive": "S" * 20, "done": 10**13, "of": 10**13}
    assert 2 * ABREAST * lines * len(json.dumps(line)) < most_talk(until)
    assert RealMachine.lanes == ABREAST
    assert pause(0.0) == 1.0
    assert lines * 60 > until  # and still it is heard every minute


def test_progress_is_told_at_that_pace(monkeypatch):
    clock = iter(range(0, 10**6, 1))
    monkeypatch.setattr(wipe, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))

    class Slow(Odd):
        def erase(self, method, intent):
            yield from (n / 3600 for n in range(3600))
            yield from super().erase(method, intent)

    _, progress = finish(wipe_drives([Slow(a=everything)], "i", 1))
    assert 100 < sum(p["event"] == "progress" for p in progress) < 400
