"""Keeps one pool of a set: reads its jobs, lets the ledger learn of them, carries decisions out.

What to do is not decided here. Between any two steps of acting the process may die: what the
ledger holds then is finished or undone by the first tick of the next manager.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from backends.base import (
    Backend,
    EndCause,
    Invalid,
    Job,
    JobState,
    LaunchKey,
    LaunchResult,
    Preview,
    Throttled,
    Unreachable,
)
from bundles.errors import BundlesError, Conflict, NotFound, NotPermitted
from bundles.exits import WorkerExit
from manager.alarm import Alarm
from manager.capacity import Demand
from manager.failures import meaning
from manager.journal import Journal
from manager.launcher import Launcher
from manager.lease import Lease
from manager.ledger import Ledger, Outcome
from manager.money import FREE, Terms
from manager.observe import Observation, Observer
from manager.policy import Decision, PoolConfig, count, surplus
from manager.quiet import QuietList
from manager.snapshot import Snapshot
from manager.witness import Witness

if TYPE_CHECKING:
    from bundles.client import Client

ENDS_TOLD_AGAIN = 50

log = logging.getLogger("manager")


class TooManyFailed(BundlesError):
    """More workers have failed than the operator allows: no more are launched."""


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a decision: how many workers were launched, or may have been, how many were
    not, and a document of each for the journal."""

    launched: int
    refused: int
    results: tuple[Mapping[str, Any], ...]


