from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from pool_fakes import GIB, NOW, FakeBackend, FakeServer, SolePool
from prometheus_client import CollectorRegistry

from backends.base import (
    Backend,
    BackendError,
    EndCause,
    Invalid,
    JobResources,
    JobState,
    OutOfCapacity,
    QuotaExceeded,
    Throttled,
    Unauthorized,
    Unreachable,
)
from bundles.client import Client
from bundles.home import Credentials
from manager.alarm import Alarm, Stopped
from manager.command import WorkerOptions
from manager.journal import Journal
from manager.keeper import PoolKeeper
from manager.launcher import Launcher
from manager.ledger import Ledger, Pool
from manager.metrics import MeteredBackend, Metrics, PoolMetrics, cause
from manager.money import Account, Budget, Period, Terms, window
from manager.observe import Observer
from manager.policy import PoolConfig
from manager.queue import QueueConfig


class Stand:
    """A manager over fakes, with its metrics."""

    def __init__(self, directory: Path) -> None:
        self.now = NOW
        self.server = FakeServer(features="tokens", root=True)
        self.backend = FakeBackend()
        self.client = Client(
            "http://s", Credentials(token="t"), transport=httpx.MockTransport(self.server)
        )
        self.ledger = Ledger(directory / "ledger.db", clock=self.clock)
        self.ledger.describe(Pool("p", "fake", "http://s", {}))
        self.ledger.prove("p", NOW)
        queue = QueueConfig(cpus=1, gpus=0, memory_bytes=2 * GIB)
        config = PoolConfig(queue.shape, 0, 3)
        self.registry = CollectorRegistry()
        metrics = PoolMetrics(Metrics(self.registry), "p", "fake", self.clock)
        metrics.configured(config)
        self.metered: Backend = MeteredBackend(self.backend, metrics, self.clock)
        keeper = PoolKeeper(
            pool="p",
            config=config,
            observer=Observer(self.client, self.metered, "p", queue),
            backend=self.metered,
            launcher=Launcher(
                "http://s", WorkerOptions(), JobResources(1, 0, 2 * GIB), Credentials(token="t")
            ),
            client=self.client,
            ledger=self.ledger,
            journal=Journal(directory / "p.jsonl", "p"),
            alarm=Alarm(),
            witnesses=(metrics,),
            clock=self.clock,
        )
        self.manager = SolePool(
            keeper, lambda: pytest.fail("the server offers no changes"), witnesses=(metrics,)
        )

    def clock(self) -> float:
        return self.now

    def tick(self) -> None:
        self.manager.guarded_tick()

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"worker_manager_{name}", {"pool": "p", **labels})

    def close(self) -> None:
        self.ledger.close()
        self.client.close()


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


def test_queue_workers_and_launches_are_counted(stand: Stand) -> None:
    stand.server.stage(5)
    stand.server.stage(2, request_cpus=64)
    stand.backend.add(JobState.PENDING)
    stand.backend.add(JobState.ACTIVE)
    stand.tick()
    assert stand.value("staged_bundles") == 5
    assert stand.value("unfit_bundles") == 2
    assert [stand.value("workers", state=s) for s in ("pending", "active", "ending")] == [1, 1, 0]
    assert (stand.value("min_workers"), stand.value("max_workers")) == (0, 3)
    assert stand.value("launches_total") == 1
    assert stand.value("backend_call_seconds_count", operation="launch", result="ok") == 1
    assert stand.value("backend_call_seconds_count", operation="list_jobs", result="ok") == 1
    assert stand.value("tick_seconds_count") == 1
    assert stand.value("build_info", version="0.1.0", backend="fake") == 1


def test_what_held_at_the_last_decision_is_1_and_what_held_before_is_0(stand: Stand) -> None:
    stand.tick()
    assert stand.value("decision_reason", code="nothing_staged") == 1
    stand.server.stage(9)
    stand.tick()
    assert stand.value("decision_reason", code="nothing_staged") == 0
    assert stand.value("decision_reason", code="at_maximum") == 1
    stand.server.bundles = []
    stand.tick()
    assert stand.value("decision_reason", code="at_maximum") == 0


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (Throttled("slow down"), "throttled"),
        (OutOfCapacity("none"), "out_of_capacity"),
        (QuotaExceeded("too many"), "quota_exceeded"),
        (Unauthorized("who"), "unauthorized"),
        (Invalid("never"), "invalid"),
        (Unreachable("no answer"), "unreachable"),
    ],
)
def test_failures_are_counted_by_cause_and_those_that_have_not_been_are_0(
    stand: Stand, error: BackendError, name: str
) -> None:
    assert stand.value("launch_failures_total", cause=name) == 0
    stand.server.stage(2)
    stand.backend.refusal = error
    stand.tick()
    assert cause(error) == name
    assert stand.value("launch_failures_total", cause=name) == 2
    assert stand.value("launches_total") == 0
    assert stand.value("backend_call_seconds_count", operation="launch", result=name) == 1
    stand.backend.error = error
    stand.tick()
    assert stand.value("tick_failures_total", cause=name) == 1
    assert stand.value("backend_call_seconds_count", operation="list_jobs", result=name) == 1


