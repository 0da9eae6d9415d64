"""The manager of one pool: observe, decide, act, wait; again until it is told to stop.

A failed observation launches and ends nothing. Between any two steps of acting the process may
die: what the ledger holds then is finished or undone by the first tick of the next manager.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from backends.base import (
    KEY,
    Backend,
    BackendError,
    EndCause,
    Invalid,
    Job,
    JobResources,
    JobState,
    LaunchKey,
    LaunchRequest,
    LaunchResult,
    Preview,
    Throttled,
    Unreachable,
)
from bundles.errors import BundlesError, Conflict, NotAuthenticated, NotPermitted
from bundles.exits import WorkerExit
from bundles.home import PASSWORD_VARIABLE, TOKEN_VARIABLE, USER_VARIABLE, Credentials
from manager.alarm import Alarm, Stopped
from manager.command import WorkerOptions, worker_command
from manager.failures import meaning
from manager.feed import ChangeFeed
from manager.journal import Journal
from manager.ledger import Ledger, Outcome
from manager.observe import Observation, Observer
from manager.policy import Decision, PoolConfig, count, decide, surplus
from manager.snapshot import Snapshot
from manager.witness import Witness

if TYPE_CHECKING:
    from bundles.client import Client

SETTLE_SECONDS = 0.1
"""After news of staged bundles, idle workers get this long to take them, and more news to come."""
LONGEST_BACKOFF_SECONDS = 60.0
ENDS_TOLD_AGAIN = 50
REFUSALS_BEFORE_LEAVING = 2
"""So many times in a row a server that took our credentials before may refuse them: a password
buys a new token. One that never took them is left at once."""

log = logging.getLogger("manager")


class TooManyFailed(BundlesError):
    """More workers have failed than the operator allows: no more are launched."""


@dataclass(frozen=True, slots=True)
class Launcher:
    """How a worker of the pool is made: its command line, and its credentials.

    ``credentials``: our own. Workers get them only on a server that gives no worker tokens.
    """

    server: str
    options: WorkerOptions
    resources: JobResources
    credentials: Credentials

    def requests(
        self, keys: Sequence[LaunchKey], backend: Backend, secrets: Mapping[str, str]
    ) -> list[LaunchRequest]:
        """A request for each key; they differ in nothing else."""
        argv = worker_command(
            self.options,
            backend.capabilities,
            server=self.server,
            worker_id=KEY,
            work_directory=backend.work_directory,
            cpus=self.resources.cpus,
            gpus=self.resources.gpus,
            memory_bytes=self.resources.memory_bytes,
        )
        return [LaunchRequest(key, tuple(argv), self.resources, secrets=secrets) for key in keys]

    def secrets(self, client: Client) -> dict[str, str]:
        """The environment by which a worker shows who it is: a fresh worker token, else CodaLab's.

        Raises NotAuthenticated when there is nothing that a worker could use.
        """
        if "tokens" in client.features and not self.options.is_codalab:
            return {TOKEN_VARIABLE: client.worker_token()}
        if self.credentials.username and self.credentials.password:
            return {
                USER_VARIABLE: self.credentials.username,
                PASSWORD_VARIABLE: self.credentials.password,
            }
        raise NotAuthenticated(
            f"workers need a user and a password at {self.server}: set {USER_VARIABLE} and "
            f"{PASSWORD_VARIABLE}, or give --password-file"
        )


@dataclass
class PoolManager:
    """Keeps one pool. The caller holds the pool's lock, and closes what it passed in.

    ``failures_allowed``: when more workers than this have failed since the start, it gives up.
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
    make_feed: Callable[[], ChangeFeed]
    sleep_seconds: float = 5.0
    restart_after_seconds: float | None = None
    failures_allowed: int | None = None
    witnesses: Sequence[Witness] = ()
    clock: Callable[[], float] = time.time
    _complaint: str = ""
    _failures: int = 0
    _refusals: int = 0
    _accepted: bool = False
    _journal_fails: bool = False
    _throttled_until: float = 0.0
    _failed_workers: int = 0
    _surplus_since: float | None = None
    _untold: dict[str, str] = field(default_factory=dict)
    """Workers whose jobs have ended, and why: the server has yet to hear of it."""
    _ending: set[str] = field(default_factory=set)
    _kept: set[str] = field(default_factory=set)
    """Jobs that cannot be ended by themselves."""

    def __post_init__(self) -> None:
        self._recall_ends()

    # One tick

    def tick(self) -> Decision:
        """Observe, decide, act. Raises BundlesError, BackendError, sqlite3.Error or OSError when
        nothing could be decided or done, and Stopped."""
        with self.alarm.interruptible():
            observation = self.observer.observe(self.ledger, self.clock(), self._ending)
        self._reconcile(observation)
        now = self.clock()
        snapshot = self._remembered(observation, now)
        if snapshot.held_until < self._throttled_until:
            snapshot = replace(
                snapshot,
                held_until=self._throttled_until,
                hold_reason="the service asked for a pause",
            )
        decision = decide(snapshot, self.config, now)
        for witness in self.witnesses:
            witness.decided(observation, snapshot, decision)
        results = self._act(decision)
        self._write_down(now, snapshot.to_document(), decision.to_document(), results)
        return decision

    def _remembered(self, observation: Observation, now: float) -> Snapshot:
        """The snapshot with what only this process knows: what it asked to end, and since when
        more workers are on their way than bundles need."""
        living = {job.id for job in observation.jobs if job.state is not JobState.ENDED}
        self._ending &= living
        self._kept &= living
        snapshot = observation.snapshot
        if not surplus(snapshot, self.config):
            self._surplus_since = None
        elif self._surplus_since is None:
            self._surplus_since = now
        return replace(
            snapshot,
            surplus_since=self._surplus_since,
            withdrawable=tuple(i for i in snapshot.withdrawable if i not in self._kept),
        )

    def _write_down(
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

    def _reconcile(self, observation: Observation) -> None:
        """Let the ledger learn what the list says: ends, and what became of open intents."""
        now = self.clock()
        listed = {job.key: job for job in observation.jobs}
        lag_seconds = self.backend.capabilities.listing_lag_seconds
        outcomes: list[tuple[LaunchKey, Outcome, str | None, str | None]] = []
        for launch in self.ledger.unsettled(self.pool):
            job = listed.get(launch.key)
            if job is not None and (job.state is not JobState.ENDED or job.started is not None):
                outcomes.append((launch.key, Outcome.LAUNCHED, job.id, None))
                log.info("%s was launched before the last manager died: kept", launch.key)
            elif job is not None or now - launch.requested >= lag_seconds:
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
        missing = [
            launch.key
            for launch in self.ledger.running(self.pool)
            if launch.key not in listed and now - launch.requested >= lag_seconds
        ]
        if missing:
            self.ledger.record_missing(self.pool, missing)
            for witness in self.witnesses:
                witness.missing(missing)
        self._tell_of_ends()

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

    def _act(self, decision: Decision) -> list[dict[str, Any]]:
        """Carry the decision out; returns what came of it, for the journal."""
        results: list[dict[str, Any]] = []
        if decision.launch:
            with self.alarm.interruptible():
                secrets = self.launcher.secrets(self.client)
            log.info("%s", decision.summary())
            keys = self.ledger.intend(self.pool, decision.launch)
            launched = self.backend.launch(self.launcher.requests(keys, self.backend, secrets))
            self._settle(keys, launched)
            results += [_result(key, outcome) for key, outcome in zip(keys, launched, strict=True)]
        if decision.end:
            log.info("%s", decision.summary())
            for job_id, error in self.backend.terminate(decision.end).items():
                if isinstance(error, Invalid):
                    log.info("%s is not withdrawn: %s", job_id, error)
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

    # Again and again

    def run(self) -> bool:
        """Tick until stopped (False) or due for a restart (True).

        Raises NotAuthenticated when the server refuses us for good, and TooManyFailed.
        """
        feed: ChangeFeed | None = None
        restart_at = time.monotonic() + (self.restart_after_seconds or float("inf"))
        try:
            while not self.alarm.stopped:
                if time.monotonic() >= restart_at:
                    return True
                wait_seconds = self._guarded_tick()
                if feed is None and "changes" in self.client.features:
                    feed = self.make_feed()
                    feed.start()
                if self.alarm.wait(min(wait_seconds, restart_at - time.monotonic())):
                    self.alarm.pause(SETTLE_SECONDS)
        except Stopped:
            pass
        finally:
            if feed is not None:
                feed.close()
        return False

    def _guarded_tick(self) -> float:
        """A tick whose failure is said once; returns how long to wait for the next, in seconds."""
        began = time.monotonic()
        failure: Exception | None = None
        try:
            decision = self.tick()
        except (BundlesError, BackendError, sqlite3.Error, OSError) as error:
            failure = error
            wait_seconds = self._failed(error)
        else:
            self._succeeded(decision)
            wait_seconds = self.sleep_seconds
        for witness in self.witnesses:
            witness.ticked(time.monotonic() - began, failure, wait_seconds)
        return wait_seconds

    def _succeeded(self, decision: Decision) -> None:
        if self._failures:
            log.info("carrying on: %s", decision.summary())
        else:
            log.debug("%s", decision.summary())
        self._failures = self._refusals = 0
        self._accepted = True
        self._complaint = ""

    def _failed(self, error: Exception) -> float:
        """Say why nothing is done, once; how long to wait, longer each time, in seconds."""
        if isinstance(error, TooManyFailed):
            raise error
        if isinstance(error, NotAuthenticated):
            self._refusals += 1
            if not self._accepted or self._refusals >= REFUSALS_BEFORE_LEAVING:
                raise error
        else:
            self._refusals = 0
        complaint = type(error).__name__
        if complaint != self._complaint:
            log.error("nothing is launched or ended while this lasts: %s", error)
            self._complaint = complaint
        self._write_down(self.clock(), None, None, error=f"{complaint}: {error}")
        longest = max(self.sleep_seconds, LONGEST_BACKOFF_SECONDS)
        wait_seconds: float = min(max(0.5, self.sleep_seconds) * 2**self._failures, longest)
        self._failures = min(self._failures + 1, 16)
        wait_seconds *= random.uniform(0.5, 1.0)
        if isinstance(error, Throttled):
            return max(wait_seconds, error.retry_after_seconds or 0.0)
        return wait_seconds


def _result(key: LaunchKey, outcome: LaunchResult) -> dict[str, Any]:
    if isinstance(outcome, Job):
        return {"launch": str(key), "job": outcome.id}
    return {"launch": str(key), "error": f"{type(outcome).__name__}: {outcome}"}


def _farewell(job: Job) -> str:
    if job.exit_code is None:
        return f"{job.worker_id} ended: {job.why}"
    why = f": {job.why}" if job.why else meaning(job.exit_code)
    return f"{job.worker_id} left with exit code {job.exit_code}{why}"
