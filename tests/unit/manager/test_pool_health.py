"""A manager whose pool is ill, over fakes: what it launches, ends, says and keeps."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pool_fakes import NOW, SolePool
from pool_stand import KilledError, Stand, kill_at

from backends.base import EndCause, Invalid, JobState, OutOfCapacity, Unreachable
from bundles.errors import BundlesError
from bundles.exits import WorkerExit
from manager.health import (
    FIRST_QUARANTINE_SECONDS,
    HOLDS_BEFORE_QUARANTINE_SECONDS,
    SLOW_START,
    WASTED_ALLOWED,
    Cause,
    Health,
    judge,
)
from manager.ledger import Launch, Stage
from manager.observe import LOOK_SECONDS

LIMIT = 600.0


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


def health(stand: Stand) -> Health:
    assert stand.ledger is not None
    return judge(stand.ledger.record("p"), stand.now)


def launches(stand: Stand) -> list[Launch]:
    """Oldest first."""
    assert stand.ledger is not None
    return stand.ledger.recent("p", 1000)[::-1]


def end_all(stand: Stand, exit_code: int | None, cause: EndCause, why: str = "") -> None:
    for position, job in enumerate(stand.backend.jobs):
        if job.state is not JobState.ENDED:
            stand.backend.jobs[position] = replace(
                job,
                state=JobState.ENDED,
                started=job.started if exit_code is not None else None,
                ended=stand.now,
                exit_code=exit_code,
                cause=cause,
                why=why,
            )


def wait_for_start(stand: Stand) -> None:
    """The last job has yet to start."""
    stand.backend.jobs[-1] = replace(stand.backend.jobs[-1], state=JobState.PENDING, started=None)


# Workers that never register


def test_a_worker_that_never_registers_is_ended_counted_and_its_words_kept(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    manager = stand.start(low=1)
    manager.tick()
    job = stand.backend.jobs[0]
    stand.backend.outputs[job.id] = "starting\nno route to host; token token-1\n"
    stand.backend.may_end_running = True
    stand.now += LIMIT
    assert manager.tick().end == ()
    stand.now += 1
    with caplog.at_level(logging.INFO, "manager"):
        assert manager.tick().end == (job.id,)
    (launch,) = launches(stand)
    assert launch.given_up == stand.now
    assert launch.last_words == "starting\nno route to host; token …"
    assert "its last words: no route to host; token …" in caplog.text
    assert health(stand).failures == {Cause.NEVER_REGISTERED: 1}
    assert stand.backend.asked_to_end == [job.id]
    stand.backend.outputs[job.id] += "Terminated"
    end_all(stand, 143, EndCause.KILLED_BY_US)
    manager.tick()
    assert launches(stand)[0].last_words == "starting\nno route to host; token …", "not its end"
    stand.backend.pass_away()
    stand.now += HOLDS_BEFORE_QUARANTINE_SECONDS[0]
    assert manager.tick().launch == 1


def test_a_worker_that_comes_late_is_kept_and_known_also_to_the_next_manager(
    stand: Stand,
) -> None:
    manager = stand.start(low=1)
    manager.tick()
    stand.now += LIMIT - 1
    stand.server.workers = [stand.backend.jobs[0].worker_id]
    manager.tick()
    assert launches(stand)[0].stage is Stage.REGISTERED
    stand.server.workers = []
    stand.shapes(1)
    stand.now += 10 * LIMIT
    assert manager.tick().end == ()
    assert stand.start(low=1).tick().end == (), "the server forgot it, which is another matter"


def test_the_age_of_a_worker_begins_when_its_job_does(stand: Stand) -> None:
    manager = stand.start(low=1)
    manager.tick()
    wait_for_start(stand)
    stand.now += 10 * 86400.0
    assert manager.tick().end == (), "a queue may hold it for days"
    stand.backend.jobs[0] = replace(stand.backend.jobs[0], state=JobState.ACTIVE, started=stand.now)
    stand.now += LIMIT
    assert manager.tick().end == ()


def test_where_the_server_does_not_show_workers_none_is_missed(stand: Stand) -> None:
    manager = stand.start(low=1)
    stand.server.workers_status = 403
    manager.tick()
    stand.now += 10 * LIMIT
    manager.tick()
    assert manager.tick().end == ()
    assert launches(stand)[0].stage is Stage.REGISTERED, "so long at work, it must have come"


def test_the_silence_of_the_server_is_not_held_against_the_workers(stand: Stand) -> None:
    manager = stand.start(low=1)
    manager.guarded_tick()
    stand.server.status = 503
    stand.now += LIMIT + 1
    manager.guarded_tick()
    stand.server.status = None
    assert manager.tick().end == ()
    stand.now += LIMIT + 1
    stand.backend.may_end_running = True
    assert len(manager.tick().end) == 1


@pytest.mark.parametrize(("step", "after"), [("give up", False), ("give up", True), ("end", False)])
def test_a_manager_killed_while_it_gives_a_worker_up_is_carried_on_by_the_next(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    manager = stand.start(low=1)
    manager.tick()
    stand.now += LIMIT + 1
    stand.backend.may_end_running = True
    owner, name = {
        "give up": (manager.keeper.ledger, "record_given_up"),
        "end": (stand.backend, "terminate"),
    }[step]
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, after=after)
        with pytest.raises(KilledError):
            manager.tick()
    stand.start(low=1).tick()
    assert stand.backend.asked_to_end == [stand.backend.jobs[0].id]
    assert health(stand).failures == {Cause.NEVER_REGISTERED: 1}


@pytest.mark.parametrize("name", ["record_started", "record_registered", "record_first_bundle"])
def test_what_a_killed_manager_did_not_write_down_the_next_one_sees(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    manager = stand.start(low=1)
    manager.tick()
    worker_id = stand.backend.jobs[0].worker_id
    stand.server.workers = [worker_id]
    stand.server.offers[worker_id] = {"run_uuids": ["0x1"]}
    stand.shapes(1)
    with monkeypatch.context() as patch:
        kill_at(patch, manager.keeper.ledger, name, after=False)
        with pytest.raises(KilledError):
            manager.tick()
    stand.start(low=1).tick()
    (launch, *_) = launches(stand)
    assert launch.started == NOW
    assert launch.stage is Stage.WORKING


# Workers that had come, and of which the server hears nothing any more


@pytest.fixture
def frozen(stand: Stand) -> SolePool:
    """A manager whose one worker has come, had a bundle, and hangs: the next look will tell."""
    stand.server.features = "tokens, drain"
    manager = stand.start(low=1)
    manager.tick()
    job = stand.backend.jobs[0]
    stand.server.workers = [job.worker_id]
    stand.server.offers[job.worker_id] = {"run_uuids": ["0x1"]}
    manager.tick()
    stand.server.workers = []
    stand.now += LOOK_SECONDS
    return manager


def test_a_worker_that_goes_silent_is_replaced_told_to_drain_and_ended_after_the_grace(
    stand: Stand, frozen: SolePool
) -> None:
    assert frozen.tick().drain == ()
    stand.now += LIMIT + 1
    decision = frozen.tick()
    (first,) = stand.backend.jobs
    assert (decision.drain, decision.reason("silent").held) == ((first.id,), True)
    assert stand.server.drained == [first.worker_id], "should it come back"
    assert frozen.tick().launch == 1
    assert len(stand.backend.jobs) == 2
    stand.server.workers = [stand.backend.jobs[1].worker_id]
    stand.backend.may_end_running = True
    stand.now += 3600.0
    assert frozen.tick().end == ()
    stand.now += 2 * LIMIT
    assert frozen.tick().end == (first.id,)
    end_all(stand, None, EndCause.KILLED_BY_US)
    frozen.tick()
    assert health(stand).failures == {}


def test_a_worker_that_comes_back_in_time_goes_on(stand: Stand, frozen: SolePool) -> None:
    worker_id = stand.backend.jobs[0].worker_id
    for _ in range(3):
        frozen.tick()
        stand.now += LIMIT - LOOK_SECONDS
        stand.server.workers = [worker_id]
        assert frozen.tick().drain == ()
        stand.server.workers = []
        stand.now += LOOK_SECONDS
    assert launches(stand)[0].draining is None


def test_silence_while_the_server_was_away_is_nobodys_fault(stand: Stand, frozen: SolePool) -> None:
    frozen.guarded_tick()
    stand.server.status = 503
    stand.now += 2 * LIMIT
    frozen.guarded_tick()
    stand.server.status = None
    stand.now += LIMIT
    frozen.guarded_tick()
    assert stand.server.drained == []
    stand.now += LOOK_SECONDS + 1
    frozen.guarded_tick()
    assert stand.server.drained == [stand.backend.jobs[0].worker_id]


@pytest.mark.parametrize("change", ["the server cannot tell them", "they were launched otherwise"])
def test_whom_nobody_could_tell_or_may_be_elsewhere_is_left_alone(
    stand: Stand, frozen: SolePool, change: str
) -> None:
    if change == "the server cannot tell them":
        stand.server.features = "tokens"
    else:
        stand.now += 1
        stand.settings = {"image": "another"}
        frozen = stand.start(low=1)
    for _ in range(3):
        stand.now += LIMIT
        assert frozen.tick().drain == ()


# Quarantine


@pytest.mark.parametrize(
    ("exit_code", "cause"),
    [(None, Cause.IMAGE), (WorkerExit.UNAUTHORIZED, Cause.CREDENTIALS), (1, Cause.DIED_YOUNG)],
)
def test_no_more_than_three_launches_are_wasted_when_a_tick_wants_a_hundred(
    stand: Stand, exit_code: int | None, cause: Cause, caplog: pytest.LogCaptureFixture
) -> None:
    manager = stand.start(high=100, is_proven=False)
    stand.shapes(100)
    with caplog.at_level(logging.INFO, "manager"):
        for _ in range(60):
            manager.tick()
            end_all(stand, exit_code, EndCause.FAILED, "No such image: w:1")
            stand.now += 5
    assert len(stand.backend.launched) == WASTED_ALLOWED
    ill = health(stand)
    assert (ill.is_quarantined, ill.cause, ill.wasted) == (True, cause, WASTED_ALLOWED)
    assert caplog.text.count("p: quarantined for another") == 1
    stand.now += FIRST_QUARANTINE_SECONDS
    assert manager.tick().launch == 1
    worker_id = stand.backend.jobs[-1].worker_id
    stand.server.workers = [worker_id]
    stand.server.offers[worker_id] = {"run_uuids": ["0x1"]}
    with caplog.at_level(logging.INFO, "manager"):
        assert manager.tick().launch == 99
    assert "p: a launch has worked, it is well again" in caplog.text


def test_a_new_pool_starts_with_two_and_goes_on_when_one_has_come(stand: Stand) -> None:
    manager = stand.start(high=10, is_proven=False)
    stand.shapes(10)
    assert [manager.tick().launch for _ in range(2)] == [SLOW_START, 0]
    stand.server.workers = [stand.backend.jobs[0].worker_id]
    assert manager.tick().launch == 10 - SLOW_START


def test_a_quarantine_outlives_the_manager_and_ends_with_another_configuration(
    stand: Stand,
) -> None:
    manager = stand.start(high=100, is_proven=False)
    stand.shapes(100)
    for _ in range(30):
        manager.tick()
        end_all(stand, None, EndCause.FAILED)
        stand.now += 5
    assert stand.start(high=100, is_proven=False).tick().launch == 0
    assert "never started" in health(stand).reason
    stand.settings = {"image": "another"}
    assert stand.start(high=100, is_proven=False).tick().launch == SLOW_START


def test_a_pool_in_quarantine_withdraws_what_has_not_started_but_one(stand: Stand) -> None:
    manager = stand.start(high=10)
    stand.shapes(10)
    manager.tick()
    jobs = stand.backend.jobs
    for position, job in enumerate(jobs):
        jobs[position] = replace(job, state=JobState.PENDING, started=None, created=NOW + position)
    for position in range(3):
        jobs[position] = replace(jobs[position], state=JobState.ENDED, ended=NOW, exit_code=2)
    decision = manager.tick()
    assert decision.launch == 0
    assert [*decision.end, jobs[3].id] == [job.id for job in reversed(jobs[3:])]
    stand.backend.pass_away()
    stand.now += 10 * FIRST_QUARANTINE_SECONDS
    assert (manager.tick().launch, manager.tick().end) == (0, ()), "the probe is on its way"


def test_what_vanishes_before_it_registered_is_a_failure_unless_we_ended_it(stand: Stand) -> None:
    manager = stand.start(low=1)
    manager.tick()
    stand.backend.jobs.clear()
    assert manager.tick().launch == 0
    assert health(stand).failures == {Cause.NEVER_REGISTERED: 1}


def test_what_was_withdrawn_and_vanishes_is_no_failure(stand: Stand) -> None:
    manager = stand.start()
    stand.shapes(1)
    manager.tick()
    wait_for_start(stand)
    stand.shapes(0)
    for _ in range(3):
        manager.tick()
        stand.now += 60
    assert stand.backend.asked_to_end
    stand.backend.pass_away()
    manager.tick()
    assert launches(stand)[0].cause is EndCause.KILLED_BY_US
    assert health(stand).cause is None


def test_a_worker_that_had_a_bundle_when_it_died_is_not_the_pool_s_failure(stand: Stand) -> None:
    """Between two looks a worker can come, take a bundle that kills it, and be gone."""
    stand.server.features = "tokens, checkout"
    stand.server.restaged = ["0x1"]
    manager = stand.start(low=1)
    for _ in range(5):
        assert manager.tick().launch == 1
        end_all(stand, 137, EndCause.FAILED)
        stand.now += 5
    assert health(stand).cause is None


def test_stock_out_is_tried_again_ever_later_and_wastes_nothing(stand: Stand) -> None:
    manager = stand.start(high=100)
    stand.shapes(100)
    stand.backend.refusal = OutOfCapacity("no such machine")
    tries = 0
    for _ in range(360):
        tries += manager.tick().launch > 0
        stand.now += 5
    assert 8 <= tries <= 14
    ill = health(stand)
    assert (ill.wasted, ill.is_quarantined, ill.cause) == (0, False, Cause.STOCK_OUT)
    stand.backend.refusal = None
    stand.now += 300
    assert [manager.tick().launch for _ in range(2)] == [1, 99]


def test_a_service_that_never_answers_a_launch_is_not_asked_in_every_tick(stand: Stand) -> None:
    manager = stand.start(high=10)
    stand.shapes(10)
    stand.backend.refusal = Unreachable("timed out")
    tries = 0
    for _ in range(60):
        tries += manager.tick().launch > 0
        stand.backend.jobs.clear()  # nothing ever came of it
        stand.now += 5
    assert 3 <= tries <= 8
    assert health(stand).cause is Cause.UNREACHABLE


def test_outputs_that_cannot_be_had_stop_nothing(stand: Stand) -> None:
    manager = stand.start(low=1)
    manager.tick()
    end_all(stand, 1, EndCause.FAILED)
    manager.tick()
    assert launches(stand)[0].last_words == ""


def test_a_refusal_names_its_cause(stand: Stand) -> None:
    manager = stand.start(low=1)
    stand.backend.refusal = Invalid("pull access denied for w")
    manager.tick()
    held = manager.tick().reason("held").sentence
    assert "pull access denied for w" in held
    assert health(stand).cause is Cause.IMAGE


def test_no_worker_is_ended_while_the_server_is_away(stand: Stand) -> None:
    manager = stand.start(low=1)
    manager.tick()
    stand.now += 10 * LIMIT
    stand.server.status = 503
    with pytest.raises(BundlesError):
        manager.tick()
    assert stand.backend.asked_to_end == []