def test_a_server_that_fails_is_a_cause_of_failed_ticks_and_leaves_the_last_sight(
    stand: Stand,
) -> None:
    stand.server.stage(1)
    stand.tick()
    seen = stand.value("last_observation_timestamp_seconds")
    stand.server.status = 500
    stand.tick()
    assert stand.value("tick_failures_total", cause="ServerFault") == 1
    assert stand.value("tick_seconds_count") == 2
    assert stand.value("staged_bundles") == 1
    assert stand.value("last_observation_timestamp_seconds") == seen


def test_launches_that_are_held_and_on_probation_show(stand: Stand) -> None:
    stand.server.stage(2)
    stand.tick()
    assert (stand.value("launches_held"), stand.value("launches_on_probation")) == (0, 0)
    stand.server.stage(2)
    stand.backend.refusal = OutOfCapacity("none")
    stand.tick()
    stand.tick()
    assert (stand.value("launches_held"), stand.value("launches_on_probation")) == (1, 1)
    stand.now += 10
    stand.backend.refusal = None
    stand.tick()
    assert (stand.value("launches_held"), stand.value("launches_on_probation")) == (0, 1)


def test_the_time_from_the_decision_to_the_workers_coming_is_measured_once(stand: Stand) -> None:
    stand.server.stage(2)
    stand.tick()
    stand.server.bundles = []
    first, second = stand.backend.jobs
    stand.now += 20
    stand.tick()
    assert stand.value("registration_seconds_count") == 0
    stand.server.workers = [first.worker_id]
    stand.now += 10
    stand.tick()
    stand.tick()
    assert stand.value("registration_seconds_count") == 1
    assert stand.value("registration_seconds_sum") == 30
    stand.server.workers.append(second.worker_id)
    stand.now += 5
    stand.tick()
    assert stand.value("registration_seconds_count") == 2
    assert stand.value("registration_seconds_sum") == 65


def test_workers_that_another_manager_launched_do_not_tell_how_long_they_took(
    stand: Stand,
) -> None:
    job = stand.backend.add(JobState.ACTIVE, age_seconds=10)
    stand.server.workers = [job.worker_id]
    stand.tick()
    assert stand.value("registration_seconds_count") == 0


def test_ends_are_counted_by_cause_and_exit_code(stand: Stand) -> None:
    stand.server.stage(3)
    stand.tick()
    stand.server.bundles = []
    fell, left, gone = stand.backend.jobs
    stand.backend.jobs = [
        replace(fell, state=JobState.ENDED, cause=EndCause.FAILED, exit_code=3, ended=NOW),
        replace(left, state=JobState.ENDED, cause=EndCause.OUT_OF_CAPACITY, ended=NOW),
    ]
    stand.tick()
    stand.tick()
    assert stand.value("worker_ends_total", cause="failed", exit_code="3") == 1
    assert stand.value("worker_ends_total", cause="out_of_capacity", exit_code="") == 1
    assert stand.value("worker_ends_total", cause="missing", exit_code="") == 1
    assert gone not in stand.backend.jobs


def test_terminations_are_counted_by_what_came_of_them(stand: Stand) -> None:
    job = stand.backend.add(JobState.PENDING)
    assert stand.metered.terminate([job.id]) == {job.id: None}
    stand.backend.reluctance = Invalid("together only")
    stand.metered.terminate([job.id])
    assert stand.value("terminations_total", result="ok") == 1
    assert stand.value("terminations_total", result="invalid") == 1
    assert stand.value("backend_call_seconds_count", operation="terminate", result="invalid") == 1


