from __future__ import annotations

import pytest

from backends.base import EndCause, Job, JobState, LaunchKey
from bundles.exits import WorkerExit
from manager.failures import FIRST_HOLD_SECONDS, LONGEST_HOLD_SECONDS, hold
from manager.ledger import Launch, Outcome


def launch(sequence: int, requested: float, **more: object) -> Launch:
    settings: dict[str, object] = {"outcome": Outcome.LAUNCHED, **more}
    return Launch(LaunchKey("p", sequence, "00000000"), requested, **settings)  # type: ignore[arg-type]


def failed(sequence: int, requested: float, exit_code: int = 3) -> Launch:
    return launch(sequence, requested, ended=requested + 1, exit_code=exit_code)


def test_nothing_is_held_while_workers_live_and_leave_as_they_should() -> None:
    assert hold([], []).until == 0
    assert hold([launch(1, 10.0)], []).until == 0
    assert hold([launch(1, 10.0, ended=20.0, exit_code=0)], []).until == 0
    assert hold([launch(1, 10.0, ended=20.0, exit_code=143)], []).until == 0
    for code in (WorkerExit.TERMINATED, WorkerExit.PREEMPTED):
        assert hold([launch(1, 10.0, ended=20.0, exit_code=code)], []).until == 0


def test_a_worker_that_fails_at_its_start_holds_the_next_for_a_while() -> None:
    held = hold([failed(1, 10.0)], [])
    assert held.until == 11.0 + FIRST_HOLD_SECONDS
    assert "p-1-00000000 left with exit code 3 (the server does not take" in held.reason


def test_an_engine_that_is_away_and_a_wrong_clock_are_told_as_such() -> None:
    assert "no engine that answers" in hold([failed(1, 10.0, WorkerExit.NO_RUNTIME)], []).reason
    assert "clock is wrong" in hold([failed(1, 10.0, WorkerExit.WRONG_CLOCK)], []).reason


def test_each_tick_of_failures_doubles_the_hold_up_to_the_longest() -> None:
    assert hold([failed(2, 50.0), failed(1, 10.0)], []).until == 51.0 + 2 * FIRST_HOLD_SECONDS
    many = [failed(n, 10.0 * n) for n in range(19, 0, -1)]
    assert hold(many, []).until == 191.0 + LONGEST_HOLD_SECONDS


def test_failures_of_one_tick_count_once() -> None:
    assert hold([failed(n, 10.0) for n in (3, 2, 1)], []).until == 11.0 + FIRST_HOLD_SECONDS


def test_a_worker_that_lives_ends_the_hold() -> None:
    assert hold([launch(2, 50.0), failed(1, 10.0)], []).until == 0


def test_a_refusal_of_the_backend_is_a_failure_with_its_sentence() -> None:
    held = hold([launch(1, 10.0, outcome=Outcome.REFUSED, error="no such image")], [])
    assert held.until == 10.0 + FIRST_HOLD_SECONDS
    assert "no such image" in held.reason


def test_an_end_that_only_the_list_knows_counts() -> None:
    key = LaunchKey("p", 1, "00000000")
    job = Job(str(key), key, str(key), JobState.ENDED, ended=12.0, exit_code=127)
    assert hold([launch(1, 10.0)], [job]).until == 12.0 + FIRST_HOLD_SECONDS


def test_a_worker_that_failed_after_long_work_holds_nothing() -> None:
    assert hold([launch(1, 10.0, ended=10_000.0, exit_code=1)], []).until == 0


def test_an_intent_that_was_undone_is_neither_success_nor_failure() -> None:
    undone = launch(2, 50.0, outcome=Outcome.UNDONE)
    assert hold([undone, failed(1, 10.0)], []).until == 11.0 + FIRST_HOLD_SECONDS


@pytest.mark.parametrize("cause", [EndCause.FAILED, EndCause.OUT_OF_CAPACITY])
def test_a_job_that_never_became_a_worker_is_a_failure_with_the_service_s_words(
    cause: EndCause,
) -> None:
    held = hold([launch(1, 10.0, ended=12.0, cause=cause, why="no such image")], [])
    assert held.until == 12.0 + FIRST_HOLD_SECONDS
    assert "no such image" in held.reason


@pytest.mark.parametrize(
    "cause", [EndCause.PREEMPTED, EndCause.KILLED_BY_US, EndCause.KILLED_BY_OTHERS]
)
def test_a_job_that_was_taken_away_is_no_failure_whatever_its_code(cause: EndCause) -> None:
    assert hold([launch(1, 10.0, ended=12.0, exit_code=1, cause=cause)], []).until == 0


def test_a_worker_that_has_yet_to_come_does_not_end_the_hold() -> None:
    probe = launch(2, 50.0)
    assert hold([probe, failed(1, 10.0)], [], {probe.key}).until == 11.0 + FIRST_HOLD_SECONDS
