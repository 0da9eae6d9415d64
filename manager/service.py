"""Keeps a set of pools in this process: takes their locks, opens what they need, and lets a
Manager tick, once or until it is told to stop."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from backends.base import Backend, BackendError
from bundles.errors import BundlesError, UsageError
from manager.alarm import Alarm, Stopped
from manager.feed import ChangeFeed
from manager.installation import Installation
from manager.journal import Journal
from manager.keeper import PoolKeeper
from manager.lease import Lease, LeasedBackend, LeaseLost
from manager.ledger import Ledger
from manager.lock import PoolLock, holder
from manager.log_format import complain
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


def keep(
    pools: Sequence[Pool],
    settings: Mapping[str, Any],
    alarm: Alarm,
    prepare: Callable[[Service, Manager], None] = lambda service, manager: None,
) -> int:
    """Keep pools of one home and server, in this order of preference; ``settings`` concern all
    of them; ``prepare`` is called before the first tick. Returns the exit code.

    Raises UsageError and BundlesError.
    """
    with ExitStack() as stack:
        operation = stack.enter_context(Operation(os.environ, alarm))
        try:
            service = Service(pools, settings, alarm, operation, stack)
            manager = service.manager()
        except Stopped:
            return 0
        if manager is None:
            return 2
        prepare(service, manager)
        if settings["once"]:
            try:
                decided = manager.tick()
            except Stopped:
                return 1
            for pool, decision in decided.items():
                log.info("%s: %s", pool, decision.summary())
            return 1 if manager.refused and not manager.launched else 0
        operation.say()
        restart = manager.run()
        # One that waits for another manager's lease has no workers to end.
        is_ours = manager.lease is None or manager.lease.is_held
        if service.settings["terminate_on_exit"] and is_ours and not restart:
            operation.systemd.tell(STOPPING, "STATUS=ending the workers")
            _end_workers(manager, alarm)
        else:
            if not restart:  # systemd would have this process end, and not start anew
                operation.systemd.tell(STOPPING)
            log.info("%s: the workers stay", "restarting" if restart else "leaving")
    if restart:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return 0


class Service:
    """What pools are kept with: one client, one ledger, and a lock for each pool.

    Everything that is opened ends with ``stack``; what is of one pool, with its keeper.
    ``settings``: what concerns all pools.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        settings: Mapping[str, Any],
        alarm: Alarm,
        operation: Operation,
        stack: ExitStack,
    ) -> None:
        self.settings = settings
        self._pools = {pool.name: pool for pool in pools}
        self._kept: dict[str, Pool] = {}
        self._locks: dict[str, PoolLock] = {}
        self._alarm = alarm
        self._operation = operation
        operation.kept = self._kept
        self._stack = stack
        self._client: Client
        self._lease: Lease
        self._ledger: Ledger
        stack.callback(self._release_all)

    @property
    def pools(self) -> list[Pool]:
        """Those that should be kept."""
        return list(self._pools.values())

    def backend_name(self, pool: str) -> str | None:
        """Of a pool that is kept, or still drains."""
        return self._kept[pool].backend_name if pool in self._kept else None

    def file_is_refused(self, problems: Sequence[str]) -> None:
        """Leave word of why the pools file as it is now is not what the pools are kept by."""
        self._operation.configured(is_good=not problems)
        for pool in self._pools.values():
            path = pool.installation.refusal_path(pool.name)
            try:
                path.unlink(missing_ok=True)
                if problems:
                    path.write_text("\n".join((*problems, "")))
            except OSError as error:
                log.warning("%s cannot be written: %s", path, error)

    @property
    def missing(self) -> list[str]:
        """Pools that should be kept and are not, or not in the way that they should be."""
        return [name for name, pool in self._pools.items() if not self._is_kept_so(pool)]

    def _is_kept_so(self, pool: Pool) -> bool:
        kept = self._kept.get(pool.name)
        return kept is not None and kept.row().way() == pool.row().way()

    def manager(self) -> Manager | None:
        """The manager of the pools, once nobody else keeps one of them; None when none of them
        can be kept as it is. Raises BundlesError, UsageError and Stopped."""
        settings, first = self.settings, next(iter(self._pools.values()))
        try:
            first.installation.create()
        except OSError as error:
            raise _unusable(first, error) from error
        # In one order, or two managers of the same pools would wait for each other.
        for name in sorted(self._pools):
            self._lock(self._pools[name])
        if settings["metrics_port"] is not None:
            self._operation.serve(settings["metrics_host"], settings["metrics_port"])
        self._client = self._stack.enter_context(first.client())
        self._lease = self._stack.enter_context(
            Lease(self._client, self._alarm, first.installation.lock_path(first.name).parent)
        )
        path = first.installation.ledger_path
        try:
            self._ledger = self._stack.enter_context(Ledger(path))
            for pool in self._pools.values():
                self._describe(pool)
            self._tell_of_forsaken(first.installation)
        except sqlite3.Error as error:
            raise BundlesError(f"the ledger {path} cannot be used: {error}") from error
        found = [self._keeper(pool) for pool in self._pools.values()]
        keepers = [keeper for keeper in found if keeper is not None]
        if not keepers:
            return None
        return Manager(
            keepers,
            staged=StagedBundles(self._client, os.environ, self._operation.pulse.beat),
            client=self._client,
            ledger=self._ledger,
            alarm=self._alarm,
            make_feed=lambda: ChangeFeed(first.client(), self._alarm),
            sleep_seconds=settings["sleep_time"],
            restart_after_seconds=settings["restart_after_seconds"],
            witnesses=self._operation.witnesses,
            lease=self._lease,
        )

    def _tell_of_forsaken(self, installation: Installation) -> None:
        """Pools of this home with workers, taken out of the file while no manager ran."""
        for row in self._ledger.pools():
            workers = len(self._ledger.living(row.name))
            if row.name in self._pools or not workers:
                continue
            if holder(installation.lock_path(row.name)) is None:
                log.warning(
                    "%s: nobody keeps it, and %d of its workers have not been seen to end: they "
                    "leave when they are idle; kept once more with a maximum of 0 it is drained",
                    row.name,
                    workers,
                )

    def renew(self, manager: Manager, pools: Sequence[Pool], settings: Mapping[str, Any]) -> None:
        """From the next tick on, keep these pools, with what they say now, in this order.

        A pool whose workers are to be launched in another way gets a new keeper. One that cannot
        be kept so is ``missing`` and stays as it was: its backend cannot be used, or another
        manager keeps it, which is said.
        Raises BackendError, BundlesError and Stopped.
        """
        self.settings = settings
        self._pools = {pool.name: pool for pool in pools}
        keepers = []
        for pool in pools:
            keeper = manager.keeper_of(pool.name)
            if not self._try_lock(pool):
                continue
            self._describe(pool)
            if keeper is not None and self._is_kept_so(pool):
                self._adjust(keeper, pool)
            else:
                keeper = self._keeper(pool) or keeper
            if keeper is not None:
                keepers.append(keeper)
        manager.configure(keepers)
        manager.sleep_seconds = settings["sleep_time"]
        manager.witnesses = self._operation.witnesses

    def _adjust(self, keeper: PoolKeeper, pool: Pool) -> None:
        """Another number of the same workers."""
        self._kept[pool.name] = pool
        self._operation.keeps(pool.name, pool.backend_name, pool.config)
        keeper.config = pool.config
        keeper.observer.queue = pool.queue
        keeper.terms = Terms.from_settings(pool.settings)
        keeper.failures_allowed = pool.settings.get("exit_after_num_failed")

    def _try_lock(self, pool: Pool) -> bool:
        """Take the lock of a pool, which this process may have already."""
        if pool.name in self._locks:
            return True
        lock = PoolLock(pool.installation.lock_path(pool.name))
        if not lock.try_take():
            log.error("%s: another manager (process %s) keeps it", pool.name, lock.holder())
            lock.release()
            return False
        try:
            self._lease.claim(pool.name)
        except LeaseLost as error:
            log.error("%s: %s", pool.name, error)
            lock.release()
            return False
        self._locks[pool.name] = lock
        return True

    def _lock(self, pool: Pool) -> None:
        """Take the lock of a pool; waits for another manager to end. Raises Stopped."""
        name = pool.name
        try:
            lock = PoolLock(pool.installation.lock_path(name))
        except OSError as error:
            raise _unusable(pool, error) from error
        self._locks[name] = lock
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

    def _backend(self, pool: Pool) -> Backend:
        self._operation.keeps(pool.name, pool.backend_name, pool.config)
        self._operation.leased(pool.name, lambda: self._lease.is_held)
        backend = LeasedBackend(pool.backend(), self._lease)
        return self._operation.around(pool.name, pool.backend_name, backend)

    def _describe(self, pool: Pool) -> None:
        self._ledger.describe(pool.row())

    def _keeper(self, pool: Pool) -> PoolKeeper | None:
        """The keeper of a pool whose lock is taken; None when its backend cannot be used.

        Raises BackendError when that is so of the only pool there is.
        """
        try:
            backend = self._backend(pool)
        except BackendError as error:
            if len(self._pools) == 1:
                raise
            complain(f"{pool.name}: {error}")
            return None
        with self._alarm.interruptible():
            if not is_usable(backend):
                return None
        self._kept[pool.name] = pool
        self._lease.want(pool.name)
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
            release=lambda: self._release(pool.name),
            lease=self._lease,
        )

    def _release(self, pool: str) -> None:
        """Once it is drained, a pool is anybody's."""
        self._operation.keeps_no_more(pool)
        self._kept.pop(pool, None)
        self._lease.drop(pool)
        self._locks.pop(pool).release()

    def _release_all(self) -> None:
        for lock in self._locks.values():
            lock.release()


def _unusable(pool: Pool, error: OSError) -> UsageError:
    home = pool.installation.home.path
    return UsageError(
        f"the home {home} cannot be used ({error.strerror}): mend that, or give another by --home"
    )


def _end_workers(manager: Manager, alarm: Alarm) -> None:
    """Raises WorkersLeft. Another signal ends the process at once."""
    from manager.terminate_all import Termination
    from manager.watchdog import at_most

    alarm.let_go()
    with at_most(LEAVING_SECONDS):
        for keeper in manager.keepers:
            Termination(keeper.backend, keeper.ledger, keeper.pool).carry_out()
