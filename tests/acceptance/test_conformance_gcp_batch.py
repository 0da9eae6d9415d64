"""GCP Batch, as its published API describes it, keeps the promises that every backend keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fakes.gcp.refusal import Refusal
from fakes.gcp.wire import Disconnected
from gcp_stand import PARENT, Stand
from google.cloud.batch_v1 import types

from backends import patience
from backends.base import Backend, Context, Invalid, Job, JobState, LaunchRequest, Unreachable, rows
from backends.conformance import Circumstance, Conformance, Harness, leave_word, stand_in
from backends.conformance.stand import Stand as ConformanceStand
from backends.gcp_batch import connection, definition, mark
from backends.gcp_batch.backend import GcpBatch
from backends.gcp_batch.options import GcpSettings

TASK_STATE = types.TaskStatus.State


class Gcp(Harness):
    """The service on loopback; its tasks are processes."""

    impossible: ClassVar = {}
    retry_after_seconds = 0.25
    unknown_id = "w-conformance-99-0badcafe:0"
    more_than_a_page = 3

    def __init__(self, directory: Path, transport: str, **options: Any) -> None:
        self._words = directory / "words"
        self._words.mkdir()
        self._options = options
        self.stand = Stand(directory, runs=True, transport=transport)
        self.worker = stand_in(self._words)

    def backend(self, context: Context) -> Backend:
        return GcpBatch(context, GcpSettings.read(self.stand.settings(**self._options)))

    def finish(self, job: Job, exit_code: int) -> None:
        leave_word(self._words, job.key, exit_code)

    def kill(self, job: Job) -> None:
        self.stand.cloud.cancel_job(_name(job.id))

    def preempt(self, job: Job) -> None:
        self.stand.cloud.preempt(_name(job.id), int(job.id.rpartition(":")[2]))

    @contextmanager
    def during(self, circumstance: Circumstance) -> Iterator[None]:
        cloud, wire = self.stand.cloud, self.stand.wire
        match circumstance:
            case Circumstance.HELD:
                cloud.is_held = True
                yield
                cloud.let_go()
            case Circumstance.OUT_OF_CAPACITY:
                cloud.has_machines = False
                yield
                cloud.has_machines = True
            case Circumstance.QUOTA_EXCEEDED:
                cloud.has_quota = False
                yield
                cloud.has_quota = True
            case Circumstance.UNAUTHORIZED:
                with wire.faulty(before=_always(Refusal("PERMISSION_DENIED", "No.", "IAM"))):
                    yield
            case Circumstance.LIST_TORN:
                cloud.page_limit = 2
                with wire.faulty(before=_second_page):
                    yield
                cloud.page_limit = 1000
            case Circumstance.REPLY_LOST:
                with wire.faulty(after=_created):
                    yield
            case Circumstance.UNREACHABLE:
                with wire.faulty(before=_always(Disconnected())):
                    yield
            case Circumstance.HANGING:
                with wire.faulty(before=wire.hang):
                    yield
            case Circumstance.THROTTLED:
                with wire.faulty(before=_always(self._busy)):
                    yield
            case Circumstance.BRIEFLY_THROTTLED:
                with wire.faulty(before=_twice(self._busy)):
                    yield
            case _:
                raise NotImplementedError(circumstance)

    @property
    def _busy(self) -> Refusal:
        return Refusal(
            "RESOURCE_EXHAUSTED",
            "Quota exceeded for quota metric 'Read requests' per minute",
            "RATE_LIMIT_EXCEEDED",
            self.retry_after_seconds,
        )

    def plant_neighbours(self, context: Context) -> list[str]:
        """Jobs of the same region: one of a person, some with labels and names like ours."""
        first = f"{context.pool}-7-0123abcd"
        ours = mark.labels(context)
        owner = {mark.OWNER_VARIABLE: context.owner}
        strange = {
            "by-hand": ({}, {}),
            f"w-{mark.pool_label(context.pool)}-7-0123abcd": (ours, {}),
            "copied": (ours, {mark.LAUNCH_VARIABLE: first, **owner}),
            "another-owner": (
                {**ours, mark.OWNER_LABEL: "f" * 16},
                {mark.LAUNCH_VARIABLE: first, mark.OWNER_VARIABLE: "f" * 16},
            ),
            "another-case": (ours, {mark.LAUNCH_VARIABLE: first.upper(), **owner}),
        }
        for job_id, (labels, variables) in strange.items():
            container = types.Runnable.Container(
                image_uri="busybox", entrypoint="/bin/sh", commands=["-c", "sleep 1000"]
            )
            spec = types.TaskSpec(
                runnables=[types.Runnable(container=container)],
                environment=types.Environment(variables=variables),
            )
            group = types.TaskGroup(task_spec=spec, task_count=1)
            self.stand.cloud.create_job(
                types.CreateJobRequest(
                    parent=PARENT,
                    job_id=job_id,
                    job=types.Job(task_groups=[group], labels=labels),
                )
            )
        return [f"{job_id}:0" for job_id in strange]

    def fill(self, backend: Backend, requests: Sequence[LaunchRequest]) -> None:
        """Made as the service makes them, without asking it for each."""
        options = GcpSettings.read(self.stand.settings(**self._options))
        context = backend._context  # type: ignore[attr-defined]
        for row in rows(requests, options.workers_per_job):
            job = types.Job(definition.job(row, context, options))
            self.stand.cloud.create_job(
                types.CreateJobRequest(parent=PARENT, job_id=mark.job_id(row[0].key), job=job)
            )

    def is_untouched(self, job_id: str) -> bool:
        job = self.stand.cloud.get_job(_name(job_id))
        return bool(job.status.state is types.JobStatus.State.RUNNING)

    def calls(self) -> int:
        return len(self.stand.wire.requests)

    def sent(self) -> str:
        return "\n".join(f"{r.method} {r.text}" for r in self.stand.wire.requests)


def _name(job_id: str) -> str:
    return f"{PARENT}/jobs/{job_id.rpartition(':')[0]}"


def _always(answer: Exception) -> Any:
    def fault(method: str, request: Any) -> None:
        raise answer

    return fault


def _twice(answer: Exception) -> Any:
    left = [answer, answer]

    def fault(method: str, request: Any) -> None:
        if left:
            raise left.pop()

    return fault


def _second_page(method: str, request: Any) -> None:
    if method == "ListJobs" and request.page_token:
        raise Refusal("INTERNAL", "Internal error encountered.")


def _created(method: str, request: Any) -> None:
    if method == "CreateJob":
        raise Disconnected


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CALL_SECONDS", 0.5)
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.05)


@contextmanager
def harnessed(directory: Path, transport: str, **options: Any) -> Iterator[Gcp]:
    made = Gcp(directory, transport, **options)
    try:
        yield made
    finally:
        made.stand.close()


class TestGcpBatch(Conformance):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[Gcp]:
        with harnessed(tmp_path, "grpc") as made:
            made.launched_at_scale = 100  # a call each
            yield made


class TestGcpBatchOverRest(Conformance):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[Gcp]:
        with harnessed(tmp_path, "rest") as made:
            made.launched_at_scale = 100
            yield made


class TestGcpBatchInRows(Conformance):
    """With --workers-per-job: one call launches many, which are ended together."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[Gcp]:
        with harnessed(tmp_path, "grpc", workers_per_job=1000) as made:
            yield made

    def test_a_job_is_ended_alone_among_those_of_one_launch(self, stand: ConformanceStand) -> None:
        """It cannot be: the API has no way to end a task. So that is said, and all live on."""
        jobs = stand.launch(3)
        stand.start(jobs)
        (error,) = stand.backend.terminate([jobs[1].id]).values()
        assert isinstance(error, Invalid)
        assert "--workers-per-job 1" in str(error)
        listed = stand.listed(job.key for job in jobs)
        assert {job.state for job in listed.values()} == {JobState.ACTIVE}

    def test_a_list_that_fails_before_its_end_is_an_error(self, stand: ConformanceStand) -> None:
        """A launch is one entry of the list here."""
        for _ in range(stand.harness.more_than_a_page):
            stand.launch_one()
        with stand.harness.during(Circumstance.LIST_TORN), pytest.raises(Unreachable):
            stand.backend.list_jobs()

    def test_a_job_that_waits_is_ended_before_it_ever_runs(self, stand: ConformanceStand) -> None:
        """All of a launch at once."""
        with stand.harness.during(Circumstance.HELD):
            jobs = stand.launch(2)
            ended = stand.backend.terminate([job.id for job in jobs])
            assert ended == {job.id: None for job in jobs}
            for job in jobs:
                over = stand.until_over(job)
                assert over is not None
                assert over.started is None
