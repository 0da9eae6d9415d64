"""Which bundles concern a pool, and what they ask of a worker of it. A value, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bundles.model import Resources, queue_tag
from manager.capacity import UNBOUNDED, Need, Offer, Room


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """Which bundles concern a pool, and what its workers offer.

    ``tag``: the workers' tag; ``tag_exclusive``: they run bundles queued for it only.
    ``prefilter``: leave out bundles that ask for more than one worker offers, or for another tag.
    """

    cpus: int
    gpus: int
    memory_bytes: int
    search: tuple[str, ...] = ()
    tag: str | None = None
    tag_exclusive: bool = False
    prefilter: bool = True

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> QueueConfig:
        """From the options of a pool, as given or as the ledger keeps them."""
        return cls(
            cpus=settings["cpus"],
            gpus=settings["gpus"],
            memory_bytes=settings["memory_mb"] * 1024**2,
            search=tuple(settings["search"]),
            tag=settings["worker_tag"],
            tag_exclusive=settings["worker_tag_exclusive"],
            prefilter=not settings["no_prefilter"],
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
        room = Room(self.gpus, self.cpus, self.memory_bytes, UNBOUNDED)
        return Offer(room, self.tag or "", self.tag_exclusive)

    def need(self, asked: Resources) -> Need | None:
        """What a bundle asks of a worker of this pool; None when none could ever run it.

        Without the prefilter such a bundle counts as one that takes a whole worker.
        """
        need = as_need(asked)
        if self.shape.takes(need):
            return need
        whole = self.shape.room._replace(disk_bytes=0)
        return None if self.prefilter else Need(whole, self.tag or "")


def as_need(asked: Resources) -> Need:
    """What a bundle asks for, of whichever worker."""
    room = Room(asked.gpus, asked.cpus, asked.memory_bytes, asked.disk_bytes)
    return Need(room, queue_tag(asked.queue))
