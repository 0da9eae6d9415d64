from __future__ import annotations

import pytest

from bundles.model import ASSIGNED_STATES, FINAL_STATES, State
from bundles.server.lifecycle import NEXT_STATES, advances, judge_end, may_follow, parents_verdict


def test_nothing_follows_a_final_state() -> None:
    for state in FINAL_STATES:
        assert not NEXT_STATES[state]


def test_every_state_but_making_is_covered() -> None:
    assert set(NEXT_STATES) == {None, *State} - {State.MAKING}


def test_a_bundle_that_is_assigned_may_always_be_staged_again_or_end() -> None:
    for state in ASSIGNED_STATES:
        for after in (State.STAGED, *FINAL_STATES):
            assert may_follow(state, after)


def test_reports_move_a_bundle_forward_only() -> None:
    assert advances(State.STARTING, State.PREPARING)
    assert advances(State.STARTING, State.FINALIZING)
    assert not advances(State.RUNNING, State.PREPARING)
    assert not advances(State.RUNNING, State.RUNNING)
    assert not advances(State.READY, State.RUNNING)
    assert not advances(State.RUNNING, State.STAGED)


def test_a_report_brings_a_bundle_back_from_being_offline() -> None:
    assert advances(State.WORKER_OFFLINE, State.PREPARING)
    assert advances(State.WORKER_OFFLINE, State.RUNNING)


@pytest.mark.parametrize(
    ("exitcode", "failure", "kill", "state", "message"),
    [
        (0, None, None, State.READY, None),
        (None, None, None, State.READY, None),
        (3, None, None, State.FAILED, "Exit code 3"),
        (0, "Time limit exceeded", None, State.FAILED, "Time limit exceeded"),
        (None, "Kill requested", None, State.KILLED, "Kill requested"),
        (137, "Kill requested by a", "enough of it", State.KILLED, "Kill requested by a"),
        (137, "enough of it", "enough of it", State.KILLED, "enough of it"),
        (0, None, "Kill requested", State.READY, None),
    ],
)
def test_the_end_of_a_run_is_judged_by_what_its_worker_says(
    exitcode: int | None,
    failure: str | None,
    kill: str | None,
    state: State,
    message: str | None,
) -> None:
    assert judge_end(exitcode, failure, kill) == (state, message)


def test_a_child_waits_for_every_parent() -> None:
    assert parents_verdict({"a": State.READY, "b": State.RUNNING}, False) == (None, None)
    assert parents_verdict({"a": State.READY, "b": State.WORKER_OFFLINE}, True) == (None, None)
    assert parents_verdict({"a": State.READY, "b": State.READY}, False) == (State.STAGED, None)
    assert parents_verdict({}, False) == (State.STAGED, None)


def test_a_child_fails_as_soon_as_one_parent_has_unless_it_may() -> None:
    parents = {"a": State.RUNNING, "b": State.KILLED}
    assert parents_verdict(parents, False) == (State.FAILED, "b")
    assert parents_verdict(parents, True) == (None, None)
    assert parents_verdict({"b": State.FAILED}, True) == (State.STAGED, None)
