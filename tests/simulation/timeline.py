"""Simulated time: what is due, in order. Knows nothing of what happens then."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

START = 1_000_000.0
"""Seconds since the epoch at which every schedule begins."""


class Timeline:
    """The clock, and the actions that come due as it goes on."""

    def __init__(self) -> None:
        self.now = START
        self.changes = 0
        """How often something happened that another number of workers may follow from."""
        self.story: list[str] | None = None
        """What happened, a line each, for whoever wants to read it."""
        self._due: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = count()

    def clock(self) -> float:
        """Seconds since the epoch."""
        return self.now

    def tell(self, *words: object) -> None:
        """Add to the story, if somebody wants it."""
        if self.story is not None:
            self.story.append(f"{self.now - START:9.1f} {' '.join(map(str, words))}")

    def after(self, seconds: float, action: Callable[..., object], *arguments: Any) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self._order), action, arguments))

    def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen that is due by then."""
        until = self.now + seconds
        due = self._due
        while due and due[0][0] <= until:
            self.now, _, action, arguments = heapq.heappop(due)
            action(*arguments)
        self.now = until
