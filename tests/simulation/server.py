"""A simulated server of bundles: what the manager asks of bundles.client.Client, and the workers
that check in with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from bundles import errors
from bundles.model import Bundle, Resources, Shape
from simulation.faults import SERVER_FAULTS, Faults, Violation, server_error
from simulation.timeline import Timeline

GIB = 1024**3
MEMORY_BYTES = 2 * GIB
"""Of every bundle, for each of its cpus; workers offer as much."""


class QueuedBundle:
    """A run, as the server knows it."""

    __slots__ = ("cpus", "is_done", "seconds", "state", "worker")

    def __init__(self, cpus: int, seconds: float) -> None:
        self.cpus = cpus
        self.seconds = seconds
        self.state = "staged"
        self.worker: Worker | None = None


class Worker:
    """A worker that has checked in. ``leave`` ends its job, with exit code 0."""

    __slots__ = ("cpus", "id", "idle_since", "is_draining", "leave", "running")

    def __init__(self, worker_id: str, cpus: int, leave: Callable[[], None]) -> None:
        self.id = worker_id
        self.cpus = cpus
        self.leave = leave
        self.running: list[QueuedBundle] = []
        self.is_draining = False
        self.idle_since = 0.0

    @property
    def free_cpus(self) -> int:
        return self.cpus - sum(bundle.cpus for bundle in self.running)


class Server:
    """``features``: what it offers; ``shows_workers``: whether the caller may see them.

    ``checkin_seconds``: bundles are given out so long after they could be.
    ``offline_seconds``: what a lost worker had is staged again then, unless it is checked out.
    """

    def __init__(
        self,
        timeline: Timeline,
        faults: Faults,
        *,
        features: frozenset[str],
        shows_workers: bool,
        idle_seconds: float,
        checkin_seconds: float,
        offline_seconds: float,
    ) -> None:
        self.features = features
        self.bundles: list[QueuedBundle] = []
        self._shows_workers = shows_workers
        self._idle_seconds = idle_seconds
        self._checkin_seconds = checkin_seconds
        self._offline_seconds = offline_seconds
        self._timeline = timeline
        self._faults = faults
        self._workers: dict[str, Worker] = {}
        self._lost: dict[str, Worker] = {}
        self._is_giving = False
        self.shown_staged = 0
        """How many bundles the manager was last told are staged."""
        self.shown_idle: frozenset[str] = frozenset()
        """The workers that it was last told have no bundle."""

    @property
    def undone(self) -> int:
        return sum(bundle.state != "done" for bundle in self.bundles)

    # What the manager asks

    def whoami(self) -> dict[str, Any]:
        self._asked("whoami")
        return {"id": "1", "is_root_user": True}

    def shapes(self, keywords: Sequence[str] = ()) -> list[Shape]:
        self._asked("queue")
        staged = Counter(bundle.cpus for bundle in self.bundles if bundle.state == "staged")
        self.shown_staged = sum(staged.values())
        return [Shape(_asks(cpus), number) for cpus, number in staged.items()]

    def search(
        self, keywords: Sequence[str] = (), *, each_page: Callable[[], object] = lambda: None
    ) -> list[Bundle]:
        self._asked("queue")
        each_page()
        self.shown_staged = sum(bundle.state == "staged" for bundle in self.bundles)
        return [
            Bundle(
                "0x0",
                "run",
                "staged",
                metadata={
                    "request_cpus": bundle.cpus,
                    "request_memory": str(bundle.cpus * MEMORY_BYTES),
                },
            )
            for bundle in self.bundles
            if bundle.state == "staged"
        ]

    def workers(self) -> list[dict[str, Any]]:
        self._asked("workers")
        if not self._shows_workers:
            raise errors.NotPermitted("not yours to see")
        self.shown_idle = frozenset(w.id for w in self._workers.values() if not w.running)
        return [
            {
                "worker_id": worker.id,
                "cpus": worker.cpus,
                "cpus_in_use": worker.cpus - worker.free_cpus,
                "gpus": 0,
                "gpus_in_use": 0,
                "memory_bytes": worker.cpus * MEMORY_BYTES,
                "memory_bytes_in_use": (worker.cpus - worker.free_cpus) * MEMORY_BYTES,
                "free_disk_bytes": 100 * GIB,
                "run_uuids": ["0x0"] * len(worker.running),
                "is_draining": worker.is_draining,
                "is_terminating": False,
            }
            for worker in self._workers.values()
        ]

    def worker_token(self) -> str:
        self._asked("token")
        return "token"

    def checkout(self, worker_id: str, session: str | None, reason: str) -> list[str]:
        self._faults.point()
        kind = self._faults.strike("checkout", SERVER_FAULTS)
        if kind is not None and kind != "unreachable after":
            raise server_error(kind)
        if worker_id in self._workers:
            raise Violation(f"{worker_id} lives and was checked out")
        restaged = self._restage(worker_id)
        self._faults.point()
        if kind is not None:
            raise server_error(kind)
        return ["0x0"] * restaged

    def drain_worker(self, worker_id: str, why: str, *, drain: bool = True) -> None:
        self._faults.point()
        kind = self._faults.strike("drain", SERVER_FAULTS)
        if kind is not None and kind != "unreachable after":
            raise server_error(kind)
        worker = self._workers.get(worker_id)
        if worker is None:
            raise errors.NotFound("no such worker")
        worker.is_draining = drain
        self._timeline.tell("told to drain:", worker_id)
        self._timeline.changes += 1
        if not worker.running:
            self._is_idle(worker)
        self._faults.point()
        if kind is not None:
            raise server_error(kind)

    def _asked(self, call: str) -> None:
        self._faults.point()
        kind = self._faults.strike(call, SERVER_FAULTS)
        if kind is not None:
            raise server_error(kind)

    # What users and workers do

    def stage(self, cpus: int, seconds: float) -> None:
        self.bundles.append(QueuedBundle(cpus, seconds))
        self._timeline.tell("staged: a bundle of", cpus, "cpus for", seconds, "s")
        self._timeline.changes += 1
        self._give_soon()

    def register(self, worker: Worker) -> None:
        self._workers[worker.id] = worker
        self._timeline.tell("checks in:", worker.id)
        self._timeline.changes += 1
        self._is_idle(worker)
        self._give_soon()

    def lose(self, worker: Worker) -> None:
        """The worker is gone; the server does not know yet when it had bundles."""
        del self._workers[worker.id]
        if worker.running:
            self._lost[worker.id] = worker
            self._timeline.after(self._offline_seconds, self._restage, worker.id)

    def _restage(self, worker_id: str) -> int:
        worker = self._lost.pop(worker_id, None)
        if worker is None:
            return 0
        for bundle in worker.running:
            bundle.state, bundle.worker = "staged", None
            self._timeline.tell("staged again: a bundle of", worker_id)
            self._timeline.changes += 1
        self._give_soon()
        return len(worker.running)

    def _give_soon(self) -> None:
        if not self._is_giving:
            self._is_giving = True
            self._timeline.after(self._checkin_seconds, self._give)

    def _give(self) -> None:
        self._is_giving = False
        for bundle in self.bundles:
            if bundle.state != "staged":
                continue
            for worker in self._workers.values():
                if not worker.is_draining and worker.free_cpus >= bundle.cpus:
                    bundle.state, bundle.worker = "running", worker
                    self._timeline.changes += 1
                    worker.running.append(bundle)
                    self._timeline.tell("takes a bundle:", worker.id)
                    self._timeline.after(bundle.seconds, self._finish, bundle, worker)
                    break

    def _finish(self, bundle: QueuedBundle, worker: Worker) -> None:
        if bundle.worker is not worker or worker.id not in self._workers:
            return  # an old claim
        bundle.state, bundle.worker = "done", None
        self._timeline.changes += 1
        worker.running.remove(bundle)
        if not worker.running:
            self._is_idle(worker)
        self._give_soon()

    def _is_idle(self, worker: Worker) -> None:
        worker.idle_since = self._timeline.now
        seconds = 0.0 if worker.is_draining else self._idle_seconds
        self._timeline.after(seconds, self._leave_if_idle, worker, worker.idle_since)

    def _leave_if_idle(self, worker: Worker, since: float) -> None:
        if worker.id in self._workers and not worker.running and worker.idle_since == since:
            worker.leave()


def _asks(cpus: int) -> Resources:
    return _ASKS[cpus]


_ASKS = {cpus: Resources(cpus=cpus, memory_bytes=cpus * MEMORY_BYTES) for cpus in range(1, 9)}
