"""The demo, smaller, with random seeds: exactly the seeded faults are caught, whichever they are. A failing seed is printed."""

import io
import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from fleetd.daemon.demo import run

pytestmark = pytest.mark.slow
SEEDS = [random.SystemRandom().randrange(1, 10**6) for _ in range(5)]


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Future[tuple[int, str]]]]:
    """All five, three at a time: a demo mostly waits, for deaf BMCs and for machines that boot."""

    def one(seed: int) -> tuple[int, str]:
        out = io.StringIO()
        return run(seed=seed, size="small", folder=tmp_path_factory.mktemp(f"seed{seed}"), out=out), out.getvalue()

    with ThreadPoolExecutor(3) as pool:
        yield [pool.submit(one, seed) for seed in SEEDS]


@pytest.mark.parametrize("number", range(5))
def test_a_small_site_from_racked_to_leased_and_back(number: int, demos: list[Future[tuple[int, str]]]) -> None:
    code, told = demos[number].result(timeout=300)
    assert code == 0, f"seed {SEEDS[number]}:\n{told[-6000:]}"
