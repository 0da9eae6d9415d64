"""Reads the queue, the backend's jobs and the ledger, and makes one Snapshot of them, or fails.

Complete or not at all: a list that could not be read to its end is an error, never a shorter one.
Changes nothing; what the ledger should learn from the list is left to the loop.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from backends.base import Backend, Job, JobState, LaunchKey
from bundles.errors import NotFound, NotPermitted, UsageError
from bundles.home import USER_VARIABLE
from bundles.model import Resources
from manager.capacity import (
    Demand,
    Need,
    Offer,
    Room,
    Shelf,
    coarse_demand,
    coarse_offers,
    place,
    total,
)
from manager.failures import Hold, hold
from manager.ledger import Launch, Ledger
from manager.queue import QueueConfig
from manager.snapshot import Snapshot

if TYPE_CHECKING:
    from bundles.client import Client

START_SECONDS = 60.0
"""A worker whose job runs, but which the server has not heard of, counts as pending this long."""
RECENT_LAUNCHES = 20
UNTAKEN_SECONDS = 20.0
"""Bundles that wait this long beside workers with room for them get workers of their own."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A snapshot, and the list it was made of. ``arrived``: workers that the server was seen to
    know for the first time."""

    snapshot: Snapshot
    jobs: tuple[Job, ...]
    arrived: frozenset[str] = frozenset()


@dataclass
class Observer:
    """Observes one pool. ``environ`` says whether we are CodaLab's root user there."""

    client: Client
    backend: Backend
    pool: str
    queue: QueueConfig
    environ: Mapping[str, str] = field(default_factory=dict)
    _root: bool | None = None
    _checked_in: set[str] = field(default_factory=set)
    _arrived: frozenset[str] = frozenset()
    _room_since: float | None = None

    def observe(
        self, ledger: Ledger | None, now: float, ending: Collection[str] = ()
    ) -> Observation:
        """``ending``: the ids of jobs that were asked to end. Raises BundlesError, BackendError,
        or sqlite3.Error when anything could not be read."""
        demand, unfit = self.staged()
        jobs = self.backend.list_jobs()
        living = [job for job in jobs if job.state is not JobState.ENDED]
        unsettled = ledger.unsettled(self.pool) if ledger else []
        recent = ledger.recent(self.pool, RECENT_LAUNCHES) if ledger else []
        staying = [job for job in living if job.id not in ending]
        free = self._learn(staying, now, is_anything_staged=bool(demand))
        pending = sum(self._is_pending(job, now) for job in staying)
        coming = {job.key for job in living if job.key and self._is_pending(job, now)}
        failed: Hold = hold(recent, jobs, coming | {launch.key for launch in unsettled})
        waiting = sorted(
            (job for job in staying if job.state is JobState.PENDING),
            key=lambda job: (job.created, job.id),
            reverse=True,
        )
        snapshot = Snapshot(
            demand=demand,
            unfit=unfit,
            pending=pending + self._invisible(unsettled, jobs, now),
            active=len(staying) - pending,
            ending=len(living) - len(staying),
            free=self._taken_up(free, demand, now),
            withdrawable=tuple(job.id for job in waiting),
            last_launch=ledger.last_launch(self.pool) if ledger else None,
            held_until=failed.until,
            hold_reason=failed.reason,
            is_on_probation=failed.until > 0,
        )
        return Observation(snapshot, tuple(jobs), self._arrived)

    # The queue

    def staged(self) -> tuple[dict[Need, int], int]:
        """The staged bundles that fit a worker of this pool, and how many do not."""
        keywords = self.queue.keywords(root=self._is_root())
        counted: list[tuple[Resources | None, int]]
        if "shapes" in self.client.features:
            counted = [(shape.resources, shape.count) for shape in self.client.shapes(keywords)]
        else:
            counted = [
                (_resources(bundle.metadata), 1)
                for bundle in self.client.search(keywords)
                if bundle.bundle_type == "run"
            ]
        demand: dict[Need, int] = {}
        unfit = 0
        for asked, number in counted:
            need = self.queue.need(asked) if asked else None
            if need is None:
                unfit += number
            else:
                demand[need] = demand.get(need, 0) + number
        return demand, unfit

    def _is_root(self) -> bool:
        if self._root is None:
            self._root = bool(
                self.client.whoami().get("is_root_user")
                or self.environ.get(USER_VARIABLE) == "codalab"
            )
        return self._root

    # The jobs

    def _learn(
        self, living: Sequence[Job], now: float, *, is_anything_staged: bool
    ) -> dict[Offer, int]:
        """Which workers have come, and the room that they have left; asks the server only when
        one is not known to have come yet, or a bundle looks for room."""
        ids = {job.worker_id for job in living}
        self._checked_in &= ids
        self._arrived = frozenset()
        is_one_awaited = any(self._is_young(job, now) and not self._has_come(job) for job in living)
        free: dict[Offer, int] = {}
        is_one_active = any(job.state is JobState.ACTIVE for job in living)
        if not is_one_awaited and not (is_anything_staged and is_one_active):
            return free
        try:
            workers = self.client.workers()
        except (NotPermitted, NotFound):
            self._checked_in = ids
            return free
        ours = [worker for worker in workers if str(worker.get("worker_id")) in ids]
        self._arrived = frozenset(str(worker["worker_id"]) for worker in ours) - self._checked_in
        self._checked_in |= self._arrived
        for worker in ours:
            offer = _offer(worker)
            if offer is not None:
                free[offer] = free.get(offer, 0) + 1
        return free

    def _taken_up(self, free: dict[Offer, int], demand: Demand, now: float) -> dict[Offer, int]:
        """The room that counts: bundles that would fit and are left waiting all the same cannot
        use it, whatever the reason, and shall not wait for it."""
        whole = self.queue.shape.room
        left = place(coarse_demand(demand, whole), Shelf(coarse_offers(free, whole)))
        if total(left) == total(demand):
            self._room_since = None
            return free
        if self._room_since is None:
            self._room_since = now
        # A clock that was set back starts the count anew.
        self._room_since = min(self._room_since, now)
        return free if now - self._room_since < UNTAKEN_SECONDS else {}

    def _is_pending(self, job: Job, now: float) -> bool:
        """A job that the service has not started, or whose worker has yet to check in.

        Counting a worker that is just starting as active would launch another for the same bundle.
        """
        return job.state is JobState.PENDING or (
            self._is_young(job, now) and not self._has_come(job)
        )

    def _is_young(self, job: Job, now: float) -> bool:
        return job.state is JobState.ACTIVE and now - (job.started or 0.0) < START_SECONDS

    def _has_come(self, job: Job) -> bool:
        return job.worker_id in self._checked_in

    def _invisible(self, unsettled: Sequence[Launch], jobs: Sequence[Job], now: float) -> int:
        """Intents that may have become a job which the service does not list yet."""
        listed: set[LaunchKey | None] = {job.key for job in jobs}
        lag_seconds = self.backend.capabilities.listing_lag_seconds
        return sum(
            launch.key not in listed and now - launch.requested < lag_seconds
            for launch in unsettled
        )


def _offer(worker: Mapping[str, Any]) -> Offer | None:
    """What a worker could still take, as the server describes it; None: nothing, or nobody knows.

    CodaLab's servers do not say what of its memory is in use.
    """
    if worker.get("is_terminating") or worker.get("exit_after_num_runs") == 0:
        return None
    try:
        room = Room(
            gpus=int(worker["gpus"]) - int(worker["gpus_in_use"]),
            cpus=int(worker["cpus"]) - int(worker["cpus_in_use"]),
            memory_bytes=int(worker["memory_bytes"]) - int(worker["memory_bytes_in_use"]),
            disk_bytes=int(worker["free_disk_bytes"]),
        )
    except (KeyError, TypeError, ValueError):
        return None
    if room.cpus <= 0 and room.gpus <= 0:
        return None
    return Offer(room, str(worker.get("tag") or ""), bool(worker.get("tag_exclusive")))


def _resources(metadata: Mapping[str, object]) -> Resources | None:
    """What a bundle asks for; None when that cannot be read, so that it fits nowhere."""
    try:
        return Resources.from_metadata(metadata)
    except UsageError:
        return None