@dataclass
class PoolKeeper:
    """Keeps one pool. Whoever made it holds the pool's lock, and closes what it passed in.

    ``failures_allowed``: when more workers than this have failed since the start, it gives up.
    ``lease``: by which the server knows that no other manager keeps it.
    ``terms``: what its workers cost, and may cost.
    ``release``: called when the pool is kept no more.
    """

    pool: str
    config: PoolConfig
    observer: Observer
    backend: Backend
    launcher: Launcher
    client: Client
    ledger: Ledger
    journal: Journal
    alarm: Alarm
    failures_allowed: int | None = None
    terms: Terms = FREE
    witnesses: Sequence[Witness] = ()
    release: Callable[[], None] = lambda: None
    lease: Lease | None = None
    clock: Callable[[], float] = time.time
    _journal_fails: bool = False
    _throttled_until: float = 0.0
    _failed_workers: int = 0
    _surplus_since: float | None = None
    _untold: dict[str, str] = field(default_factory=dict)
    """Workers whose jobs have ended, and why: the server has yet to hear of it."""
    _ending: set[str] = field(default_factory=set)
    _kept: set[str] = field(default_factory=set)
    """Jobs that cannot be ended by themselves."""
    _told_to_drain: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.quiet = QuietList(self.backend)
        self._recall_ends()

    # Looking

    def observe(
        self, now: float, demand: Demand, unfit: int, jobs: Sequence[Job] | None = None
    ) -> Observation:
        """As Observer.observe, of what this process asked for."""
        with self.alarm.interruptible():
            return self.observer.observe(
                self.ledger, now, demand, unfit, self.config, self._ending, jobs
            )

    def remembered(self, observation: Observation, now: float) -> Snapshot:
        """The snapshot with what only this process knows: what it asked to end, and since when
        more workers are on their way than bundles need."""
        living = {job.id for job in observation.jobs if job.state is not JobState.ENDED}
        self._ending &= living
        self._kept &= living
        snapshot = observation.snapshot
        if snapshot.held_until < self._throttled_until:
            snapshot = replace(
                snapshot,
                held_until=self._throttled_until,
                hold_reason="the service asked for a pause",
            )
        lag_seconds = self.backend.capabilities.listing_lag_seconds
        left = lag_seconds - self.lease.seconds_since_another(self.pool) if self.lease else 0.0
        if snapshot.held_until < now + left and left > 0:
            snapshot = replace(
                snapshot,
                held_until=now + left,
                hold_reason="what another home's manager launched last may not be listed yet",
            )
        return replace(
            snapshot,
            surplus_since=self._surplus_since,
            withdrawable=tuple(i for i in snapshot.withdrawable if i not in self._kept),
            drain_overdue=tuple(i for i in snapshot.drain_overdue if i not in self._kept),
        )

    def coming(self, since: float) -> int:
        """How many workers were launched after ``since``, or may have been, and have not been
        seen to have come, by the ledger alone."""
        launches = [*self.ledger.unsettled(self.pool), *self.ledger.running(self.pool)]
        return sum(one.registered is None and one.requested > since for one in launches)

    def learn(self, share: Snapshot, now: float) -> None:
        """Remember since when more workers are on their way than this share of the queue needs."""
        if not surplus(share, self.config):
            self._surplus_since = None
        elif self._surplus_since is None:
            self._surplus_since = now

    def reconcile(self, observation: Observation) -> None:
        """Let the ledger learn what the list says: ends, and what became of open intents.

        Raises TooManyFailed, sqlite3.Error, and BundlesError when the server cannot be told.
        """
        listed = {job.key: job for job in observation.jobs}
        unlisted = self.observer.unlisted
        outcomes: list[tuple[LaunchKey, Outcome, str | None, str | None]] = []
        for launch in self.ledger.unsettled(self.pool):
            job = listed.get(launch.key)
            if job is not None and (job.state is not JobState.ENDED or job.started is not None):
                outcomes.append((launch.key, Outcome.LAUNCHED, job.id, None))
                log.info("%s was launched before the last manager died: kept", launch.key)
            elif job is not None or not unlisted.may_be(launch, observation.when):
                outcomes.append((launch.key, Outcome.UNDONE, None, None))
                log.info("%s was intended and never launched: forgotten", launch.key)
        if outcomes:
            self.ledger.settle_all(outcomes)
        ended = self.ledger.record_ends(observation.jobs)
        for witness in self.witnesses:
            witness.ended(ended)
        for job in ended:
            log.info("%s", _farewell(job))
            if job.exit_code != WorkerExit.FINISHED:  # who left well has said so itself
                self._untold[job.worker_id] = _farewell(job)
            self._failed_workers += job.cause is EndCause.FAILED
        if self.failures_allowed is not None and self._failed_workers > self.failures_allowed:
            raise TooManyFailed(
                f"{count(self._failed_workers, 'worker')} failed, {self.failures_allowed} may: "
                "see their logs, and start this command again"
            )
        running = self.ledger.running(self.pool)
        missing = [
            launch.key
            for launch in running
            if launch.key not in listed and not unlisted.may_be(launch, observation.when)
        ]
        if missing:
            self.ledger.record_missing(self.pool, missing)
            for witness in self.witnesses:
                witness.missing(missing)
        self._tell_of_ends()
        self._tell_to_drain([str(one.key) for one in running if one.draining is not None])

    def _recall_ends(self) -> None:
        """Ends that the last manager may have written down and not told of."""
        for launch in self.ledger.recent(self.pool, ENDS_TOLD_AGAIN):
            is_over = launch.ended is not None and launch.cause is not None
            if is_over and launch.exit_code != WorkerExit.FINISHED:
                self._untold[str(launch.key)] = f"{launch.key} ended: {launch.why}"

    def _tell_of_ends(self) -> None:
        """Have the server stage again what workers had that did not leave by themselves.

        Raises BundlesError when it does not answer; what it did not hear is told again.
        """
        if "checkout" not in self.client.features:
            return
        for worker_id, why in list(self._untold.items()):
            with self.alarm.interruptible():
                try:
                    restaged = self.client.checkout(worker_id, None, why)
                except (NotPermitted, Conflict) as error:  # not a worker of this user
                    log.debug("%s is not checked out: %s", worker_id, error)
                    restaged = []
            del self._untold[worker_id]
            if restaged:
                log.info("%s of %s staged again", count(len(restaged), "bundle"), worker_id)

    def _tell_to_drain(self, worker_ids: Sequence[str]) -> None:
        """Have the server give these workers nothing more; what it did not hear is told again.

        Raises BundlesError when it does not answer. A server that cannot tell them gives them
        bundles until the grace is over.
        """
        if "drain" not in self.client.features:
            return
        for worker_id in worker_ids:
            if worker_id in self._told_to_drain:
                continue
            with self.alarm.interruptible():
                try:
                    self.client.drain_worker(worker_id, "its pool has more workers than it may")
                except (NotFound, NotPermitted, Conflict) as error:
                    log.debug("%s is not told to drain: %s", worker_id, error)
            self._told_to_drain.add(worker_id)

    # Acting

    def act(self, decision: Decision, observation: Observation) -> Done:
        """Carry the decision out.

        Raises BundlesError, BackendError or sqlite3.Error when some of it could not even be tried.
        """
        results: list[dict[str, Any]] = []
        launched: list[LaunchResult] = []
        if decision.launch or decision.end or decision.drain:
            log.info("%s", self._named(decision))
        if decision.launch:
            with self.alarm.interruptible():
                fence = self.lease.fence(self.pool) if self.lease else None
                secrets = self.launcher.secrets(self.client, self.pool, fence)
            keys = self.ledger.intend(self.pool, decision.launch)
            launched = self.backend.launch(self.launcher.requests(keys, self.backend, secrets))
            self.observer.unlisted.answered(keys, self.clock())
            self._settle(keys, launched)
            results += [_result(key, outcome) for key, outcome in zip(keys, launched, strict=True)]
        if decision.drain:
            results += self._drain(decision.drain, observation)
        if decision.end:
            results += self._end(decision.end)
        refused = sum(not isinstance(result, Job | Unreachable) for result in launched)
        return Done(len(launched) - refused, refused, tuple(results))

    def _named(self, decision: Decision) -> str:
        return f"{self.pool}: {decision.summary()}"

    def _drain(self, job_ids: Sequence[str], observation: Observation) -> list[dict[str, Any]]:
        """Have workers take nothing more. One that is idle ends at once where nobody can tell it
        so: then there is nothing to wait for."""
        keys = {job.id: job.key for job in observation.jobs if job.key is not None}
        told = [job_id for job_id in job_ids if job_id in keys]
        self.ledger.record_draining([keys[job_id] for job_id in told], self.clock())
        results: list[dict[str, Any]] = [{"drain": job_id, "error": None} for job_id in told]
        if "drain" in self.client.features:
            self._tell_to_drain([str(keys[job_id]) for job_id in told])
            return results
        return results + self._end([job_id for job_id in told if job_id in observation.idle])

    def _end(self, job_ids: Sequence[str]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        if not job_ids:
            return results
        for job_id, error in self.backend.terminate(job_ids).items():
            if isinstance(error, Invalid):
                log.info("%s is not ended: %s", job_id, error)
                self._kept.add(job_id)
            elif error is None:
                self._ending.add(job_id)
            results.append({"end": job_id, "error": str(error) if error else None})
        return results

    def _settle(self, keys: Sequence[LaunchKey], results: Sequence[LaunchResult]) -> None:
        """Write the outcomes. What was Unreachable stays open: the next list tells."""
        outcomes: list[tuple[LaunchKey, Outcome, str | None, str | None]] = []
        errors: dict[str, int] = {}
        for key, result in zip(keys, results, strict=True):
            if isinstance(result, Job):
                outcomes.append((key, Outcome.LAUNCHED, result.id, None))
                continue
            assert not isinstance(result, Preview), "nobody asked for a dry run"
            errors[str(result)] = errors.get(str(result), 0) + 1
            if isinstance(result, Throttled) and result.retry_after_seconds is not None:
                self._throttled_until = self.clock() + result.retry_after_seconds
            if not isinstance(result, Unreachable):
                outcomes.append((key, Outcome.REFUSED, None, str(result)))
        self.ledger.settle_all(outcomes)
        for error, number in errors.items():
            log.error("%s not launched: %s", count(number, "worker"), error)

    def write_down(
        self,
        now: float,
        snapshot: Mapping[str, Any] | None,
        decision: Mapping[str, Any] | None,
        results: Sequence[Mapping[str, Any]] = (),
        error: str = "",
    ) -> None:
        """A line in the journal. What was done stays done when it cannot be written, said once."""
        try:
            self.journal.write(
                now, snapshot, decision, results, config=self.config.to_document(), error=error
            )
            self._journal_fails = False
        except OSError as failure:
            if not self._journal_fails:
                log.error("the journal cannot be written: %s", failure)
            self._journal_fails = True


def _result(key: LaunchKey, outcome: LaunchResult) -> dict[str, Any]:
    if isinstance(outcome, Job):
        return {"launch": str(key), "job": outcome.id}
    return {"launch": str(key), "error": f"{type(outcome).__name__}: {outcome}"}


def _farewell(job: Job) -> str:
    if job.exit_code is None:
        return f"{job.worker_id} ended: {job.why}"
    why = f": {job.why}" if job.why else meaning(job.exit_code)
    return f"{job.worker_id} left with exit code {job.exit_code}{why}"
