"""What the pages tell a newcomer to type is typed here, against the simulated sites they describe."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.docs import console

# What the pages use of the checkout; they run in a folder of their own.
CHECKOUT = ("playbooks", "firmware", "inventory")


def checkout(folder: Path) -> Path:
    for name in CHECKOUT:
        (folder / name).symlink_to(console.ROOT / name)
    return folder


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path_factory: pytest.TempPathFactory) -> None:
    # Two runs of this test at once must not meet: each has a network of its own.
    net = 30 + os.getpid() % 25
    replace = {"127.33.": f"127.{net}.", "127.233.": f"127.{200 + net}."}
    page = console.ROOT / "docs" / "tutorial" / "rack-in-ten-minutes.md"
    wrong = console.play(page, checkout(tmp_path_factory.mktemp("t")), replace, seconds=180)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_the_tour_of_the_readme_is_real(tmp_path_factory: pytest.TempPathFactory) -> None:
    page = console.ROOT / "README.md"
    wrong = console.play(page, checkout(tmp_path_factory.mktemp("r")), {}, seconds=180)
    assert not wrong, "\n".join(wrong)
