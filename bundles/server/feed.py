"""The change feed's memory: the latest transitions, and the requests that wait for the next one.

Lives in the event loop. Older transitions are read from the database (queries.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from bundles.server.bell import Bell

REMEMBERED = 20_000


class Feed:
    """Transitions in the order of their ids, each once."""

    def __init__(self) -> None:
        self.last_id = 0
        self._first_id = 1
        self._recent: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
        self._bell = Bell()

    def begin(self, last_id: int) -> None:
        """Everything up to this id is in the database and not remembered here."""
        if not self._recent:
            self.last_id, self._first_id = last_id, last_id + 1

    def publish(self, transitions: Sequence[dict[str, Any]]) -> None:
        """These are committed: remember them and wake everyone who waits."""
        if not transitions:
            return
        if transitions[0]["id"] != self.last_id + 1:
            self._recent.clear()  # some were committed without our being told: the database knows
        self._recent.extend(transitions)
        self._first_id = self._recent[0]["id"]
        self.last_id = transitions[-1]["id"]
        self._bell.ring()

    def recent(self, after: int) -> list[dict[str, Any]] | None:
        """Those after a cursor; None when it lies before what is remembered."""
        if after + 1 < self._first_id:
            return None
        if after >= self.last_id:
            return []
        # Ids have no gaps, so the place of the first one is known.
        skipped = after + 1 - self._first_id
        return [self._recent[index] for index in range(skipped, len(self._recent))]

    async def wait(self, after: int, wait_seconds: float) -> None:
        """Until there is one after the cursor, or the time is over, or the server ends."""
        if self.last_id <= after:
            await self._bell.wait(self._bell.rings, wait_seconds)

    @property
    def is_closed(self) -> bool:
        return self._bell.is_closed

    def close(self) -> None:
        """Answer everyone who waits, now and from now on."""
        self._bell.close()
