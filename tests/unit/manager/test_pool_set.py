"""What a manager of several pools does in one tick and the next."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from pool_fakes import GIB, NOW, FakeBackend, FakeServer

from backends.base import (
    EndCause,
    Invalid,
    Job,
    JobResources,
    JobState,
    LaunchRequest,
    LaunchResult,
    OutOfCapacity,
    QuotaExceeded,
    Unreachable,
)
from bundles.client import Client
from bundles.home import Credentials
from manager.alarm import Alarm
from manager.command import WorkerOptions
from manager.journal import Journal, last_entry
from manager.keeper import ENDING_SECONDS, PoolKeeper
from manager.launcher import Launcher
from manager.ledger import Ledger, Pool
from manager.listing import Lister
from manager.loop import UNKNOWN_SECONDS, Manager
from manager.money import Budget, PoolSet, Terms
from manager.observe import Observer
from manager.policy import PoolConfig
from manager.queue import QueueConfig
from manager.staged import StagedBundles

CPUS = {"campus": 1, "spot": 2, "demand": 1}


class Queueing(FakeBackend):
    """Its jobs wait until somebody starts them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        known = len(self.jobs)
        results = super().launch(requests, dry_run=dry_run)
        for n in range(known, len(self.jobs)):
            self.jobs[n] = replace(
                self.jobs[n], state=JobState.PENDING, created=self._clock(), started=None
            )
        return results


class Hanging(Queueing):
    """Its list never comes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.release = threading.Event()

    def list_jobs(self) -> list[Job]:
        self.release.wait(60)
        return super().list_jobs()


def listings() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "listing"]


class Stand:
    """Three pools over fakes: `campus`, `spot` (of two cpus a worker), `demand`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = FakeServer(features="tokens", root=True)
        self.now = NOW
        self.backends = {name: Queueing(self.clock) for name in CPUS}
        self.ledger = Ledger(directory / "ledger.db", clock=self.clock)
        self._client = Client(
            "http://s", Credentials(token="t"), transport=httpx.MockTransport(self.server)
        )
        self.released: list[str] = []
        self.keepers = {name: self.keeper(name) for name in CPUS}
        self.manager = Manager(
            [*self.keepers.values()],
            staged=StagedBundles(self._client),
            client=self._client,
            ledger=self.ledger,
            alarm=Alarm(),
            make_feed=lambda: pytest.fail("the server offers no changes"),
            clock=self.clock,
        )

    def keeper(self, name: str, *, low: int = 0, high: int = 3) -> PoolKeeper:
        cpus = CPUS[name]
        self.ledger.describe(Pool(name, "fake", "http://s", {}))
        self.ledger.prove(name, NOW)
        queue = QueueConfig(cpus=cpus, gpus=0, memory_bytes=2 * cpus * GIB)
        backend = self.backends[name]
        return PoolKeeper(
            pool=name,
            config=PoolConfig(queue.shape, low, high),
            observer=Observer(self._client, backend, name, queue),
            backend=backend,
            launcher=Launcher(
                "http://s",
                WorkerOptions(),
                JobResources(cpus, 0, 2 * cpus * GIB),
                Credentials(token="t"),
            ),
            client=self._client,
            ledger=self.ledger,
            journal=Journal(self.directory / f"{name}.jsonl", name),
            alarm=Alarm(),
            release=lambda: self.released.append(name),
            clock=self.clock,
        )

    def clock(self) -> float:
        return self.now

    def set(self, name: str, **config: object) -> None:
        keeper = self.keepers[name]
        keeper.config = replace(keeper.config, **config)  # type: ignore[arg-type]

    def stage(self, number: int) -> None:
        """Bundles of one cpu, so many in all."""
        self.server.bundles.clear()
        self.server.stage(number)

    def tick(self, after_seconds: float = 5.0) -> dict[str, int]:
        """How many workers each pool launched, or tried to."""
        self.now += after_seconds
        decided = self.manager.tick()
        return {name: decision.launch for name, decision in decided.items() if decision.launch}

    def begin(self, name: str) -> None:
        """Every pending job of a pool starts now."""
        backend = self.backends[name]
        backend.jobs = [replace(j, state=JobState.ACTIVE, started=self.now) for j in backend.jobs]

    def close(self) -> None:
        self.ledger.close()
        self._client.close()


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


