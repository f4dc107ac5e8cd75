"""The table of states keeps its promises: exits, deadlines, reachability."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.kit.errors import Conflict
from fleetd.lifecycle.transitions import TABLE, deadline_of, legal, mermaid, require
from fleetd.model.host import State

RESTING = {
    State.REGISTERED,
    State.MANAGEABLE,
    State.AVAILABLE,
    State.LEASED,
    State.QUARANTINED,
    State.MAINTENANCE,
    State.RETIRED,
}


def test_every_state_has_a_row():
    assert set(TABLE) == set(State)


def test_resting_states_are_the_design_s():
    assert {state for state, row in TABLE.items() if row.resting} == RESTING


@given(st.sampled_from(sorted(State)), st.floats(0, 4e9))
def test_every_working_state_has_a_deadline_and_a_legal_exit(state, now):
    row = TABLE[state]
    deadline = deadline_of(state, now)
    if state in RESTING:
        assert deadline is None
    else:
        assert deadline is not None
        assert deadline > now
        assert row.exit_on_deadline is not None
        assert legal(state, row.exit_on_deadline)


def test_every_state_is_reached_from_registered():
    seen, queue = {State.REGISTERED}, [State.REGISTERED]
    while queue:
        for target in TABLE[queue.pop()].goes_to - seen:
            seen.add(target)
            queue.append(target)
    assert seen == set(State)


def test_only_release_or_failure_ends_a_lease():
    assert TABLE[State.LEASED].goes_to == {State.RECLAIMING}


def test_nothing_becomes_available_unvalidated():
    assert {source for source, row in TABLE.items() if State.AVAILABLE in row.goes_to} == {State.VALIDATING}


@given(st.sampled_from(sorted(State)), st.sampled_from(sorted(State)))
def test_quarantine_leads_back_only_where_the_work_failed(resume, target):
    allowed = legal(State.QUARANTINED, target, resume=resume)
    assert allowed == (target is resume or target in (State.MAINTENANCE, State.RETIRED))


def test_a_forbidden_move_names_the_exits():
    with pytest.raises(Conflict) as caught:
        require(State.LEASED, State.AVAILABLE, host="a1")
    assert "reclaiming" in caught.value.why
    assert caught.value.remedy == "fleetctl host why a1"


def test_the_picture_shows_every_row():
    picture = mermaid()
    for source, row in TABLE.items():
        for target in row.goes_to:
            assert f"    {source} --> {target}\n" in picture
