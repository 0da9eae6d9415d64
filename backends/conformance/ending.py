"""Ending jobs, and reading what their workers said."""

from __future__ import annotations

import pytest

from backends.base import EndCause, Invalid, JobState
from backends.conformance.harness import Circumstance
from backends.conformance.stand import Case, Stand, needs


class Ending(Case):
    """Every test is a promise of `Backend.terminate` or `Backend.logs`."""

    def test_a_job_is_ended_alone_among_those_of_one_launch(self, stand: Stand) -> None:
        jobs = stand.launch(3)
        stand.start(jobs)
        assert stand.backend.terminate([jobs[1].id]) == {jobs[1].id: None}
        stand.until_over(jobs[1])
        listed = stand.listed([jobs[0].key, jobs[2].key])
        assert listed[jobs[0].key].state is JobState.ACTIVE
        assert listed[jobs[2].key].state is JobState.ACTIVE

    def test_many_are_ended_with_one_word(self, stand: Stand) -> None:
        jobs = stand.launch(3)
        stand.start(jobs)
        assert stand.backend.terminate([job.id for job in jobs]) == {job.id: None for job in jobs}
        for job in jobs:
            stand.until_over(job)

    def test_a_job_that_waits_is_ended_before_it_ever_runs(self, stand: Stand) -> None:
        needs(stand.harness, Circumstance.HELD)
        with stand.harness.during(Circumstance.HELD):
            ended, kept = stand.launch(2)
            assert stand.backend.terminate([ended.id]) == {ended.id: None}
            over = stand.until_over(ended)
            assert stand.job(kept.key).state is JobState.PENDING
        if over is not None:
            assert (over.started, over.cause) == (None, EndCause.KILLED_BY_US)
        stand.start([kept])
        assert stand.is_over(ended)

    def test_ending_again_and_ending_what_is_gone_is_success(self, stand: Stand) -> None:
        asked, gone = stand.launch(2)
        stand.start([asked, gone])
        stand.harness.finish(gone, 0)
        stand.until_over(gone)
        for _ in range(2):
            assert stand.backend.terminate([asked.id, gone.id]) == {asked.id: None, gone.id: None}
        stand.until_over(asked)
        assert stand.backend.terminate([asked.id, gone.id]) == {asked.id: None, gone.id: None}
        ended = stand.until_over(gone)
        if ended is not None:
            assert ended.cause is EndCause.FINISHED

    def test_ending_what_never_was_harms_nobody(self, stand: Stand) -> None:
        job = stand.run_one()
        unknown = stand.harness.unknown_id
        (error,) = stand.backend.terminate([unknown]).values()
        assert error is None or isinstance(error, Invalid)
        assert stand.job(job.key).state is JobState.ACTIVE

    def test_ending_nothing_does_nothing(self, stand: Stand) -> None:
        assert stand.backend.terminate([]) == {}

    # What a worker said

    def test_what_a_worker_says_can_be_read_while_it_runs_and_after(self, stand: Stand) -> None:
        needs(stand.harness, Circumstance.RUNS)
        job = stand.run_one()
        assert f"worker {job.key}\n" in stand.logs(job)
        stand.harness.finish(job, 0)
        stand.until_over(job)
        assert f"worker {job.key}\n" in stand.logs(job)

    def test_a_job_that_never_was_has_no_log(self, stand: Stand) -> None:
        with pytest.raises(Invalid):
            stand.backend.logs(stand.harness.unknown_id)