def test_what_one_pool_may_not_launch_goes_to_the_next_in_the_same_tick(stand: Stand) -> None:
    stand.stage(8)
    assert stand.tick() == {"campus": 3, "spot": 3}, "three of one cpu, and five in three of two"
    assert stand.tick() == {}
    stand.stage(11)
    assert stand.tick() == {"demand": 2}


@pytest.mark.parametrize(
    "refusal", [OutOfCapacity("no such machines"), QuotaExceeded("8 cpus of 8"), Invalid("image")]
)
def test_what_the_service_refuses_is_launched_elsewhere_in_the_same_tick(
    stand: Stand, refusal: Exception
) -> None:
    stand.backends["campus"].refusal = refusal  # type: ignore[assignment]
    stand.stage(2)
    launches = stand.tick()
    assert launches["campus"] > 0
    assert launches["spot"] == 1
    assert len(stand.backends["spot"].launched) == 1
    assert stand.tick() == {}, "and not again"


def test_a_pool_that_cannot_be_listed_stops_no_other_and_gets_no_launch(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    stand.backends["campus"].error = Unreachable("no answer")
    stand.stage(2)
    with caplog.at_level(logging.INFO, "manager"):
        assert stand.tick() == {"spot": 1}
        for _ in range(5):
            stand.tick()
    assert stand.backends["campus"].launched == []
    said = [r.getMessage() for r in caplog.records if "campus" in r.getMessage()]
    assert said == ["campus: nothing is launched or ended there while this lasts: no answer"]
    entry = last_entry(stand.directory / "campus.jsonl")
    assert entry is not None
    assert entry["error"] == "Unreachable: no answer"
    stand.backends["campus"].error = None
    stand.stage(8)
    assert stand.tick(60.0)["campus"] == 3


def test_a_list_that_never_comes_holds_no_other_pool_up(stand: Stand) -> None:
    hanging = Hanging(stand.clock)
    keeper = stand.keepers["campus"]
    keeper.backend = keeper.observer.backend = hanging
    stand.manager.lister = Lister(seconds=0.05)
    stand.stage(2)
    try:
        assert stand.tick() == {"spot": 1}
        assert stand.tick(600.0) == {}
        assert hanging.launched == []
        assert len(listings()) == 1, "the list is asked for once, not once a tick"
    finally:
        hanging.release.set()
        for thread in listings():
            thread.join(60)


def test_workers_of_a_pool_that_went_silent_count_for_a_while(stand: Stand) -> None:
    stand.stage(2)
    assert stand.tick() == {"campus": 2}
    stand.tick()
    stand.backends["campus"].error = Unreachable("no answer")
    assert stand.tick() == {}
    assert stand.tick(UNKNOWN_SECONDS) == {"spot": 1}


def test_workers_launched_just_before_a_pool_went_silent_count(stand: Stand) -> None:
    stand.stage(2)
    assert stand.tick() == {"campus": 2}
    stand.backends["campus"].error = Unreachable("no answer")
    assert stand.tick() == {}
    stand.manager = replace(stand.manager, _known={})  # as another one begins
    assert stand.tick() == {}
    assert stand.tick(UNKNOWN_SECONDS) == {"spot": 1}


def test_a_launch_whose_answer_was_lost_is_not_made_elsewhere_at_once(stand: Stand) -> None:
    stand.stage(2)
    stand.backends["campus"].refusal = Unreachable("no answer")
    assert stand.tick() == {"campus": 2}
    assert stand.backends["spot"].launched == []


def test_no_list_at_all_is_no_tick(stand: Stand) -> None:
    for backend in stand.backends.values():
        backend.error = Unreachable("no answer")
    stand.stage(2)
    with pytest.raises(Unreachable):
        stand.tick()


def test_bundles_do_not_wait_for_workers_that_pend_longer_than_the_patience(stand: Stand) -> None:
    stand.set("campus", patience_seconds=300.0)
    stand.stage(2)
    assert stand.tick() == {"campus": 2}
    assert stand.tick(200.0) == {}
    assert stand.tick(200.0) == {"spot": 1}
    assert stand.tick() == {}
    assert len(stand.backends["campus"].launched) == 2, "and no more for the same bundles"


def test_a_pool_whose_workers_took_too_long_to_start_is_tried_with_one(stand: Stand) -> None:
    stand.set("campus", patience_seconds=60.0)
    stand.stage(1)
    assert stand.tick() == {"campus": 1}
    stand.now += 100.0
    stand.begin("campus")
    stand.stage(6)
    assert stand.tick(100.0) == {"campus": 1, "spot": 3}, "one shows when it is faster again"


def test_the_last_pool_is_waited_for_however_long_it_takes(stand: Stand) -> None:
    for name in ("spot", "demand"):
        stand.set(name, max_workers=0)
    stand.set("campus", patience_seconds=60.0)
    stand.stage(2)
    assert stand.tick() == {"campus": 2}
    stand.stage(3)
    assert stand.tick(600.0) == {"campus": 1}


def test_a_lowered_maximum_drains_the_idle_first_and_ends_nobody_within_the_grace(
    stand: Stand,
) -> None:
    stand.server.features = "tokens,drain"
    backend = stand.backends["demand"]
    jobs = [backend.add(JobState.ACTIVE, age_seconds=age) for age in (300.0, 200.0, 100.0)]
    _adopt(stand, "demand", jobs)
    stand.server.workers = [job.worker_id for job in jobs]
    stand.server.offers = {jobs[n].worker_id: {"run_uuids": ["0x1"]} for n in (0, 2)}
    stand.set("demand", max_workers=1, drain_grace_seconds=600.0)
    stand.now += 5.0
    assert stand.manager.tick()["demand"].drain == (jobs[1].id, jobs[2].id)
    assert stand.server.drained == [jobs[1].worker_id, jobs[2].worker_id]
    stand.tick()
    assert stand.server.drained == [jobs[1].worker_id, jobs[2].worker_id], "told once"
    assert backend.asked_to_end == []
    backend.may_end_running = True
    stand.tick(700.0)
    assert sorted(backend.asked_to_end) == sorted([jobs[1].id, jobs[2].id])


def test_where_nobody_can_be_told_to_drain_the_idle_end_and_the_busy_have_the_grace(
    stand: Stand,
) -> None:
    backend = stand.backends["demand"]
    jobs = [backend.add(JobState.ACTIVE, age_seconds=age) for age in (300.0, 200.0)]
    _adopt(stand, "demand", jobs)
    stand.server.workers = [job.worker_id for job in jobs]
    stand.server.offers = {jobs[0].worker_id: {"run_uuids": ["0x1"]}}
    stand.set("demand", max_workers=0)
    backend.may_end_running = True
    stand.tick()
    assert backend.asked_to_end == [jobs[1].id]
    stand.server.offers = {}
    stand.tick()
    assert sorted(backend.asked_to_end) == sorted(job.id for job in jobs), "idle by now"


def test_one_that_took_a_bundle_instead_of_ending_idle_has_the_grace_of_its_drain(
    stand: Stand,
) -> None:
    backend = stand.backends["demand"]
    jobs = [backend.add(JobState.ACTIVE, age_seconds=300.0)]
    _adopt(stand, "demand", jobs)
    backend.may_end_running = True
    stand.server.workers = [jobs[0].worker_id]
    stand.set("demand", max_workers=0, drain_grace_seconds=3600.0)
    stand.tick()
    assert backend.asked_to_end == [jobs[0].id], "idle, where nobody can tell it to drain"
    stand.server.offers = {jobs[0].worker_id: {"run_uuids": ["0x1"]}}
    stand.tick(ENDING_SECONDS)
    assert len(backend.asked_to_end) == 1
    stand.tick(3600.0)
    assert len(backend.asked_to_end) == 2


def test_a_pool_that_is_taken_out_is_released_when_its_last_worker_has_gone(stand: Stand) -> None:
    stand.stage(2)
    assert stand.tick() == {"campus": 2}
    stand.manager.configure([stand.keepers["spot"], stand.keepers["demand"]])
    assert stand.tick() == {"spot": 1}
    assert len(stand.backends["campus"].asked_to_end) == 2
    assert stand.released == []
    stand.backends["campus"].jobs.clear()
    stand.tick()
    assert stand.released == ["campus"]
    stand.tick()
    assert stand.released == ["campus"]


def test_room_in_any_pool_is_used_before_a_worker_is_launched_in_the_first(stand: Stand) -> None:
    backend = stand.backends["demand"]
    jobs = [backend.add(JobState.ACTIVE)]
    _adopt(stand, "demand", jobs)
    job = jobs[0]
    stand.server.workers = [job.worker_id]
    stand.server.offers = {
        job.worker_id: {
            "cpus": 1,
            "gpus": 0,
            "memory_bytes": 2 * GIB,
            "free_disk_bytes": 2**62,
            "cpus_in_use": 0,
            "gpus_in_use": 0,
            "memory_bytes_in_use": 0,
        }
    }
    stand.stage(1)
    assert stand.tick() == {}
    stand.stage(2)
    assert stand.tick() == {"campus": 1}


def _adopt(stand: Stand, pool: str, jobs: list[Job]) -> None:
    """Have the ledger know jobs that were there before."""
    for job in jobs:
        (key,) = stand.ledger.intend(pool, 1)
        stand.backends[pool].jobs[stand.backends[pool].jobs.index(job)] = new = replace(
            job, id=str(key), key=key, worker_id=str(key)
        )
        jobs[jobs.index(job)] = new
    stand.ledger.settle_all([(job.key, "launched", job.id, None) for job in jobs if job.key])  # type: ignore[misc]


def test_what_a_pool_has_cost_that_was_taken_out_is_spent_of_the_budget_of_all(
    stand: Stand,
) -> None:
    manager = stand.manager
    manager.budget = Budget(per_hour=20.0)
    together = PoolSet(("campus", "spot"), manager.budget).to_settings()
    for name, price in {"campus": 4.0, "spot": 10.0}.items():
        stand.keepers[name].terms = Terms(price)
        settings = {"price_per_hour": price, **together}
        stand.ledger.describe(Pool(name, "fake", "http://s", settings))
        stand.ledger.prove(name, NOW)
    manager.configure([stand.keepers["spot"]])
    stand.now = NOW // 3600 * 3600 + 3600
    stand.stage(30)
    assert stand.tick(0) == {"spot": 2}
    stand.begin("spot")
    stand.stage(0)
    stand.tick(0)
    stand.now += 1800.0
    stand.backends["spot"].jobs = [
        replace(job, state=JobState.ENDED, ended=stand.now, exit_code=0, cause=EndCause.FINISHED)
        for job in stand.backends["spot"].jobs
    ]
    manager.configure([stand.keepers["campus"]])
    stand.tick(0)
    assert "spot" in stand.released
    manager.budget = Budget(per_hour=12.0)
    stand.set("campus", max_workers=9)
    stand.stage(30)
    assert stand.tick(0) == {"campus": 1}, "10 are spent; without them it would be 3"
