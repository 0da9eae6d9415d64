"""Requests that wait for something to change: a ring wakes them all, and they look again.

Lives in the event loop.
"""

from __future__ import annotations

import asyncio


class Bell:
    """``rings``: how often it rang. Whoever looks remembers that first, and waits for the next."""

    def __init__(self) -> None:
        self.rings = 0
        self.is_closed = False
        self._waiters: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Wake everyone who waits."""
        self.rings += 1
        for waiter in self._waiters:
            _finish(waiter)

    def close(self) -> None:
        """Wake everyone who waits, and whoever would wait from now on."""
        self.is_closed = True
        self.ring()

    async def wait(self, rings: int, wait_seconds: float) -> None:
        """Until it rings again after so many ``rings``, or the time is over, or it is closed."""
        if self.rings > rings or wait_seconds <= 0 or self.is_closed:
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.add(waiter)
        handle = loop.call_later(wait_seconds, _finish, waiter)
        try:
            await waiter
        finally:
            handle.cancel()
            self._waiters.discard(waiter)


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
