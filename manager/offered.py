"""What new workers of one pool turned out to offer: it may be less than the pool says. No I/O.

Of disk a pool says nothing; and machines may have less memory, or no gpu that works. For a bundle
that asks for more than any worker has, workers would be launched for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from manager.capacity import UNBOUNDED, Room

ENOUGH_WORKERS = 3
"""One machine in disrepair says nothing of the others."""
FIRST_SECONDS = 600.0
"""What was seen is believed for so long, twice as long each time, up to …"""
LONGEST_SECONDS = 86400.0
"""A machine with more may come: then bundles that fit none are launched for once more."""


class Offered:
    """The most of each resource that new workers of the pool were seen to have."""

    def __init__(self) -> None:
        self._most: Room | None = None
        self._workers: set[str] = set()
        self._since = 0.0
        self._believed_seconds = FIRST_SECONDS

    def see(self, workers: Iterable[Mapping[str, Any]], now: float) -> None:
        """``workers``: new ones, as the server describes them; ``now``: since the epoch."""
        # A clock that was set back must not keep it for as long as it was set back by.
        if self.room is not None and not 0 <= now - self._since < self._believed_seconds:
            self._most = None
            self._workers.clear()
            self._believed_seconds = min(2 * self._believed_seconds, LONGEST_SECONDS)
        for worker in workers:
            room = _whole(worker)
            if room is None:
                continue
            self._most = room if self._most is None else Room(*map(max, self._most, room))
            if self.room is None:
                self._workers.add(str(worker["worker_id"]))
                self._since = now

    @property
    def room(self) -> Room | None:
        """None: too few workers were seen, or too long ago."""
        return self._most if len(self._workers) >= ENOUGH_WORKERS else None


def _whole(worker: Mapping[str, Any]) -> Room | None:
    """All that a worker has, its disk as far as it is free; None where the server does not say."""
    try:
        return Room(
            gpus=int(worker["gpus"]),
            cpus=int(worker["cpus"]),
            memory_bytes=int(worker["memory_bytes"]),
            disk_bytes=max(0, int(worker["free_disk_bytes"])),
            time_seconds=UNBOUNDED,
        )
    except (KeyError, TypeError, ValueError):
        return None
