"""What AWS Batch says of a job, and what is made of it."""

from __future__ import annotations

from typing import Any

import pytest

from backends.aws_batch.jobs import log_group, log_stream, read_job
from backends.base import EndCause, JobState, LaunchKey

KEY = LaunchKey("night", 3, "0a0a0a0a")
OURS = "ended by worker-manager 0123456789abcdef"


def described(status: str, **more: Any) -> dict[str, Any]:
    return {"jobId": "j", "status": status, "createdAt": 1_000_500, "startedAt": 0, **more}


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("SUBMITTED", JobState.PENDING),
        ("PENDING", JobState.PENDING),
        ("RUNNABLE", JobState.PENDING),
        ("STARTING", JobState.PENDING),
        ("RUNNING", JobState.ACTIVE),
        ("SUCCEEDED", JobState.ENDED),
        ("FAILED", JobState.ENDED),
        ("A_STATE_OF_NEXT_YEAR", JobState.PENDING),
    ],
)
def test_every_state_is_one_of_ours(status: str, state: JobState) -> None:
    job = read_job(described(status), KEY, OURS)
    assert job.state is state
    assert bool(job.why) is (state is JobState.PENDING)
    assert (job.cause is not None) is (state is JobState.ENDED)


def test_times_are_seconds_and_none_where_there_are_none() -> None:
    job = read_job(described("RUNNABLE"), KEY, OURS)
    assert (job.created, job.started, job.ended) == (1000.5, None, None)
    ended = read_job(described("FAILED", startedAt=1_001_000, stoppedAt=1_002_000), KEY, OURS)
    assert (ended.started, ended.ended) == (1001.0, 1002.0)


@pytest.mark.parametrize(
    ("reason", "container", "more", "cause"),
    [
        ("Essential container in task exited", {"exitCode": 3}, {}, EndCause.FAILED),
        ("Essential container in task exited", {"exitCode": 0}, {}, EndCause.FINISHED),
        ("Essential container in task exited", {"exitCode": 137}, {}, EndCause.KILLED_BY_OTHERS),
        (
            "Essential container in task exited",
            {"exitCode": 137, "reason": "OutOfMemoryError: Container killed due to memory usage"},
            {},
            EndCause.FAILED,
        ),
        (OURS, {"exitCode": 7}, {"isTerminated": True}, EndCause.KILLED_BY_US),
        (OURS, {}, {"isCancelled": True}, EndCause.KILLED_BY_US),
        (
            "ended by worker-manager 0123456789abcdee",
            {"exitCode": 7},
            {"isTerminated": True},
            EndCause.KILLED_BY_OTHERS,
        ),
        ("by hand", {"exitCode": 143}, {"isTerminated": True}, EndCause.KILLED_BY_OTHERS),
        ("Host EC2 (instance i-0a1b2c3d) terminated.", {}, {}, EndCause.PREEMPTED),
        ("Your Spot Task was interrupted.", {"exitCode": 143}, {}, EndCause.PREEMPTED),
        (
            "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - no instances",
            {},
            {"isCancelled": True},
            EndCause.OUT_OF_CAPACITY,
        ),
        (
            "Job attempt duration exceeded timeout",
            {"exitCode": 7},
            {"isTerminated": True},
            EndCause.KILLED_BY_OTHERS,
        ),
        (
            "Task failed to start",
            {"reason": "CannotPullContainerError: no such image"},
            {},
            EndCause.FAILED,
        ),
        (
            "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - more than any machine has",
            {},
            {"isCancelled": True},
            EndCause.FAILED,
        ),
        (None, {}, {}, EndCause.UNKNOWN),
    ],
)
def test_why_a_job_ended_is_decoded(
    reason: str | None, container: dict[str, Any], more: dict[str, Any], cause: EndCause
) -> None:
    detail = described("FAILED", statusReason=reason, container=container, **more)
    job = read_job(detail, KEY, OURS)
    assert job.cause is cause
    assert (reason or "") in job.why
    assert container.get("reason", "") in job.why


def test_an_exit_code_is_found_where_only_the_last_attempt_has_it() -> None:
    attempts = [{"container": {"exitCode": 1}}, {"container": {"exitCode": 4}}]
    assert read_job(described("FAILED", attempts=attempts), KEY, OURS).exit_code == 4


def test_a_child_without_a_description_is_what_its_array_is() -> None:
    job = read_job(described("SUBMITTED"), KEY, OURS, job_id="j:2")
    assert (job.id, job.worker_id, job.state) == ("j:2", str(KEY), JobState.PENDING)


def test_where_a_job_prints_is_where_its_last_attempt_did() -> None:
    attempts = [{"container": {"logStreamName": name}} for name in ("a", "b")]
    assert log_stream(described("RUNNABLE", attempts=attempts)) == "b"
    assert log_stream(described("RUNNING", container={"logStreamName": "c"})) == "c"
    assert log_stream(described("RUNNABLE")) == ""
    assert log_group(described("RUNNING")) == "/aws/batch/job"
    configured = {"logConfiguration": {"options": {"awslogs-group": "mine"}}}
    assert log_group(described("RUNNING", container=configured)) == "mine"
