"""Which bundles concern a pool, and what they ask of a worker of it. A value, no I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends import registry
from bundles.model import Resources, queue_tag
from manager.capacity import UNBOUNDED, Need, Offer, Room


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """Which bundles concern a pool, and what its workers offer.

    ``tag``: the workers' tag; ``tag_exclusive``: they run bundles queued for it only.
    ``prefilter``: leave out bundles that ask for more than one worker offers, or for another tag.
    ``lifetime_seconds``: how long a worker lives at most; None: as long as it likes.
    """

    cpus: int
    gpus: int
    memory_bytes: int
    search: tuple[str, ...] = ()
    tag: str | None = None
    tag_exclusive: bool = False
    prefilter: bool = True
    lifetime_seconds: float | None = None

    @classmethod
    def from_settings(cls, backend_name: str, settings: Mapping[str, Any]) -> QueueConfig:
        """From the options of a pool, as given or as the ledger keeps them."""
        return cls(
            cpus=settings["cpus"],
            gpus=settings["gpus"],
            memory_bytes=settings["memory_mb"] * 1024**2,
            search=tuple(settings["search"]),
            tag=settings["worker_tag"],
            tag_exclusive=settings["worker_tag_exclusive"],
            prefilter=not settings["no_prefilter"],
            lifetime_seconds=registry.lifetime_seconds(backend_name, settings),
        )

    def keywords(self, *, root: bool, is_alone: bool = True) -> list[str]:
        """CodaLab's search for the staged bundles of this pool; root's workers run everybody's.

        Not ``is_alone``: those of every pool that shares the search, whatever its tag.
        """
        keywords = ["state=staged", *self.search]
        if not root:
            keywords.append(".mine")
        if is_alone and self.tag_exclusive and self.tag:
            keywords.append(f"request_queue={self.tag},tag={self.tag}")
        return keywords

    @property
    def shape(self) -> Offer:
        """What a new worker of this pool offers."""
        life = UNBOUNDED if self.lifetime_seconds is None else int(self.lifetime_seconds)
        room = Room(self.gpus, self.cpus, self.memory_bytes, UNBOUNDED, life)
        return Offer(room, self.tag or "", self.tag_exclusive)

    def need(self, asked: Need) -> Need | None:
        """What a bundle asks of a worker of this pool; None when none could ever run it.

        Without the prefilter such a bundle counts as one that takes a whole worker.
        """
        if self.shape.takes(asked):
            return asked
        whole = self.shape.room._replace(disk_bytes=0, time_seconds=0)
        return None if self.prefilter else Need(whole, self.tag or "")


def as_need(asked: Resources, lives: Sequence[int] = ()) -> Need:
    """What a bundle asks for, of whichever worker. ``lives``: how long the workers of each pool
    live, in seconds; a bundle asks for the shortest of them that is long enough, so that there are
    few kinds of bundles, and for nothing when they all are."""
    seconds = math.ceil(asked.time_seconds)
    enough = [life for life in lives if life >= seconds]
    if len(enough) == len(lives):
        seconds = 0
    elif enough:
        seconds = min(enough)
    room = Room(asked.gpus, asked.cpus, asked.memory_bytes, asked.disk_bytes, seconds)
    return Need(room, queue_tag(asked.queue))
