"""One manager's place in a test: its context, its backend, and what it launched."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from backends.base import Context, Job, JobState, LaunchKey, LaunchRequest, LaunchResult
from backends.conformance.harness import Circumstance, Harness

POOL = "conformance"


class Stand:
    """A backend of one owner and pool on the harness's service."""

    def __init__(self, harness: Harness, context: Context) -> None:
        self.harness = harness
        self.context = context
        self.backend = harness.backend(context)
        self._sequence = 1

    def restarted(self) -> Stand:
        """Another manager of the same installation, after this one died."""
        other = Stand(self.harness, self.context)
        other._sequence = self._sequence
        return other

    def beside(self, directory: Path, *, owner: str = "", pool: str = "") -> Stand:
        """A manager with another directory, and another mark or pool."""
        context = replace(
            self.context,
            directory=directory,
            owner=owner or self.context.owner,
            pool=pool or self.context.pool,
        )
        return Stand(self.harness, context)

    # What it does

    def requests(
        self, number: int, *, words: Sequence[str] = (), secrets: dict[str, str] | None = None
    ) -> list[LaunchRequest]:
        keys = LaunchKey.make_row(self.context.pool, self._sequence, number)
        self._sequence += number
        argv = (*self.harness.worker, *words)
        resources = self.harness.resources
        return [LaunchRequest(key, argv, resources, secrets=secrets or {}) for key in keys]

    def launch(self, number: int = 1) -> list[Job]:
        return jobs_of(self.backend.launch(self.requests(number)))

    def launch_one(self) -> Job:
        return self.launch()[0]

    def run_one(self) -> Job:
        """A job whose worker runs."""
        job = self.launch_one()
        self.start([job])
        return self.job(job.key)

    def start(self, jobs: Iterable[Job]) -> None:
        """Returns once their workers run."""
        started = list(jobs)
        for job in started:
            self.harness.start(job)
        self.until(
            lambda: all(self._state(job) is JobState.ACTIVE for job in started), "workers run"
        )
        if Circumstance.RUNS not in self.harness.impossible:
            # A shell that has yet to set its trap dies of what it should catch.
            self.until(lambda: all("secret " in self.logs(job) for job in started), "workers speak")

    def logs(self, job: Job) -> str:
        return self.backend.logs(job.id)

    # What it sees

    def listed(self, keys: Iterable[LaunchKey | None]) -> dict[LaunchKey | None, Job]:
        """The list by key, once the jobs of these keys are in it. It has no key twice."""
        wanted = set(keys)
        found: dict[LaunchKey | None, Job] = {}

        def look() -> bool:
            nonlocal found
            jobs = self.backend.list_jobs()
            found = {job.key: job for job in jobs}
            assert len(found) == len(jobs), f"two jobs of one key: {jobs}"
            assert len({job.id for job in jobs}) == len(jobs), f"two jobs of one id: {jobs}"
            return wanted <= set(found)

        if self.backend.capabilities.listing_lag_seconds:
            self.until(look, "launched jobs are listed")
        else:
            assert look(), f"not listed: {wanted - set(found)}"
        return found

    def job(self, key: LaunchKey | None) -> Job:
        return self.listed([key])[key]

    def _state(self, job: Job) -> JobState | None:
        states = [other.state for other in self.backend.list_jobs() if other.id == job.id]
        return states[0] if states else None

    def is_over(self, job: Job) -> bool:
        """Whether the job has ended, listed or not."""
        return self._state(job) in (JobState.ENDED, None)

    def until_over(self, job: Job) -> Job | None:
        """The job once it has ended; None where the service does not list ended ones."""
        self.until(lambda: self.is_over(job), f"{job.id} ends")
        if not self.backend.capabilities.ended_listed_seconds:
            return None
        return self.job(job.key)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self.harness.patience_seconds
        while not condition():
            assert time.monotonic() < deadline, f"this did not come about: {what}"
            self.harness.pause()


def jobs_of(results: Sequence[LaunchResult]) -> list[Job]:
    """The results as jobs, which all of them must be."""
    jobs = [result for result in results if isinstance(result, Job)]
    assert len(jobs) == len(results), f"not launched: {results}"
    return jobs


def needs(harness: Harness, *circumstances: Circumstance) -> None:
    """Leave the test out, saying why, where one of these cannot exist."""
    for circumstance in circumstances:
        reason = harness.impossible.get(circumstance)
        if reason is not None:
            pytest.skip(f"not possible here that {circumstance}: {reason}")


class Case:
    """The fixtures of every part of the suite."""

    @pytest.fixture
    def harness(self) -> Harness:
        raise NotImplementedError("give the suite a harness: override this fixture")

    @pytest.fixture
    def stand(self, harness: Harness, tmp_path: Path) -> Stand:
        """A manager that was just installed."""
        context = Context(
            directory=tmp_path / "jobs" / POOL,
            owner=secrets.token_hex(8),
            pool=POOL,
            environment={"PATH": os.environ.get("PATH", os.defpath)},
        )
        return Stand(harness, context)
