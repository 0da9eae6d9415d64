"""How long this worker's claims are surely its own: until its lease ends without a word to the
server. What it does then is its owner's choice; what becomes of the claims is the server's.
"""

from __future__ import annotations

import logging

from worker.loop import Loop, Timer
from worker.runs import Runs
from worker.stages import Stage

log = logging.getLogger(__name__)

CODALAB_LEASE_SECONDS = 60.0
"""What a CodaLab server allows unless it is told otherwise (`cl-bundle-manager
--worker-timeout-seconds`); it does not tell its workers."""


class Lease:
    """For the loop's thread. ``stops``: runs do not go on while they may be run elsewhere, too."""

    def __init__(self, loop: Loop, runs: Runs, *, stops: bool) -> None:
        self._loop = loop
        self._runs = runs
        self._stops = stops
        self._end = 0.0
        self._timer: Timer | None = None

    def renew(self, since: float, seconds: float | None) -> None:
        """The server has heard of this worker at ``since`` (of the loop's clock) or later, and
        waits so long for more; None: it does not say."""
        self._end = since + (seconds or CODALAB_LEASE_SECONDS)
        if self._timer is not None and self._timer.when > self._end:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._watch()

    def _watch(self) -> None:
        self._timer = None
        left = self._end - self._loop.clock()
        if left > 0:
            self._timer = self._loop.call_later(left, self._watch)
        else:
            self._lost()

    def _lost(self) -> None:
        if not self._runs.held:
            return
        log.warning(
            "the server was not reached for as long as it waits for a worker: the bundles here "
            "may be run elsewhere, too; %s",
            "their runs are stopped" if self._stops else "late results are refused there",
        )
        if self._stops:
            # What is over uses nothing up any more, and the server knows whether it is late.
            self._runs.give_back(Stage.PREPARING, Stage.RUNNING)
