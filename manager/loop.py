"""The manager of a set of pools: observe, decide, act, wait; again until it is told to stop.

Nothing is launched or ended in a pool whose jobs could not be listed, nor in any pool when the
queue could not be read. A pool that fails does not stop the others.
"""

from __future__ import annotations

import logging
import math
import random
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from backends.base import BackendError, Throttled
from bundles.errors import BundlesError, NotAuthenticated, NotFound, NotPermitted
from manager.accountant import Accountant, drained
from manager.alarm import Alarm, Stopped
from manager.capacity import Demand, coarse_demand
from manager.feed import ChangeFeed
from manager.keeper import PoolKeeper, TooManyFailed
from manager.lease import RETRY_SECONDS, Lease, LeaseLost
from manager.ledger import Ledger
from manager.listing import Listed, Lister
from manager.money import NO_BUDGET, SOFT_FRACTION, Budget, Purse
from manager.observe import Observation, has_a_run
from manager.policy import Decision
from manager.quiet import is_acting
from manager.sharing import Allow, Share, decide_set
from manager.snapshot import Snapshot
from manager.staged import StagedBundles, demand_of
from manager.witness import Witness

if TYPE_CHECKING:
    from bundles.client import Client

SETTLE_SECONDS = 0.1
"""After news of staged bundles, idle workers get this long to take them, and more news to come."""
LONGEST_BACKOFF_SECONDS = 60.0
UNKNOWN_SECONDS = 120.0
"""So long the workers that a pool had count, when its jobs cannot be listed; then other pools take
the bundles that wait for them."""
REFUSALS_BEFORE_LEAVING = 2
"""So many times in a row a server that took our credentials before may refuse them: a password
buys a new token. One that never took them is left at once."""

log = logging.getLogger("manager")


@dataclass
class _Trouble:
    """How often a pool failed in a row, how it was said, and when to try it again."""

    failures: int = 0
    complaint: str = ""
    retry_at: float = 0.0


