"""Which bundles concern a pool, and what they ask of a worker of it. A value, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends import registry
from bundles.model import Resources, queue_tag
from manager.capacity import UNBOUNDED, Need, Offer, Room

START_SECONDS = 60.0
"""Of its life a worker has spent so much, at most, when its server gives it the first bundle; a
quarter of a short one. A bundle that needs all the rest would not get it from any worker."""


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """Which bundles concern a pool, and what its workers offer.

    ``tag``: the workers' tag; ``tag_exclusive``: they run bundles queued for it only.
    ``prefilter``: leave out bundles that ask for more than one worker offers, or for another tag.
    ``lifetime_seconds``: how much of its life a new worker has left when it is given its first
    bundle, at most; None: it lives as long as it likes. ``offered``: the most that new
    workers were seen to have, None: none was seen.
    """

    cpus: int
    gpus: int
    memory_bytes: int
    search: tuple[str, ...] = ()
    tag: str | None = None
    tag_exclusive: bool = False
    prefilter: bool = True
    lifetime_seconds: float | None = None
    offered: Room | None = None

    @classmethod
    def from_settings(cls, backend_name: str, settings: Mapping[str, Any]) -> QueueConfig:
        """From the options of a pool, as given or as the ledger keeps them."""
        life = registry.lifetime_seconds(backend_name, settings)
        return cls(
            cpus=settings["cpus"],
            gpus=settings["gpus"],
            memory_bytes=settings["memory_mb"] * 1024**2,
            search=tuple(settings["search"]),
            tag=settings["worker_tag"],
            tag_exclusive=settings["worker_tag_exclusive"],
            prefilter=not settings["no_prefilter"],
            lifetime_seconds=None if life is None else life - min(START_SECONDS, life / 4),
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
        if self.offered is not None:
            room = Room(*map(min, room, self.offered))
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
    live, in seconds. There are few kinds of bundles: what one asks for is rounded up to a power of
    two, but not to more than the shortest life that is long enough; it is nothing where all of
    them are without end."""
    seconds = asked.worker_seconds
    enough = [life for life in lives if life >= seconds]
    if all(life == UNBOUNDED for life in lives):
        seconds = 0
    elif enough and seconds:
        seconds = min(1 << (seconds - 1).bit_length(), *enough)
    room = Room(asked.gpus, asked.cpus, asked.memory_bytes, asked.disk_bytes, seconds)
    return Need(room, queue_tag(asked.queue))
