"""What following a run says of a host at work: how far a long step is, and nothing where it does not tell."""

from __future__ import annotations

import pytest

from fleetd.cli.progress import _Lines, _picture, how_far
from fleetd.model.resource import RunHostView, RunView


def at_work(**changes: object) -> RunHostView:
    fields: dict[str, object] = {
        "host": "host-1",
        "name": "lou-a01-01",
        "wave": 0,
        "state": "active",
        "index": 7,
        "step": "write-image",
        "attempt": 1,
        "waiting_for": "write-image: 43 % (0.9 GiB of 2.1 GiB) written to drive S1",
        "finding": None,
        "started": None,
        "finished": None,
    }
    return RunHostView(**fields | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ": 43 % (0.9 GiB of 2.1 GiB) written to drive S1"),
        ({"state": "passed"}, ""),
        ({"waiting_for": ""}, ""),
        ({"waiting_for": "the host phones home from deploy"}, ""),
        ({"waiting_for": "wipe: 3 % (…) erased of drive S1"}, ""),  # of the step before
    ],
)
def test_only_the_progress_of_this_very_step_is_shown(changes: dict[str, object], said: str) -> None:
    assert how_far(at_work(**changes)) == said


def test_lines_name_it_for_a_few_hosts_and_fold_many(capsys: pytest.CaptureFixture[str]) -> None:
    run: RunView = None  # type: ignore[assignment]
    _Lines()(run, [at_work()])
    assert "lou-a01-01: write-image: 43 %" in capsys.readouterr().err
    _Lines()(
        run, [at_work(host=f"host-{n}", name=f"lou-a01-{n:02}", waiting_for=f"write-image: {n} %") for n in range(9)]
    )
    assert capsys.readouterr().err.strip().endswith("and 3 more: write-image")


def test_the_picture_holds_it() -> None:
    from io import StringIO

    from rich.console import Console

    from fleetd.model.resource import StepView

    run = RunView(
        id="run-1",
        playbook="rack-bringup",
        selector="all",
        state="running",
        principal="ada",
        lease=None,
        created="",
        finished=None,
        reason="",
        wave=0,
        waves=1,
        steps=[StepView(name="write-image", version=2, params={})],
        counts={"active": 1},
        version=1,
    )
    out = StringIO()
    Console(file=out, width=160).print(_picture(run, [at_work()]))
    assert "lou-a01-01: 43 %" in out.getvalue()
