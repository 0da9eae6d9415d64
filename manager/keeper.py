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
    BackendError,
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
from bundles.errors import BundlesError
from bundles.exits import WorkerExit
from manager.alarm import Alarm
from manager.capacity import Demand
from manager.health import Failure, Health, failure, judge, meaning
from manager.journal import Journal
from manager.last_words import last_words
from manager.launcher import Launcher
from manager.lease import Lease
from manager.ledger import Launch, Ledger, Outcome
from manager.money import FREE, Terms
from manager.notices import Notices
from manager.observe import START_SECONDS, Observation, Observer, has_a_run
from manager.offered import Offered
from manager.policy import Decision, PoolConfig, count, surplus
from manager.quiet import QuietList
from manager.snapshot import Snapshot
from manager.witness import Witness

if TYPE_CHECKING:
    from bundles.client import Client

ENDING_SECONDS = 120.0
"""A worker that was asked to end has so long; services give half a minute by themselves."""
OUTPUTS_KEPT = 3
"""Of the workers that failed in one tick the output of so many is asked for."""
SECRETS_REMEMBERED = 50

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
    _ending: dict[str, float] = field(default_factory=dict)
    """Jobs that were asked to end, and when they last were."""
    _kept: set[str] = field(default_factory=set)
    """Jobs that cannot be ended by themselves."""
    _unregistered: frozenset[str] = frozenset()
    _silent_since: dict[str, float] = field(default_factory=dict)
    """Jobs of whose workers the server has not heard lately, and when that was first seen."""
    _answering_since: float = 0.0
    """The server's silence is not held against workers that could not come meanwhile."""
    _health: Health = field(default_factory=Health)
    _handed_out: list[str] = field(default_factory=list)
    """What must not be in any output that is kept."""

    def __post_init__(self) -> None:
        self.quiet = QuietList(self.backend)
        self._offered = Offered()
        self._notices = Notices(self.pool, self.client, self.ledger, self.alarm, self.clock)

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
        self._ending = {i: when for i, when in self._ending.items() if i in living}
        self._kept &= living
        record = self.ledger.record(self.pool)
        self._fit(observation, record.changed, now)
        health = judge(record, now)
        self._say(health, now)
        snapshot = health.on(observation.snapshot)
        unregistered = self._never_came(observation, now)
        self._unregistered = frozenset(unregistered)
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
            unregistered=unregistered,
            silent=self._went_silent(observation, record.changed, now),
        )

    def _fit(self, observation: Observation, changed: float, now: float) -> None:
        """Expect of a new worker no more than new ones turned out to have, of those launched as
        they are now, since ``changed``."""
        unused = {
            str(one.key)
            for one in observation.running
            if one.first_bundle is None and one.requested >= changed
        }
        new = [
            worker
            for worker in observation.workers
            if str(worker["worker_id"]) in unused and not has_a_run(worker)
        ]
        self._offered.see(new, now)
        queue = replace(self.observer.queue, offered=self._offered.room)
        self.observer.queue, self.config = queue, replace(self.config, shape=queue.shape)

    def _say(self, health: Health, now: float) -> None:
        """What is new about the pool's health, in the log."""
        before, self._health = self._health, health
        if health.is_quarantined and not before.is_quarantined:
            log.error("%s: %s", self.pool, health.sentence(now))
        elif before.cause is not None and health.cause is None:
            log.info("%s: a launch has worked, it is well again", self.pool)

    def _never_came(self, observation: Observation, now: float) -> tuple[str, ...]:
        """The ids of jobs that the service started too long ago for workers of which the server,
        which shows them, has not heard."""
        if observation.known is None:
            return ()
        jobs = {job.key: job for job in observation.jobs if job.state is JobState.ACTIVE}
        overdue = []
        for launch in observation.running:
            job = jobs.get(launch.key)
            if job is None or job.started is None or job.worker_id in observation.known:
                continue
            if launch.registered is not None or job.id in {*self._ending, *self._kept}:
                continue
            # A clock that is ahead must not end those that have only just begun.
            began = max(job.started, self._answering_since, launch.requested)
            if now - began > self.config.registration_seconds:
                overdue.append(job.id)
        return tuple(overdue)

    def _went_silent(self, observation: Observation, changed: float, now: float) -> tuple[str, ...]:
        """The ids of jobs that run, of whose workers, which had come, the server has not heard for
        too long: a machine that hangs would keep its place, and its price, for ever.

        Those from before ``changed`` may be at another server; and who comes back must be told.
        """
        if observation.known is None or "drain" not in self.client.features:
            return ()
        jobs = {job.key: job for job in observation.jobs if job.state is JobState.ACTIVE}
        since: dict[str, float] = {}
        for launch in observation.running:
            job = jobs.get(launch.key)
            has_come = launch.registered is not None and launch.requested >= changed
            if job is None or not has_come or job.worker_id in observation.known:
                continue
            if launch.draining is None and job.id not in self._ending:
                since[job.id] = min(now, self._silent_since.get(job.id, now))
        self._silent_since = since
        return tuple(
            job_id
            for job_id, when in since.items()
            if now - max(when, self._answering_since) > self.config.registration_seconds
        )

    def server_failed(self, now: float) -> None:
        """The server did not answer: its workers could not reach it either."""
        self._answering_since = now

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
        self._record_lives(observation, observation.when)
        ended = self.ledger.record_ends(observation.jobs)
        for witness in self.witnesses:
            witness.ended(ended)
        for job in ended:
            log.info("%s", _farewell(job))
            if job.exit_code != WorkerExit.FINISHED:  # who left well has said so itself
                self._notices.ended(job.worker_id, _farewell(job))
            self._failed_workers += job.cause is EndCause.FAILED
        self._record_failures(ended)
        if self.failures_allowed is not None and self._failed_workers > self.failures_allowed:
            raise TooManyFailed(
                f"{count(self._failed_workers, 'worker')} failed, {self.failures_allowed} may: "
                "see their logs, and start this command again"
            )
        missing = [
            launch
            for launch in observation.running
            if launch.key not in listed and not unlisted.may_be(launch, observation.when)
        ]
        if missing:
            self._record_missing(missing)
        self._notices.tell_of_ends()
        draining = [one for one in observation.running if one.draining is not None]
        self._notices.tell_to_drain([str(one.key) for one in draining])

    def _record_missing(self, missing: Sequence[Launch]) -> None:
        asked = [launch.key for launch in missing if launch.job_id in self._ending]
        others = [launch.key for launch in missing if launch.job_id not in self._ending]
        self.ledger.record_missing(self.pool, asked, EndCause.KILLED_BY_US)
        self.ledger.record_missing(self.pool, others)
        for witness in self.witnesses:
            witness.missing([launch.key for launch in missing])
        now_known = [self.ledger.launch(key) for key in others]
        found = [failure(launch) for launch in now_known if launch is not None]
        for witness in self.witnesses:
            witness.workers_failed([one.cause for one in found if one is not None])

    def _record_lives(self, observation: Observation, now: float) -> None:
        """Let the ledger learn how far workers have come that it holds for running."""
        jobs = {job.key: job for job in observation.jobs}
        started: dict[LaunchKey, float] = {}
        registered: dict[LaunchKey, float] = {}
        first_bundle: dict[LaunchKey, float] = {}
        for launch in observation.running:
            job = jobs.get(launch.key)
            if job is None:
                continue
            if launch.started is None and job.started is not None:
                started[launch.key] = job.started
            if launch.registered is None and self._has_come(job, observation, now):
                registered[launch.key] = now
            if launch.first_bundle is None and job.worker_id in observation.busy:
                first_bundle[launch.key] = now
        self.ledger.record_started(started)
        self.ledger.record_registered(self.pool, registered)
        self.ledger.record_first_bundle(first_bundle)

    @staticmethod
    def _has_come(job: Job, observation: Observation, now: float) -> bool:
        """To the server, or so long at work that it must have, where the server does not say."""
        if observation.known is not None:
            return job.worker_id in observation.known
        is_old = job.started is not None and now - job.started >= START_SECONDS
        return observation.is_blind and job.state is JobState.ACTIVE and is_old

    def _record_failures(self, ended: Sequence[Job]) -> None:
        """Say what ended without having done anything, and keep the last words of some."""
        failed: list[tuple[Launch, Failure]] = []
        for job in ended:
            launch = self.ledger.launch(job.key) if job.key is not None else None
            found = failure(launch) if launch is not None else None
            if launch is not None and found is not None:
                failed.append((launch, found))
        for witness in self.witnesses:
            witness.workers_failed([found.cause for _, found in failed])
        # Of those that were given up the words are kept already.
        silent = [
            (launch, found)
            for launch, found in failed
            if found.is_wasted and launch.given_up is None and launch.job_id is not None
        ]
        for launch, found in silent[:OUTPUTS_KEPT]:
            assert launch.job_id is not None
            words = self._last_words(launch.job_id)
            self.ledger.record_last_words(launch.key, words)
            if words:
                last = words.rsplit("\n", 1)[-1]
                log.warning("%s: %s; its last words: %s", launch.key, found.cause, last)

    def _last_words(self, job_id: str) -> str:
        """The end of a worker's output; "" when it cannot be had, which stops nothing."""
        try:
            return last_words(self.backend.logs(job_id), self._handed_out)
        except (BackendError, OSError) as error:
            log.debug("the output of %s cannot be had: %s", job_id, error)
            return ""

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
            self._handed_out = [*self._handed_out, *secrets.values()][-SECRETS_REMEMBERED:]
            keys = self.ledger.intend(self.pool, decision.launch)
            launched = self.backend.launch(self.launcher.requests(keys, self.backend, secrets))
            self.observer.unlisted.answered(keys, self.clock())
            self._settle(keys, launched)
            results += [_result(key, outcome) for key, outcome in zip(keys, launched, strict=True)]
        if decision.drain:
            results += self._drain(decision.drain, observation)
        if decision.end:
            self._give_up([i for i in decision.end if i in self._unregistered], observation)
            results += self._end(decision.end)
        results += self._end(self._reluctant(observation))
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
            self._notices.tell_to_drain([str(keys[job_id]) for job_id in told])
            return results
        return results + self._end([job_id for job_id in told if job_id in observation.idle])

    def _give_up(self, job_ids: Sequence[str], observation: Observation) -> None:
        """Write down that these workers never registered, and what they said, before they end."""
        keys = {job.id: job.key for job in observation.jobs}
        for job_id in job_ids:
            key = keys[job_id]
            if key is None:
                continue
            words = self._last_words(job_id)
            self.ledger.record_given_up(key, self.clock(), words)
            last = words.rsplit("\n", 1)[-1] or "none"
            log.warning("%s never came to the server: it is ended; its last words: %s", key, last)

    def _reluctant(self, observation: Observation) -> list[str]:
        """Jobs that are still there long after they were asked to end: asked again, backends end
        them by force. One that has come to work meanwhile is left alone, unless it should have
        drained by now."""
        now = self.clock()
        due = now - ENDING_SECONDS
        jobs = {job.id: job for job in observation.jobs}
        late = [jobs[job_id] for job_id, when in self._ending.items() if when <= due]
        if not late:
            return []
        overdue = {
            one.key
            for one in observation.running
            if one.draining is not None and now - one.draining > self.config.drain_grace_seconds
        }
        at_work = self._at_work()
        again = []
        for job in late:
            if job.key in overdue or job.state is JobState.PENDING:
                again.append(job.id)
            elif at_work is None:
                continue
            elif job.worker_id in at_work:
                log.info("%s has not ended, and has a bundle: it stays", job.worker_id)
                del self._ending[job.id]
            else:
                again.append(job.id)
        if again:
            log.warning("%s: %s has not ended, and is asked again", self.pool, ", ".join(again))
        return again

    def _at_work(self) -> frozenset[str] | None:
        """The workers that have bundles; None when the server does not say."""
        with self.alarm.interruptible():
            try:
                workers = self.client.workers()
            except BundlesError as error:
                log.debug("who has a bundle is not known: %s", error)
                return None
        return frozenset(str(worker.get("worker_id")) for worker in workers if has_a_run(worker))

    def _end(self, job_ids: Sequence[str]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        if not job_ids:
            return results
        for job_id, error in self.backend.terminate(job_ids).items():
            if isinstance(error, Invalid):
                log.info("%s is not ended: %s", job_id, error)
                self._kept.add(job_id)
            elif error is None:
                self._ending[job_id] = self.clock()
            results.append({"end": job_id, "error": str(error) if error else None})
        return results

    def _settle(self, keys: Sequence[LaunchKey], results: Sequence[LaunchResult]) -> None:
        """Write the outcomes. What was Unreachable stays open: the next list tells."""
        outcomes: list[tuple[LaunchKey, Outcome, str | None, BackendError | None]] = []
        lost: dict[LaunchKey, BackendError] = {}
        errors: dict[str, int] = {}
        for key, result in zip(keys, results, strict=True):
            if isinstance(result, Job):
                outcomes.append((key, Outcome.LAUNCHED, result.id, None))
                continue
            assert not isinstance(result, Preview), "nobody asked for a dry run"
            errors[str(result)] = errors.get(str(result), 0) + 1
            if isinstance(result, Throttled) and result.retry_after_seconds is not None:
                self._throttled_until = self.clock() + result.retry_after_seconds
            if isinstance(result, Unreachable):
                lost[key] = result
            else:
                outcomes.append((key, Outcome.REFUSED, None, result))
        self.ledger.settle_all(outcomes)
        self.ledger.record_lost(lost)
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
