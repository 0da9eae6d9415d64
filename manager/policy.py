"""How many workers there should be: CodaLab's rule, for as many workers as are needed at once.

A pure function of what was seen, what is wanted, and the time. No clock, no I/O.

CodaLab (worker_manager.py, run_one_iteration) launches at most one worker a tick: when a bundle
is staged, unless the last launch was less than the interval ago, as many workers are pending as
bundles are staged, or there are as many jobs as allowed; and below the minimum whatever else
holds. Here bundles are fitted into the room that workers have, those that run and those that are
on their way, and what is left into new ones, all in one tick. Where each bundle takes a worker of
its own, and no worker has room left, the answer is CodaLab's, asked until it is no.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from manager.capacity import (
    Demand,
    Offer,
    Room,
    Shelf,
    coarse_demand,
    coarse_offers,
    open_workers,
    place,
    total,
)
from manager.snapshot import Snapshot

SURPLUS_SECONDS = 60.0
"""Pending workers that nothing needs are withdrawn after so long: queues breathe."""


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """What the operator wants of one pool: 0 ≤ ``min_workers`` ≤ ``max_workers``, workers that
    offer ``shape``.

    ``min_seconds_between_workers``: above 0, one launch at most in each such interval.
    """

    shape: Offer
    min_workers: int = 1
    max_workers: int = 10
    min_seconds_between_workers: float = 0.0

    def to_document(self) -> dict[str, Any]:
        """JSON: the shape as [gpus, cpus, memory bytes, disk bytes, tag, exclusive]."""
        shape = self.shape
        return {
            "shape": [*shape.room, shape.tag, shape.tag_exclusive],
            "min_workers": self.min_workers,
            "max_workers": self.max_workers,
            "min_seconds_between_workers": self.min_seconds_between_workers,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> PoolConfig:
        """What ``to_document`` wrote. Raises KeyError, TypeError or ValueError."""
        *room, tag, tag_exclusive = document["shape"]
        return cls(
            shape=Offer(Room(*room), tag, tag_exclusive),
            min_workers=document["min_workers"],
            max_workers=document["max_workers"],
            min_seconds_between_workers=document["min_seconds_between_workers"],
        )


@dataclass(frozen=True, slots=True)
class Reason:
    """One clause of the rule: ``code`` for machines, whether it ``held``, a sentence for people."""

    code: str
    held: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers to launch, which jobs to end, and why. Every clause gives its reason."""

    launch: int
    end: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()

    def reason(self, code: str) -> Reason:
        """The reason of one clause. Raises KeyError."""
        for reason in self.reasons:
            if reason.code == code:
                return reason
        raise KeyError(code)

    def to_document(self) -> dict[str, Any]:
        return {
            "launch": self.launch,
            "end": list(self.end),
            "reasons": [
                {"code": reason.code, "held": reason.held, "sentence": reason.sentence}
                for reason in self.reasons
            ],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Decision:
        """What ``to_document`` wrote. Raises KeyError, TypeError or ValueError."""
        return cls(
            launch=document["launch"],
            end=tuple(document["end"]),
            reasons=tuple(Reason(**reason) for reason in document["reasons"]),
        )

    def summary(self) -> str:
        """One sentence: what is decided and what decided it."""
        deciding = [reason for reason in self.reasons if reason.held]
        sentence = (deciding[-1] if deciding else self.reasons[-1]).sentence
        done = [f"launch {count(self.launch, 'worker')}"] if self.launch else []
        done += [f"withdraw {count(len(self.end), 'worker')}"] if self.end else []
        return f"{' and '.join(done) or 'launch none'}: {sentence}"


Clause = Callable[[str, bool, str], bool]


def decide(snapshot: Snapshot, config: PoolConfig, now: float) -> Decision:
    """The decision of one tick. ``now`` in seconds since the epoch.

    Each clause may lower what the queue asks for; the last clause that did is what decided. Below
    the minimum the difference is launched whatever the clauses of the queue say. Nothing is
    launched while launches are held because they failed (``held_until``), and one alone to find
    out whether that is over. Of workers that run none is ended: they leave by themselves when they
    are idle. What is still pending and not needed is withdrawn, newest first.
    """
    reasons: list[Reason] = []

    def clause(code: str, held: bool, sentence: str) -> bool:
        reasons.append(Reason(code, held, sentence))
        return held

    staged, pending = snapshot.staged, snapshot.pending
    # Never above the maximum: what is being ended still takes its place.
    room = max(0, config.max_workers - snapshot.jobs)
    missing = min(max(0, config.min_workers - snapshot.workers), room)
    if snapshot.unfit:
        clause(
            "unfit",
            staged == 0,
            f"{count(snapshot.unfit, 'staged bundle')} would not fit a worker of this pool",
        )
    wanted = 0
    if not clause("nothing_staged", staged == 0, f"{count(staged, 'bundle')} staged"):
        wanted = _needed(snapshot, config, clause)
        wanted = _interval_allows(snapshot, config, now, wanted, clause)
        clause(
            "at_maximum",
            wanted > room,
            f"{count(snapshot.jobs, 'job')} of at most {config.max_workers}, "
            f"{count(staged, 'bundle')} staged",
        )
        wanted = min(wanted, room)
        if wanted:
            clause(
                "staged",
                True,
                f"{count(staged, 'bundle')} staged, {count(pending, 'worker')} pending, "
                f"{count(snapshot.jobs, 'job')} of at most {config.max_workers}",
            )
    clause(
        "below_minimum",
        missing > wanted,
        f"{count(snapshot.workers, 'worker')} of at least {config.min_workers}",
    )
    wanted = max(wanted, missing)
    if wanted and snapshot.held_until > now:
        clause(
            "held",
            True,
            f"{snapshot.hold_reason}; next try in {snapshot.held_until - now:.0f} s",
        )
        wanted = 0
    elif wanted and snapshot.is_on_probation:
        in_doubt = snapshot.pending > 0
        clause(
            "probation",
            in_doubt or wanted > 1,
            f"{snapshot.hold_reason}; one worker shows whether that is over",
        )
        wanted = 0 if in_doubt else 1
    end = () if wanted else _withdrawn(snapshot, config, now, clause)
    return Decision(launch=wanted, end=end, reasons=tuple(reasons))


def surplus(snapshot: Snapshot, config: PoolConfig) -> int:
    """How many pending workers no staged bundle needs, those of the minimum not counted."""
    left, _ = _left_by_active(snapshot, config)
    used, _ = open_workers(left, config.shape, snapshot.pending)
    spare = snapshot.pending - used
    return max(0, min(spare, snapshot.workers - config.min_workers))


def _needed(snapshot: Snapshot, config: PoolConfig, clause: Clause) -> int:
    """How many new workers the queue asks for, beside those that run and those on their way."""
    left, kinds = _left_by_active(snapshot, config)
    if snapshot.free:
        clause(
            "room_left",
            not left,
            f"room for {count(kinds - total(left), 'staged bundle')} in workers that run",
        )
    workers, _ = open_workers(left, config.shape, kinds + snapshot.pending)
    wanted = max(0, workers - snapshot.pending)
    if left:
        clause(
            "enough_pending",
            wanted == 0,
            f"{count(snapshot.pending, 'worker')} pending for {count(total(left), 'bundle')}, "
            f"which {'needs' if total(left) == 1 else 'need'} {workers}",
        )
    return wanted


def _left_by_active(snapshot: Snapshot, config: PoolConfig) -> tuple[Demand, int]:
    """The bundles that do not fit into workers that run, and how many there are of all."""
    demand = coarse_demand(snapshot.demand, config.shape.room)
    shelf = Shelf(coarse_offers(snapshot.free, config.shape.room))
    return place(demand, shelf), total(demand)


def _withdrawn(
    snapshot: Snapshot, config: PoolConfig, now: float, clause: Clause
) -> tuple[str, ...]:
    since = snapshot.surplus_since
    if since is None or not snapshot.withdrawable:
        return ()
    number = min(surplus(snapshot, config), len(snapshot.withdrawable))
    # A clock that was set back must not keep what nothing needs.
    is_long = not 0 <= now - since < SURPLUS_SECONDS
    if number == 0:
        return ()
    clause(
        "surplus",
        is_long,
        f"{count(number, 'pending worker')} more than the queue needs for {now - since:.0f} s",
    )
    return snapshot.withdrawable[:number] if is_long else ()


def _interval_allows(
    snapshot: Snapshot, config: PoolConfig, now: float, wanted: int, clause: Clause
) -> int:
    interval = config.min_seconds_between_workers
    if interval <= 0 or wanted == 0:
        return wanted
    since = None if snapshot.last_launch is None else now - snapshot.last_launch
    # A clock that was set back must not stop launches for as long as it was set back by.
    too_soon = since is not None and 0 <= since < interval
    clause(
        "too_soon",
        too_soon or wanted > 1,
        f"the last launch was {since:.0f} s ago, one is allowed every {interval:g} s"
        if since is not None
        else f"one launch is allowed every {interval:g} s",
    )
    return 0 if too_soon else 1


def count(number: int, noun: str) -> str:
    """`1 worker`, `3 workers`, `no workers`."""
    if number == 0:
        return f"no {noun}s"
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
