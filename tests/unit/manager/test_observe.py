from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from backends.base import (
    BackendError,
    Capabilities,
    Job,
    JobState,
    LaunchKey,
    LaunchResult,
    Unreachable,
)
from bundles.client import Client
from bundles.errors import BundlesError
from bundles.home import Credentials
from manager.ledger import Ledger, Pool
from manager.observe import START_SECONDS, Observer, QueueConfig

NOW = 1_000_000.0
GIB = 1024**3


class FakeServer:
    """Answers searches from ``bundles`` as a server does; fails when it is not asked in pages."""

    def __init__(self, *, root: bool = False, features: str = "") -> None:
        self.root, self.features = root, features
        self.bundles: list[dict[str, Any]] = []
        self.workers: list[str] = []
        self.shapes: list[dict[str, Any]] = []
        self.asked: list[list[str]] = []
        self.worker_lists = 0
        self.broken_page: int | None = None

    def stage(self, number: int = 1, *, bundle_type: str = "run", **metadata: Any) -> None:
        for _ in range(number):
            self.bundles.append(
                {
                    "id": f"0x{len(self.bundles):032x}",
                    "attributes": {
                        "uuid": f"0x{len(self.bundles):032x}",
                        "bundle_type": bundle_type,
                        "state": "staged",
                        "metadata": metadata,
                    },
                }
            )

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/rest/")
        if path == "user":
            document = {"data": {"id": "0", "attributes": {"is_root_user": self.root}}}
        elif path == "workers/info":
            self.worker_lists += 1
            document = {"data": [{"worker_id": name} for name in self.workers]}
        else:
            words = request.url.params.get_list("keywords")
            self.asked.append(words)
            if ".shapes" in words:
                return self._reply({"meta": {"shapes": self.shapes}})
            limit = self._number(words, ".limit=")
            offset = self._number(words, ".offset=")
            if self.broken_page is not None and offset >= self.broken_page:
                return httpx.Response(500, text="broken")
            document = {"data": self.bundles[offset : offset + limit]}
        return self._reply(document)

    @staticmethod
    def _number(words: list[str], prefix: str) -> int:
        found = [int(word.removeprefix(prefix)) for word in words if word.startswith(prefix)]
        assert found, f"asked without {prefix}: a server would answer 10 bundles at most"
        return found[0]

    def _reply(self, document: Any) -> httpx.Response:
        headers = {"Bundles-Features": self.features} if self.features else {}
        return httpx.Response(200, content=orjson.dumps(document), headers=headers)


class FakeBackend:
    def __init__(self, lag_seconds: float = 0.0) -> None:
        self.jobs: list[Job] = []
        self.error: BackendError | None = None
        self.capabilities = Capabilities(1, True, 60.0, lag_seconds)

    def work_directory(self, key: LaunchKey) -> str:
        return "/"

    def list_jobs(self) -> list[Job]:
        if self.error:
            raise self.error
        return list(self.jobs)

    def launch(self, requests: Any) -> list[LaunchResult]:
        raise AssertionError("observing launches nothing")

    def terminate(self, job_ids: Any) -> dict[str, BackendError | None]:
        raise AssertionError("observing ends nothing")

    def logs(self, job_id: str) -> str:
        return ""

    def add(self, state: JobState, *, age_seconds: float = 3600.0) -> Job:
        key = LaunchKey.make("p", len(self.jobs) + 1)
        started = None if state is JobState.PENDING else NOW - age_seconds
        self.jobs.append(Job(str(key), key, str(key), state, NOW - age_seconds, started))
        return self.jobs[-1]


Make = Callable[..., Observer]


@pytest.fixture
def make() -> Iterator[Make]:
    clients = []

    def make_observer(server: FakeServer, backend: FakeBackend, **queue: Any) -> Observer:
        client = Client("http://s", Credentials(token="t"), transport=httpx.MockTransport(server))
        clients.append(client)
        config = QueueConfig(**{"cpus": 1, "gpus": 0, "memory_bytes": 2 * GIB, **queue})
        return Observer(client, backend, "p", config)

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
