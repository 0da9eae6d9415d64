"""Which launches may be a job that the service does not list yet. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

from backends.base import LaunchKey
from manager.ledger import Launch


class Unlisted:
    """``lag_seconds``: a job may be missing from a list so long after the call that launched it.

    That call may last: it counts from its answer. Of calls that an earlier manager made, and of
    which it wrote down no outcome, nobody knows when they were over: from when this one began.
    """

    def __init__(self, lag_seconds: float) -> None:
        self._lag_seconds = lag_seconds
        self._began: float | None = None
        self._answered: dict[LaunchKey, float] = {}

    def begin(self, now: float) -> None:
        """Every call of an earlier manager is over by ``now``, seconds since the epoch."""
        if self._began is None:
            self._began = now
        kept = {key: when for key, when in self._answered.items() if self._is_young(when, now)}
        self._answered = kept

    def answered(self, keys: Iterable[LaunchKey], now: float) -> None:
        """The call for these has come back, whatever it said."""
        self._answered |= dict.fromkeys(keys, now)

    def may_be(self, launch: Launch, when: float) -> bool:
        """Whether a list that was asked for at ``when`` need not have the job, if there is one."""
        answered = launch.settled or self._answered.get(launch.key)
        began = when if self._began is None else self._began
        return self._is_young(answered or max(launch.requested, began), when)

    def _is_young(self, answered: float, when: float) -> bool:
        return when - answered < self._lag_seconds
