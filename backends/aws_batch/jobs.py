"""A job as DescribeJobs describes it, as a Job: its state, and why it is in it. Pure.

The reasons are the texts of AWS Batch and of ECS behind it: AWS Batch User Guide ("Job states",
"Automated job retries", "Jobs stuck in RUNNABLE status") and botocore's model, shape JobDetail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.base import EndCause, Job, JobState, LaunchKey

_WAITING = {
    "SUBMITTED": "accepted by the queue",
    "PENDING": "waits for its array to be spread out",
    "RUNNABLE": "waits for a machine",
    "STARTING": "its container is being made",
}
_PREEMPTED = ("Host EC2", "Your Spot Task was interrupted", "SpotInterruption")
_OUT_OF_CAPACITY = ("CAPACITY:",)
_MISCONFIGURED = ("MISCONFIGURATION:",)
"""A queue may cancel what waits for either (`jobStateTimeLimitActions`)."""
_TIME_LIMIT = "Job attempt duration exceeded timeout"
_OUT_OF_MEMORY = "OutOfMemoryError"
_SIGNALLED = 128


def read_job(
    detail: Mapping[str, Any], key: LaunchKey, ending_reason: str, job_id: str | None = None
) -> Job:
    """``ending_reason``: what a job that we ended has as its reason.

    ``job_id``: of a child that has no description of its own, for which its array's stands.
    """
    status = detail.get("status", "")
    reason = str(detail.get("statusReason") or "")
    state = _state(status)
    exit_code = _exit_code(detail) if state is JobState.ENDED else None
    container = _container_reason(detail)
    why = ": ".join(text for text in (reason, container) if text)
    return Job(
        id=job_id or detail["jobId"],
        key=key,
        worker_id=str(key),
        state=state,
        created=_seconds(detail.get("createdAt")) or 0.0,
        started=None if state is JobState.PENDING else _seconds(detail.get("startedAt")),
        ended=_ended(detail) if state is JobState.ENDED else None,
        exit_code=exit_code,
        why=why or (_WAITING.get(status, status) if state is JobState.PENDING else ""),
        cause=(end_cause(detail, exit_code, ending_reason) if state is JobState.ENDED else None),
    )


def end_cause(detail: Mapping[str, Any], exit_code: int | None, ending_reason: str) -> EndCause:
    """Why a job ended. What the service says of it counts before the exit code."""
    reason = str(detail.get("statusReason") or "")
    container = _container_reason(detail)
    if detail.get("status") == "SUCCEEDED":
        return EndCause.FINISHED
    if reason == ending_reason:
        return EndCause.KILLED_BY_US
    if any(text.startswith(_PREEMPTED) for text in (reason, container)):
        return EndCause.PREEMPTED
    if reason.startswith(_OUT_OF_CAPACITY):
        return EndCause.OUT_OF_CAPACITY
    if reason.startswith(_MISCONFIGURED):
        return EndCause.FAILED
    if detail.get("isTerminated") or detail.get("isCancelled") or reason.startswith(_TIME_LIMIT):
        return EndCause.KILLED_BY_OTHERS
    if exit_code is None:
        return EndCause.FAILED if reason or container else EndCause.UNKNOWN
    if exit_code > _SIGNALLED and not container.startswith(_OUT_OF_MEMORY):
        return EndCause.KILLED_BY_OTHERS
    return EndCause.FINISHED if exit_code == 0 else EndCause.FAILED


def log_stream(detail: Mapping[str, Any]) -> str:
    """Where the job's last attempt printed to; "" while it has not begun."""
    name = (detail.get("container") or {}).get("logStreamName")
    for attempt in reversed(detail.get("attempts") or []):
        name = name or (attempt.get("container") or {}).get("logStreamName")
    return str(name or "")


def log_group(detail: Mapping[str, Any]) -> str:
    configuration = (detail.get("container") or {}).get("logConfiguration") or {}
    return str((configuration.get("options") or {}).get("awslogs-group") or "/aws/batch/job")


def is_over(status: str) -> bool:
    return _state(status) is JobState.ENDED


def _state(status: str) -> JobState:
    if status == "RUNNING":
        return JobState.ACTIVE
    return JobState.ENDED if status in ("SUCCEEDED", "FAILED") else JobState.PENDING


def _exit_code(detail: Mapping[str, Any]) -> int | None:
    """Of the job, else of its last attempt: not every answer has both."""
    code = (detail.get("container") or {}).get("exitCode")
    if code is None and detail.get("attempts"):
        code = (detail["attempts"][-1].get("container") or {}).get("exitCode")
    if code is None and detail.get("status") == "SUCCEEDED":
        return 0
    return int(code) if code is not None else None


def _container_reason(detail: Mapping[str, Any]) -> str:
    reason = (detail.get("container") or {}).get("reason")
    if reason is None and detail.get("attempts"):
        reason = (detail["attempts"][-1].get("container") or {}).get("reason")
    return str(reason or "")


def _ended(detail: Mapping[str, Any]) -> float:
    """A job that was ended before it began may have no time of its end."""
    times = (_seconds(detail.get(name)) for name in ("stoppedAt", "startedAt", "createdAt"))
    return next((when for when in times if when), 0.0)


def _seconds(milliseconds: object) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) and milliseconds else None
