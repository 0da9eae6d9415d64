"""Spares the list of a pool's jobs while there is nothing to do and nothing is about to change.

What may have changed unseen is found within IDLE_LIST_SECONDS; nothing is ever launched or ended on
a list that is not of this tick.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from backends.base import Backend, Job, JobState, OfAccount
from manager.policy import Decision, PoolConfig
from manager.snapshot import Snapshot

IDLE_LIST_SECONDS = 60.0
"""With nothing to do, so long passes between two calls; a list may take several."""
LONGEST_SECONDS = 600.0
JOBS_A_CALL = 100


class QuietList:
    """The last list of one pool's jobs, as long as it may stand for the next ones."""

    def __init__(self, backend: Backend) -> None:
        # What does not leave this machine costs nobody anything.
        self._is_spared = not (isinstance(backend, OfAccount) and backend.account is None)
        self._jobs: tuple[Job, ...] | None = None
        self._workers: frozenset[str] = frozenset()
        self._good_until = 0.0
        self._listed = 0.0

    def look(self, jobs: Sequence[Job], snapshot: Snapshot, decision: Decision, now: float) -> None:
        """Keep a list that was read ``now``, if nothing is under way in the pool."""
        self.forget()
        moves = (snapshot.pending, snapshot.draining, snapshot.ending, snapshot.staged)
        if not self._is_spared or any(moves) or is_acting(decision):
            return
        living = [job for job in jobs if job.state is not JobState.ENDED]
        calls = 1 + math.ceil(len(living) / JOBS_A_CALL) if living else 1
        self._jobs = tuple(jobs)
        self._workers = frozenset(job.worker_id for job in living)
        self._listed = now
        self._good_until = now + min(IDLE_LIST_SECONDS * calls, LONGEST_SECONDS)

    def forget(self) -> None:
        self._jobs, self._workers = None, frozenset()

    def needs_word(self, now: float) -> bool:
        """Whether the server has to say that the workers are idle before the list is used."""
        return self._is_fresh(now) and bool(self._workers)

    def jobs(
        self, config: PoolConfig, now: float, idle_workers: Collection[str]
    ) -> list[Job] | None:
        """The jobs, when the list may still be used: each of their workers is at the server and has
        no bundle, and there are neither too few nor too many. None: ask the service."""
        is_enough = config.min_workers <= len(self._workers) <= config.max_workers
        if self._jobs is None or not self._is_fresh(now) or not is_enough:
            return None
        return list(self._jobs) if self._workers <= set(idle_workers) else None

    def _is_fresh(self, now: float) -> bool:
        # A clock that was set back must not keep a list for as long as it was set back by.
        return self._jobs is not None and self._listed <= now < self._good_until


def is_acting(decision: Decision) -> bool:
    return bool(decision.launch or decision.end or decision.drain)
