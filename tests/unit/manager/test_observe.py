from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pool_fakes import GIB, NOW, FakeBackend, FakeServer, Look

from backends.base import JobState, Unreachable
from bundles.client import Client
from bundles.errors import BundlesError
from bundles.home import Credentials
from manager.ledger import Ledger, Outcome, Pool
from manager.observe import START_SECONDS, UNTAKEN_SECONDS, Observer
from manager.queue import QueueConfig

Make = Callable[..., Look]


@pytest.fixture
def make() -> Iterator[Make]:
    clients = []

    def make_observer(server: FakeServer, backend: FakeBackend, **queue: Any) -> Look:
        client = Client("http://s", Credentials(token="t"), transport=httpx.MockTransport(server))
        clients.append(client)
        config = QueueConfig(**{"cpus": 1, "gpus": 0, "memory_bytes": 2 * GIB, **queue})
        return Look(Observer(client, backend, "p", config))

    yield make_observer
    for client in clients:
        client.close()


def test_more_staged_bundles_than_a_page_are_all_counted(make: Make) -> None:
    server = FakeServer()
    server.stage(2345)
    assert make(server, FakeBackend()).observe(None, NOW).snapshot.staged == 2345


def test_half_a_queue_is_no_observation(make: Make) -> None:
    server = FakeServer()
    server.stage(2345)
    server.broken_page = 1000
    with pytest.raises(BundlesError):
        make(server, FakeBackend()).observe(None, NOW)


def test_a_list_of_jobs_that_cannot_be_read_is_no_observation(make: Make) -> None:
    backend = FakeBackend()
    backend.error = Unreachable("no answer")
    with pytest.raises(Unreachable):
        make(FakeServer(), backend).observe(None, NOW)


@pytest.mark.parametrize(
    ("root", "queue", "expected"),
    [
        (False, {}, ["state=staged", ".mine"]),
        (True, {}, ["state=staged"]),
        (True, {"search": ("name=x", "a")}, ["state=staged", "name=x", "a"]),
        (True, {"tag": "t"}, ["state=staged"]),
        (True, {"tag": "t", "tag_exclusive": True}, ["state=staged", "request_queue=t,tag=t"]),
    ],
)
def test_the_search_is_codalabs(
    make: Make, root: bool, queue: dict[str, Any], expected: list[str]
) -> None:
    server = FakeServer(root=root)
    make(server, FakeBackend(), **queue).observe(None, NOW)
    assert server.asked[0][: len(expected)] == expected
    assert all(
        word.startswith((".limit", ".offset", "id=")) for word in server.asked[0][len(expected) :]
    )


@pytest.mark.parametrize(
    "asked",
    [
        {"request_cpus": 2},
        {"request_gpus": 1},
        {"request_memory": "3g"},
        {"request_queue": "other"},
        {"request_memory": "2x"},
    ],
)
def test_bundles_that_no_worker_of_the_pool_can_run_are_not_counted(
    make: Make, asked: dict[str, Any]
) -> None:
    server = FakeServer()
    server.stage(**asked)
    server.stage(request_cpus=1, request_memory="2g")
    snapshot = make(server, FakeBackend()).observe(None, NOW).snapshot
    assert (snapshot.staged, snapshot.unfit) == (1, 1)


def test_bundles_queued_for_the_pools_tag_are_counted(make: Make) -> None:
    server = FakeServer()
    server.stage(request_queue="tag=t")
    server.stage()
    both = make(server, FakeBackend(), tag="t").observe(None, NOW).snapshot
    assert both.staged == 2
    exclusive = make(server, FakeBackend(), tag="t", tag_exclusive=True).observe(None, NOW).snapshot
    assert exclusive.staged == 1


def test_without_the_prefilter_everything_is_counted(make: Make) -> None:
    server = FakeServer()
    server.stage(request_cpus=64)
    assert make(server, FakeBackend(), prefilter=False).observe(None, NOW).snapshot.staged == 1


