"""What one tick knows: the queue and the workers of one pool at one moment. A value, no I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from manager.capacity import Demand, Need, Offer, Room, total


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A complete observation. There is none of half a queue or half a list of jobs.

    ``demand``: staged bundles that a worker of this pool could run, by what they ask for;
    ``unfit``: how many of the same search it could not (too large, too long, or queued for another
    tag).
    ``pending``: jobs whose worker does not take bundles yet, intents of unknown outcome included;
    ``active``: jobs whose worker does; ``ending``: jobs that we asked to end and that are still
    there. ``free``: the room that active workers have left, where the
    server tells it; workers that are full are not in it.
    ``withdrawable``: ids of jobs that the service has not started, newest first.
    Times are seconds since the epoch. ``last_launch``: when a launch was last tried.
    ``surplus_since``: since when more workers are pending than bundles need, None when it is not
    so. ``held_until``: launches failed lately and are not tried again before, for ``hold_reason``,
    infinity: never again;
    ``is_on_probation``: they did, and the next one has to show that it is over.

    ``elsewhere``: staged bundles that this pool could run and that are left to others of its set.
    ``impatient``: how many of the pending wait longer than the pool's patience;
    ``start_seconds``: how long the last workers took from launch to start, None: not known;
    ``is_slow``: one or the other is too long, and another pool of the set takes the bundles
    meanwhile. ``launched_lately``: launches of the last minute.
    ``draining``: workers that run and were told to take no more bundles; ``drainable``: ids of
    jobs whose workers could be told so, the idle first, then the newest; ``drain_overdue``: ids
    of those that were told so longer ago than the pool's grace.
    ``affordable``: how many more workers the budget allows, None: as many as you like; and why.
    ``trial``: how many more may be launched before one has shown that the pool works, None: any
    number; ``is_quarantined``: several in a row did nothing. ``unregistered``: ids of jobs whose
    workers run for so long that the server should have heard of them, and has not.
    ``settling``: how many of the active came after the queue was read last: what they took may
    still be seen as staged, and their room is not in ``free``. ``silent``: ids of jobs that run, of
    whose workers, which had come, the server has not heard for too long.
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
    elsewhere: int = 0
    impatient: int = 0
    start_seconds: float | None = None
    is_slow: bool = False
    launched_lately: int = 0
    draining: int = 0
    drainable: tuple[str, ...] = ()
    drain_overdue: tuple[str, ...] = ()
    affordable: int | None = None
    budget_reason: str = ""
    trial: int | None = None
    is_quarantined: bool = False
    unregistered: tuple[str, ...] = ()
    settling: int = 0
    silent: tuple[str, ...] = ()

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
        return self.workers + self.draining + self.ending

    def to_document(self) -> dict[str, Any]:
        """JSON: kinds of bundles as [gpus, cpus, memory bytes, disk bytes, seconds, queue, number],
        free room as [gpus, cpus, memory bytes, disk bytes, seconds, tag, exclusive, number]."""
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
            "held_until": None if math.isinf(self.held_until) else self.held_until,
            "hold_reason": self.hold_reason,
            "is_on_probation": self.is_on_probation,
            "elsewhere": self.elsewhere,
            "impatient": self.impatient,
            "start_seconds": self.start_seconds,
            "is_slow": self.is_slow,
            "launched_lately": self.launched_lately,
            "draining": self.draining,
            "drainable": list(self.drainable),
            "drain_overdue": list(self.drain_overdue),
            "affordable": self.affordable,
            "budget_reason": self.budget_reason,
            "trial": self.trial,
            "is_quarantined": self.is_quarantined,
            "unregistered": list(self.unregistered),
            "settling": self.settling,
            "silent": list(self.silent),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Snapshot:
        """The snapshot that ``to_document`` wrote, now or in format 1, which knew of one pool.

        Raises KeyError, TypeError or ValueError.
        """
        # Probation was one worker alone, before it had a number.
        trial = (0 if document["pending"] else 1) if document["is_on_probation"] else None
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
            held_until=math.inf if document["held_until"] is None else document["held_until"],
            hold_reason=document["hold_reason"],
            is_on_probation=document["is_on_probation"],
            elsewhere=document.get("elsewhere", 0),
            impatient=document.get("impatient", 0),
            start_seconds=document.get("start_seconds"),
            is_slow=document.get("is_slow", False),
            launched_lately=document.get("launched_lately", 0),
            draining=document.get("draining", 0),
            drainable=tuple(document.get("drainable", ())),
            drain_overdue=tuple(document.get("drain_overdue", ())),
            affordable=document.get("affordable"),
            budget_reason=document.get("budget_reason", ""),
            trial=document.get("trial", trial),
            is_quarantined=document.get("is_quarantined", False),
            unregistered=tuple(document.get("unregistered", ())),
            settling=document.get("settling", 0),
            silent=tuple(document.get("silent", ())),
        )
