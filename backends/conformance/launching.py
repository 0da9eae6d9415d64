"""Launching: one job a request, its own command line, and never two jobs of one key."""

from __future__ import annotations

from pathlib import Path

from backends.base import (
    Idempotency,
    Invalid,
    Job,
    JobState,
    LaunchKey,
    LaunchRequest,
    Preview,
    Unreachable,
)
from backends.conformance.harness import Circumstance
from backends.conformance.stand import Case, Stand, jobs_of, needs

WORDS = ("it's", "two words", "$HOME; *", '"', "`ls`", "\\", "100%", "@", "ü")


class Launching(Case):
    """Every test is a promise of `Backend.launch`."""

    def test_every_request_becomes_a_job_and_just_those_are_listed(self, stand: Stand) -> None:
        assert stand.backend.list_jobs() == []
        requests = stand.requests(3)
        jobs = jobs_of(stand.backend.launch(requests))
        assert [job.key for job in jobs] == [request.key for request in requests]
        assert [job.worker_id for job in jobs] == [str(request.key) for request in requests]
        assert all(job.state is not JobState.ENDED for job in jobs)
        listed = stand.listed(job.key for job in jobs)
        assert {job.id for job in listed.values()} == {job.id for job in jobs}
        assert {job.worker_id for job in listed.values()} == {job.worker_id for job in jobs}

    def test_a_later_launch_adds_to_the_list(self, stand: Stand) -> None:
        first, second = stand.launch(2), stand.launch(1)
        ids = {job.id for job in [*first, *second]}
        listed = stand.listed(job.key for job in [*first, *second])
        assert {job.id for job in listed.values()} == ids
        assert len(ids) == 3

    def test_launching_nothing_does_nothing(self, stand: Stand) -> None:
        assert stand.backend.launch([]) == []
        assert stand.backend.list_jobs() == []

    def test_every_worker_runs_its_own_command_line_word_by_word(self, stand: Stand) -> None:
        needs(stand.harness, Circumstance.RUNS)
        jobs = jobs_of(stand.backend.launch(stand.requests(3, words=WORDS)))
        stand.start(jobs)
        for job in jobs:
            said = stand.logs(job).splitlines()
            assert [line for line in said if line.startswith(("worker ", "word "))] == [
                f"worker {job.key}",
                *(f"word {word}" for word in WORDS),
            ]

    def test_requests_that_are_not_alike_are_launched_as_they_are(self, stand: Stand) -> None:
        needs(stand.harness, Circumstance.RUNS)
        requests = [*stand.requests(2, words=["a"]), *stand.requests(1, words=["b"])]
        jobs = jobs_of(stand.backend.launch(requests))
        stand.start(jobs)
        for job, word in zip(jobs, "aab", strict=True):
            assert f"worker {job.key}\nword {word}\n" in stand.logs(job)

    def test_a_key_of_another_pool_is_refused_and_the_others_are_launched(
        self, stand: Stand
    ) -> None:
        good, other = stand.requests(2)
        stranger = LaunchRequest(LaunchKey.make("another", 1), other.argv, other.resources)
        results = stand.backend.launch([good, stranger, other])
        assert [type(result) for result in results] == [Job, Invalid, Job]
        assert set(stand.listed([good.key, other.key])) == {good.key, other.key}

    # Never two jobs of one key

    def test_a_key_that_is_launched_again_is_the_job_that_it_has(self, stand: Stand) -> None:
        requests = stand.requests(3)
        first = jobs_of(stand.backend.launch(requests))
        for manager in (stand, stand.restarted()):
            again = jobs_of(manager.backend.launch(requests))
            assert [job.id for job in again] == [job.id for job in first]
        listed = stand.listed(job.key for job in first)
        assert {job.id for job in listed.values()} == {job.id for job in first}

    def test_a_key_whose_job_has_ended_is_not_launched_again(self, stand: Stand) -> None:
        (request,) = stand.requests(1)
        (job,) = jobs_of(stand.backend.launch([request]))
        stand.start([job])
        stand.harness.finish(job, 0)
        if stand.until_over(job) is None:
            return  # a service that forgets its jobs at once cannot know the key
        (again,) = jobs_of(stand.backend.launch([request]))
        assert (again.id, again.state) == (job.id, JobState.ENDED)

    def test_a_lost_reply_makes_no_second_worker(self, stand: Stand) -> None:
        needs(stand.harness, Circumstance.REPLY_LOST)
        requests = stand.requests(3)
        with stand.harness.during(Circumstance.REPLY_LOST):
            results = stand.backend.launch(requests)
        assert all(isinstance(result, Job | Unreachable) for result in results), results
        _launched_once(stand, requests)

    def test_a_lost_reply_to_a_manager_that_dies_makes_no_second_worker(self, stand: Stand) -> None:
        needs(stand.harness, Circumstance.REPLY_LOST)
        requests = stand.requests(3)
        with stand.harness.during(Circumstance.REPLY_LOST):
            stand.backend.launch(requests)
        _launched_once(stand.restarted(), requests)

    # Dry runs

    def test_a_dry_run_shows_what_it_would_do_and_does_nothing(
        self, stand: Stand, tmp_path: Path
    ) -> None:
        before = sorted(tmp_path.rglob("*"))
        calls = stand.harness.calls()
        (request,) = stand.requests(1, words=["--shown"], secrets={"HUSH": "not to be shown"})
        (preview,) = stand.backend.launch([request], dry_run=True)
        assert isinstance(preview, Preview), preview
        assert "--shown" in preview.text
        assert "not to be shown" not in preview.text
        if Circumstance.COUNTED not in stand.harness.impossible:
            assert stand.harness.calls() == calls
        assert sorted(tmp_path.rglob("*")) == before
        assert stand.backend.list_jobs() == []

    def test_capabilities_are_numbers_that_a_manager_can_use(self, stand: Stand) -> None:
        capabilities = stand.backend.capabilities
        assert capabilities.launches_per_call >= 1
        assert capabilities.idempotency in Idempotency
        assert capabilities.ended_listed_seconds >= 0
        assert capabilities.listing_lag_seconds >= 0


def _launched_once(stand: Stand, requests: list[LaunchRequest]) -> None:
    """Each request has one job, once the same were launched again as often as it takes."""
    keys = [request.key for request in requests]
    stand.until(lambda: bool(stand.backend.list_jobs()), "what was accepted is listed")
    accepted = stand.listed([])
    assert set(accepted) <= set(keys)
    again: list[object] = []

    def found() -> bool:
        again[:] = stand.backend.launch(requests)
        assert all(isinstance(result, Job | Unreachable) for result in again), again
        return all(isinstance(result, Job) for result in again)

    stand.until(found, "the jobs of the lost reply are found")
    listed = stand.listed(keys)
    assert [job.id for job in again if isinstance(job, Job)] == [listed[key].id for key in keys]
    assert set(listed) == set(keys)
    for key, job in accepted.items():
        assert listed[key].id == job.id
