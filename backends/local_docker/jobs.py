"""A container as the engine describes it → Job. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from backends.base import Context, EndCause, Job, JobState, LaunchKey
from backends.local_docker.definition import KEY_LABEL, OWNER_LABEL, POOL_LABEL

STARTED_WITHIN_SECONDS = 120.0
"""A container that was created longer ago and not started belongs to a launch that died."""

_RUNNING = frozenset({"running", "paused", "restarting"})
_EXITED = re.compile(r"Exited \((\d+)\)")


def key_of(labels: Mapping[str, str] | None, context: Context) -> LaunchKey | None:
    """The launch key of a container of ours; None when it is not ours."""
    found = labels or {}
    key = LaunchKey.parse(found.get(KEY_LABEL, ""))
    is_ours = (
        found.get(OWNER_LABEL) == context.owner
        and found.get(POOL_LABEL) == context.pool
        and key is not None
        and key.pool == context.pool
    )
    return key if is_ours else None


def listed_job(entry: Mapping[str, Any], key: LaunchKey, now: float) -> Job:
    """The job of an entry of `GET /containers/json`, which says of an end only its exit code."""
    created = float(entry.get("Created") or 0.0)
    state = str(entry.get("State") or "").lower()
    job = Job(str(key), key, str(key), JobState.PENDING, created=created)
    if state in _RUNNING:
        why = "" if state == "running" else state
        return replace(job, state=JobState.ACTIVE, started=created, why=why)
    if state == "created":
        return _not_started(job, now)
    exited = _EXITED.match(str(entry.get("Status") or ""))
    exit_code = int(exited[1]) if exited else None
    return replace(job, state=JobState.ENDED, started=created, exit_code=exit_code, why=state)


def inspected_job(
    document: Mapping[str, Any], key: LaunchKey, now: float, *, was_asked: bool
) -> Job:
    """The job of `GET /containers/ID/json`. ``was_asked``: to end, by us."""
    state = document.get("State") or {}
    status = str(state.get("Status") or "").lower()
    started = _seconds(state.get("StartedAt"))
    job = Job(
        str(key),
        key,
        str(key),
        JobState.ACTIVE,
        created=_seconds(document.get("Created")) or 0.0,
        started=started,
        why="" if status == "running" else status,
    )
    if status in _RUNNING:
        return job
    if status == "created":
        return _not_started(replace(job, started=None), now)
    exit_code = state.get("ExitCode")
    return replace(
        job,
        state=JobState.ENDED,
        ended=_seconds(state.get("FinishedAt")),
        exit_code=exit_code,
        why=_why(state),
        cause=_cause(state, was_asked=was_asked),
    )


def _cause(state: Mapping[str, Any], *, was_asked: bool) -> EndCause:
    exit_code = state.get("ExitCode")
    if exit_code == 0:
        return EndCause.FINISHED
    if was_asked:
        return EndCause.KILLED_BY_US
    if exit_code is None:
        return EndCause.UNKNOWN
    was_killed = exit_code > 128 and not state.get("OOMKilled")
    return EndCause.KILLED_BY_OTHERS if was_killed else EndCause.FAILED


def _not_started(job: Job, now: float) -> Job:
    if now - job.created < STARTED_WITHIN_SECONDS:
        return replace(job, state=JobState.PENDING, why="created and not started yet")
    return replace(
        job,
        state=JobState.ENDED,
        ended=job.created,
        why="never started",
        cause=EndCause.UNKNOWN,
    )


def _why(state: Mapping[str, Any]) -> str:
    if state.get("OOMKilled"):
        return "out of memory"
    if state.get("Error"):
        return str(state["Error"])
    exit_code = state.get("ExitCode")
    return f"killed by signal {exit_code - 128}" if exit_code and exit_code > 128 else ""


def _seconds(text: object) -> float | None:
    """Seconds since the epoch of the engine's RFC 3339 with nanoseconds; None for its zero."""
    if not isinstance(text, str) or not text or text.startswith("0001-"):
        return None
    match = re.fullmatch(r"(.*?T\d\d:\d\d:\d\d)(\.\d{1,6})?\d*(Z|[+-]\d\d:\d\d)", text)
    if match is None:
        return None
    zone = "+00:00" if match[3] == "Z" else match[3]
    return datetime.fromisoformat(f"{match[1]}{match[2] or ''}{zone}").timestamp()
