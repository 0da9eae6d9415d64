"""What a manager counts, for Prometheus: names and labels are a promise (docs/operate.md).

Metrics are kept in a registry that the caller made, there is no other; serving it is not done here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
)

from backends.base import (
    Backend,
    BackendError,
    EndCause,
    Invalid,
    Job,
    JobState,
    LaunchKey,
    LaunchRequest,
    LaunchResult,
    OutOfCapacity,
    QuotaExceeded,
    Throttled,
    Unauthorized,
    Unreachable,
)
from bundles import __version__
from manager.observe import Observation
from manager.policy import Decision, PoolConfig
from manager.snapshot import Snapshot
from manager.witness import Witness
from manager.wrapped import WrappedBackend

OK = "ok"
ABORTED = "aborted"
"""Left before it came back: by a signal, or something unforeseen."""
MISSING = "missing"
CAUSES: dict[type[BackendError], str] = {
    Throttled: "throttled",
    OutOfCapacity: "out_of_capacity",
    QuotaExceeded: "quota_exceeded",
    Unauthorized: "unauthorized",
    Invalid: "invalid",
    Unreachable: "unreachable",
}
CALL_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
REGISTRATION_BUCKETS = (1, 2, 5, 10, 20, 30, 60, 120, 180, 300, 600, 1200, 3600)


def cause(error: BackendError) -> str:
    """The label of an error of the taxonomy."""
    return next((name for kind, name in CAUSES.items() if isinstance(error, kind)), "other")


class Metrics(Witness):
    """The metrics of one pool, as a witness of its manager; ``clock`` never goes back."""

    def __init__(
        self,
        registry: CollectorRegistry,
        pool: str,
        backend_name: str,
        config: PoolConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._pool = pool
        self._requested: dict[str, float] = {}
        """When the workers that this process launched, and that have not come, were asked for."""
        self._codes: set[str] = set()
        ProcessCollector(registry=registry)

        def gauge(name: str, help: str, *labels: str) -> Gauge:
            return Gauge(f"worker_manager_{name}", help, ("pool", *labels), registry=registry)

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"worker_manager_{name}", help, ("pool", *labels), registry=registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(
                f"worker_manager_{name}",
                help,
                ("pool", *labels),
                registry=registry,
                buckets=buckets,
            )

        build = Info(
            "worker_manager_build", "The program and its backend.", ("pool",), registry=registry
        )
        build.labels(pool).info({"version": __version__, "backend": backend_name})
        gauge("min_workers", "Never fewer workers than this.").labels(pool).set(config.min_workers)
        gauge("max_workers", "Never more workers than this.").labels(pool).set(config.max_workers)
        self._staged = gauge("staged_bundles", "Staged bundles that a worker could run.")
        self._unfit = gauge("unfit_bundles", "Staged bundles that no worker of the pool could run.")
        self._workers = gauge("workers", "Workers that the service has of ours.", "state")
        self._held = gauge("launches_held", "1 while launches are held because they failed.")
        self._probation = gauge(
            "launches_on_probation", "1 while one launch has to show that failures are over."
        )
        self._reasons = gauge("decision_reason", "1 for what held at the last decision.", "code")
        self._observed = gauge(
            "last_observation_timestamp_seconds", "When queue and jobs were last read whole."
        )
        self._launches = counter("launches", "Workers launched.")
        self._failures = counter("launch_failures", "Launches that failed.", "cause")
        self._ends = counter("worker_ends", "Workers that ended.", "cause", "exit_code")
        self._terminations = counter("terminations", "Workers that were asked to end.", "result")
        self._tick_failures = counter("tick_failures", "Ticks that could not be done.", "cause")
        self._calls = histogram(
            "backend_call_seconds", "Calls to the backend.", CALL_BUCKETS, "operation", "result"
        )
        self._ticks = histogram("tick_seconds", "Ticks, failed ones too.", CALL_BUCKETS)
        self._registrations = histogram(
            "registration_seconds",
            "From the decision to launch a worker to its being seen at the server.",
            REGISTRATION_BUCKETS,
        )
        # What has not happened yet is there as 0, so that the first time shows in a rate.
        for state in ("pending", "active", "ending"):
            self._workers.labels(pool, state)
        for name in CAUSES.values():
            self._failures.labels(pool, name)
        for metric in (self._launches, self._ticks, self._registrations):
            metric.labels(pool)

    # As a witness

    def decided(self, observation: Observation, snapshot: Snapshot, decision: Decision) -> None:
        pool = self._pool
        self._observed.labels(pool).set_to_current_time()
        self._staged.labels(pool).set(snapshot.staged)
        self._unfit.labels(pool).set(snapshot.unfit)
        self._workers.labels(pool, "pending").set(snapshot.pending)
        self._workers.labels(pool, "active").set(snapshot.active)
        self._workers.labels(pool, "ending").set(snapshot.ending)
        held = {reason.code: reason.held for reason in decision.reasons}
        self._codes |= held.keys()
        for code in self._codes:
            self._reasons.labels(pool, code).set(held.get(code, False))
        self._held.labels(pool).set(held.get("held", False))
        self._probation.labels(pool).set(snapshot.is_on_probation)
        for worker_id in observation.arrived:
            requested = self._requested.pop(worker_id, None)
            if requested is not None:
                self._registrations.labels(pool).observe(self._clock() - requested)
        for job in observation.jobs:
            if job.state is JobState.ENDED:
                self._requested.pop(job.worker_id, None)

    def ended(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            why = str(job.cause or EndCause.UNKNOWN).replace(" ", "_")
            code = "" if job.exit_code is None else str(job.exit_code)
            self._ends.labels(self._pool, why, code).inc()

    def missing(self, keys: Sequence[LaunchKey]) -> None:
        for key in keys:
            self._ends.labels(self._pool, MISSING, "").inc()
            self._requested.pop(str(key), None)

    def ticked(self, seconds: float, error: Exception | None, wait_seconds: float) -> None:
        self._ticks.labels(self._pool).observe(seconds)
        if error is not None:
            name = cause(error) if isinstance(error, BackendError) else type(error).__name__
            self._tick_failures.labels(self._pool, name).inc()

    # Of the backend

    def called(self, operation: str, result: str, seconds: float) -> None:
        self._calls.labels(self._pool, operation, result).observe(seconds)

    def launching(self, requests: Sequence[LaunchRequest]) -> None:
        now = self._clock()
        self._requested |= {str(request.key): now for request in requests}

    def launched(self, requests: Sequence[LaunchRequest], results: Sequence[LaunchResult]) -> None:
        for request, result in zip(requests, results, strict=True):
            if isinstance(result, Job):
                self._launches.labels(self._pool).inc()
            elif isinstance(result, BackendError):
                self._failures.labels(self._pool, cause(result)).inc()
                if not isinstance(result, Unreachable):  # that one may have been launched
                    self._requested.pop(str(request.key), None)

    def terminated(self, results: Sequence[BackendError | None]) -> None:
        for error in results:
            self._terminations.labels(self._pool, cause(error) if error else OK).inc()


def _result(results: Iterable[LaunchResult | None]) -> str:
    """How a call went: the first error of those that it brought, or ok."""
    return next((cause(error) for error in results if isinstance(error, BackendError)), OK)


class _Call:
    """One call under way, counted when it is left."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float], operation: str) -> None:
        self._metrics = metrics
        self._clock = clock
        self._operation = operation
        self._began = clock()
        self.result = OK

    def __enter__(self) -> _Call:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BackendError):
            self.result = cause(error)
        elif error is not None:
            self.result = ABORTED
        self._metrics.called(self._operation, self.result, self._clock() - self._began)


class MeteredBackend(WrappedBackend):
    """Counts and times what is asked of a backend, and changes nothing about it."""

    def __init__(
        self, inner: Backend, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(inner)
        self._metrics = metrics
        self._clock = clock

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        if dry_run:
            return self.inner.launch(requests, dry_run=True)
        self._metrics.launching(requests)
        with _Call(self._metrics, self._clock, "launch") as call:
            results = self.inner.launch(requests)
            call.result = _result(results)
        self._metrics.launched(requests, results)
        return results

    def list_jobs(self) -> list[Job]:
        with _Call(self._metrics, self._clock, "list_jobs"):
            return self.inner.list_jobs()

    def terminate(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        with _Call(self._metrics, self._clock, "terminate") as call:
            results = self.inner.terminate(job_ids)
            call.result = _result(results.values())
        self._metrics.terminated(list(results.values()))
        return results

    def logs(self, job_id: str) -> str:
        with _Call(self._metrics, self._clock, "logs"):
            return self.inner.logs(job_id)
