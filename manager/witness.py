"""Whoever wants to know what a manager sees and does: metrics, the watchdog. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backends.base import Job, LaunchKey
from manager.health import Cause
from manager.money import Account, Budget
from manager.observe import Observation
from manager.policy import Decision
from manager.snapshot import Snapshot


class Witness:
    """Is told, in the manager's thread. Overrides what it cares for; never raises nor waits."""

    def decided(self, observation: Observation, snapshot: Snapshot, decision: Decision) -> None:
        """The queue and the jobs were read, and this was decided on ``snapshot``."""

    def ended(self, jobs: Sequence[Job]) -> None:
        """Jobs that lived were found to have ended."""

    def missing(self, keys: Sequence[LaunchKey]) -> None:
        """Jobs that lived left the service's list without a word."""

    def failed(self, error: Exception) -> None:
        """The pool could not be looked at, or a decision on it not be carried out."""

    def paid(self, accounts: Mapping[str, Account], budget: Budget, now: float) -> None:
        """What the pools that have a price have cost by now, and what all may cost together."""

    def workers_failed(self, causes: Sequence[Cause]) -> None:
        """Jobs were found to have ended in these bad ways."""

    def ticked(self, seconds: float, error: Exception | None, wait_seconds: float) -> None:
        """A tick took so long, and failed with ``error`` if any; the next one is due so soon."""
