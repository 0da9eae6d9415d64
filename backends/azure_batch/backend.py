"""The backend itself: the five verbs, each in a bounded number of calls.

A tick lists in one call for 1,000 tasks, and asks for the job and the pool beside; a launch takes
one call for 100 workers, and one to put their credentials in place.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from backends.azure_batch import checks, definition
from backends.azure_batch.connection import Connection
from backends.azure_batch.jobs import job_of
from backends.azure_batch.mark import key_of
from backends.azure_batch.options import AzureSettings
from backends.azure_batch.place import Place, look
from backends.azure_batch.service import LOG_KEPT_BYTES, Added, Service
from backends.azure_batch.storage import Storage
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
)
from backends.endings import Endings

if TYPE_CHECKING:
    from azure.batch.models import BatchTask

ENDED_LISTED_SECONDS = 24 * 3600.0
"""Ended tasks are listed so long, and removed after that: jobs live long, and tasks add up."""
LISTING_LAG_SECONDS = 60.0
"""A launch whose answer was lost may be under way at Azure for its 30 seconds still."""
PLACE_SECONDS = 60.0
"""What was learned of job and pool is good for a launch so long; every tick looks anyway."""
PRUNE_SECONDS = 600.0
PRUNED_AT_ONCE = 100


class AzureBatch:
    """The workers of one pool as tasks (see backends.base.Backend for the promises)."""

    def __init__(
        self,
        context: Context,
        settings: AzureSettings,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._context = context
        self._settings = settings
        self._clock = clock
        self._service = Service(Connection(settings), settings.job_id)
        self._storage = Storage(context, settings)
        self._endings = Endings(context.directory / "asked-to-end")
        self._place: Place | None = None
        self._place_seen = 0.0
        self._pruned = 0.0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            launches_per_call=definition.COLLECTION_TASKS,
            idempotency=Idempotency.SERVICE,
            ended_listed_seconds=ENDED_LISTED_SECONDS,
            listing_lag_seconds=LISTING_LAG_SECONDS,
        )

    @property
    def account(self) -> str | None:
        return self._settings.service_url

    @property
    def work_directory(self) -> str:
        return definition.work_directory(self._context)

    def check(self) -> list[Finding]:
        return list(checks.findings(self._settings, self._service, self._storage))

    # Launch

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        if dry_run:
            return [self._refusal(request) or self._preview(request) for request in requests]
        results: dict[LaunchKey, LaunchResult] = {}
        wanted = []
        for request in requests:
            refusal = self._refusal(request)
            if refusal is not None:
                results[request.key] = refusal
            else:
                wanted.append(request)
        if wanted:
            launched = self._launch(wanted)
            results |= launched
            if len(wanted) <= PRUNED_AT_ONCE and any(isinstance(r, Job) for r in launched.values()):
                self._prune()
        return [results[request.key] for request in requests]

    def _refusal(self, request: LaunchRequest) -> BackendError | None:
        """What is wrong with a request for itself."""
        if request.key.pool != self._context.pool:
            return Invalid(f"{request.key} is not a key of the pool {self._context.pool}")
        return self._storage.refusal if request.secrets else None

    def _preview(self, request: LaunchRequest) -> Preview:
        file = self._storage.resource_file(request.key) if request.secrets else None
        shown = definition.task(request, self._context, self._settings, file)
        for output in shown.get("outputFiles", ()):
            container = output["destination"]["container"]
            container["containerUrl"] = container["containerUrl"].partition("?")[0]
        return Preview(f"a task of the job {self._settings.job_id}: {json.dumps(shown, indent=2)}")

    def _launch(self, requests: Sequence[LaunchRequest]) -> dict[LaunchKey, LaunchResult]:
        try:
            tasks = self._prepare(requests)
        except BackendError as error:
            return {request.key: error for request in requests}
        added = self._service.add(tasks)
        taken = [r.key for r in requests if added[str(r.key)] is Added.EXISTS]
        results: dict[LaunchKey, LaunchResult] = self._find(taken) if taken else {}
        for request in requests:
            outcome = added[str(request.key)]
            if isinstance(outcome, BackendError):
                results[request.key] = outcome
            elif outcome is Added.NEW:
                results[request.key] = self._new_job(request.key)
        return results

    def _prepare(self, requests: Sequence[LaunchRequest]) -> list[dict[str, Any]]:
        """The definitions, with the credentials and the job in place. Raises BackendError."""
        place = self._known_place()
        if place.error is not None:
            raise place.error
        files: dict[tuple[tuple[str, str], ...], Mapping[str, Any] | None] = {(): None}
        tasks = []
        for request in requests:
            secrets = tuple(sorted(request.secrets.items()))
            if secrets not in files:
                files[secrets] = self._storage.put(request.key, request.secrets)
            tasks.append(definition.task(request, self._context, self._settings, files[secrets]))
        if not place.has_job and place.pool_id is not None:
            self._service.make_job(definition.job(self._settings, place.pool_id))
            self._place = replace(place, has_job=True)
        return tasks

    def _find(self, keys: Sequence[LaunchKey]) -> dict[LaunchKey, LaunchResult]:
        """The jobs of keys whose ids are taken: ours, or somebody else's."""
        try:
            listed = {job.key: job for job in self.list_jobs()}
        except BackendError as error:
            return {key: Unreachable(str(error)) for key in keys}
        return {key: listed.get(key) or self._find_taken(key) for key in keys}

    def _find_taken(self, key: LaunchKey) -> LaunchResult:
        """A task that is taken but not listed: ended long ago, or not ours."""
        try:
            job = self._find_one(key)
        except Invalid as error:
            return error
        except BackendError as error:
            return Unreachable(str(error))
        return job or Unreachable(f"the task {key} was there a moment ago, and is gone")

    def _find_one(self, key: LaunchKey) -> Job | None:
        """The job of a key, None when it is gone. Raises Invalid when its id is not ours."""
        task = self._service.task(str(key))
        if task is None:
            return None
        if key_of(self._context, task.id, task.display_name) != key:
            raise Invalid(
                f"the task {task.id} of the job {self._settings.job_id} is not of this manager"
            )
        return self._job(task, key, self._endings.asked())

    def _new_job(self, key: LaunchKey) -> Job:
        return Job(
            id=str(key),
            key=key,
            worker_id=str(key),
            state=JobState.PENDING,
            created=self._clock(),
            why=self._place.waiting if self._place else "",
        )

    def _known_place(self) -> Place:
        """Where tasks go, as seen lately. Raises BackendError."""
        place = self._place
        is_old = time.monotonic() - self._place_seen > PLACE_SECONDS
        return self._look() if place is None or place.error is not None or is_old else place

    def _look(self) -> Place:
        self._place = look(self._service, self._settings)
        self._place_seen = time.monotonic()
        return self._place

    # List

    def list_jobs(self) -> list[Job]:
        oldest = _time(self._clock() - ENDED_LISTED_SECONDS)
        tasks = self._service.tasks(
            f"{self._is_maybe_ours} and (state ne 'completed' or stateTransitionTime ge {oldest})"
        )
        with suppress(BackendError):  # what a job waits for is said when it is known
            self._look()
        asked = self._endings.asked()
        jobs = {}
        for task in tasks:
            key = key_of(self._context, task.id, task.display_name)
            if key is not None:
                jobs[key] = self._job(task, key, asked)
        return list(jobs.values())

    @property
    def _is_maybe_ours(self) -> str:
        """All that Azure can be asked of whose a task is; the mark is looked at here."""
        return f"startswith(id,'{self._context.pool}-')"

    def _job(self, task: BatchTask, key: LaunchKey, asked_to_end: frozenset[str]) -> Job:
        waiting = self._place.waiting if self._place else ""
        return job_of(task, key, asked_to_end=str(key) in asked_to_end, waiting=waiting)

    # End

    def terminate(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        results: dict[str, BackendError | None] = {}
        listed: Mapping[LaunchKey | None, Job] | None = None
        stopped: BackendError | None = None
        for job_id in job_ids:
            try:
                key = self._key(job_id)
                if stopped is not None:
                    raise stopped
                if listed is None:
                    listed = {job.key: job for job in self.list_jobs()}
                job = listed.get(key) or self._find_one(key)
                if job is not None and job.state is not JobState.ENDED:
                    self._endings.note(job_id)
                    self._service.terminate(job_id)
                results[job_id] = None
            except Invalid as error:
                results[job_id] = error
            except BackendError as error:
                # What meets one call would meet the next one, too, each after its patience.
                results[job_id] = stopped = error
        return results

    def _key(self, job_id: str) -> LaunchKey:
        """Raises Invalid when it cannot be a job of this pool."""
        key = LaunchKey.parse(job_id)
        if key is None or key.pool != self._context.pool:
            raise Invalid(f"{job_id} is not a job of the pool {self._context.pool}")
        return key

    def _prune(self) -> None:
        """Remove old ended tasks, credentials and notes, now and then, as far as it goes."""
        now = self._clock()
        if now - self._pruned < PRUNE_SECONDS:
            return
        self._pruned = now
        self._endings.forget_before(now - 2 * ENDED_LISTED_SECONDS)
        with suppress(BackendError):
            self._storage.prune(now)
        with suppress(BackendError):
            oldest = _time(now - ENDED_LISTED_SECONDS)
            old = self._service.tasks(
                f"{self._is_maybe_ours} and state eq 'completed' "
                f"and stateTransitionTime lt {oldest}",
                pages=1,
            )
            ours = [task.id for task in old if key_of(self._context, task.id, task.display_name)]
            for task_id in ours[:PRUNED_AT_ONCE]:
                self._service.delete(task_id)

    # Logs

    def logs(self, job_id: str) -> str:
        if self._find_one(self._key(job_id)) is None:
            raise Invalid(f"there is no job {job_id}")
        told = b"".join(self._service.file(job_id, name) for name in ("stdout.txt", "stderr.txt"))
        return told[-LOG_KEPT_BYTES:].decode(errors="replace")


def _time(seconds: float) -> str:
    """A time as OData spells it."""
    return f"DateTime'{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}'"
