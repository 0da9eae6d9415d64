"""A task of Azure Batch as a Job of ours. Pure: reads the SDK's answers and asks nothing."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from backends.azure_batch.words import word
from backends.base import EndCause, Job, JobState, LaunchKey

if TYPE_CHECKING:
    from azure.batch.models import BatchTask

TASK_FIELDS = [
    "id",
    "displayName",
    "state",
    "stateTransitionTime",
    "previousState",
    "creationTime",
    "executionInfo",
    "nodeInfo",
]

_STATES = {
    "active": JobState.PENDING,
    "preparing": JobState.PENDING,
    "running": JobState.ACTIVE,
    "completed": JobState.ENDED,
}
_ENDED_BY_REQUEST = "TaskEnded"
"""Azure's code for a task that somebody ended, or whose job was."""


def job_of(task: BatchTask, key: LaunchKey, *, asked_to_end: bool, waiting: str) -> Job:
    """``asked_to_end``: we asked. ``waiting``: what a task waits for that no node has taken."""
    # A state that is not known yet counts as alive: a worker too few is better than one too many.
    state = _STATES.get(word(task.state), JobState.ACTIVE)
    execution = task.execution_info
    # A task that was ended before a node had it has a start time, too, and no node.
    has_run = task.node_info is not None
    started = _seconds(execution.start_time) if execution and has_run else None
    ended, exit_code, cause, why = None, None, None, ""
    if state is JobState.PENDING:
        started = None
        why = _waiting(task, waiting)
    elif state is JobState.ENDED:
        ended = _seconds(execution.end_time) if execution else None
        ended = ended or _seconds(task.state_transition_time)
        exit_code = execution.exit_code if execution else None
        cause, why = _end(execution, asked_to_end=asked_to_end)
    return Job(
        id=str(key),
        key=key,
        worker_id=str(key),
        state=state,
        created=_seconds(task.creation_time) or 0.0,
        started=started,
        ended=ended,
        exit_code=exit_code,
        why=why,
        cause=cause,
    )


def _waiting(task: BatchTask, waiting: str) -> str:
    if word(task.state) == "preparing":
        return "its node prepares it"
    if word(task.previous_state) in ("running", "preparing"):
        return f"its node was preempted or lost, and it is queued again: {waiting}"
    return waiting


def _end(execution: Any, *, asked_to_end: bool) -> tuple[EndCause, str]:
    """The cause, and the service's own words."""
    failure = execution.failure_info if execution else None
    exit_code = execution.exit_code if execution else None
    code = str(failure.code or "") if failure else ""
    why = ": ".join(word for word in (code, (failure.message or "") if failure else "") if word)
    if exit_code == 0 and code != _ENDED_BY_REQUEST:
        return EndCause.FINISHED, why
    if asked_to_end:
        return EndCause.KILLED_BY_US, why
    if code == _ENDED_BY_REQUEST:
        return EndCause.KILLED_BY_OTHERS, why
    if exit_code is not None:
        killed = exit_code < 0 or exit_code > 128
        return (EndCause.KILLED_BY_OTHERS if killed else EndCause.FAILED), why
    if failure is None:
        return EndCause.UNKNOWN, why
    is_ours = word(failure.category).lower() == "usererror"
    return (EndCause.FAILED if is_ours else EndCause.UNKNOWN), why


def _seconds(time: datetime | None) -> float | None:
    return time.timestamp() if time is not None else None
