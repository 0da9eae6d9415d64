"""Waits for bundles to be staged, where the server can tell, and rings. Knows nothing else."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

from bundles.errors import BundlesError, NotAuthenticated
from bundles.model import State
from manager.alarm import Alarm

if TYPE_CHECKING:
    from bundles.client import Client

WAIT_SECONDS = 25.0
RETRY_SECONDS = 2.0


class ChangeFeed(threading.Thread):
    """A thread in a long poll at the server's change feed. ``client`` is its own: it blocks it.

    While the feed cannot be read it is tried again with jitter; ticks go on by the clock then.
    A daemon: a reply that never comes must not keep the process.
    """

    def __init__(self, client: Client, alarm: Alarm) -> None:
        super().__init__(name="change-feed", daemon=True)
        self._client = client
        self._alarm = alarm
        self._closing = threading.Event()

    def run(self) -> None:
        cursor: int | None = None
        while not self._closing.is_set():
            try:
                news = self._client.changes(
                    cursor, wait_seconds=WAIT_SECONDS, states=[State.STAGED]
                )
            except NotAuthenticated:
                return  # the tick will say so
            except BundlesError:
                self._closing.wait(RETRY_SECONDS * random.uniform(0.5, 1.0))
                continue
            # What happened before the first cursor is in no later answer: have a look, too.
            if cursor is None or news.reset or news.changes:
                self._alarm.ring()
            cursor = news.cursor

    def close(self) -> None:
        """Ask the thread to end; it may be waiting for a reply, and is not waited for."""
        self._closing.set()
        self._client.close()
