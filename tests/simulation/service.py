"""A simulated compute service, one backend of the contract for each pool. It polices what the
manager may do: it raises Violation at the moment when a promise is broken."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from backends.base import (
    BackendError,
    Capabilities,
    EndCause,
    Finding,
    Idempotency,
    Invalid,
    Job,
    JobState,
    LaunchKey,
    LaunchRequest,
    LaunchResult,
)
from bundles.exits import WorkerExit
from simulation.faults import (
    LAUNCH_FAULTS,
    LIST_FAULTS,
    TERMINATE_FAULTS,
    Faults,
    Violation,
    backend_error,
)
from simulation.server import Server, Worker
from simulation.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a job. Seconds; None: it never does.

    ``registers_seconds``: from the start of the job to the worker's first check-in;
    ``dies_seconds``: from the start, with ``exit_code``, or preempted when that is None.
    ``is_stubborn``: it ends when it is asked a second time.
    """

    starts_seconds: float | None
    registers_seconds: float | None
    dies_seconds: float | None = None
    exit_code: int | None = None
    ending_seconds: float = 0.0
    is_stubborn: bool = False


class ServiceJob:
    """One job as it is, whatever the list shows."""

    __slots__ = (
        "asked_to_end", "cause", "created", "ended", "exit_code", "fate", "id", "key", "started",
        "worker",
    )  # fmt: skip

    def __init__(self, job_id: str, key: LaunchKey, created: float, fate: Fate) -> None:
        self.id = job_id
        self.key = key
        self.created = created
        self.fate = fate
        self.started: float | None = None
        self.ended: float | None = None
        self.exit_code: int | None = None
        self.cause: EndCause | None = None
        self.asked_to_end = 0
        self.worker: Worker | None = None

    def shown(self) -> Job:
        if self.ended is not None:
            state = JobState.ENDED
        else:
            state = JobState.PENDING if self.started is None else JobState.ACTIVE
        return Job(
            self.id, self.key, str(self.key), state, self.created, self.started, self.ended,
            self.exit_code, "", self.cause,
        )  # fmt: skip


class Police(Protocol):
    """Who knows what may be done, beyond one service. Raises Violation."""

    def asked(self) -> None:
        """Something is to be launched or ended."""

    def listed(self) -> None:
        """The jobs were listed."""

    def accepted(self, job: ServiceJob) -> None:
        """A job was launched."""

    def ended_busy(self, job: ServiceJob) -> None:
        """A job is to end whose worker has bundles, and was not shown as pending."""


