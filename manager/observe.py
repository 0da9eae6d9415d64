"""Reads the queue, the backend's jobs and the ledger, and makes one Snapshot of them, or fails.

Complete or not at all: a list that could not be read to its end is an error, never a shorter one.
Changes nothing; what the ledger should learn from the list is left to the loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backends.base import Backend, Job, JobState, LaunchKey
from bundles.errors import NotFound, NotPermitted, UsageError
from bundles.home import USER_VARIABLE
from bundles.model import Resources, queue_tag
from manager.failures import Hold, hold
from manager.ledger import Launch, Ledger
from manager.snapshot import Snapshot

if TYPE_CHECKING:
    from bundles.client import Client

START_SECONDS = 60.0
"""A worker whose job runs, but which the server has not heard of, counts as pending this long."""
RECENT_LAUNCHES = 20


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """Which bundles concern a pool, and what its workers offer.

    ``tag``: the workers' tag; ``tag_exclusive``: they run bundles queued for it only.
    ``prefilter``: leave out bundles that ask for more than one worker offers, or for another tag.
    """

    cpus: int
    gpus: int
    memory_bytes: int
    search: tuple[str, ...] = ()
    tag: str | None = None
    tag_exclusive: bool = False
    prefilter: bool = True

    def keywords(self, *, root: bool) -> list[str]:
        """CodaLab's search for the staged bundles of this pool; root's workers run everybody's."""
        keywords = ["state=staged", *self.search]
        if not root:
            keywords.append(".mine")
        if self.tag_exclusive and self.tag:
            keywords.append(f"request_queue={self.tag},tag={self.tag}")
        return keywords

    def fits(self, asked: Resources) -> bool:
        """Whether a worker of this pool could ever run a bundle that asks for this."""
        if not self.prefilter:
            return True
        queue = queue_tag(asked.queue)
        if queue:
            queue_fits = queue == self.tag
        else:
            queue_fits = not (self.tag and self.tag_exclusive)
        return (
            queue_fits
            and asked.cpus <= self.cpus
            and asked.gpus <= self.gpus
            and asked.memory_bytes <= self.memory_bytes
        )


@dataclass(frozen=True, slots=True)
class Observation:
    """A snapshot, and the list it was made of."""

    snapshot: Snapshot
    jobs: tuple[Job, ...]


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

    def observe(self, ledger: Ledger | None, now: float) -> Observation:
        """Raises BundlesError, BackendError, or sqlite3.Error when anything could not be read."""
        staged, unfit = self._staged()
        jobs = self.backend.list_jobs()
        living = [job for job in jobs if job.state is not JobState.ENDED]
        unsettled = ledger.unsettled(self.pool) if ledger else []
        recent = ledger.recent(self.pool, RECENT_LAUNCHES) if ledger else []
        failed: Hold = hold(recent, jobs)
        self._learn(living, now)
        pending = sum(self._is_pending(job, now) for job in living)
        snapshot = Snapshot(
            staged=staged,
            unfit=unfit,
            pending=pending + self._invisible(unsettled, jobs, now),
            active=len(living) - pending,
            last_launch=ledger.last_launch(self.pool) if ledger else None,
            held_until=failed.until,
            hold_reason=failed.reason,
        )
        return Observation(snapshot, tuple(jobs))

    # The queue

    def _staged(self) -> tuple[int, int]:
        """How many staged bundles fit a worker of this pool, and how many do not."""
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
        fit = sum(number for asked, number in counted if asked and self.queue.fits(asked))
        return fit, sum(number for _, number in counted) - fit

    def _is_root(self) -> bool:
        if self._root is None:
            self._root = bool(
                self.client.whoami().get("is_root_user")
                or self.environ.get(USER_VARIABLE) == "codalab"
            )
        return self._root

    # The jobs

    def _learn(self, living: Sequence[Job], now: float) -> None:
        """Ask the server for its workers when a young job's worker is not known to have come."""
        ids = {job.worker_id for job in living}
        self._checked_in &= ids
        if any(self._is_young(job, now) and not self._has_come(job) for job in living):
            try:
                workers = self.client.workers()
            except (NotPermitted, NotFound):
                self._checked_in = ids
            else:
                self._checked_in |= ids & {str(worker.get("worker_id")) for worker in workers}

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


def _resources(metadata: Mapping[str, object]) -> Resources | None:
    """What a bundle asks for; None when that cannot be read, so that it fits nowhere."""
    try:
        return Resources.from_metadata(metadata)
    except UsageError:
        return None
