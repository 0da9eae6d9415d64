"""The backend itself: the five verbs, each in a bounded number of calls.

A tick lists in one call for 500 jobs, and asks for the tasks of those alone that have changed
since and whose workers are not all in one state.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backends.base import (
    BackendError,
    Capabilities,
    Context,
    Finding,
    Idempotency,
    Invalid,
    Job,
    JobState,
    LaunchKey,
    LaunchRequest,
    LaunchResult,
    Preview,
    Unreachable,
    rows,
)
from backends.endings import Endings
from backends.gcp_batch import checks, definition, mark
from backends.gcp_batch.connection import Connection
from backends.gcp_batch.jobs import is_over, jobs_of, needs_tasks, seconds, split_id
from backends.gcp_batch.logs import read_log
from backends.gcp_batch.options import GcpSettings
from backends.gcp_batch.service import Service
from backends.gcp_batch.vault import Vault

if TYPE_CHECKING:
    from google.cloud.batch_v1.types import Job as GcpJob
    from google.cloud.batch_v1.types import Task

ENDED_LISTED_SECONDS = 24 * 3600.0
"""Ended jobs are listed so long, and removed after that; GCP Batch keeps them for 60 days."""
LISTING_LAG_SECONDS = 90.0
"""A launch whose answer was lost may be under way at Google until its last attempt is over."""
DETAILS_PER_LIST = 100
"""Of so many jobs the tasks are asked for in one list; of more, the next list asks for the rest.
Until then a worker that ended is one of which no exit code is known."""
PRUNE_SECONDS = 120.0
PRUNED_AT_ONCE = 20
"""Some 14,000 a day: what is not removed is in every list for 60 days."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """The tasks of a job as they were when the job looked like ``state``."""

    state: tuple[Any, ...]
    tasks: list[Task]


class GcpBatch:
    """The workers of one pool as tasks (see backends.base.Backend for the promises)."""

    def __init__(
        self,
        context: Context,
        settings: GcpSettings,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._context = context
        self._settings = settings
        self._clock = clock
        self._connection = Connection(settings)
        self._service = Service(self._connection, settings)
        self._vault = Vault(self._connection, settings)
        self._endings = Endings(context.directory / "asked-to-end")
        self._seen: dict[str, _Seen] = {}
        self._pruned = 0.0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            launches_per_call=self._settings.workers_per_job,
            idempotency=Idempotency.SERVICE,
            ended_listed_seconds=ENDED_LISTED_SECONDS,
            listing_lag_seconds=LISTING_LAG_SECONDS,
            preemptible=self._settings.provisioning == "spot",
        )

    @property
    def account(self) -> str | None:
        return self._settings.parent

    @property
    def work_directory(self) -> str:
        return definition.work_directory(self._context)

    def check(self) -> list[Finding]:
        return list(checks.findings(self._context, self._settings, self._service, self._vault))

    # Launch

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        results: dict[LaunchKey, LaunchResult] = {}
        wanted = []
        for request in requests:
            refusal = self._refusal(request)
            if refusal is not None:
                results[request.key] = refusal
            else:
                wanted.append(request)
        if wanted and not dry_run:
            wanted = self._leave_out_launched(wanted, results)
        failure: BackendError | None = None
        for row in rows(wanted, self._settings.workers_per_job):
            if dry_run:
                results |= {request.key: self._preview(row) for request in row}
            elif failure is not None:
                results |= {request.key: failure for request in row}
            else:
                launched = self._launch(row)
                results |= launched
                # What the first of them met, the others would meet as well.
                result = launched[row[0].key]
                failure = result if isinstance(result, BackendError) else None
        if wanted and not dry_run:
            self._prune()
        return [results[request.key] for request in requests]

    def _refusal(self, request: LaunchRequest) -> BackendError | None:
        """What is wrong with a request for itself."""
        if request.key.pool != self._context.pool:
            return Invalid(f"{request.key} is not a key of the pool {self._context.pool}")
        return self._vault.refusal if request.secrets else None

    def _leave_out_launched(
        self, requests: Sequence[LaunchRequest], results: dict[LaunchKey, LaunchResult]
    ) -> list[LaunchRequest]:
        """Where a job holds several workers, its id does not tell all keys that were launched."""
        if self._settings.workers_per_job == 1:
            return list(requests)
        try:
            listed = {job.key: job for job in self.list_jobs()}
        except BackendError as error:
            results |= {request.key: error for request in requests}
            return []
        results |= {r.key: listed[r.key] for r in requests if r.key in listed}
        return [request for request in requests if request.key not in listed]

    def _preview(self, row: Sequence[LaunchRequest]) -> Preview:
        shown = json.dumps(definition.job(row, self._context, self._settings), indent=2)
        return Preview(f"the job {mark.job_id(row[0].key)} of {self._settings.parent}: {shown}")

    def _launch(self, row: Sequence[LaunchRequest]) -> dict[LaunchKey, LaunchResult]:
        first = row[0]
        try:
            if first.secrets:
                self._vault.put(definition.credentials(first))
        except BackendError as error:
            return {request.key: error for request in row}
        job_id = mark.job_id(first.key)
        try:
            job = self._service.create(
                job_id,
                definition.job(row, self._context, self._settings),
                mark.request_id(self._context, first.key, len(row)),
            )
            if job is None:
                job = self._service.job(job_id)
            if job is None:
                raise Unreachable(f"the job {job_id} was there a moment ago, and is gone")
            jobs = {job.key: job for job in self._jobs(job)}
        except BackendError as error:
            return {request.key: error for request in row}
        taken = Invalid(f"the job {job_id} of {self._settings.parent} is not of this manager")
        return {request.key: jobs.get(request.key, taken) for request in row}

    # List

    def list_jobs(self) -> list[Job]:
        jobs: list[Job] = []
        asked = self._endings.asked()
        listed: set[str] = set()
        left = DETAILS_PER_LIST
        for job in self._service.jobs(mark.labels(self._context)):
            keys = mark.keys_of(self._context, job)
            if not keys:
                continue
            listed.add(job.uid)
            if is_over(job) and self._is_old(job):
                continue
            tasks, was_asked = self._tasks(job, may_ask=left > 0)
            left -= was_asked
            jobs += jobs_of(job, keys, tasks, asked=_id(job) in asked)
        for uid in set(self._seen) - listed:
            del self._seen[uid]
        return jobs

    def _jobs(self, job: GcpJob) -> list[Job]:
        """The workers of one job, none when it is not ours."""
        keys = mark.keys_of(self._context, job)
        if not keys:
            return []
        tasks, _ = self._tasks(job, may_ask=True)
        return jobs_of(job, keys, tasks, asked=_id(job) in self._endings.asked())

    def _tasks(self, job: GcpJob, *, may_ask: bool) -> tuple[list[Task] | None, bool]:
        """What is known of a job's tasks, and whether Google was asked for it."""
        if not needs_tasks(job):
            return None, False
        counts = sorted(
            (name, number)
            for group in job.status.task_groups.values()
            for name, number in group.counts.items()
        )
        state = (job.status.state, job.update_time, tuple(counts))
        seen = self._seen.get(job.uid)
        if seen is not None and seen.state == state:
            return seen.tasks, False
        if not may_ask:
            return (seen.tasks if seen is not None else []), False
        tasks = self._service.tasks(_id(job)) or []
        self._seen[job.uid] = _Seen(state, tasks)
        return tasks, True

    def _is_old(self, job: GcpJob) -> bool:
        updated = seconds(job.update_time) or 0.0
        return self._clock() - updated > ENDED_LISTED_SECONDS

    # End

    def terminate(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        results: dict[str, BackendError | None] = {}
        wanted: dict[str, set[int]] = {}
        for job_id in job_ids:
            named = split_id(job_id)
            if named is None or not named[0].startswith(
                f"w-{mark.pool_label(self._context.pool)}-"
            ):
                results[job_id] = Invalid(f"{job_id} is not a job of the pool {self._context.pool}")
            else:
                wanted.setdefault(named[0], set()).add(named[1])
        for name, indices in wanted.items():
            try:
                self._end(name, indices)
                error = None
            except BackendError as failure:
                error = failure
            results |= {f"{name}:{index}": error for index in indices}
        return {job_id: results[job_id] for job_id in job_ids}

    def _end(self, name: str, indices: set[int]) -> None:
        """End these workers of a job. Raises Invalid when others of it would be ended as well."""
        job = self._service.job(name)
        if job is None:
            return
        jobs = self._jobs(job)
        if not jobs:
            raise Invalid(f"the job {name} is not of this manager")
        alive = {index for index, each in enumerate(jobs) if each.state is not JobState.ENDED}
        if not alive & indices:
            return
        if alive - indices:
            raise Invalid(
                f"GCP Batch ends the workers of a job together only, and {len(alive - indices)} "
                f"others of {name} live: --workers-per-job 1 makes a job of each worker"
            )
        self._endings.note(name)
        self._service.cancel(name, mark.request_id(self._context, _first(jobs), 0))

    def _prune(self) -> None:
        """Remove old ended jobs and notes, now and then, as far as it goes."""
        now = self._clock()
        if now - self._pruned < PRUNE_SECONDS:
            return
        self._pruned = now
        self._endings.forget_before(now - 2 * ENDED_LISTED_SECONDS)
        with suppress(BackendError):
            old = [
                job
                for job in self._service.jobs(mark.labels(self._context))
                if is_over(job) and self._is_old(job) and mark.keys_of(self._context, job)
            ]
            for job in old[:PRUNED_AT_ONCE]:
                self._service.delete(_id(job))

    # Logs

    def logs(self, job_id: str) -> str:
        named = split_id(job_id)
        job = self._service.job(named[0]) if named is not None else None
        if named is None or job is None or named[1] >= len(mark.keys_of(self._context, job)):
            raise Invalid(f"there is no job {job_id} of the pool {self._context.pool}")
        return read_log(self._connection, self._settings, job.uid, named[1])


def _id(job: GcpJob) -> str:
    return str(job.name.rpartition("/")[2])


def _first(jobs: Sequence[Job]) -> LaunchKey:
    key = jobs[0].key
    assert key is not None  # every job of ours has one
    return key
