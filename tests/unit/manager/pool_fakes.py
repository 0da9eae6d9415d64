"""A server and a compute service in memory, for tests of the manager."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import httpx
import orjson

from backends.base import (
    BackendError,
    Capabilities,
    Finding,
    Idempotency,
    Invalid,
    Job,
    JobState,
    LaunchKey,
    LaunchRequest,
    LaunchResult,
    Unreachable,
)
from manager.feed import ChangeFeed
from manager.keeper import PoolKeeper
from manager.ledger import Ledger
from manager.loop import Manager
from manager.observe import Observation, Observer
from manager.policy import Decision, PoolConfig
from manager.staged import StagedBundles, demand_of

NOW = 1_000_000.0
GIB = 1024**3


class FakeServer:
    """Answers searches from ``bundles`` as a server does; fails when it is not asked in pages."""

    def __init__(self, *, root: bool = False, features: str = "") -> None:
        self.root, self.features = root, features
        self.bundles: list[dict[str, Any]] = []
        self.workers: list[str] = []
        self.offers: dict[str, dict[str, Any]] = {}
        self.shapes: list[dict[str, Any]] = []
        self.asked: list[list[str]] = []
        self.checked_out: list[str] = []
        self.drained: list[str] = []
        self.checkout_status: int | None = None
        self.workers_status: int | None = None
        self.restaged: list[str] = []
        self.worker_lists = 0
        self.tokens = 0
        self.status: int | None = None
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
        if self.status is not None:
            return httpx.Response(self.status, text=f"status {self.status}")
        if path == "user":
            document = {"data": {"id": "0", "attributes": {"is_root_user": self.root}}}
        elif path == "workers/info":
            self.worker_lists += 1
            if self.workers_status is not None:
                return httpx.Response(self.workers_status, text="not for you")
            document = {
                "data": [{"worker_id": name, **self.offers.get(name, {})} for name in self.workers]
            }
        elif path.endswith("/checkout"):
            if self.checkout_status is not None:
                return httpx.Response(self.checkout_status, text="no")
            self.checked_out.append(path.split("/")[1])
            document = {"restaged": self.restaged}
        elif path.endswith("/drain"):
            self.drained.append(path.split("/")[1])
            document = {}
        elif path == "worker-tokens":
            self.tokens += 1
            document = {"data": {"attributes": {"token": f"token-{self.tokens}"}}}
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
    """A service in memory, which fails the test when one key is launched twice."""

    def __init__(self, lag_seconds: float = 0.0) -> None:
        self.jobs: list[Job] = []
        self.error: BackendError | None = None
        self.refusal: BackendError | None = None
        self.launched: list[LaunchRequest] = []
        self.asked_to_end: list[str] = []
        self.reluctance: BackendError | None = None
        self.may_end_running = False
        self.outputs: dict[str, str] = {}
        self.capabilities = Capabilities(1, Idempotency.SERVICE, 60.0, lag_seconds)
        self.work_directory = "/"

    def check(self) -> list[Finding]:
        return []

    def list_jobs(self) -> list[Job]:
        if self.error:
            raise self.error
        return list(self.jobs)

    def launch(
        self, requests: Sequence[LaunchRequest], *, dry_run: bool = False
    ) -> list[LaunchResult]:
        assert not dry_run
        return [self._launch(request) for request in requests]

    def _launch(self, request: LaunchRequest) -> LaunchResult:
        error = self.refusal
        if error is not None and not isinstance(error, Unreachable):
            return error
        known = [job for job in self.jobs if job.key == request.key]
        assert not known, f"{request.key} is launched twice"
        job = Job(str(request.key), request.key, str(request.key), JobState.ACTIVE, NOW, NOW)
        self.jobs.append(job)
        self.launched.append(request)
        return error or job

    def terminate(self, job_ids: Sequence[str]) -> dict[str, BackendError | None]:
        """A job that was asked to end stays in the list until ``pass_away``."""
        for job in self.jobs:
            is_spare = job.state is JobState.PENDING or self.may_end_running
            assert job.id not in job_ids or is_spare, f"{job.id} runs"
        self.asked_to_end += job_ids
        return dict.fromkeys(job_ids, self.reluctance)

    def pass_away(self) -> None:
        self.jobs = [job for job in self.jobs if job.id not in self.asked_to_end]

    def logs(self, job_id: str) -> str:
        if job_id not in self.outputs:
            raise Invalid(f"{job_id} has no output")
        return self.outputs[job_id]

    def add(self, state: JobState, *, age_seconds: float = 3600.0) -> Job:
        key = LaunchKey.make("p", len(self.jobs) + 1)
        started = None if state is JobState.PENDING else NOW - age_seconds
        self.jobs.append(Job(str(key), key, str(key), state, NOW - age_seconds, started))
        return self.jobs[-1]


class Look:
    """Looks at one pool, its queue and its jobs, as the tick of a manager does."""

    def __init__(self, observer: Observer, max_workers: int = 10) -> None:
        self._observer = observer
        self._staged = StagedBundles(observer.client)
        self._config = PoolConfig(observer.queue.shape, 0, max_workers)

    def observe(
        self, ledger: Ledger | None, now: float, ending: Collection[str] = ()
    ) -> Observation:
        queues = [self._observer.queue]
        demand, (unfit,) = demand_of(self._staged.read(queues), queues)
        return self._observer.observe(ledger, now, demand, unfit, self._config, ending)


class SolePool:
    """The manager of one pool, and the pool's keeper."""

    def __init__(
        self, keeper: PoolKeeper, make_feed: Callable[[], ChangeFeed], **more: Any
    ) -> None:
        self.keeper = keeper
        self.manager = Manager(
            [keeper],
            staged=StagedBundles(keeper.client),
            client=keeper.client,
            ledger=keeper.ledger,
            alarm=keeper.alarm,
            make_feed=make_feed,
            clock=keeper.clock,
            **more,
        )

    def tick(self) -> Decision:
        return self.manager.tick()[self.keeper.pool]

    def guarded_tick(self) -> float:
        """How long to wait for the next."""
        return self.manager._guarded_tick()
