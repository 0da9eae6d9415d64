from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pool_fakes import NOW
from pool_stand import KilledError, Stand, kill_at

from backends.base import (
    EndCause,
    Invalid,
    JobState,
    OutOfCapacity,
    Throttled,
    Unreachable,
)
from bundles.errors import NotAuthenticated, ServerFault
from manager.health import FIRST_QUARANTINE_SECONDS, SETTLED_SECONDS
from manager.journal import last_entry
from manager.keeper import ENDING_SECONDS, TooManyFailed
from manager.ledger import Outcome
from manager.policy import SURPLUS_SECONDS


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


def test_staged_bundles_get_workers_with_one_token_and_no_secret_on_paper(stand: Stand) -> None:
    stand.shapes(5)
    assert stand.start().tick().launch == 3
    assert stand.outcomes() == [Outcome.LAUNCHED] * 3
    assert {r.secrets["WORKER_MANAGER_TOKEN"] for r in stand.backend.launched} == {"token-1"}
    for path in stand.directory.iterdir():
        assert b"token-1" not in path.read_bytes()


def test_a_second_tick_launches_nothing_more_for_the_same_bundles(stand: Stand) -> None:
    stand.shapes(2)
    manager = stand.start(high=10)
    assert [manager.tick().launch for _ in range(3)] == [2, 0, 0]
    stand.shapes(3)
    assert manager.tick().launch == 1


@pytest.mark.parametrize("failing", ["queue", "jobs"])
def test_a_failed_observation_launches_nothing_and_is_written_down(
    stand: Stand, failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    stand.shapes(5)
    manager = stand.start(low=2)
    if failing == "queue":
        stand.server.status = 500
    else:
        stand.backend.error = Unreachable("no answer")
    with caplog.at_level(logging.INFO, "manager"):
        waits = [manager.guarded_tick() for _ in range(6)]
    assert stand.backend.launched == []
    assert len(caplog.records) == 1, "it is said once"
    assert waits[0] < 5.0 <= waits[2] < waits[5] <= 60.0
    entry = last_entry(stand.directory / "p.jsonl")
    assert entry is not None
    assert entry["decision"] is None
    assert entry["error"]


def test_a_failed_observation_raises_from_a_single_tick(stand: Stand) -> None:
    stand.server.status = 503
    with pytest.raises(ServerFault):
        stand.start().tick()


def test_credentials_that_were_never_taken_end_the_manager_at_once(stand: Stand) -> None:
    stand.server.status = 401
    with pytest.raises(NotAuthenticated):
        stand.start().manager.run()


def test_credentials_that_expired_are_tried_once_more(stand: Stand) -> None:
    manager = stand.start()
    manager.guarded_tick()
    stand.server.status = 401
    manager.guarded_tick()
    with pytest.raises(NotAuthenticated):
        manager.guarded_tick()


def test_a_launch_that_is_refused_is_held_and_tried_again_later(stand: Stand) -> None:
    stand.shapes(1)
    stand.backend.refusal = OutOfCapacity("no such machine at the moment")
    manager = stand.start(low=1)
    assert manager.tick().launch == 1
    assert stand.outcomes() == [Outcome.REFUSED]
    held = manager.tick()
    assert held.launch == 0
    assert "no such machine at the moment" in held.reason("held").sentence
    stand.backend.refusal = None
    stand.now += 6
    assert manager.tick().launch == 1


def test_a_launch_without_an_answer_that_did_happen_is_found_and_not_repeated(
    stand: Stand,
) -> None:
    stand.shapes(1)
    stand.backend.refusal = Unreachable("timed out")
    manager = stand.start()
    assert manager.tick().launch == 1
    assert stand.outcomes() == [None]
    stand.backend.refusal = None
    assert manager.tick().launch == 0
    assert stand.outcomes() == [Outcome.LAUNCHED]
    assert len(stand.backend.jobs) == 1


@pytest.mark.parametrize(
    ("step", "after", "launched"),
    [
        ("intend", False, 0),
        ("intend", True, 0),
        ("launch", False, 0),
        ("launch", True, 2),
        ("settle", False, 2),
        ("settle", True, 2),
        ("journal", False, 2),
    ],
)
def test_a_manager_killed_between_any_two_steps_is_carried_on_by_the_next(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, step: str, after: bool, launched: int
) -> None:
    stand.shapes(2)
    manager = stand.start()
    owner, name = {
        "intend": (manager.keeper.ledger, "intend"),
        "launch": (manager.keeper.backend, "launch"),
        "settle": (manager.keeper, "_settle"),
        "journal": (manager.keeper.journal, "write"),
    }[step]
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, after=after)
        with pytest.raises(KilledError):
            manager.tick()
    assert len(stand.backend.jobs) == launched

    assert stand.start().tick().launch == 2 - launched
    assert len(stand.backend.jobs) == 2
    kept = [outcome for outcome in stand.outcomes() if outcome is Outcome.LAUNCHED]
    assert len(kept) == 2
    assert None not in stand.outcomes()
    keys = [job.key for job in stand.backend.jobs]
    assert len(set(keys)) == 2


