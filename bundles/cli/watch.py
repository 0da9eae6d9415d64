"""The states of some bundles as they change: told by the server where it can, asked otherwise.

Survives a server that is away for a while. Does not know why anybody watches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from bundles.errors import BundlesError, ServerFault, Unreachable
from bundles.model import FINAL_STATES

if TYPE_CHECKING:
    from bundles.client import Client
    from bundles.model import Bundle
    from bundles.replies import Changes

LONG_POLL_SECONDS = 25.0
"""How long one question may wait for its answer; then the states are read once more, in case."""
PATIENCE_SECONDS = 300.0
"""How long the server may be away."""
RETRY_SECONDS = 1.0
DEFAULT_INTERVAL_SECONDS = 0.5
"""How often a server without a change feed is asked."""


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)


class Watch:
    """``states`` of the bundles of ``uuids``, kept up to date by ``step``.

    ``clock`` in seconds, and ``pause``, are the caller's to replace in tests.
    """

    def __init__(
        self,
        client: Client,
        uuids: Iterable[str],
        *,
        interval_seconds: float = DEFAULT_INTERVAL_SECONDS,
        only: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = _pause,
    ) -> None:
        """Reads the states once. Raises what the client raises.

        ``only``: the states whose beginning matters; others may be noticed late.
        """
        self.states: dict[str, str] = dict.fromkeys(uuids, "")
        self._client = client
        self._interval_seconds = interval_seconds
        self._only = only
        self._clock = clock
        self._pause = pause
        self._cursor: int | None = None
        self._away_since: float | None = None
        self._stale = False
        self._read_at = clock()
        self._read()
        self._is_told = "changes" in client.features

    @property
    def ended(self) -> bool:
        """Whether every one is in a state in which it will stay."""
        return all(state in FINAL_STATES for state in self.states.values())

    def step(self, limit_seconds: float) -> bool:
        """Wait until a state changed, or for ``limit_seconds``; returns whether one did.

        May return early. Raises NotFound when a bundle was deleted, Unreachable or ServerFault
        when the server was away for too long.
        """
        before = dict(self.states)
        try:
            if self._stale or self._clock() - self._read_at >= LONG_POLL_SECONDS:
                self._read()
            elif not self._is_told:
                self._pause(min(self._interval_seconds, limit_seconds))
                self._read()
            elif self._cursor is None:
                self._cursor = self._client.changes(None).cursor
                self._read()  # what happened before the cursor
            else:
                self._listen(self._cursor, min(LONG_POLL_SECONDS, limit_seconds))
            self._away_since = None
        except (Unreachable, ServerFault) as error:
            self.away(error, limit_seconds)
        return self.states != before

    def bundles(self) -> list[Bundle]:
        """All of them as they are now, in the order of ``uuids``. Raises as ``step`` does."""
        while True:
            try:
                found = self._client.bundles(list(self.states))
            except (Unreachable, ServerFault) as error:
                self.away(error)
            else:
                self._away_since = None
                return found

    def away(self, error: BundlesError, limit_seconds: float = RETRY_SECONDS) -> None:
        """The server did not answer: pause, or raise ``error`` when that lasts for too long."""
        now = self._clock()
        if self._away_since is None:
            self._away_since = now
        if now - self._away_since >= PATIENCE_SECONDS:
            raise error
        self._stale = True
        self._pause(min(RETRY_SECONDS, limit_seconds))

    def _read(self) -> None:
        pending = [uuid for uuid, state in self.states.items() if state not in FINAL_STATES]
        for bundle in self._client.bundles(pending):
            self.states[bundle.uuid] = bundle.state
        self._stale = False
        self._read_at = self._clock()

    def _listen(self, cursor: int, limit_seconds: float) -> None:
        until = self._clock() + limit_seconds
        while True:
            changes = self._client.changes(
                cursor,
                wait_seconds=max(0.0, round(until - self._clock(), 3)),
                states=self._only,
            )
            cursor = self._cursor = changes.cursor
            if changes.reset:
                self._read()
                return
            # Other people's bundles change too, which is no reason to look at ours.
            if self._apply(changes) or self._clock() >= until:
                return

    def _apply(self, changes: Changes) -> bool:
        ours = [change for change in changes.changes if change.uuid in self.states]
        for change in ours:
            self.states[change.uuid] = change.to_state
        return bool(ours)
