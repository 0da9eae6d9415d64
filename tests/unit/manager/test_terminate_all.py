from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pool_fakes import NOW, FakeBackend

from backends.base import (
    BackendError,
    Capabilities,
    Idempotency,
    Invalid,
    Job,
    JobState,
    Throttled,
    Unauthorized,
    Unreachable,
)
from manager.ledger import Ledger, Outcome, Pool
from manager.terminate_all import Termination, WorkersLeft


class Endable(FakeBackend):
    """A service whose running jobs may be ended; fails so many calls with ``failing``."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: list[BackendError] = []

    def list_jobs(self) -> list[Job]:
        if self.failing:
            raise self.failing.pop()
        return super().list_jobs()

    def terminate(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        self.asked_to_end += job_ids
        reluctance, self.reluctance = self.reluctance, None
        return {job_ids[0]: reluctance} | dict.fromkeys(job_ids[1:])


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db", clock=lambda: NOW) as made:
        made.describe(Pool("p", "fake", "http://s", {}))
        yield made


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manager.terminate_all.LONGEST_PAUSE_SECONDS", 0.001)


def test_what_lives_is_asked_once_to_end_and_what_ended_is_not(ledger: Ledger) -> None:
    backend = Endable()
    living = [backend.add(JobState.PENDING), backend.add(JobState.ACTIVE)]
    backend.add(JobState.ENDED)
    Termination(backend, ledger, "p").carry_out()
    assert backend.asked_to_end == [job.id for job in living]


def test_a_list_that_fails_for_a_while_is_asked_for_again(ledger: Ledger) -> None:
    backend = Endable()
    job = backend.add(JobState.ACTIVE)
    backend.failing = [Unreachable("no answer"), Throttled("slow down")]
    Termination(backend, ledger, "p").carry_out()
    assert backend.asked_to_end == [job.id]


def test_who_could_not_be_asked_is_asked_again_and_nobody_else(ledger: Ledger) -> None:
    backend = Endable()
    first, second = backend.add(JobState.ACTIVE), backend.add(JobState.ACTIVE)
    backend.reluctance = Throttled("slow down")
    Termination(backend, ledger, "p").carry_out()
    assert backend.asked_to_end == [first.id, second.id, first.id]


@pytest.mark.parametrize("error", [Invalid("together only"), Unauthorized("who are you")])
def test_what_no_waiting_mends_is_said_at_once(ledger: Ledger, error: BackendError) -> None:
    backend = Endable()
    backend.add(JobState.ACTIVE)
    backend.reluctance = error
    with pytest.raises(WorkersLeft, match=str(error)):
        Termination(backend, ledger, "p").carry_out()
    assert len(backend.asked_to_end) == 1


def test_a_service_that_never_answers_is_given_up(ledger: Ledger) -> None:
    backend = Endable()
    backend.error = Unreachable("no answer")
    with pytest.raises(WorkersLeft, match="no answer"):
        Termination(backend, ledger, "p").carry_out(within_seconds=0.01)


def test_workers_that_are_not_listed_yet_are_ended_too(ledger: Ledger) -> None:
    backend = Endable()
    (key,) = ledger.intend("p", 1)
    ledger.settle(key, Outcome.LAUNCHED, job_id="job-7")
    Termination(backend, ledger, "p").carry_out()
    assert backend.asked_to_end == ["job-7"]


def test_a_launch_without_an_answer_is_said_where_the_list_does_not_know_all(
    ledger: Ledger,
) -> None:
    backend = Endable()
    ledger.intend("p", 2)
    Termination(backend, ledger, "p").carry_out()
    backend.capabilities = Capabilities(1, Idempotency.SERVICE, 60.0, listing_lag_seconds=30.0)
    with pytest.raises(WorkersLeft, match="2 launch requests got no answer"):
        Termination(backend, ledger, "p").carry_out()
