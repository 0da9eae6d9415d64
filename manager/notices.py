"""What the server is told of the workers of one pool: that they have ended, that they shall drain.

Each is told again until the server has heard of it. Whom it concerns is decided elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from backends.base import LaunchKey
from bundles.errors import Conflict, NotFound, NotPermitted
from bundles.exits import WorkerExit
from manager.alarm import Alarm
from manager.ledger import Ledger
from manager.policy import count

if TYPE_CHECKING:
    from bundles.client import Client

ENDS_TOLD_AGAIN = 50

log = logging.getLogger("manager")


class Notices:
    """Of one pool. What the last manager may have written down and not told of is told anew."""

    def __init__(
        self, pool: str, client: Client, ledger: Ledger, alarm: Alarm, clock: Callable[[], float]
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._alarm = alarm
        self._clock = clock
        self._ended: dict[str, str] = {}
        self._told_to_drain: set[str] = set()
        for launch in ledger.recent(pool, ENDS_TOLD_AGAIN):
            is_over = launch.ended is not None and launch.cause is not None
            if is_over and launch.exit_code != WorkerExit.FINISHED:
                self.ended(str(launch.key), f"{launch.key} ended: {launch.why}")

    def ended(self, worker_id: str, why: str) -> None:
        """A worker has ended that did not take its leave: to be told by ``tell_of_ends``."""
        self._ended[worker_id] = why

    def tell_of_ends(self) -> None:
        """Have the server stage again what workers had that did not leave by themselves.

        Raises BundlesError when it does not answer; what it did not hear is told again.
        """
        if "checkout" not in self._client.features:
            return
        for worker_id, why in list(self._ended.items()):
            with self._alarm.interruptible():
                try:
                    had = self._client.checkout(worker_id, None, why)
                except (NotPermitted, Conflict) as error:  # not a worker of this user
                    log.debug("%s is not checked out: %s", worker_id, error)
                    had = []
            del self._ended[worker_id]
            key = LaunchKey.parse(worker_id)
            if had and key is not None:  # it had bundles, however short it lived
                self._ledger.record_first_bundle({key: self._clock()})
            if had:
                log.info("%s taken back from %s", count(len(had), "bundle"), worker_id)

    def tell_to_drain(self, worker_ids: Sequence[str]) -> None:
        """Have the server give these workers nothing more; what it did not hear is told again.

        Raises BundlesError when it does not answer. A server that cannot tell them gives them
        bundles until the grace is over.
        """
        if "drain" not in self._client.features:
            return
        for worker_id in worker_ids:
            if worker_id in self._told_to_drain:
                continue
            with self._alarm.interruptible():
                try:
                    self._client.drain_worker(worker_id, "its manager does without it from now on")
                except (NotFound, NotPermitted, Conflict) as error:
                    log.debug("%s is not told to drain: %s", worker_id, error)
            self._told_to_drain.add(worker_id)