def test_a_call_that_a_signal_ends_is_counted_as_that(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(job_id: str) -> str:
        stand.now += 7
        raise Stopped

    monkeypatch.setattr(stand.backend, "logs", stopped)
    with pytest.raises(Stopped):
        stand.metered.logs("1")
    assert stand.value("backend_call_seconds_sum", operation="logs", result="aborted") == 7


def test_a_dry_run_is_no_launch(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand.backend, "launch", lambda requests, dry_run: [])
    assert stand.metered.launch([], dry_run=True) == []
    assert stand.value("backend_call_seconds_count", operation="launch", result="ok") is None


def test_the_time_to_the_first_bundle_is_measured_once(stand: Stand) -> None:
    stand.server.stage(1)
    stand.tick()
    (job,) = stand.backend.jobs
    stand.now += 20
    stand.server.workers = [job.worker_id]
    stand.tick()
    assert stand.value("registration_seconds_count") == 1
    assert stand.value("first_bundle_seconds_count") == 0
    stand.server.offers[job.worker_id] = {"run_uuids": ["0x1"]}
    stand.now += 10
    stand.tick()
    stand.tick()
    assert stand.value("first_bundle_seconds_count") == 1
    assert stand.value("first_bundle_seconds_sum") == 30


def test_quarantine_shows_with_the_time_when_it_is_over(stand: Stand) -> None:
    stand.server.stage(9)
    stand.tick()
    assert stand.value("quarantined") == 0
    assert stand.value("launches_held_until_timestamp_seconds") == 0
    for position, job in enumerate(stand.backend.jobs):
        stand.backend.jobs[position] = replace(
            job, state=JobState.ENDED, cause=EndCause.FAILED, exit_code=1, ended=NOW
        )
    stand.tick()
    assert stand.value("quarantined") == 1
    assert stand.value("worker_failures_total", cause="died_young") == 3
    assert stand.value("worker_failures_total", cause="stock_out") == 0
    assert (stand.value("launches_held_until_timestamp_seconds") or 0) > NOW


def test_several_pools_are_told_apart_and_one_that_is_kept_no_more_is_gone() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    one, other = PoolMetrics(metrics, "one", "fake"), PoolMetrics(metrics, "other", "fake")
    one.waited(3)
    other.refused("list_jobs")
    value = registry.get_sample_value
    assert value("worker_manager_call_wait_seconds_total", {"pool": "one"}) == 3
    assert value("worker_manager_call_wait_seconds_total", {"pool": "other"}) == 0
    assert value("worker_manager_calls_per_second_allowed", {"pool": "one"}) == float("inf")
    one.paced(2.5)
    assert value("worker_manager_calls_per_second_allowed", {"pool": "one"}) == 2.5
    metrics.forget("one")
    samples = [sample for family in registry.collect() for sample in family.samples]
    assert {sample.labels.get("pool") for sample in samples} == {None, "other"}


def test_one_pool_of_several_that_fails_is_counted_once_whatever_the_tick_does() -> None:
    registry = CollectorRegistry()
    metrics = PoolMetrics(Metrics(registry), "p", "fake")

    def failures() -> float | None:
        return registry.get_sample_value(
            "worker_manager_tick_failures_total", {"pool": "p", "cause": "unreachable"}
        )

    metrics.failed(Unreachable("no answer"))
    metrics.ticked(1.0, None, 5.0)
    assert failures() == 1
    metrics.failed(Unreachable("no answer"))
    metrics.ticked(1.0, Unreachable("no answer of any"), 5.0)
    assert failures() == 2
    metrics.ticked(1.0, Unreachable("no answer of any"), 5.0)
    assert failures() == 3


def test_what_a_pool_costs_will_cost_and_may_cost_shows_by_period() -> None:
    registry = CollectorRegistry()
    metrics = PoolMetrics(Metrics(registry), "p", "fake")
    terms = Terms(price_per_hour=2.0, budget=Budget(per_day=100.0))
    spent = {window(period, NOW): 5.0 for period in Period}
    metrics.paid_for(Account(terms, spent, living=3, stay_seconds=3600.0), NOW)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"worker_manager_{name}", {"pool": "p", **labels})

    assert value("cost_per_hour") == 6.0
    assert value("spent", period="day") == 5.0
    assert value("spent_forecast", period="day") == 11.0
    assert value("budget", period="day") == 100.0
    assert value("budget", period="hour") is None
    metrics.paid_for(Account(Terms(price_per_hour=2.0), spent), NOW)
    assert value("budget", period="day") is None, "it was taken away"


def test_a_lease_is_asked_for_when_somebody_looks() -> None:
    registry = CollectorRegistry()
    held = [True]
    PoolMetrics(Metrics(registry), "p", "fake").leased(lambda: held[0])
    assert registry.get_sample_value("worker_manager_lease_held", {"pool": "p"}) == 1
    held[0] = False
    assert registry.get_sample_value("worker_manager_lease_held", {"pool": "p"}) == 0