class Service:
    """The jobs of one pool. ``choose_fate`` says what becomes of each new one.

    ``lag_seconds``: so long a new job may be missing from a list, and be in the one before.
    ``begin_tick``: launching or ending without a whole list of the same tick is a violation.
    ``maximum``: how many may live when one more is accepted.
    """

    def __init__(
        self,
        pool: str,
        timeline: Timeline,
        faults: Faults,
        server: Server,
        choose_fate: Callable[[], Fate],
        police: Police,
        *,
        cpus: int,
        lag_seconds: float,
        ended_listed_seconds: float,
    ) -> None:
        self.pool = pool
        self.maximum = 0
        self.jobs: dict[LaunchKey, ServiceJob] = {}
        self.capabilities = Capabilities(
            1, Idempotency.SERVICE, ended_listed_seconds, listing_lag_seconds=lag_seconds
        )
        self.work_directory = "/w"
        self.cpus = cpus
        self._is_listed = False
        self._timeline = timeline
        self._faults = faults
        self._server = server
        self._choose_fate = choose_fate
        self._police = police
        self._shown_pending: set[str] = set()
        self._numbers = itertools.count(1)
        self._by_id: dict[str, ServiceJob] = {}

    def begin_tick(self) -> None:
        self._is_listed = False

    def living(self) -> list[ServiceJob]:
        return [job for job in self.jobs.values() if job.ended is None]

    # The contract

    def check(self) -> list[Finding]:
        return []

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        self._police.asked()
        if not self._is_listed:
            raise Violation(f"{self.pool}: launched without a whole list in this tick")
        self._faults.point()
        results = [self._launch(request) for request in requests]
        self._faults.point()
        return results

    def _launch(self, request: LaunchRequest) -> LaunchResult:
        kind = self._faults.strike("launch", LAUNCH_FAULTS)
        if kind is not None and kind != "unreachable after":
            return backend_error(kind)
        job = self._accept(request.key)
        self._faults.point()
        return job.shown() if kind is None else backend_error(kind)

    def _accept(self, key: LaunchKey) -> ServiceJob:
        if key in self.jobs:
            raise Violation(f"{key} was launched a second time")
        if len(self.living()) >= self.maximum:
            raise Violation(f"{key} is launched above the maximum of {self.maximum}")
        job = ServiceJob(
            f"{self.pool}:{next(self._numbers)}", key, self._timeline.now, self._choose_fate()
        )
        self.jobs[key] = self._by_id[job.id] = job
        self._timeline.tell("launched:", key, job.fate)
        self._police.accepted(job)
        if job.fate.starts_seconds is not None:
            self._timeline.after(job.fate.starts_seconds, self._start, job)
        return job

    def list_jobs(self) -> list[Job]:
        self._is_listed = False
        self._faults.point()
        kind = self._faults.strike("list", LIST_FAULTS)
        if kind is not None:
            raise backend_error(kind)
        now = self._timeline.now
        lag_seconds = self.capabilities.listing_lag_seconds
        kept_seconds = self.capabilities.ended_listed_seconds
        shown = []
        for job in self.jobs.values():
            if job.ended is not None and now - job.ended > kept_seconds:
                continue
            if now - job.created < lag_seconds and self._faults.chance.random() < 0.5:
                self._faults.counted["listed late"] += 1
                continue
            shown.append(job.shown())
        self._shown_pending = {job.id for job in shown if job.state is JobState.PENDING}
        self._faults.point()
        self._is_listed = True
        self._police.listed()
        self._timeline.tell(self.pool, "lists", *(f"{job.key} {job.state}" for job in shown))
        return shown

    def terminate(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        self._police.asked()
        if not self._is_listed:
            raise Violation(f"{self.pool}: ended jobs without a whole list in this tick")
        self._faults.point()
        results: dict[str, BackendError | None] = {}
        for job_id in job_ids:
            kind = self._faults.strike("terminate", TERMINATE_FAULTS)
            results[job_id] = backend_error(kind) if kind else None
            if kind is None or kind == "unreachable after":
                refusal = self._terminate(job_id)
                results[job_id] = results[job_id] or refusal
            self._faults.point()
        return results

    def _terminate(self, job_id: str) -> BackendError | None:
        job = self._by_id.get(job_id)
        if job is None:
            raise Violation(f"{job_id} is not a job of {self.pool}, and was to be ended")
        if job.ended is not None:
            return None
        if job.worker is not None and job.worker.running and job_id not in self._shown_pending:
            self._police.ended_busy(job)
        self._timeline.changes += 1
        self._timeline.tell("asked to end:", job.key)
        job.asked_to_end += 1
        if job.asked_to_end == 1 + job.fate.is_stubborn:
            self._timeline.after(job.fate.ending_seconds, self._end, job, None, "killed by us")
        return None

    def logs(self, job_id: str) -> str:
        self._faults.point()
        kind = self._faults.strike("logs", LIST_FAULTS)
        if kind is not None:
            raise backend_error(kind)
        if job_id not in self._by_id:
            raise Invalid(f"there is no job {job_id}")
        return "the end of it"

    # A job's life

    def _start(self, job: ServiceJob) -> None:
        if job.ended is not None or job.started is not None:
            return
        job.started = self._timeline.now
        self._timeline.tell("starts:", job.key)
        fate = job.fate
        if fate.registers_seconds is not None:
            self._timeline.after(fate.registers_seconds, self._register, job)
        if fate.dies_seconds is not None:
            cause = "preempted" if fate.exit_code is None else "failed"
            self._timeline.after(fate.dies_seconds, self._end, job, fate.exit_code, cause)

    def _register(self, job: ServiceJob) -> None:
        if job.ended is None and job.worker is None:
            job.worker = Worker(str(job.key), self.cpus, lambda: self._leave(job))
            self._server.register(job.worker)

    def _leave(self, job: ServiceJob) -> None:
        self._end(job, WorkerExit.FINISHED, "finished")

    def _end(self, job: ServiceJob, exit_code: int | None, cause: str) -> None:
        if job.ended is not None:
            return
        self._timeline.changes += 1
        job.ended = self._timeline.now
        job.exit_code = exit_code
        job.cause = EndCause(cause)
        self._faults.counted[f"worker {cause}"] += 1
        self._timeline.tell("ends:", job.key, cause)
        if job.worker is not None:
            self._server.lose(job.worker)

    def preempt(self, job: ServiceJob) -> None:
        """The service takes the machine back."""
        self._end(job, None, "preempted")

    def calm(self, *, registers: bool) -> None:
        """Whatever hung goes on: every job starts, and every worker comes if it ``registers``."""
        for job in self.living():
            if registers and job.fate.registers_seconds is None and job.fate.dies_seconds is None:
                job.fate = replace(job.fate, registers_seconds=5.0)
            if job.started is None:
                self._timeline.after(5.0, self._start, job)
            elif registers and job.worker is None:
                self._timeline.after(5.0, self._register, job)