@dataclass
class Manager:
    """Keeps the pools of ``keepers``, in this order of preference. The caller holds their locks,
    and closes what it passed in. ``lease``: where managers of other homes may keep the same pools.
    ``budget``: what they may cost together. ``launched`` and ``refused``: how many workers the last
    tick asked for, as far as is known, and how many it surely did not get."""

    keepers: list[PoolKeeper]
    staged: StagedBundles
    client: Client
    ledger: Ledger
    alarm: Alarm
    make_feed: Callable[[], ChangeFeed]
    sleep_seconds: float = 5.0
    restart_after_seconds: float | None = None
    witnesses: Sequence[Witness] = ()
    lease: Lease | None = None
    budget: Budget = NO_BUDGET
    soft_fraction: float = SOFT_FRACTION
    before_tick: Callable[[], None] = lambda: None
    lister: Lister = field(default_factory=Lister)
    clock: Callable[[], float] = time.time
    launched: int = 0
    refused: int = 0
    _leaving: list[PoolKeeper] = field(default_factory=list)
    _known: dict[str, tuple[float, Snapshot]] = field(default_factory=dict)
    _troubles: dict[str, _Trouble] = field(default_factory=dict)
    _complaint: str = ""
    _failures: int = 0
    _refusals: int = 0
    _accepted: bool = False

    def __post_init__(self) -> None:
        self._accountant = Accountant(self.ledger)

    # Which pools

    def configure(self, keepers: Sequence[PoolKeeper]) -> None:
        """From the next tick on, keep these. A pool that is not among them any more drains, and
        is released when it has no job left."""
        names = {keeper.pool for keeper in keepers}
        gone = [keeper for keeper in self._everyone() if keeper.pool not in names]
        for keeper in gone:
            keeper.config = replace(keeper.config, min_workers=0, max_workers=0)
        self.keepers, self._leaving = list(keepers), gone

    def keeper_of(self, pool: str) -> PoolKeeper | None:
        """Of a pool that is kept, or still drains."""
        return next((keeper for keeper in self._everyone() if keeper.pool == pool), None)

    def _everyone(self) -> list[PoolKeeper]:
        return [*self.keepers, *self._leaving]

    # One tick

    def tick(self) -> dict[str, Decision]:
        """Observe, decide, act. Returns what was decided, by pool.

        Raises BundlesError, BackendError, sqlite3.Error or OSError when nothing could be decided
        or done in any pool, and Stopped. Of these LeaseLost, when another manager keeps one of
        the pools: it was waited for then.
        """
        if self.lease is not None:
            with self.alarm.interruptible():
                self.lease.take()
        everyone = self._everyone()
        queues = [keeper.observer.queue for keeper in everyone]
        with self.alarm.interruptible():
            counted = self.staged.read(queues)
        wanted, unfit = demand_of(counted, queues)
        demand = coarse_demand(wanted, [queue.shape.room for queue in queues])
        snapshots: dict[str, Snapshot] = {}
        seen: dict[str, Observation] = {}
        errors: list[Exception] = []
        due = [keeper for keeper in everyone if self._is_due(keeper)]
        when = self.clock()
        quiet = {} if demand else self._quiet(due)
        asked = {keeper.pool: keeper.backend for keeper in due if keeper.pool not in quiet}
        listed = quiet | self.lister.list(asked, self.alarm)
        for keeper, misfits in zip(everyone, unfit, strict=True):
            name = keeper.pool
            jobs = listed.get(name)
            try:
                if isinstance(jobs, Exception):
                    raise jobs
                if jobs is None:
                    snapshots[name] = self._last_known(keeper)
                    continue
                observation = keeper.observe(when, demand, misfits, jobs)
                gave_up = self._reconcile(keeper, observation)
            except (BackendError, OSError) as error:
                errors.append(error)
                self._pool_failed(keeper, error)
                snapshots[name] = self._last_known(keeper)
                continue
            seen[name] = observation
            snapshot = keeper.remembered(observation, self.clock())
            self._known[name] = (self.clock(), snapshot)
            if gave_up:
                snapshot = replace(snapshot, held_until=math.inf, hold_reason=gave_up)
            snapshots[name] = snapshot
        if errors and not seen:
            raise errors[0]
        if self._is_acting_on(quiet, snapshots, seen):
            return self.tick()  # on lists of this moment
        decided = self._act(demand, snapshots, seen)
        for keeper in everyone:
            name = keeper.pool
            if name in decided and name not in quiet:
                keeper.quiet.look(seen[name].jobs, snapshots[name], decided[name], self.clock())
        self._release(seen)
        self._tell_costs()
        return decided

    def _quiet(self, keepers: Sequence[PoolKeeper]) -> dict[str, Listed]:
        """The jobs of pools in which nothing happens, as they were last listed."""
        now = self.clock()
        idle_workers: frozenset[str] = frozenset()
        if any(keeper.quiet.needs_word(now) for keeper in keepers):
            with self.alarm.interruptible():
                idle_workers = _idle_workers(self.client)
        return {
            keeper.pool: jobs
            for keeper in keepers
            if (jobs := keeper.quiet.jobs(keeper.config, now, idle_workers)) is not None
        }

    def _is_acting_on(
        self,
        quiet: Mapping[str, Listed],
        snapshots: Mapping[str, Snapshot],
        seen: Mapping[str, Observation],
    ) -> bool:
        """Whether something would be launched or ended on a list of an earlier tick."""
        if not quiet:
            return False
        configs = {keeper.pool: keeper.config for keeper in self._everyone()}
        unknown = set(configs) - set(seen)
        shares = decide_set({}, snapshots, configs, self.clock(), unknown)
        decided = {name: shares[name].decision for name in quiet}
        acting = {name for name, decision in decided.items() if decision and is_acting(decision)}
        for keeper in self._everyone():
            if keeper.pool in acting:
                keeper.quiet.forget()
        return bool(acting)

    def _reconcile(self, keeper: PoolKeeper, observation: Observation) -> str:
        """Why nothing may be launched in this pool any more; "" when it may.

        Raises TooManyFailed when so it is in every pool.
        """
        try:
            keeper.reconcile(observation)
        except TooManyFailed as error:
            if len(self.keepers) == 1:
                raise
            return str(error)
        return ""

    def _act(
        self, demand: Demand, snapshots: dict[str, Snapshot], seen: dict[str, Observation]
    ) -> dict[str, Decision]:
        """Decide, and carry it out pool by pool; what one could not launch is decided again."""
        everyone = self._everyone()
        configs = {keeper.pool: keeper.config for keeper in everyone}
        unknown = set(configs) - set(seen)
        now = self.clock()
        shares = decide_set(demand, snapshots, configs, now, unknown, self._allowed(now))
        decided: dict[str, Decision] = {}
        errors: list[Exception] = []
        self.launched = self.refused = 0
        for keeper in everyone:
            name = keeper.pool
            share = shares[name]
            if share.decision is None:
                continue
            for witness in keeper.witnesses:
                witness.decided(seen[name], share.snapshot, share.decision)
            launched, refused = self._carry_out(keeper, share, seen[name], now, errors)
            self.launched += launched
            self.refused += refused
            decided[name] = share.decision
            # What the others may still do is decided on what has become of this.
            snapshots[name] = replace(
                snapshots[name],
                pending=snapshots[name].pending + launched,
                held_until=math.inf,
                hold_reason="launched in this tick",
            )
            if refused:
                allowed = self._allowed(now)  # what was launched is in the ledger by now
                shares = decide_set(demand, snapshots, configs, now, unknown, allowed)
        if errors and len(errors) == len(seen):
            raise errors[0]
        return decided

    def _allowed(self, now: float) -> Allow | None:
        """What the budgets allow; None when there is none."""
        terms = {keeper.pool: keeper.terms for keeper in self._everyone()}
        if not self.budget and not any(its.budget for its in terms.values()):
            return None
        if self.budget:
            terms |= drained(self.ledger, terms)
        accounts = self._accountant.accounts(terms, now)
        return Purse(accounts, now, self.budget, self.soft_fraction).allowance

    def _tell_costs(self) -> None:
        now = self.clock()
        terms = {keeper.pool: keeper.terms for keeper in self._everyone()}
        priced = {pool: its for pool, its in terms.items() if its.price_per_hour}
        if priced:
            accounts = self._accountant.accounts(priced, now)
            for witness in self.witnesses:
                witness.paid(accounts, self.budget, now)

    def _carry_out(
        self,
        keeper: PoolKeeper,
        share: Share,
        observation: Observation,
        now: float,
        errors: list[Exception],
    ) -> tuple[int, int]:
        """How many workers were launched, as far as is known, and how many surely not."""
        assert share.decision is not None
        keeper.learn(share.snapshot, now)
        try:
            done = keeper.act(share.decision, observation)
        except (BackendError, OSError) as error:
            errors.append(error)
            self._pool_failed(keeper, error)
            return share.decision.launch, 0
        self._troubles.pop(keeper.pool, None)
        keeper.write_down(
            now, share.snapshot.to_document(), share.decision.to_document(), done.results
        )
        return done.launched, done.refused

    def _release(self, seen: dict[str, Observation]) -> None:
        """Let go of pools that were taken out and have nothing left."""
        for keeper in list(self._leaving):
            observation = seen.get(keeper.pool)
            if observation is not None and observation.snapshot.jobs == 0:
                log.info("%s: its last worker has gone, it is kept no more", keeper.pool)
                self._leaving.remove(keeper)
                self._known.pop(keeper.pool, None)
                keeper.release()

    # Pools that fail

    def _is_due(self, keeper: PoolKeeper) -> bool:
        trouble = self._troubles.get(keeper.pool)
        return trouble is None or len(self._everyone()) == 1 or self.clock() >= trouble.retry_at

    def _last_known(self, keeper: PoolKeeper) -> Snapshot:
        """With what was launched since, or by an earlier manager, and has yet to come."""
        now = self.clock()
        when, snapshot = self._known.get(keeper.pool, (-math.inf, _NOTHING))
        if not 0 <= now - when < UNKNOWN_SECONDS:
            snapshot = _NOTHING
        coming = keeper.coming(now - UNKNOWN_SECONDS)
        return replace(snapshot, pending=max(snapshot.pending, coming))

    def _pool_failed(self, keeper: PoolKeeper, error: Exception) -> None:
        """Say once what is wrong with one pool of several, and leave it alone for a while."""
        if len(self._everyone()) == 1:
            return  # the tick has failed, and says so
        for witness in keeper.witnesses:
            witness.failed(error)
        trouble = self._troubles.setdefault(keeper.pool, _Trouble())
        complaint = type(error).__name__
        if complaint != trouble.complaint:
            log.error(
                "%s: nothing is launched or ended there while this lasts: %s", keeper.pool, error
            )
            trouble.complaint = complaint
        keeper.write_down(self.clock(), None, None, error=f"{complaint}: {error}")
        trouble.retry_at = self.clock() + self._pause_seconds(error, trouble.failures)
        trouble.failures += 1

    def _pause_seconds(self, error: Exception, failures: int) -> float:
        longest = max(self.sleep_seconds, LONGEST_BACKOFF_SECONDS)
        pause: float = min(max(0.5, self.sleep_seconds) * 2 ** min(failures, 16), longest)
        pause *= random.uniform(0.5, 1.0)
        if isinstance(error, Throttled):
            return max(pause, error.retry_after_seconds or 0.0)
        return pause

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
            self.before_tick()
            decided = self.tick()
        except (BundlesError, BackendError, sqlite3.Error, OSError) as error:
            failure = error
            wait_seconds = self._failed(error)
        else:
            self._succeeded(decided)
            wait_seconds = self.sleep_seconds
        for witness in self.witnesses:
            witness.ticked(time.monotonic() - began, failure, wait_seconds)
        return wait_seconds

    def _succeeded(self, decided: dict[str, Decision]) -> None:
        level = logging.INFO if self._failures else logging.DEBUG
        for pool, decision in decided.items():
            words = "carrying on: " if self._failures else ""
            log.log(level, "%s%s: %s", words, pool, decision.summary())
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
        for keeper in self._everyone():
            keeper.write_down(self.clock(), None, None, error=f"{complaint}: {error}")
            if isinstance(error, BundlesError):
                keeper.server_failed(self.clock())
        if isinstance(error, LeaseLost):
            return RETRY_SECONDS
        wait_seconds = self._pause_seconds(error, self._failures)
        self._failures += 1
        return wait_seconds


def _idle_workers(client: Client) -> frozenset[str]:
    """Workers that the server knows, and that have no bundle."""
    try:
        workers = client.workers()
    except (NotPermitted, NotFound):
        return frozenset()
    return frozenset(str(worker["worker_id"]) for worker in workers if not has_a_run(worker))


_NOTHING = Snapshot({}, 0, 0, 0)
