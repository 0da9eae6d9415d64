"""A job of GCP Batch and its tasks as Jobs of ours. Pure: reads the API's answers, asks nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from backends.base import EndCause, Job, JobState, LaunchKey

if TYPE_CHECKING:
    from google.cloud.batch_v1.types import Job as GcpJob
    from google.cloud.batch_v1.types import StatusEvent, Task

_WAITING = {
    "STATE_UNSPECIFIED": "it was accepted",
    "QUEUED": "it waits for machines",
    "SCHEDULED": "its machines are being made",
}
_OVER = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})

_TASK_STATES = {
    "STATE_UNSPECIFIED": JobState.PENDING,
    "PENDING": JobState.PENDING,
    "ASSIGNED": JobState.PENDING,
    "RUNNING": JobState.ACTIVE,
    "SUCCEEDED": JobState.ENDED,
    "FAILED": JobState.ENDED,
    "UNEXECUTED": JobState.ENDED,
}

_RESERVED = {
    50000: EndCause.UNKNOWN,
    50001: EndCause.PREEMPTED,
    50002: EndCause.PREEMPTED,
    50003: EndCause.PREEMPTED,
    50004: EndCause.PREEMPTED,
    50005: EndCause.KILLED_BY_OTHERS,
    50006: EndCause.PREEMPTED,
}
"""Codes of Batch itself, never of the worker: spot preemption, a machine that reports no more,
was started again, does not answer, or was made anew; and the time limit (50005).
Source: cloud.google.com/batch/docs/troubleshooting#reserved-exit-codes."""

_NO_MACHINE = ("ZONE_RESOURCE_POOL_EXHAUSTED", "RESOURCE_POOL_EXHAUSTED", "STOCKOUT")


def worker_id_of(job_name: str, index: int) -> str:
    """Our id of one worker: the job's id and the task's index."""
    return f"{job_name.rpartition('/')[2]}:{index}"


def split_id(text: str) -> tuple[str, int] | None:
    """The job's id and the task's index, None when ``text`` is not of that form."""
    name, _, index = text.rpartition(":")
    if not name or "/" in name or not index.isdigit():
        return None
    return name, int(index)


def index_of(task: Task) -> int:
    """Its place in the job: tasks are named `…/tasks/<index>`."""
    return int(task.name.rpartition("/")[2])


def needs_tasks(job: GcpJob) -> bool:
    """Whether its tasks must be asked for, because the job's own state does not tell theirs."""
    state = job.status.state.name
    if state in _WAITING or state == "SUCCEEDED":
        return False
    counts = _counts(job)
    number = job.task_groups[0].task_count
    return not (state == "RUNNING" and counts.get("RUNNING") == number)


def is_over(job: GcpJob) -> bool:
    return job.status.state.name in _OVER


def jobs_of(
    job: GcpJob, keys: Sequence[LaunchKey], tasks: Iterable[Task] | None, *, asked: bool
) -> list[Job]:
    """One Job for each key. ``tasks``: what is known of them, None: the job's state is theirs.
    ``asked``: we asked for the job's end."""
    by_index = {index_of(task): task for task in tasks or ()}
    return [
        _job_of(job, key, index, by_index.get(index), asked=asked) for index, key in enumerate(keys)
    ]


def _job_of(job: GcpJob, key: LaunchKey, index: int, task: Task | None, *, asked: bool) -> Job:
    job_state = job.status.state.name
    state = _TASK_STATES.get(task.status.state.name) if task is not None else None
    if state is None:
        state = _state_without_task(job)
    elif state is not JobState.ENDED and job_state in _OVER:
        # A job that was cancelled leaves tasks as they were when it was.
        state = JobState.ENDED
    events = list(task.status.status_events) if task is not None else []
    job_events = list(job.status.status_events)
    started = ended = exit_code = cause = None
    why = ""
    if state is JobState.PENDING:
        why = _last(events) or _last(job_events) or _WAITING.get(job_state, "")
        if any(word in why for word in _NO_MACHINE):
            why = f"no machine is to be had: {why}"
    else:
        started = _entered(events, "RUNNING")
        if started is None and task is None:
            started = _entered(job_events, "RUNNING")
    if state is JobState.ENDED:
        ended = _when(events) or _when(job_events) or seconds(job.update_time)
        exit_code, cause, why = _end(job, task, events, job_events, asked=asked)
    return Job(
        id=worker_id_of(job.name, index),
        key=key,
        worker_id=str(key),
        state=state,
        created=seconds(job.create_time) or 0.0,
        started=started,
        ended=ended,
        exit_code=exit_code,
        why=why,
        cause=cause,
    )


def _state_without_task(job: GcpJob) -> JobState:
    state = job.status.state.name
    if state in _OVER:
        return JobState.ENDED
    number = job.task_groups[0].task_count
    is_running = state == "RUNNING" and _counts(job).get("RUNNING") == number
    return JobState.ACTIVE if is_running else JobState.PENDING


def _end(
    job: GcpJob,
    task: Task | None,
    events: Sequence[StatusEvent],
    job_events: Sequence[StatusEvent],
    *,
    asked: bool,
) -> tuple[int | None, EndCause, str]:
    """The worker's exit code, the cause, and the service's own words."""
    why = _last(events) or _last(job_events)
    task_state = task.status.state.name if task is not None else ""
    if task_state == "SUCCEEDED" or (task is None and job.status.state.name == "SUCCEEDED"):
        return 0, EndCause.FINISHED, ""
    code = _exit_code(events)
    if code in _RESERVED:
        return None, _RESERVED[code], why
    cancelled = _entered(job_events, "CANCELLATION_IN_PROGRESS")
    if cancelled is not None and (_when(events) or cancelled) >= cancelled:
        return code, EndCause.KILLED_BY_US if asked else EndCause.KILLED_BY_OTHERS, why
    if code is not None:
        return code, EndCause.KILLED_BY_OTHERS if code > 128 else EndCause.FAILED, why
    told = " ".join(event.description for event in (*job_events, *events))
    if any(word in told for word in _NO_MACHINE):
        return None, EndCause.OUT_OF_CAPACITY, why
    if asked:
        return None, EndCause.KILLED_BY_US, why
    return None, EndCause.UNKNOWN, why


def _exit_code(events: Sequence[StatusEvent]) -> int | None:
    """The code of the last execution, in an event of its own since 2023."""
    for event in reversed(events):
        if event.task_state.name in ("FAILED", "SUCCEEDED") and "task_execution" in event:
            return int(event.task_execution.exit_code)
    return None


def _entered(events: Sequence[StatusEvent], state: str) -> float | None:
    """When it last came into a state: by the event's state, or by its words for a job."""
    for event in reversed(events):
        if event.task_state.name == state or f"to {state}" in event.description:
            return seconds(event.event_time)
    return None


def _when(events: Sequence[StatusEvent]) -> float | None:
    return seconds(events[-1].event_time) if events else None


def seconds(time: Any) -> float | None:
    """A time of the API in seconds since the epoch, None when it is not set."""
    return float(time.timestamp()) if time else None


def _last(events: Sequence[StatusEvent]) -> str:
    return events[-1].description.strip() if events else ""


def _counts(job: GcpJob) -> dict[str, int]:
    counts: dict[str, int] = {}
    for group in job.status.task_groups.values():
        for name, number in group.counts.items():
            counts[name] = counts.get(name, 0) + int(number)
    return counts
