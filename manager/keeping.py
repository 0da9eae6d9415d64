"""Keeps a set of pools in this process: takes their locks, opens what they need, and lets a
Manager tick, once or until it is told to stop."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from backends.base import Backend
from bundles.errors import BundlesError, UsageError
from manager.alarm import Alarm, Stopped
from manager.feed import ChangeFeed
from manager.journal import Journal
from manager.keeper import PoolKeeper
from manager.ledger import Ledger
from manager.ledger import Pool as PoolRow
from manager.lock import PoolLock
from manager.loop import Manager
from manager.money import Terms
from manager.operation import Operation
from manager.pool import Pool
from manager.staged import StagedBundles
from manager.systemd import READY, STOPPING
from manager.usable import is_usable

if TYPE_CHECKING:
    from bundles.client import Client

LEAVING_SECONDS = 25.0
"""Ending the workers takes no longer: most who stop a service kill it after 30 s."""

log = logging.getLogger("manager")


def keep(pools: Sequence[Pool], settings: Mapping[str, Any], alarm: Alarm) -> int:
    """Keep pools of one home and server, in this order of preference; ``settings`` concern all
    of them. Returns the exit code. Raises UsageError and BundlesError."""
    with ExitStack() as stack:
        operation = stack.enter_context(Operation(os.environ))
        try:
            keeping = Keeping(pools, settings, alarm, operation, stack)
            manager = keeping.manager()
        except Stopped:
            return 0
        if manager is None:
            return 2
        if settings["once"]:
            try:
                decided = manager.tick()
            except Stopped:
                return 1
            for pool, decision in decided.items():
                log.info("%s: %s", pool, decision.summary())
            return 0
        kind = "pool" if len(pools) == 1 else "pools"
        names = ", ".join(pool.name for pool in pools)
        operation.systemd.tell(READY, f"STATUS=keeping the {kind} {names}")
        restart = manager.run()
        if settings["terminate_on_exit"] and not restart:
            operation.systemd.tell(STOPPING, "STATUS=ending the workers")
            _end_workers(manager, alarm)
        else:
            if not restart:  # systemd would have this process end, and not start anew
                operation.systemd.tell(STOPPING)
            log.info("%s: the workers stay", "restarting" if restart else "leaving")
    if restart:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return 0


class Keeping:
    """What pools are kept with: one client, one ledger, and a lock for each pool.

    Everything that is opened ends with ``stack``; what is of one pool, with its keeper.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        settings: Mapping[str, Any],
        alarm: Alarm,
        operation: Operation,
        stack: ExitStack,
    ) -> None:
        self._pools = pools
        self._settings = settings
        self._alarm = alarm
        self._operation = operation
        self._stack = stack
        self._client: Client
        self._ledger: Ledger

    def manager(self) -> Manager | None:
        """The manager of the pools, once nobody else keeps one of them; None when none of them
        can be kept as it is. Raises BundlesError, UsageError and Stopped."""
        settings, first = self._settings, self._pools[0]
        try:
            first.installation.create()
        except OSError as error:
            raise UsageError(f"the home cannot be used: {error}") from error
        # In one order, or two managers of the same pools would wait for each other.
        locks = {name: self._lock(name) for name in sorted(pool.name for pool in self._pools)}
        if settings["metrics_port"] is not None:
            self._operation.serve(settings["metrics_host"], settings["metrics_port"])
        self._client = self._stack.enter_context(first.client())
        path = first.installation.ledger_path
        try:
            self._ledger = self._stack.enter_context(Ledger(path))
            for pool in self._pools:
                self._describe(pool)
        except sqlite3.Error as error:
            raise BundlesError(f"the ledger {path} cannot be used: {error}") from error
        keepers = []
        for pool in self._pools:
            backend = self._backend(pool)
            with self._alarm.interruptible():
                if is_usable(backend):
                    keepers.append(self._keeper(pool, backend, locks[pool.name]))
        if not keepers:
            return None
        return Manager(
            keepers,
            staged=StagedBundles(self._client, os.environ),
            client=self._client,
            ledger=self._ledger,
            alarm=self._alarm,
            make_feed=lambda: ChangeFeed(first.client(), self._alarm),
            sleep_seconds=settings["sleep_time"],
            restart_after_seconds=settings["restart_after_seconds"],
            witnesses=self._operation.witnesses,
        )

    def keeper(self, pool: Pool) -> PoolKeeper | None:
        """A keeper for one pool more, or of new options for one that is kept; None when its
        backend cannot be used or another manager keeps it, which is said in the log."""
        lock = PoolLock(pool.installation.lock_path(pool.name))
        if not lock.try_take():
            log.error("%s: another manager (process %s) keeps it", pool.name, lock.holder())
            return None
        backend = self._backend(pool)
        with self._alarm.interruptible():
            if not is_usable(backend):
                lock.release()
                return None
        self._describe(pool)
        return self._keeper(pool, backend, lock)

    def _lock(self, name: str) -> PoolLock:
        """The lock of a pool; waits for another manager to end. Raises Stopped."""
        try:
            lock = PoolLock(self._pools[0].installation.lock_path(name))
        except OSError as error:
            raise UsageError(f"the home cannot be used: {error}") from error
        self._stack.callback(lock.release)
        if not lock.try_take():
            log.info(
                "another manager (process %s) keeps the pool %s: waiting for it to end; "
                "--pool NAME keeps one of another name",
                lock.holder(),
                name,
            )
            self._operation.systemd.tell(
                READY, f"STATUS=waiting: another manager keeps the pool {name}"
            )
            with self._alarm.interruptible():
                lock.take()
        return lock

    def _backend(self, pool: Pool) -> Backend:
        self._operation.keeps(pool.name, pool.backend_name, pool.config)
        return self._operation.around(pool.name, pool.backend())

    def _describe(self, pool: Pool) -> None:
        self._ledger.describe(
            PoolRow(pool.name, pool.backend_name, pool.server, pool.kept_settings())
        )

    def _keeper(self, pool: Pool, backend: Backend, lock: PoolLock) -> PoolKeeper:
        log.info(
            "keeping %d to %d workers in the pool %s for %s",
            pool.config.min_workers,
            pool.config.max_workers,
            pool.name,
            pool.server,
        )
        return PoolKeeper(
            pool=pool.name,
            config=pool.config,
            observer=pool.observer(self._client, backend),
            backend=backend,
            launcher=pool.launcher(),
            client=self._client,
            ledger=self._ledger,
            journal=Journal(pool.installation.journal_path(pool.name), pool.name),
            alarm=self._alarm,
            failures_allowed=pool.settings.get("exit_after_num_failed"),
            terms=Terms.from_settings(pool.settings),
            witnesses=self._operation.witnesses_of(pool.name),
            release=lambda: self._release(pool.name, lock),
        )

    def _release(self, pool: str, lock: PoolLock) -> None:
        self._operation.keeps_no_more(pool)
        lock.release()


def _end_workers(manager: Manager, alarm: Alarm) -> None:
    """Raises WorkersLeft. Another signal ends the process at once."""
    from manager.terminate_all import Termination
    from manager.watchdog import at_most

    alarm.let_go()
    with at_most(LEAVING_SECONDS):
        for keeper in manager.keepers:
            Termination(keeper.backend, keeper.ledger, keeper.pool).carry_out()