def test_bundles_that_no_worker_runs_are_not_counted(make: Make) -> None:
    server = FakeServer()
    server.stage(bundle_type="make")
    assert make(server, FakeBackend()).observe(None, NOW).snapshot.staged == 0


def test_a_server_that_counts_shapes_is_asked_for_them_and_not_for_bundles(make: Make) -> None:
    server = FakeServer(features="shapes, changes", root=True)
    shape = {"gpus": 0, "memory_bytes": GIB, "disk_bytes": 0, "time_seconds": 0, "queue": ""}
    server.shapes = [
        {**shape, "cpus": 1, "count": 70, "oldest": 1.0},
        {**shape, "cpus": 2, "count": 30, "oldest": 1.0},
    ]
    snapshot = make(server, FakeBackend()).observe(None, NOW).snapshot
    assert (snapshot.staged, snapshot.unfit) == (70, 30)
    assert server.asked == [["state=staged", ".shapes"]]


def test_a_worker_that_has_yet_to_check_in_is_pending(make: Make) -> None:
    server, backend = FakeServer(), FakeBackend()
    new = backend.add(JobState.ACTIVE, age_seconds=1.0)
    backend.add(JobState.PENDING)
    backend.add(JobState.ACTIVE)
    backend.add(JobState.ENDED)
    observer = make(server, backend)
    snapshot = observer.observe(None, NOW).snapshot
    assert (snapshot.pending, snapshot.active) == (2, 1)
    server.workers = [new.worker_id]
    snapshot = observer.observe(None, NOW).snapshot
    assert (snapshot.pending, snapshot.active) == (1, 2)


def test_a_worker_that_never_checks_in_is_not_pending_for_ever(make: Make) -> None:
    backend = FakeBackend()
    backend.add(JobState.ACTIVE, age_seconds=START_SECONDS + 1)
    assert make(FakeServer(), backend).observe(None, NOW).snapshot.active == 1


def test_the_server_is_not_asked_for_workers_that_are_known_to_have_come(make: Make) -> None:
    server, backend = FakeServer(), FakeBackend()
    server.workers = [backend.add(JobState.ACTIVE, age_seconds=1.0).worker_id]
    observer = make(server, backend)
    for _ in range(3):
        observer.observe(None, NOW)
    assert server.worker_lists == 1


