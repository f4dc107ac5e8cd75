"""The drives of the simulator keep bytes as a plain byte array would, whatever is written where, and through JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetd.probe.host.simulated import SimulatedBlocks, SimulatedDrive
from tests.probe.imaging import drive

SIZE = 40 * 512  # not a whole number of pages
ACTS = st.lists(
    st.tuples(st.sampled_from(["write", "zero"]), st.integers(0, 39), st.integers(0, 40), st.integers(0, 3)),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["blank", "tenant:x"]), ACTS)
def test_it_reads_back_what_a_byte_array_would(content, acts):
    on = drive(SIZE, content=content)
    blocks = SimulatedBlocks(on)
    model = bytearray(blocks.read(0, SIZE))
    assert any(model) == (content != "blank")
    for act, first, count, value in acts:
        offset, length = first * 512, min(count, 40 - first) * 512
        if act == "zero":
            blocks.zero(offset, length)
            model[offset : offset + length] = bytes(length)
        else:
            data = bytes([value]) * length
            blocks.write(offset, memoryview(data))
            model[offset : offset + length] = data
    for first in range(40):
        assert blocks.read(first * 512, 512) == model[first * 512 : (first + 1) * 512]
    assert blocks.read(0, SIZE) == model
    again = SimulatedDrive(json.loads(json.dumps(on.dump())), save=lambda _: None, note=lambda *_, **__: None)
    assert SimulatedBlocks(again).read(0, SIZE) == model


@pytest.mark.parametrize(("offset", "length"), [(-512, 512), (SIZE, 512), (0, SIZE + 512), (100, 512), (0, 100)])
def test_what_is_not_on_the_drive_is_an_error(offset, length):
    blocks = SimulatedBlocks(drive(SIZE))
    for verb in (blocks.read, blocks.zero, lambda o, n: blocks.write(o, bytes(n))):
        with pytest.raises(OSError):
            verb(offset, length)


def test_a_drive_is_opened_by_one_and_dead_without_power():
    alive = True
    on = SimulatedDrive(
        {"name": "n", "serial": "s", "model": "m", "bytes": SIZE, "content": "x"},
        save=lambda _: None,
        note=lambda *_, **__: None,
        alive=lambda: alive,
    )
    with on.open() as blocks:
        with pytest.raises(OSError, match="in use"):
            on.open()
        alive = False
        with pytest.raises(OSError, match="power"):
            blocks.write(0, bytes(512))
    with pytest.raises(OSError, match="power"):
        next(on.erase("overwrite", "i"))
