"""The demo, smaller, with random seeds: exactly the seeded faults are caught, whichever they are. A failing seed is printed."""

import io
import random

import pytest

from fleetd.daemon.demo import run

pytestmark = pytest.mark.slow
SEEDS = [random.SystemRandom().randrange(1, 10**6) for _ in range(5)]


@pytest.mark.parametrize("number", range(5))
def test_a_small_site_from_racked_to_leased_and_back(number, tmp_path):
    out = io.StringIO()
    code = run(seed=SEEDS[number], size="small", folder=tmp_path, out=out)
    assert code == 0, f"seed {SEEDS[number]}:\n{out.getvalue()[-6000:]}"
