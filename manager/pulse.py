"""Whether a manager is alive: when its next sign of life is due, and how far overdue it is.

A sign of life is a tick that ended, well or not, or a call to the backend that came back.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from manager.observe import Observation
from manager.policy import Decision
from manager.snapshot import Snapshot
from manager.witness import Witness

TICK_SECONDS = 120.0
"""A sign of life may take so long: longer than any one call with its time-out and retries."""
MISSED_TICKS = 3


class Pulse(Witness):
    """Written by the manager's thread, read by any. Nothing is due before the first ``beat``.

    ``clock``: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: float | None = None
        self._has_observed = False

    def beat(self, wait_seconds: float = 0.0) -> None:
        """A sign of life; the work for the next one begins in so many seconds."""
        self._due = self._clock() + wait_seconds

    def forgive(self, seconds: float) -> None:
        """The whole process stood still so long, which is not the manager's fault."""
        if self._due is not None:
            self._due += seconds

    @property
    def overdue_seconds(self) -> float:
        """How long ago the work for the next sign of life began."""
        due = self._due
        return 0.0 if due is None else max(0.0, self._clock() - due)

    @property
    def is_alive(self) -> bool:
        return self.overdue_seconds <= TICK_SECONDS

    @property
    def is_stuck(self) -> bool:
        """As many ticks as may be missed have been."""
        return self.overdue_seconds > MISSED_TICKS * TICK_SECONDS

    @property
    def is_ready(self) -> bool:
        """Whether the queue and the jobs were ever read whole."""
        return self._has_observed

    def decided(self, observation: Observation, snapshot: Snapshot, decision: Decision) -> None:
        self._has_observed = True

    def ticked(self, seconds: float, error: Exception | None, wait_seconds: float) -> None:
        self.beat(wait_seconds)
