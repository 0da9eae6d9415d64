"""What a manager counts, for Prometheus: names and labels are a promise (docs/operate.md).

Metrics are kept in a registry that the caller made, there is no other; serving it is not done here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

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
from manager.governor import CallsWitness
from manager.health import Cause
from manager.money import Account, Period, window
from manager.observe import Observation
from manager.policy import Decision, PoolConfig
from manager.snapshot import Snapshot
from manager.witness import Witness
from manager.wrapped import WrappedBackend

F = TypeVar("F", Gauge, Counter, Histogram, Info)

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
START_BUCKETS = (1, 2, 5, 10, 20, 30, 60, 120, 180, 300, 600, 1200, 3600)


def cause(error: BackendError) -> str:
    """The label of an error of the taxonomy."""
    return next((name for kind, name in CAUSES.items() if isinstance(error, kind)), "other")


class Metrics:
    """The metrics of one process: of each pool that it keeps. Made once for a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        ProcessCollector(registry=registry)
        self._families: list[Gauge | Counter | Histogram | Info] = []

        def add(family: F) -> F:
            registry.register(family)
            self._families.append(family)
            return family

        def gauge(name: str, help: str, *labels: str) -> Gauge:
            return add(Gauge(f"worker_manager_{name}", help, ("pool", *labels), registry=None))

        def counter(name: str, help: str, *labels: str) -> Counter:
            return add(Counter(f"worker_manager_{name}", help, ("pool", *labels), registry=None))

        def histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return add(
                Histogram(
                    f"worker_manager_{name}",
                    help,
                    ("pool", *labels),
                    registry=None,
                    buckets=buckets,
                )
            )

        self.build = add(
            Info("worker_manager_build", "The program and its backend.", ("pool",), registry=None)
        )
        self.min_workers = gauge("min_workers", "Never fewer workers than this.")
        self.max_workers = gauge("max_workers", "Never more workers than this.")
        self.staged = gauge("staged_bundles", "Staged bundles of this pool's share of the queue.")
        self.unfit = gauge("unfit_bundles", "Staged bundles that no worker of the pool could run.")
        self.workers = gauge("workers", "Workers that the service has of ours.", "state")
        self.held = gauge("launches_held", "1 while launches are held because they failed.")
        self.held_until = gauge(
            "launches_held_until_timestamp_seconds",
            "Until when launches are held, 0: they are not.",
        )
        self.quarantined = gauge(
            "quarantined", "1 while the launches of the pool do nothing, and one alone is tried."
        )
        self.probation = gauge(
            "launches_on_probation", "1 while one launch has to show that failures are over."
        )
        self.reasons = gauge("decision_reason", "1 for what held at the last decision.", "code")
        self.observed = gauge(
            "last_observation_timestamp_seconds", "When queue and jobs were last read whole."
        )
        self.launches = counter("launches", "Workers launched.")
        self.failures = counter("launch_failures", "Launches that failed.", "cause")
        self.failed_workers = counter("worker_failures", "Workers that failed.", "cause")
        self.ends = counter("worker_ends", "Workers that ended.", "cause", "exit_code")
        self.terminations = counter("terminations", "Workers that were asked to end.", "result")
        self.tick_failures = counter("tick_failures", "Ticks that could not be done.", "cause")
        self.calls = histogram(
            "backend_call_seconds", "Calls to the backend.", CALL_BUCKETS, "operation", "result"
        )
        self.ticks = histogram("tick_seconds", "Ticks, failed ones too.", CALL_BUCKETS)
        self.registrations = histogram(
            "registration_seconds",
            "From the decision to launch a worker to its being seen at the server.",
            START_BUCKETS,
        )
        self.first_bundles = histogram(
            "first_bundle_seconds",
            "From the decision to launch a worker to its being seen with a bundle.",
            START_BUCKETS,
        )
        self.pace = gauge(
            "calls_per_second_allowed", "To the account's service, +Inf while it is not paced."
        )
        self.waits = counter("call_wait_seconds", "Spent on not calling faster than that.")
        self.refusals = counter("calls_not_made", "Calls put off to a later tick.", "operation")
        self.has_lease = gauge("lease_held", "1 while the server says that we keep the pool.")
        self.spent = gauge("spent", "What workers have cost in the running period.", "period")
        self.forecast = gauge(
            "spent_forecast", "The same at the end of it, when nothing more is launched.", "period"
        )
        self.budget = gauge("budget", "What the pool may cost in a period.", "period")
        self.cost_per_hour = gauge("cost_per_hour", "What the workers that live cost an hour.")
        self.whole_budget = Gauge(
            "worker_manager_whole_budget",
            "What all pools together may cost in a period.",
            ("period",),
            registry=registry,
        )
        self.is_config_good = Gauge(
            "worker_manager_config_good",
            "0 while the pools file has mistakes, and what it said before holds.",
            registry=registry,
        )
        self.is_config_good.set(1)

    def forget(self, pool: str) -> None:
        """The pool is kept no more."""
        for family in self._families:
            family.remove_by_labels({"pool": pool})


