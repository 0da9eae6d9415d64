"""States: pending, active, ended; since when, and why."""

from __future__ import annotations

from backends.base import EndCause, Job, JobState
from backends.conformance.harness import Circumstance
from backends.conformance.stand import Case, Stand, needs


class States(Case):
    """Every test is a promise of what `Backend.list_jobs` says of a job."""

    def test_a_pending_job_says_what_it_waits_for_and_then_runs(self, stand: Stand) -> None:
        needs(stand.harness, Circumstance.HELD)
        with stand.harness.during(Circumstance.HELD):
            job = stand.launch_one()
            stand.until(lambda: bool(stand.job(job.key).why), "a pending job says why")
            waiting = stand.job(job.key)
            assert waiting.state is JobState.PENDING
            assert (waiting.started, waiting.ended) == (None, None)
            assert (waiting.exit_code, waiting.cause) == (None, None)
        stand.start([job])

    def test_a_job_whose_worker_runs_is_active(self, stand: Stand) -> None:
        job = stand.run_one()
        assert job.state is JobState.ACTIVE
        assert job.started is not None
        assert 0 < job.created <= job.started + 1  # services round to seconds
        assert (job.ended, job.exit_code, job.cause) == (None, None, None)

    def test_a_worker_that_leaves_in_good_order_has_finished(self, stand: Stand) -> None:
        job = stand.run_one()
        stand.harness.finish(job, 0)
        ended = stand.until_over(job)
        if ended is not None:
            _is_whole(ended)
            assert (ended.cause, ended.exit_code) == (EndCause.FINISHED, 0)

    def test_a_worker_that_leaves_with_an_error_has_failed(self, stand: Stand) -> None:
        job = stand.run_one()
        stand.harness.finish(job, 3)
        ended = stand.until_over(job)
        if ended is not None:
            _is_whole(ended)
            assert (ended.cause, ended.exit_code) == (EndCause.FAILED, 3)

    def test_a_job_that_we_ended_was_killed_by_us(self, stand: Stand) -> None:
        job = stand.run_one()
        assert stand.backend.terminate([job.id]) == {job.id: None}
        ended = stand.until_over(job)
        if ended is not None:
            _is_whole(ended)
            assert ended.cause is EndCause.KILLED_BY_US

    def test_a_job_that_another_ended_was_not_killed_by_us(self, stand: Stand) -> None:
        needs(stand.harness, Circumstance.KILLED)
        job = stand.run_one()
        stand.harness.kill(job)
        ended = stand.until_over(job)
        if ended is not None:
            _is_whole(ended)
            assert ended.cause is EndCause.KILLED_BY_OTHERS
            assert ended.why

    def test_a_job_whose_machine_was_taken_back_was_preempted_or_waits_again(
        self, stand: Stand
    ) -> None:
        needs(stand.harness, Circumstance.PREEMPTED)
        job = stand.run_one()
        stand.harness.preempt(job)
        seen: list[Job] = []

        def is_known() -> bool:
            seen[:] = [other for other in stand.backend.list_jobs() if other.id == job.id]
            return not seen or seen[0].state is not JobState.ACTIVE

        stand.until(is_known, "the preemption is known")
        if stand.backend.capabilities.ended_listed_seconds:
            assert seen, "a job whose machine was taken back is in the list"
        for lost in seen:
            assert lost.why
            assert lost.state is JobState.PENDING or lost.cause is EndCause.PREEMPTED


def _is_whole(ended: Job) -> None:
    assert ended.state is JobState.ENDED
    assert ended.ended is not None
    assert ended.started is not None
    assert ended.created <= ended.ended + 1  # services round to seconds
    assert ended.why or ended.exit_code is not None
