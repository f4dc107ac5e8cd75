"""Baselines: read strictly, compared without guessing."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetd.kit.errors import Invalid
from fleetd.kit.yamlfile import parse
from fleetd.model.firmware import compare, read_baseline

ROOT = Path(__file__).parents[2]
TEXT = 'sku: s\ncomponents:\n  bios: ["2.3.5", "2.3.4"]\n  bmc: ["7.10"]\n'


def test_nothing_drifted() -> None:
    assert compare(read_baseline(parse(TEXT, "f")), {"bios": " 2.3.4", "bmc": "7.10", "cpld": "1"}) == []


def test_a_drift_names_what_it_should_be() -> None:
    (drift,) = compare(read_baseline(parse(TEXT, "f")), {"bios": "2.2.0", "bmc": "7.10"})
    assert (drift.component, drift.observed, drift.target) == ("bios", "2.2.0", "2.3.5")


def test_what_nobody_observed_has_drifted() -> None:
    assert [d.component for d in compare(read_baseline(parse(TEXT, "f")), {})] == ["bios", "bmc"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sku: s\ncomponents: {}\n", 2),
        ("sku: s\ncomponents:\n  bios: []\n", 3),
        ("sku: s\ncomponents:\n  bmc: [a]\n  bios: ['']\n", 4),
        ("sku: s\nparts: {}\n", 2),
        ("components:\n  bios: [a]\n", 1),
        ("sku: ''\ncomponents:\n  bios: [a]\n", 1),
    ],
)
def test_a_bad_baseline_is_refused(text: str, line: int) -> None:
    with pytest.raises(Invalid) as caught:
        read_baseline(parse(text, "f.yaml"))
    assert caught.value.where == f"f.yaml:{line}"


@pytest.mark.parametrize("path", sorted((ROOT / "firmware" / "baselines").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_baselines_of_the_project(path: Path) -> None:
    baseline = read_baseline(parse(path.read_text(), path.name))
    assert baseline.sku == path.stem
    assert (ROOT / "inventory" / "skus" / path.name).exists()
