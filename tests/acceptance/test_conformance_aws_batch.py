"""AWS Batch keeps the promises of a backend: boto3 at a socket, jobs that really run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes.aws.server import FakeAws, Fault, moto

from backends.aws_batch.backend import AwsBatch
from backends.aws_batch.connection import Patience
from backends.aws_batch.mark import KEY_TAG, OWNER_TAG, POOL_TAG, definition_name
from backends.aws_batch.options import AwsSettings
from backends.base import Context, Job, JobResources
from backends.conformance import Circumstance, Conformance, Harness, leave_word, stand_in

PATIENCE = Patience(
    connect_seconds=1.0,
    read_seconds=2.0,
    attempts=4,
    first_wait_seconds=0.05,
    longest_wait_seconds=1.0,
    longest_seconds=2.0,
)


class AwsHarness(Harness):
    resources = JobResources(cpus=1, gpus=0, memory_bytes=2048 * 1024**2)
    retry_after_seconds = 0.5
    unknown_id = "00000000-0000-0000-0000-000000000000"
    impossible: Mapping[Circumstance, str] = {
        Circumstance.QUOTA_EXCEEDED: (
            "a queue takes a million jobs; jobs above the account's vCPUs wait in it"
        )
    }

    def __init__(self, aws: FakeAws, directory: Path) -> None:
        self.aws = aws
        self.batch = aws.batch
        self.directory = directory
        self.worker = stand_in(directory)
        self.role = aws.add_role("execution")
        aws.batch.add_queue("workers", "FARGATE_SPOT")

    def backend(self, context: Context) -> AwsBatch:
        settings = AwsSettings(
            image="workers:1",
            job_queue="workers",
            region="us-east-1",
            endpoint=self.aws.url,
            execution_role=self.role,
        )
        return AwsBatch(context, settings, patience=PATIENCE)

    def finish(self, job: Job, exit_code: int) -> None:
        leave_word(self.directory, job.key, exit_code)

    def kill(self, job: Job) -> None:
        self.aws.client("batch").terminate_job(jobId=job.id, reason="no longer wanted")

    def preempt(self, job: Job) -> None:
        self.batch.reclaim(job.id)

    @contextmanager
    def during(self, circumstance: Circumstance) -> Iterator[None]:
        match circumstance:
            case Circumstance.HELD:
                with self._held(None):
                    yield
            case Circumstance.OUT_OF_CAPACITY:
                with self._held(
                    "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - no instance is to be had"
                ):
                    yield
            case Circumstance.REPLY_LOST:
                with self.aws.trouble(Fault.REPLY_LOST, "SubmitJob"):
                    yield
            case Circumstance.LIST_TORN:
                self.batch.largest_page = 1
                with self.aws.trouble(Fault.BROKEN, "DescribeJobs"):
                    yield
                self.batch.largest_page = 1000
            case Circumstance.BRIEFLY_THROTTLED:
                with self.aws.trouble(
                    Fault.THROTTLED, left=2, retry_after_seconds=self.retry_after_seconds
                ):
                    yield
            case Circumstance.THROTTLED:
                with self.aws.trouble(
                    Fault.THROTTLED, retry_after_seconds=self.retry_after_seconds
                ):
                    yield
            case Circumstance.UNAUTHORIZED:
                with self.aws.trouble(Fault.UNAUTHORIZED):
                    yield
            case Circumstance.HANGING:
                with self.aws.trouble(Fault.SILENT):
                    yield
            case Circumstance.UNREACHABLE:
                self.aws.close()
                try:
                    yield
                finally:
                    self.aws.open()
            case _:
                raise AssertionError(circumstance)

    @contextmanager
    def _held(self, reason: str | None) -> Iterator[None]:
        self.batch.held, self.batch.waiting_reason = True, reason
        try:
            yield
        finally:
            self.batch.held, self.batch.waiting_reason = False, None

    def plant_neighbours(self, context: Context) -> list[str]:
        client = self.aws.client("batch")
        name = definition_name(context, "codalab-worker")
        marks = {
            OWNER_TAG: context.owner,
            POOL_TAG: context.pool,
            KEY_TAG: f"{context.pool}-9-00000001",
        }
        other_owner = f"{int(context.owner, 16) ^ 1:016x}"
        kept = [
            (f"{context.pool}-9-00000001", name, {}),
            (f"{context.pool}-worker", name, marks),
            (f"{context.pool}-8-00000001", name, marks),
            (f"{context.pool.upper()}-9-00000001", name.upper(), marks),
            (f"{context.pool}-9-00000001", "codalab-worker", {**marks, OWNER_TAG: other_owner}),
            (f"{context.pool}-9-00000001", f"{name}-x", {**marks, POOL_TAG: context.pool.upper()}),
        ]
        ids = []
        for job_name, definition, tags in kept:
            client.register_job_definition(
                jobDefinitionName=definition,
                type="container",
                containerProperties={
                    "image": "theirs",
                    "command": ["sleep", "600"],
                    "resourceRequirements": [
                        {"type": "VCPU", "value": "1"},
                        {"type": "MEMORY", "value": "512"},
                    ],
                },
            )
            ids.append(
                client.submit_job(
                    jobName=job_name, jobQueue="workers", jobDefinition=definition, tags=tags
                )["jobId"]
            )
        array = client.submit_job(
            jobName="theirs",
            jobQueue="workers",
            jobDefinition=name,
            arrayProperties={"size": 2},
        )["jobId"]
        return [*ids, array, f"{array}:0"]

    def is_untouched(self, job_id: str) -> bool:
        job = self.batch.jobs[job_id]
        return job.ending is None and job.status == ("PENDING" if job.size else "RUNNING")

    def calls(self) -> int:
        return self.aws.calls()

    def sent(self) -> str:
        return self.aws.sent()


@pytest.fixture(scope="module", autouse=True)
def other_services() -> None:
    """They take longer to be there for the first time than an answer may take."""
    moto()


class TestAwsBatch(Conformance):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[AwsHarness]:
        directory = tmp_path / "words"
        directory.mkdir()
        with FakeAws(environment={"PATH": os.environ["PATH"]}) as aws:
            yield AwsHarness(aws, directory)
