"""Reads the backend's jobs and the ledger, and makes a Snapshot of one pool of them, or fails.

Complete or not at all: a list that could not be read to its end is an error, never a shorter one.
Changes nothing; what the ledger should learn from the list is left to the keeper.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from backends.base import Backend, Job, JobState, LaunchKey
from bundles.errors import NotFound, NotPermitted
from manager.capacity import (
    Demand,
    Offer,
    Room,
    Shelf,
    coarse_demand,
    coarse_offers,
    place,
    total,
)
from manager.ledger import Launch, Ledger
from manager.policy import PoolConfig
from manager.queue import QueueConfig
from manager.snapshot import Snapshot
from manager.unlisted import Unlisted

if TYPE_CHECKING:
    from bundles.client import Client

START_SECONDS = 60.0
"""A worker whose job runs, but which the server has not heard of, counts as pending this long."""
LOOK_SECONDS = 60.0
"""The server is asked this often, at least, whether it still hears of workers that run."""
RECENT_LAUNCHES = 20
UNTAKEN_SECONDS = 20.0
"""Bundles that wait this long beside workers with room for them get workers of their own."""


STARTS_REMEMBERED = 3
"""How long workers take to start is the median of so many of the last."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A snapshot, and the list it was made of. ``arrived``: workers that the server was seen to
    know for the first time; ``idle``: ids of jobs whose workers have no bundle, as the server
    says; ``when``: what was launched later may be missing from the list.

    ``running``: the launches that the ledger held for running. ``known``: of our workers those
    that the server knows, None when it was not asked or does not say, and ``is_blind`` in the
    latter case; ``busy``: those of them that have a bundle. ``workers``: what the server says of
    those that it knows.
    """

    snapshot: Snapshot
    jobs: tuple[Job, ...]
    when: float
    arrived: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    running: tuple[Launch, ...] = ()
    known: frozenset[str] | None = None
    is_blind: bool = False
    busy: frozenset[str] = frozenset()
    workers: tuple[Mapping[str, Any], ...] = ()


@dataclass
class Observer:
    """Observes one pool, beside the queue."""

    client: Client
    backend: Backend
    pool: str
    queue: QueueConfig
    unlisted: Unlisted = field(init=False)
    _checked_in: set[str] = field(default_factory=set)
    _arrived: frozenset[str] = frozenset()
    _settling: frozenset[str] = frozenset()
    _busy: frozenset[str] | None = None
    _known: frozenset[str] | None = None
    _workers: tuple[Mapping[str, Any], ...] = ()
    _is_blind: bool = False
    _room_since: float | None = None
    _looked: float | None = None

    def __post_init__(self) -> None:
        self.unlisted = Unlisted(self.backend.capabilities.listing_lag_seconds)

    def observe(
        self,
        ledger: Ledger | None,
        now: float,
        demand: Demand,
        unfit: int,
        config: PoolConfig,
        ending: Collection[str] = (),
        jobs: Sequence[Job] | None = None,
    ) -> Observation:
        """``demand``: the staged bundles of every pool of the set; ``unfit``: those of them that
        this pool cannot run; ``ending``: the ids of jobs that were asked to end; ``jobs``: the
        backend's list, when it was asked for before, at ``now``. Raises BundlesError,
        BackendError, or sqlite3.Error when anything could not be read."""
        self.unlisted.begin(now)
        if jobs is None:
            jobs = self.backend.list_jobs()
        living = [job for job in jobs if job.state is not JobState.ENDED]
        unsettled = ledger.unsettled(self.pool) if ledger else []
        launched = ledger.running(self.pool) if ledger else []
        unseen = self._unseen([*unsettled, *launched], jobs, now)
        recent = ledger.recent(self.pool, RECENT_LAUNCHES) if ledger else []
        told: dict[LaunchKey | None, float]
        self._checked_in |= {str(one.key) for one in launched if one.registered is not None}
        told = {one.key: one.draining for one in launched if one.draining is not None}
        staying = [job for job in living if job.id not in ending and job.key not in told]
        draining = [job for job in living if job.id not in ending and job.key in told]
        is_wanted = any(self.queue.shape.takes(need) for need in demand)
        is_over = len(staying) > config.max_workers
        is_asked = is_wanted or is_over or bool(draining)
        ours = {one.key for one in launched}
        free = self._learn([*staying, *draining], told, ours, now, is_asked=is_asked)
        pending = [job for job in staying if self._is_pending(job, now)]
        waiting = [job for job in staying if job.state is JobState.PENDING]
        running = [job for job in staying if job.state is not JobState.PENDING]
        snapshot = Snapshot(
            demand=demand,
            unfit=unfit,
            pending=len(pending) + len(unseen),
            active=len(staying) - len(pending),
            ending=len(living) - len(staying) - len(draining),
            free=self._taken_up(free, demand, now),
            withdrawable=tuple(job.id for job in _newest_first(waiting)),
            settling=sum(job.worker_id in self._settling for job in running),
            last_launch=ledger.last_launch(self.pool) if ledger else None,
            impatient=_impatient(pending, config.patience_seconds, now),
            start_seconds=_start_seconds(recent, jobs),
            launched_lately=ledger.requested_since(self.pool, now - 60.0) if ledger else 0,
            draining=len(draining),
            drainable=tuple(
                job.id
                for job in sorted(_newest_first(running), key=lambda job: not self._is_idle(job))
            ),
            drain_overdue=tuple(
                job.id
                for job in draining
                if now - told[job.key] > config.drain_grace_seconds or self._may_end(job)
            ),
        )
        return Observation(
            snapshot,
            tuple(jobs),
            now,
            self._arrived,
            idle=frozenset(job.id for job in running if self._is_idle(job)),
            running=tuple(launched),
            known=self._known,
            is_blind=self._is_blind,
            busy=self._busy or frozenset(),
            workers=self._workers,
        )

    # The jobs

    def _learn(
        self,
        living: Sequence[Job],
        told: Collection[LaunchKey | None],
        launched: Collection[LaunchKey | None],
        now: float,
        *,
        is_asked: bool,
    ) -> dict[Offer, int]:
        """Which workers have come, and the room that they have left; asks the server only now and
        then, when one is not known to have come yet, a bundle looks for room, or one is to drain.
        Those that were ``told`` to drain have none. ``launched``: what the ledger has of them."""
        ids = {job.worker_id for job in living}
        taking = {job.worker_id for job in living if job.key not in told}
        self._checked_in &= ids
        self._arrived = self._settling = frozenset()
        self._busy = self._known = None
        self._workers = ()
        active = [job for job in living if job.state is JobState.ACTIVE]
        is_one_awaited = any(
            not self._has_come(job) and (job.key in launched or self._is_young(job, now))
            for job in active
        )
        free: dict[Offer, int] = {}
        is_one_active = bool(active)
        looked = self._looked = now if self._looked is None else self._looked
        is_due = not 0 <= now - looked < LOOK_SECONDS
        if not is_one_awaited and not ((is_asked or is_due) and is_one_active):
            return free
        self._looked = now
        try:
            workers = self.client.workers()
        except (NotPermitted, NotFound):
            self._checked_in = ids
            self._is_blind = True
            return free
        self._is_blind = False
        ours = [worker for worker in workers if str(worker.get("worker_id")) in ids]
        self._workers = tuple(ours)
        self._known = frozenset(str(worker["worker_id"]) for worker in ours)
        self._arrived = self._known - self._checked_in
        young = {job.worker_id for job in living if self._is_young(job, now)}
        self._settling = self._arrived & young
        self._checked_in |= self._arrived
        self._busy = frozenset(str(worker["worker_id"]) for worker in ours if has_a_run(worker))
        for worker in ours if is_asked else ():
            offer = _offer(worker, self.queue.shape.room.time_seconds)
            if offer is not None and str(worker["worker_id"]) in taking - self._settling:
                free[offer] = free.get(offer, 0) + 1
        return free

    def _taken_up(self, free: dict[Offer, int], demand: Demand, now: float) -> dict[Offer, int]:
        """The room that counts: bundles that would fit and are left waiting all the same cannot
        use it, whatever the reason, and shall not wait for it."""
        whole = self.queue.shape.room
        left = place(coarse_demand(demand, [whole]), Shelf(coarse_offers(free, whole, demand)))
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

    def _is_idle(self, job: Job) -> bool:
        """Known to have no bundle; nobody knows it of a worker that the server does not show."""
        return self._busy is not None and self._has_come(job) and job.worker_id not in self._busy

    def _may_end(self, job: Job) -> bool:
        """A worker that drains and is done, at a server that cannot tell it so."""
        return "drain" not in self.client.features and self._is_idle(job)

    def _has_come(self, job: Job) -> bool:
        return job.worker_id in self._checked_in

    def _unseen(self, launches: Sequence[Launch], jobs: Sequence[Job], now: float) -> list[Launch]:
        """Those that are, or may be, a job which the service does not list yet."""
        listed: set[LaunchKey | None] = {job.key for job in jobs}
        return [
            launch
            for launch in launches
            if launch.key not in listed and self.unlisted.may_be(launch, now)
        ]


def _newest_first(jobs: Sequence[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: (job.created, job.id), reverse=True)


def _impatient(pending: Sequence[Job], patience_seconds: float | None, now: float) -> int:
    if patience_seconds is None:
        return 0
    return sum(now - job.created > patience_seconds for job in pending)


def _start_seconds(recent: Sequence[Launch], jobs: Sequence[Job]) -> float | None:
    """From launch to start, as the service tells of the last that it started."""
    by_key = {job.key: job for job in jobs}
    lasted = []
    for launch in recent:
        job = by_key.get(launch.key)
        if job is not None and job.started is not None:
            lasted.append(max(0.0, job.started - launch.requested))
    return median(lasted[:STARTS_REMEMBERED]) if lasted else None


def has_a_run(worker: Mapping[str, Any]) -> bool:
    return bool(worker.get("run_uuids"))


def _offer(worker: Mapping[str, Any], time_seconds: int) -> Offer | None:
    """What a worker could still take, as the server describes it; None: nothing, or nobody knows.
    ``time_seconds``: of its pool's workers, when they are new. What is left of it is rounded down
    to a power of two, as what bundles ask for is rounded up: the server, which rounds less,
    gives a worker all that it is seen to have room for.

    CodaLab's servers do not say what of its memory is in use.
    """
    if worker.get("is_terminating") or worker.get("is_draining"):
        return None
    if worker.get("exit_after_num_runs") == 0:
        return None
    try:
        left = worker.get("seconds_left")
        if left is not None and left < time_seconds:
            time_seconds = 1 << int(left).bit_length() >> 1
        room = Room(
            gpus=int(worker["gpus"]) - int(worker["gpus_in_use"]),
            cpus=int(worker["cpus"]) - int(worker["cpus_in_use"]),
            memory_bytes=int(worker["memory_bytes"]) - int(worker["memory_bytes_in_use"]),
            disk_bytes=int(worker["free_disk_bytes"]),
            time_seconds=time_seconds,
        )
    except (KeyError, TypeError, ValueError):
        return None
    if room.cpus <= 0 and room.gpus <= 0:
        return None
    return Offer(room, str(worker.get("tag") or ""), bool(worker.get("tag_exclusive")))
