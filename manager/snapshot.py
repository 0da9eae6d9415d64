"""What one tick knows: the queue and the workers of one pool at one moment. A value, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from manager.capacity import Demand, Need, Offer, Room, total


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A complete observation. There is none of half a queue or half a list of jobs.

    ``demand``: staged bundles that a worker of this pool could run, by what they ask for;
    ``unfit``: how many of the same search it could not (too large, or queued for another tag).
    ``pending``: jobs whose worker does not take bundles yet, intents of unknown outcome included;
    ``active``: jobs whose worker does; ``ending``: jobs that we asked to end and that are still
    there. ``free``: the room that active workers have left, where the
    server tells it; workers that are full are not in it.
    ``withdrawable``: ids of jobs that the service has not started, newest first.
    Times are seconds since the epoch. ``last_launch``: when a launch was last tried.
    ``surplus_since``: since when more workers are pending than bundles need, None when it is not
    so. ``held_until``: launches failed lately and are not tried again before, for ``hold_reason``;
    ``is_on_probation``: they did, and the next one has to show that it is over.
    """

    demand: Demand
    unfit: int
    pending: int
    active: int
    ending: int = 0
    free: Mapping[Offer, int] = field(default_factory=dict)
    withdrawable: tuple[str, ...] = ()
    last_launch: float | None = None
    surplus_since: float | None = None
    held_until: float = 0.0
    hold_reason: str = ""
    is_on_probation: bool = False

    @property
    def staged(self) -> int:
        return total(self.demand)

    @property
    def workers(self) -> int:
        """Those that there are or will be."""
        return self.pending + self.active

    @property
    def jobs(self) -> int:
        """All that the service has of ours."""
        return self.workers + self.ending

    def to_document(self) -> dict[str, Any]:
        """JSON: kinds of bundles as [gpus, cpus, memory bytes, disk bytes, queue, number], free
        room as [gpus, cpus, memory bytes, disk bytes, tag, exclusive, number]."""
        return {
            "demand": [[*need.room, need.queue, n] for need, n in sorted(self.demand.items())],
            "staged": self.staged,
            "unfit": self.unfit,
            "pending": self.pending,
            "active": self.active,
            "ending": self.ending,
            "free": [[*o.room, o.tag, o.tag_exclusive, n] for o, n in sorted(self.free.items())],
            "withdrawable": list(self.withdrawable),
            "last_launch": self.last_launch,
            "surplus_since": self.surplus_since,
            "held_until": self.held_until,
            "hold_reason": self.hold_reason,
            "is_on_probation": self.is_on_probation,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Snapshot:
        """The snapshot that ``to_document`` wrote. Raises KeyError, TypeError or ValueError."""
        return cls(
            demand={
                Need(Room(*room), queue): number for *room, queue, number in document["demand"]
            },
            unfit=document["unfit"],
            pending=document["pending"],
            active=document["active"],
            ending=document["ending"],
            free={
                Offer(Room(*room), tag, exclusive): number
                for *room, tag, exclusive, number in document["free"]
            },
            withdrawable=tuple(document["withdrawable"]),
            last_launch=document["last_launch"],
            surplus_since=document["surplus_since"],
            held_until=document["held_until"],
            hold_reason=document["hold_reason"],
            is_on_probation=document["is_on_probation"],
        )
