"""How often a service is asked for its jobs when there is nothing to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from pool_fakes import GIB, NOW, FakeBackend, FakeServer, SolePool

from backends.base import Job, JobResources, JobState
from bundles.client import Client
from bundles.home import Credentials
from manager.alarm import Alarm
from manager.command import WorkerOptions
from manager.journal import Journal
from manager.keeper import PoolKeeper
from manager.launcher import Launcher
from manager.ledger import Ledger, Pool
from manager.observe import Observer
from manager.policy import Decision, PoolConfig
from manager.queue import QueueConfig
from manager.quiet import IDLE_LIST_SECONDS, QuietList
from manager.snapshot import Snapshot

SLEEP_SECONDS = 5.0


class CountedBackend(FakeBackend):
    account: str | None = "ours"

    def __init__(self) -> None:
        super().__init__()
        self.lists = 0

    def list_jobs(self) -> list[Job]:
        self.lists += 1
        return super().list_jobs()


class Stand:
    """The manager of one pool, and a clock that its ticks move."""

    def __init__(self, directory: Path, low: int = 0, high: int = 3) -> None:
        self.now = NOW
        self.server = FakeServer(features="tokens", root=True)
        self.backend = CountedBackend()
        self.client = Client(
            "http://s", Credentials(token="t"), transport=httpx.MockTransport(self.server)
        )
        self.ledger = Ledger(directory / "ledger.db", clock=self.clock)
        self.ledger.describe(Pool("p", "fake", "http://s", {}))
        self.ledger.prove("p", NOW)
        queue = QueueConfig(cpus=1, gpus=0, memory_bytes=2 * GIB)
        self.keeper = PoolKeeper(
            pool="p",
            config=PoolConfig(queue.shape, low, high),
            observer=Observer(self.client, self.backend, "p", queue),
            backend=self.backend,
            launcher=Launcher(
                "http://s", WorkerOptions(), JobResources(1, 0, 2 * GIB), Credentials(token="t")
            ),
            client=self.client,
            ledger=self.ledger,
            journal=Journal(directory / "p.jsonl", "p"),
            alarm=Alarm(),
            clock=self.clock,
        )
        self.pool = SolePool(self.keeper, lambda: pytest.fail("the server offers no changes"))

    def clock(self) -> float:
        return self.now

    def tick(self) -> Decision:
        self.now += SLEEP_SECONDS
        return self.pool.tick()

    def lists_in(self, seconds: float) -> int:
        """How often the service is asked in so many seconds of ticks."""
        before, until = self.backend.lists, self.now + seconds
        while self.now < until:
            self.tick()
        return self.backend.lists - before

    def idle_worker(self) -> Job:
        job = self.backend.add(JobState.ACTIVE)
        self.server.workers.append(job.worker_id)
        return job

    def close(self) -> None:
        self.ledger.close()
        self.client.close()


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


def test_an_empty_pool_without_bundles_is_listed_once_a_minute(stand: Stand) -> None:
    assert stand.lists_in(600) <= 10


def test_idle_workers_are_listed_so_that_it_is_one_call_a_minute(stand: Stand) -> None:
    stand.idle_worker()
    stand.idle_worker()
    assert stand.lists_in(600) * 2 <= 10  # the list, and what the jobs are


def test_staged_bundles_are_launched_for_on_a_list_of_that_moment(stand: Stand) -> None:
    stand.tick()
    others = [stand.backend.add(JobState.ACTIVE) for _ in range(2)]
    stand.tick()
    assert stand.backend.lists == 1
    stand.server.stage(5)
    assert stand.tick().launch == 1
    assert stand.backend.lists == 2
    assert len(stand.backend.jobs) == 3 == len(others) + 1


@pytest.mark.parametrize("state", [JobState.PENDING, JobState.ACTIVE])
def test_while_something_is_about_to_change_every_tick_lists(stand: Stand, state: JobState) -> None:
    stand.backend.add(state, age_seconds=0)
    assert stand.lists_in(50) == 10


def test_a_worker_with_a_bundle_is_looked_after_at_every_tick(stand: Stand) -> None:
    job = stand.idle_worker()
    stand.server.offers[job.worker_id] = {"run_uuids": ["0x1"]}
    assert stand.lists_in(50) == 10


def test_a_worker_that_left_the_server_is_news(stand: Stand) -> None:
    job = stand.idle_worker()
    stand.tick()
    stand.tick()
    assert stand.backend.lists == 1
    stand.server.workers.remove(job.worker_id)
    stand.backend.jobs = [replace(job, state=JobState.ENDED, ended=stand.now)]
    stand.tick()
    assert stand.backend.lists == 2


def test_a_minimum_that_was_raised_is_kept_on_a_fresh_list(stand: Stand) -> None:
    stand.tick()
    stand.keeper.config = replace(stand.keeper.config, min_workers=2)
    assert stand.tick().launch == 2
    assert stand.backend.lists == 2


def test_what_does_not_leave_this_machine_is_listed_every_time(stand: Stand) -> None:
    stand.backend.account = None
    stand.keeper.quiet = QuietList(stand.backend)
    assert stand.lists_in(50) == 10


def test_a_list_lasts_neither_longer_than_its_time_nor_into_the_past() -> None:
    quiet = QuietList(CountedBackend())
    config = PoolConfig(QueueConfig(1, 0, GIB).shape, 0, 3)
    quiet.look([], Snapshot({}, 0, 0, 0), Decision(0), NOW)
    assert quiet.jobs(config, NOW + IDLE_LIST_SECONDS - 1, ()) == []
    assert quiet.jobs(config, NOW + IDLE_LIST_SECONDS, ()) is None
    assert quiet.jobs(config, NOW - 1, ()) is None
    quiet.look([], Snapshot({}, 0, 0, 0), Decision(1), NOW)
    assert quiet.jobs(config, NOW + 1, ()) is None


def test_what_the_health_of_a_pool_asks_for_is_not_done_on_an_old_list(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever makes the policy act all the same."""
    stand.idle_worker()
    stand.tick()
    before = stand.backend.lists
    whole = stand.keeper.remembered

    def remembered(observation: object, now: float) -> Snapshot:
        snapshot = whole(observation, now)  # type: ignore[arg-type]
        jobs = tuple(job.id for job in observation.jobs)  # type: ignore[attr-defined]
        return replace(snapshot, drain_overdue=jobs)

    monkeypatch.setattr(stand.keeper, "remembered", remembered)
    monkeypatch.setattr(stand.backend, "terminate", lambda ids: dict.fromkeys(ids))
    assert stand.tick().end
    assert stand.backend.lists == before + 1
