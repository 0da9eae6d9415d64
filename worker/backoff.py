"""How long to wait before the next try: longer each time, and not in step with others."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Doubles from ``first_seconds`` up to ``most_seconds``, give or take a third."""

    def __init__(
        self,
        first_seconds: float,
        most_seconds: float,
        *,
        chance: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._first = first_seconds
        self._most = most_seconds
        self._chance = chance
        self.failures = 0

    def next_seconds(self) -> float:
        """The wait after one more failure."""
        delay = min(self._most, self._first * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return delay * self._chance(0.67, 1.33)

    def reset(self) -> None:
        self.failures = 0
