"""The virtual clock: what is to happen, in the order of its time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Agenda:
    """Things of the same time happen in the order in which they were entered."""

    def __init__(self, start: float) -> None:
        self.now = start
        self._entered = 0
        self._entries: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, when: float, action: Callable[..., None], *values: Any) -> None:
        """``action(*values)`` is due at ``when``; now, if that is past."""
        self._entered += 1
        entry = (max(when, self.now), self._entered, action, values)
        heapq.heappush(self._entries, entry)

    def run(self, until: float, is_over: Callable[[], bool]) -> None:
        """Let happen what is due by ``until``, or until it is over, which is asked after each."""
        entries = self._entries
        while entries and entries[0][0] <= until:
            self.now, _, action, values = heapq.heappop(entries)
            action(*values)
            if is_over():
                return