def test_an_intent_that_the_service_may_not_list_yet_is_pending(make: Make, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db", clock=lambda: NOW) as ledger:
        ledger.describe(Pool("p", "b", "http://s", {}))
        ledger.intend("p", 2)
        observer = make(FakeServer(), FakeBackend(lag_seconds=30.0))
        assert observer.observe(ledger, NOW + 1).snapshot.pending == 2
        assert observer.observe(ledger, NOW + 31).snapshot.pending == 0


def test_a_launch_that_was_answered_and_is_not_listed_yet_is_pending(
    make: Make, tmp_path: Path
) -> None:
    with Ledger(tmp_path / "ledger.db", clock=lambda: NOW) as ledger:
        ledger.describe(Pool("p", "b", "http://s", {}))
        (key,) = ledger.intend("p", 1)
        ledger.settle(key, Outcome.LAUNCHED, job_id="1")
        observer = make(FakeServer(), FakeBackend(lag_seconds=30.0))
        assert observer.observe(ledger, NOW + 1).snapshot.pending == 1
        assert observer.observe(ledger, NOW + 31).snapshot.pending == 0


# Room that workers have left

OFFER = {
    "cpus": 4,
    "gpus": 0,
    "memory_bytes": 8 * GIB,
    "free_disk_bytes": GIB,
    "cpus_in_use": 1,
    "gpus_in_use": 0,
    "memory_bytes_in_use": 2 * GIB,
}


def test_the_room_that_a_worker_has_left_is_seen_when_a_bundle_looks_for_it(make: Make) -> None:
    server, backend = FakeServer(), FakeBackend()
    job = backend.add(JobState.ACTIVE)
    server.workers = [job.worker_id, "somebody-else-s"]
    server.offers = dict.fromkeys(server.workers, OFFER)
    observer = make(server, backend, cpus=4, memory_bytes=8 * GIB)
    assert observer.observe(None, NOW).snapshot.free == {}
    assert server.worker_lists == 0
    server.stage()
    ((offer, number),) = observer.observe(None, NOW).snapshot.free.items()
    assert (offer.room.cpus, offer.room.memory_bytes, number) == (3, 6 * GIB, 1)


@pytest.mark.parametrize(
    "change",
    [{"is_terminating": True}, {"exit_after_num_runs": 0}, {"memory_bytes_in_use": None}],
)
def test_a_worker_that_takes_nothing_more_has_no_room(make: Make, change: dict[str, Any]) -> None:
    server, backend = FakeServer(), FakeBackend()
    job = backend.add(JobState.ACTIVE)
    server.workers = [job.worker_id]
    server.offers = {job.worker_id: {**OFFER, **change}}
    server.stage()
    assert make(server, backend).observe(None, NOW).snapshot.free == {}


@pytest.mark.parametrize(
    ("left", "seen"), [(None, 5000), (6000.5, 5000), (4999.0, 4096), (1.5, 1), (0.2, 0)]
)
def test_a_worker_has_room_for_as_long_as_it_says_that_it_lives(
    make: Make, left: float | None, seen: int
) -> None:
    server, backend = FakeServer(), FakeBackend()
    job = backend.add(JobState.ACTIVE)
    server.workers = [job.worker_id]
    server.offers = {job.worker_id: {**OFFER, "seconds_left": left}}
    server.stage()
    observer = make(server, backend, lifetime_seconds=5000.0)
    (offer,) = observer.observe(None, NOW).snapshot.free
    assert offer.room.time_seconds == seen


def test_room_that_bundles_do_not_take_up_does_not_keep_them_waiting(make: Make) -> None:
    server, backend = FakeServer(), FakeBackend()
    job = backend.add(JobState.ACTIVE)
    server.workers = [job.worker_id]
    server.offers = {job.worker_id: OFFER}
    server.stage()
    observer = make(server, backend)
    assert observer.observe(None, NOW).snapshot.free
    assert observer.observe(None, NOW + UNTAKEN_SECONDS - 1).snapshot.free
    assert observer.observe(None, NOW + UNTAKEN_SECONDS).snapshot.free == {}
    server.bundles.clear()
    observer.observe(None, NOW + UNTAKEN_SECONDS)
    server.stage()
    assert observer.observe(None, NOW + UNTAKEN_SECONDS).snapshot.free


def test_a_worker_that_has_just_come_settles_for_one_look_and_then_its_room_counts(
    make: Make,
) -> None:
    server, backend = FakeServer(), FakeBackend()
    job = backend.add(JobState.ACTIVE, age_seconds=30.0)
    server.stage()
    observer = make(server, backend)
    assert observer.observe(None, NOW).snapshot.pending == 1
    server.workers = [job.worker_id]
    server.offers = {job.worker_id: OFFER}
    came = observer.observe(None, NOW).snapshot
    assert (came.pending, came.active, came.settling, came.free) == (0, 1, 1, {})
    after = observer.observe(None, NOW).snapshot
    assert (after.active, after.settling, sum(after.free.values())) == (1, 0, 1)


def test_jobs_that_wait_may_be_withdrawn_newest_first_and_none_that_is_ending(make: Make) -> None:
    backend = FakeBackend()
    old, new, ending = (backend.add(JobState.PENDING, age_seconds=age) for age in (9.0, 5.0, 1.0))
    backend.add(JobState.ACTIVE)
    snapshot = make(FakeServer(), backend).observe(None, NOW, {ending.id}).snapshot
    assert snapshot.withdrawable == (new.id, old.id)
    assert (snapshot.pending, snapshot.active, snapshot.ending) == (2, 1, 1)