class PoolMetrics(Witness, CallsWitness):
    """The metrics of one pool, as a witness of its keeper; ``clock`` never goes back."""

    def __init__(
        self,
        metrics: Metrics,
        pool: str,
        backend_name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._of = metrics
        self._clock = clock
        self._pool = pool
        self._requested: dict[str, float] = {}
        """When the workers that this process launched, and that have not come, were asked for."""
        self._idle: dict[str, float] = {}
        """The same of those that came, and were not seen with a bundle."""
        self._codes: set[str] = set()
        self._has_failed = False
        metrics.build.labels(pool).info({"version": __version__, "backend": backend_name})
        # What has not happened yet is there as 0, so that the first time shows in a rate.
        for state in ("pending", "active", "draining", "ending"):
            metrics.workers.labels(pool, state)
        for name in CAUSES.values():
            metrics.failures.labels(pool, name)
        for found in Cause:
            metrics.failed_workers.labels(pool, label(found))
        for family in (metrics.launches, metrics.ticks, metrics.registrations, metrics.waits):
            family.labels(pool)
        metrics.first_bundles.labels(pool)
        metrics.pace.labels(pool).set(math.inf)

    # As a witness

    def configured(self, config: PoolConfig) -> None:
        """The limits are these from now on."""
        self._of.min_workers.labels(self._pool).set(config.min_workers)
        self._of.max_workers.labels(self._pool).set(config.max_workers)

    def decided(self, observation: Observation, snapshot: Snapshot, decision: Decision) -> None:
        pool = self._pool
        self._of.observed.labels(pool).set_to_current_time()
        self._of.staged.labels(pool).set(snapshot.staged)
        self._of.unfit.labels(pool).set(snapshot.unfit)
        self._of.workers.labels(pool, "pending").set(snapshot.pending)
        self._of.workers.labels(pool, "active").set(snapshot.active)
        self._of.workers.labels(pool, "draining").set(snapshot.draining)
        self._of.workers.labels(pool, "ending").set(snapshot.ending)
        held = {reason.code: reason.held for reason in decision.reasons}
        self._codes |= held.keys()
        for code in self._codes:
            self._of.reasons.labels(pool, code).set(held.get(code, False))
        self._of.held.labels(pool).set(held.get("held", False))
        self._of.held_until.labels(pool).set(snapshot.held_until)
        self._of.quarantined.labels(pool).set(snapshot.is_quarantined)
        self._of.probation.labels(pool).set(snapshot.is_on_probation)
        now = self._clock()
        for worker_id in observation.arrived:
            requested = self._requested.pop(worker_id, None)
            if requested is not None:
                self._of.registrations.labels(pool).observe(now - requested)
                self._idle[worker_id] = requested
        for worker_id in self._idle.keys() & observation.busy:
            self._of.first_bundles.labels(pool).observe(now - self._idle.pop(worker_id))
        for job in observation.jobs:
            if job.state is JobState.ENDED:
                self._forget(job.worker_id)

    def _forget(self, worker_id: str) -> None:
        self._requested.pop(worker_id, None)
        self._idle.pop(worker_id, None)

    def ended(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            why = label(job.cause or EndCause.UNKNOWN)
            code = "" if job.exit_code is None else str(job.exit_code)
            self._of.ends.labels(self._pool, why, code).inc()

    def missing(self, keys: Sequence[LaunchKey]) -> None:
        for key in keys:
            self._of.ends.labels(self._pool, MISSING, "").inc()
            self._forget(str(key))

    def workers_failed(self, causes: Sequence[Cause]) -> None:
        for found in causes:
            self._of.failed_workers.labels(self._pool, label(found)).inc()

    def failed(self, error: Exception) -> None:
        self._has_failed = True
        name = cause(error) if isinstance(error, BackendError) else type(error).__name__
        self._of.tick_failures.labels(self._pool, name).inc()

    def ticked(self, seconds: float, error: Exception | None, wait_seconds: float) -> None:
        self._of.ticks.labels(self._pool).observe(seconds)
        if error is not None and not self._has_failed:
            self.failed(error)
        self._has_failed = False

    def paid_for(self, account: Account, now: float) -> None:
        """What this pool has cost by ``now``."""
        pool = self._pool
        price = account.terms.price_per_hour
        self._of.cost_per_hour.labels(pool).set(account.living * price)
        for period in Period:
            place = window(period, now)
            self._of.spent.labels(pool, period).set(account.spent.get(place, 0.0))
            self._of.forecast.labels(pool, period).set(account.forecast(place, now))
            most = account.terms.budget.of(period)
            if most is None:  # no budget, or none any more
                self._of.budget.remove(pool, period)
            else:
                self._of.budget.labels(pool, period).set(most)

    # Of the lease

    def leased(self, is_held: Callable[[], bool]) -> None:
        """Ask this, from any thread, whether the pool is ours."""
        self._of.has_lease.labels(self._pool).set_function(is_held)

    # Of the governor

    def paced(self, calls_per_second: float | None) -> None:
        pace = math.inf if calls_per_second is None else calls_per_second
        self._of.pace.labels(self._pool).set(pace)

    def waited(self, seconds: float) -> None:
        self._of.waits.labels(self._pool).inc(seconds)

    def refused(self, operation: str) -> None:
        self._of.refusals.labels(self._pool, operation).inc()

    # Of the backend

    def called(self, operation: str, result: str, seconds: float) -> None:
        self._of.calls.labels(self._pool, operation, result).observe(seconds)

    def launching(self, requests: Sequence[LaunchRequest]) -> None:
        now = self._clock()
        self._requested |= {str(request.key): now for request in requests}

    def launched(self, requests: Sequence[LaunchRequest], results: Sequence[LaunchResult]) -> None:
        for request, result in zip(requests, results, strict=True):
            if isinstance(result, Job):
                self._of.launches.labels(self._pool).inc()
            elif isinstance(result, BackendError):
                self._of.failures.labels(self._pool, cause(result)).inc()
                if not isinstance(result, Unreachable):  # that one may have been launched
                    self._forget(str(request.key))

    def terminated(self, results: Sequence[BackendError | None]) -> None:
        for error in results:
            self._of.terminations.labels(self._pool, cause(error) if error else OK).inc()


def label(word: str) -> str:
    """`never started` as `never_started`, `stock-out` as `stock_out`."""
    return word.replace(" ", "_").replace("-", "_")


def _result(results: Iterable[LaunchResult | None]) -> str:
    """How a call went: the first error of those that it brought, or ok."""
    return next((cause(error) for error in results if isinstance(error, BackendError)), OK)


class _Call:
    """One call under way, counted when it is left."""

    def __init__(self, metrics: PoolMetrics, clock: Callable[[], float], operation: str) -> None:
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
        self, inner: Backend, metrics: PoolMetrics, clock: Callable[[], float] = time.monotonic
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
