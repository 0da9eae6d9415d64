"""Asks the backends of several pools for their jobs at once, so that none waits for another."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from backends.base import Backend, BackendError, Job, Unreachable
from manager.alarm import Alarm

LIST_SECONDS = 20.0
"""A list that takes longer is not waited for in this tick."""

Listed = list[Job] | Exception

log = logging.getLogger("manager")


class Lister:
    """Lists the jobs of pools. A list that is still under way when its tick is over is of no use
    later, and until it has come its backend is asked for nothing else."""

    def __init__(self, seconds: float = LIST_SECONDS) -> None:
        self._seconds = seconds
        self._late: dict[str, _Listing] = {}

    def list(self, backends: Mapping[str, Backend], alarm: Alarm) -> dict[str, Listed]:
        """The jobs of each pool, or why they are not known. Raises Stopped."""
        if len(backends) == 1:
            with alarm.interruptible():
                return {pool: _listed(backend) for pool, backend in backends.items()}
        self._late = {pool: late for pool, late in self._late.items() if late.is_alive()}
        asked = {
            pool: _Listing(backend) for pool, backend in backends.items() if pool not in self._late
        }
        for listing in asked.values():
            listing.start()
        deadline = time.monotonic() + self._seconds
        with alarm.interruptible():
            for listing in asked.values():
                listing.join(max(0.0, deadline - time.monotonic()))
        listed: dict[str, Listed] = {}
        for pool in backends:
            if pool in asked and not asked[pool].is_alive():
                listed[pool] = asked[pool].listed
            else:
                self._late.setdefault(pool, asked.get(pool) or self._late[pool])
                listed[pool] = Unreachable(f"the list of jobs takes over {self._seconds:g} s")
        return listed


class _Listing(threading.Thread):
    """A daemon: a reply that never comes must not keep the process."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(name="listing", daemon=True)
        self._backend = backend
        self.listed: Listed = Unreachable("the list of jobs was not read to its end")

    def run(self) -> None:
        try:
            self.listed = _listed(self._backend)
        except Exception:  # of one pool's backend: the others go on, and none is no empty list
            log.exception("a list of jobs failed in a way that its backend does not know")


def _listed(backend: Backend) -> Listed:
    try:
        return backend.list_jobs()
    except (BackendError, OSError) as error:
        return error