def test_an_end_is_said_with_its_meaning_and_the_minimum_restored(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    manager = stand.start(low=1)
    manager.tick()
    stand.backend.jobs[0] = replace(
        stand.backend.jobs[0], state=JobState.ENDED, exit_code=0, ended=NOW + 1
    )
    with caplog.at_level(logging.INFO, "manager"):
        assert manager.tick().launch == 1
    assert "left with exit code 0" in caplog.text


def test_a_request_that_will_never_work_does_not_spin(stand: Stand) -> None:
    stand.shapes(9)
    stand.backend.refusal = Invalid("no such image")
    manager = stand.start()
    launches = []
    for _ in range(60):
        launches.append(manager.tick().launch)
        stand.now += 5
    assert 3 <= sum(1 for number in launches if number) <= 8


def test_a_ring_wakes_the_loop_and_a_stop_ends_it(stand: Stand) -> None:
    manager = stand.start(sleep_seconds=3600)
    ticks = threading.Semaphore(0)
    observe = manager.keeper.observer.observe

    def observed(*arguments: Any) -> Any:
        ticks.release()
        return observe(*arguments)

    manager.keeper.observer.observe = observed  # type: ignore[method-assign]

    def ring_twice_and_stop() -> None:
        assert ticks.acquire(timeout=30)
        manager.manager.alarm.ring()
        assert ticks.acquire(timeout=30)
        manager.manager.alarm.stop()

    other = threading.Thread(target=ring_twice_and_stop)
    other.start()
    assert manager.manager.run() is False
    other.join()


def test_a_restart_is_due_after_its_time(stand: Stand) -> None:
    manager = stand.start(sleep_seconds=3600)
    manager.manager.restart_after_seconds = 0.05
    assert manager.manager.run() is True


def test_a_journal_that_cannot_be_written_is_said_once_and_stops_nothing(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    (stand.directory / "p.jsonl").mkdir()
    stand.shapes(1)
    manager = stand.start()
    with caplog.at_level(logging.ERROR, "manager"):
        manager.tick()
        stand.shapes(2)
        manager.tick()
    assert len(stand.backend.jobs) == 2
    assert [record.message[:35] for record in caplog.records] == [
        "the journal cannot be written: [Err"
    ]


def test_nothing_is_launched_when_the_ledger_cannot_be_written(stand: Stand) -> None:
    stand.shapes(1)
    manager = stand.start()
    assert stand.ledger is not None
    stand.ledger._database.execute("PRAGMA query_only = ON")
    with pytest.raises(sqlite3.OperationalError):
        manager.tick()
    assert stand.backend.jobs == []


def test_a_service_that_asked_for_a_pause_is_not_asked_to_launch_before_it_is_over(
    stand: Stand,
) -> None:
    manager = stand.start()
    stand.shapes(1)
    stand.backend.refusal = Throttled("too often", retry_after_seconds=90.0)
    manager.tick()
    assert stand.outcomes() == [Outcome.REFUSED]
    stand.backend.refusal = None
    stand.now += 89.0
    decision = manager.tick()
    assert decision.launch == 0
    assert any("asked for a pause" in reason.sentence for reason in decision.reasons)
    stand.now += 2.0
    assert manager.tick().launch == 1


def test_a_list_is_not_asked_for_again_before_the_pause_that_the_service_asked_for(
    stand: Stand,
) -> None:
    manager = stand.start(sleep_seconds=1.0)
    stand.backend.error = Throttled("too often", retry_after_seconds=90.0)
    assert manager.guarded_tick() == 90.0
    stand.backend.error = Throttled("too often")
    assert manager.guarded_tick() < 10.0


def end_last(stand: Stand, cause: EndCause) -> None:
    """The last launched worker ends."""
    stand.backend.jobs[-1] = replace(
        stand.backend.jobs[-1], state=JobState.ENDED, ended=stand.now, exit_code=1, cause=cause
    )


def test_a_manager_gives_up_when_more_workers_failed_than_may(stand: Stand) -> None:
    manager = stand.start(1)
    manager.keeper.failures_allowed = 1
    for cause in (EndCause.FAILED, EndCause.PREEMPTED, EndCause.KILLED_BY_US):
        manager.tick()
        end_last(stand, cause)
        stand.now += 3600
    manager.tick()
    end_last(stand, EndCause.FAILED)
    launched = len(stand.backend.launched)
    with pytest.raises(TooManyFailed, match="2 workers failed, 1 may"):
        manager.manager.run()
    assert len(stand.backend.launched) == launched


def test_a_worker_that_does_not_end_is_asked_again(stand: Stand) -> None:
    manager = stand.start()
    job = stand.backend.add(JobState.PENDING)
    manager.tick()
    stand.now += SURPLUS_SECONDS
    assert manager.tick().end == (job.id,)
    stand.now += ENDING_SECONDS - 1
    manager.tick()
    assert stand.backend.asked_to_end == [job.id]
    stand.now += 1
    manager.tick()
    assert stand.backend.asked_to_end == [job.id] * 2


def test_one_that_came_to_work_instead_of_ending_is_left_alone(stand: Stand) -> None:
    manager = stand.start()
    job = stand.backend.add(JobState.PENDING)
    manager.tick()
    stand.now += SURPLUS_SECONDS
    assert manager.tick().end == (job.id,)
    stand.backend.jobs = [replace(job, state=JobState.ACTIVE, started=stand.now)]
    stand.server.workers = [job.worker_id]
    stand.server.offers = {job.worker_id: {"run_uuids": ["0x1"]}}
    stand.now += ENDING_SECONDS
    manager.tick()
    assert stand.backend.asked_to_end == [job.id]


def test_any_number_may_fail_unless_it_is_said(stand: Stand) -> None:
    manager = stand.start(1)
    for _ in range(5):
        manager.tick()
        end_last(stand, EndCause.FAILED)
        stand.now += 3600
    assert manager.tick().launch == 1


def test_workers_that_nothing_needs_any_more_are_withdrawn_before_they_start(
    stand: Stand,
) -> None:
    manager = stand.start(low=1)
    first, second, third = (stand.backend.add(JobState.PENDING, age_seconds=a) for a in (9, 5, 1))
    assert manager.tick().end == ()
    stand.now += SURPLUS_SECONDS
    assert manager.tick().end == (third.id, second.id)
    assert manager.tick().end == (), "asked once"
    stand.backend.pass_away()
    assert manager.tick().launch == 0
    assert stand.backend.asked_to_end == [third.id, second.id]
    assert [job.id for job in stand.backend.jobs] == [first.id]


def test_what_cannot_be_ended_by_itself_is_not_asked_for_again(stand: Stand) -> None:
    manager = stand.start()
    job = stand.backend.add(JobState.PENDING)
    stand.backend.reluctance = Invalid("together only")
    manager.tick()
    stand.now += SURPLUS_SECONDS
    assert manager.tick().end == (job.id,)
    assert manager.tick().end == ()


def test_a_queue_that_breathes_keeps_its_workers(stand: Stand) -> None:
    manager = stand.start()
    stand.backend.add(JobState.PENDING)
    for _ in range(5):
        stand.shapes(0)
        assert manager.tick().end == ()
        stand.now += SURPLUS_SECONDS - 1
        stand.shapes(1)
        assert manager.tick().end == ()
        stand.now += SURPLUS_SECONDS - 1


def test_while_a_worker_shows_whether_failures_are_over_no_other_is_launched(
    stand: Stand,
) -> None:
    """An image that is not there must not cost a worker in every tick."""
    manager = stand.start(high=20)
    stand.shapes(10)
    assert manager.tick().launch == 10
    stand.now += 5
    for position, job in enumerate(stand.backend.jobs):
        stand.backend.jobs[position] = replace(
            job, state=JobState.ENDED, ended=stand.now, cause=EndCause.FAILED, why="no such image"
        )
    assert manager.tick().launch == 0
    stand.now += FIRST_QUARANTINE_SECONDS
    assert manager.tick().launch == 1
    stand.backend.jobs[-1] = replace(stand.backend.jobs[-1], state=JobState.PENDING, started=None)
    for _ in range(3):
        stand.now += 600
        assert "probation" in {r.code for r in manager.tick().reasons if r.held}
    assert len(stand.backend.launched) == 11
    probe = stand.backend.jobs[-1]
    stand.backend.jobs[-1] = replace(probe, state=JobState.ACTIVE, started=stand.now)
    stand.server.workers = [probe.worker_id]
    assert manager.tick().launch == 0, "it has come, and may die young"
    stand.now += SETTLED_SECONDS
    assert manager.tick().launch == 10


def end_with(stand: Stand, exit_code: int | None, cause: EndCause) -> str:
    """The last launched worker ends; its id."""
    stand.backend.jobs[-1] = replace(
        stand.backend.jobs[-1],
        state=JobState.ENDED,
        ended=stand.now,
        exit_code=exit_code,
        cause=cause,
    )
    return stand.backend.jobs[-1].worker_id


def test_the_server_hears_once_of_a_worker_that_was_killed(stand: Stand) -> None:
    stand.server.features = "tokens, checkout"
    manager = stand.start(low=1)
    manager.tick()
    killed = end_with(stand, 137, EndCause.KILLED_BY_OTHERS)
    manager.tick()
    manager.tick()
    assert stand.server.checked_out == [killed]


def test_a_worker_that_left_well_has_told_the_server_itself(stand: Stand) -> None:
    stand.server.features = "tokens, checkout"
    manager = stand.start(low=1)
    manager.tick()
    end_with(stand, 0, EndCause.FINISHED)
    manager.tick()
    assert stand.server.checked_out == []


def test_what_the_server_could_not_hear_is_told_again_also_by_the_next_manager(
    stand: Stand,
) -> None:
    stand.server.features = "tokens, checkout"
    manager = stand.start(low=1)
    manager.tick()
    killed = end_with(stand, None, EndCause.PREEMPTED)
    stand.server.checkout_status = 500
    with pytest.raises(ServerFault):
        manager.tick()
    stand.server.checkout_status = None
    manager.tick()
    assert stand.server.checked_out == [killed]
    stand.start(low=1).tick()
    assert stand.server.checked_out == [killed, killed]


def test_a_server_of_codalab_s_is_told_nothing_that_it_does_not_know(stand: Stand) -> None:
    manager = stand.start(low=1)
    manager.tick()
    end_with(stand, 137, EndCause.KILLED_BY_OTHERS)
    manager.tick()
    assert stand.server.checked_out == []
