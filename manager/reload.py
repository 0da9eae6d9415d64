"""What becomes of a set of pools whose file has changed, between two ticks.

A file that cannot be used, or not without starting anew, changes nothing.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator

from backends.base import BackendError
from bundles.errors import BundlesError
from manager.alarm import Alarm
from manager.loop import Manager
from manager.options import connection_options, set_options
from manager.pool import Pool
from manager.pools_file.model import key_of
from manager.pools_file.reading import BadPoolsFile, PoolsFile
from manager.pools_file.watched import WatchedFile
from manager.service import Service

CHANGEABLE = frozenset({"search", "sleep_time", "terminate_on_exit", "verbose"})
"""Of what concerns all pools; the rest stays as it was when the process started."""
RETRY_SECONDS = 60.0
LONGEST_RETRY_SECONDS = 600.0
"""A pool of the file that could not be kept is tried again after so long."""

log = logging.getLogger("manager")


def set_budget(manager: Manager, file: PoolsFile) -> None:
    """What the pools of a file may cost together."""
    manager.budget = file.budget.amounts
    manager.soft_fraction = file.budget.soft_fraction


class Reload:
    """Called before each tick. ``pools_of``: what the commands make of a file's pools."""

    def __init__(
        self,
        watched: WatchedFile,
        alarm: Alarm,
        service: Service,
        manager: Manager,
        pools_of: Callable[[PoolsFile], list[Pool]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watched = watched
        self._alarm = alarm
        self._service = service
        self._manager = manager
        self._pools_of = pools_of
        self._clock = clock
        self._wanted: tuple[PoolsFile, list[Pool]] | None = None
        self._pause_seconds = RETRY_SECONDS
        self._retry_at = clock() + RETRY_SECONDS
        service.file_is_refused(())

    def __call__(self) -> None:
        """Raises BundlesError, BackendError, sqlite3.Error or OSError when the change could not be
        made yet, and Stopped."""
        problems = self._watched.problems
        file = self._watched.look(asked=self._alarm.take_hangup())
        if file is not None:
            try:
                self._check(file)
                self._wanted = file, self._pools_of(file)
            except BadPoolsFile as error:
                self._watched.refuse(error.problems)
            except BundlesError as error:
                self._watched.refuse([f"{file.path}: {error}"])
        if self._watched.problems != problems:
            self._service.file_is_refused(self._watched.problems)
        if self._wanted is not None:
            self._change(*self._wanted)
        elif self._service.missing and self._clock() >= self._retry_at:
            self._try_again()

    def _change(self, file: PoolsFile, pools: list[Pool]) -> None:
        names = ", ".join(pool.name for pool in pools)
        log.info("%s has changed: keeping %s", file.path, names)
        self._service.renew(self._manager, pools, file.pools[0].settings)
        set_budget(self._manager, file)
        self._wanted = None
        self._watched.accept(file)
        self._service.file_is_refused(())
        self._pause_seconds = RETRY_SECONDS
        self._retry_at = self._clock() + RETRY_SECONDS

    def _try_again(self) -> None:
        self._pause_seconds = min(self._pause_seconds * 2, LONGEST_RETRY_SECONDS)
        self._retry_at = self._clock() + self._pause_seconds
        log.info("trying again to keep %s", ", ".join(self._service.missing))
        try:
            self._service.renew(self._manager, self._service.pools, self._service.settings)
        except (BundlesError, BackendError, sqlite3.Error, OSError) as error:
            log.error("it did not work: %s", error)

    def _check(self, file: PoolsFile) -> None:
        """Raises BadPoolsFile for what cannot change while the pools are kept."""
        problems = [*self._fixed(file), *self._other_backends(file)]
        if problems:
            raise BadPoolsFile(problems)

    def _fixed(self, file: PoolsFile) -> Iterator[str]:
        used, new = self._watched.used.pools[0], file.pools[0]
        for option in [*connection_options(), *set_options()]:
            name = option.name or ""
            if name not in CHANGEABLE and used.settings[name] != new.settings[name]:
                line = new.origins[name].line or 1
                yield (
                    f"{file.path}:{line}: {key_of(option)}: cannot change while pools are kept: "
                    "put back what it was, or start this command anew"
                )

    def _other_backends(self, file: PoolsFile) -> Iterator[str]:
        for pool in file.pools:
            kept = self._service.backend_name(pool.name)
            if kept is not None and kept != pool.backend_name:
                yield (
                    f"{file.path}:{pool.backend_line}: the workers of {pool.name} are {kept}'s: "
                    f"give a pool of {pool.backend_name} a name of its own"
                )
