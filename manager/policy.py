"""How many workers a pool should have: CodaLab's rule, for as many workers as are needed at once.

A pure function of what was seen, what is wanted, and the time. No clock, no I/O.

CodaLab (worker_manager.py, run_one_iteration) launches at most one worker a tick: when a bundle
is staged, unless the last launch was less than the interval ago, as many workers are pending as
bundles are staged, or there are as many jobs as allowed; and below the minimum whatever else
holds. Here bundles are fitted into the room that workers have, those that run and those that are
on their way, and what is left into new ones, all in one tick. Where each bundle takes a worker of
its own, and no worker has room left, the answer is CodaLab's, asked until it is no.

What of the queue is a pool's, when there are several, is said in sharing.
"""

from __future__ import annotations

import math
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

SURPLUS_SECONDS = 5.0
"""Pending workers that nothing needs are withdrawn after so long: queues breathe. When it is more,
those that come find nothing to do (`python -m benchmarks traces`)."""


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """What the operator wants of one pool: 0 ≤ ``min_workers`` ≤ ``max_workers``, workers that
    offer ``shape``.

    ``min_seconds_between_workers``: above 0, one launch at most in each such interval.
    ``max_launches_per_minute``: None, or how many in any minute; neither holds below the minimum.
    ``patience_seconds``: for workers that are pending longer no bundle waits that another pool of
    the set can take; None: however long. ``drain_grace_seconds``: a worker that was told to take
    no more has so long for the bundles that it has. ``registration_seconds``: a worker that runs
    has so long to come to the server.
    """

    shape: Offer
    min_workers: int = 1
    max_workers: int = 10
    min_seconds_between_workers: float = 0.0
    max_launches_per_minute: int | None = None
    patience_seconds: float | None = None
    drain_grace_seconds: float = 3600.0
    registration_seconds: float = 600.0

    def to_document(self) -> dict[str, Any]:
        """JSON: the shape as [gpus, cpus, memory bytes, disk bytes, seconds, tag, exclusive]."""
        shape = self.shape
        return {
            "shape": [*shape.room, shape.tag, shape.tag_exclusive],
            "min_workers": self.min_workers,
            "max_workers": self.max_workers,
            "min_seconds_between_workers": self.min_seconds_between_workers,
            "max_launches_per_minute": self.max_launches_per_minute,
            "patience_seconds": self.patience_seconds,
            "drain_grace_seconds": self.drain_grace_seconds,
            "registration_seconds": self.registration_seconds,
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
            max_launches_per_minute=document.get("max_launches_per_minute"),
            patience_seconds=document.get("patience_seconds"),
            drain_grace_seconds=document.get("drain_grace_seconds", 3600.0),
            registration_seconds=document.get("registration_seconds", 600.0),
        )


@dataclass(frozen=True, slots=True)
class Reason:
    """One clause of the rule: ``code`` for machines, whether it ``held``, a sentence for people."""

    code: str
    held: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers to launch, which jobs to end, which workers to tell to take no more
    bundles (``drain``, by job), and why. Every clause gives its reason."""

    launch: int
    end: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()
    drain: tuple[str, ...] = ()

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
            "drain": list(self.drain),
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
            drain=tuple(document.get("drain", ())),
        )

    def summary(self) -> str:
        """One sentence: what is decided and what decided it."""
        deciding = [reason for reason in self.reasons if reason.held]
        sentence = (deciding[-1] if deciding else self.reasons[-1]).sentence
        done = [f"launch {count(self.launch, 'worker')}"] if self.launch else []
        done += [f"end {count(len(self.end), 'worker')}"] if self.end else []
        done += [f"drain {count(len(self.drain), 'worker')}"] if self.drain else []
        return f"{' and '.join(done) or 'launch none'}: {sentence}"


Clause = Callable[[str, bool, str], bool]


def decide(snapshot: Snapshot, config: PoolConfig, now: float) -> Decision:
    """The decision of one tick. ``now`` in seconds since the epoch.

    Each clause may lower what the queue asks for; the last clause that did is what decided. Below
    the minimum the difference is launched whatever the clauses of the queue say, but no more than
    the budget allows. Nothing is launched while launches are held because they failed
    (``held_until``), and then, or when nothing is known of the pool, only a few to find out
    whether it works (``trial``).

    Workers leave by themselves when they are idle. What is still pending and not needed is
    withdrawn, newest first. When there are more than the maximum, which was lowered then, so much
    is withdrawn and drained; what drains for longer than the grace is ended, and so is a worker
    that never registered. One that has come, and of which the server hears nothing for as long, is
    drained: others take its place below the minimum at once, and it has the grace to come back. In
    quarantine what is pending is withdrawn but for one, the probe.
    """
    reasons: list[Reason] = []

    def clause(code: str, held: bool, sentence: str) -> bool:
        reasons.append(Reason(code, held, sentence))
        return held

    staged, pending = snapshot.staged, snapshot.pending
    # Never above the maximum: what is draining or being ended still takes its place.
    room = max(0, config.max_workers - snapshot.jobs)
    missing = min(max(0, config.min_workers - snapshot.workers), room)
    if snapshot.unfit:
        clause(
            "unfit",
            staged == 0,
            f"{count(snapshot.unfit, 'staged bundle')} would not fit a worker of this pool",
        )
    if snapshot.elsewhere:
        clause(
            "elsewhere",
            staged == 0,
            f"{count(snapshot.elsewhere, 'staged bundle')} left to other pools",
        )
    wanted = 0
    if not clause("nothing_staged", staged == 0, f"{count(staged, 'bundle')} staged"):
        wanted = _needed(snapshot, config, clause)
        wanted = _interval_allows(snapshot, config, now, wanted, clause)
        wanted = _rate_allows(snapshot, config, wanted, clause)
        clause(
            "at_maximum",
            wanted > room,
            f"{count(snapshot.jobs, 'job')} of at most {config.max_workers}, "
            f"{count(staged, 'bundle')} staged",
        )
        wanted = min(wanted, room)
        if snapshot.is_slow:
            # One tells when the pool is faster again.
            fewer = 0 if pending else 1
            clause(
                "slow",
                wanted > fewer,
                f"workers take longer to start than {config.patience_seconds:g} s: "
                "other pools take the bundles",
            )
            wanted = min(wanted, fewer)
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
    if snapshot.affordable is not None:
        clause("budget", wanted > snapshot.affordable, snapshot.budget_reason)
        wanted = min(wanted, snapshot.affordable)
    if wanted and snapshot.held_until > now:
        until = snapshot.held_until - now
        next_try = "" if math.isinf(until) else f"; next try in {until:.0f} s"
        clause("held", True, snapshot.hold_reason + next_try)
        wanted = 0
    elif wanted and snapshot.trial is not None:
        if snapshot.is_on_probation:
            sentence = f"{snapshot.hold_reason}; one worker shows whether that is over"
            clause("probation", wanted > snapshot.trial, sentence)
        else:
            sentence = "a first worker has to show that the pool works before more are launched"
            clause("slow_start", wanted > snapshot.trial, sentence)
        wanted = min(wanted, snapshot.trial)
    end, drain = _shed(snapshot, config, clause)
    drain = (*_silent(snapshot, clause), *drain)
    end = end or _spared(snapshot, clause)
    if not (wanted or end or drain):
        end = _withdrawn(snapshot, config, now, clause)
    return Decision(
        launch=wanted,
        end=(*end, *_overdue(snapshot, clause), *_unregistered(snapshot, clause)),
        reasons=tuple(reasons),
        drain=drain,
    )


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
    # Bundles that those took which have just come may still be seen as staged.
    coming = snapshot.pending + snapshot.settling
    workers, _ = open_workers(left, config.shape, kinds + coming)
    wanted = max(0, workers - coming)
    if left:
        clause(
            "enough_pending",
            wanted == 0,
            f"{count(coming, 'worker')} {'just come or ' if snapshot.settling else ''}pending for "
            f"{count(total(left), 'bundle')}, "
            f"which {'needs' if total(left) == 1 else 'need'} {workers}",
        )
    return wanted


def _left_by_active(snapshot: Snapshot, config: PoolConfig) -> tuple[Demand, int]:
    """The bundles that do not fit into workers that run, and how many there are of all."""
    demand = coarse_demand(snapshot.demand, [config.shape.room])
    shelf = Shelf(coarse_offers(snapshot.free, config.shape.room, demand))
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


def _shed(
    snapshot: Snapshot, config: PoolConfig, clause: Clause
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of workers above the maximum: those to withdraw, and those to drain, beside the silent."""
    over = snapshot.workers - len(snapshot.silent) - config.max_workers
    if over <= 0:
        return (), ()
    end = snapshot.withdrawable[:over]
    others = [i for i in snapshot.drainable if i not in snapshot.silent]
    drain = tuple(others[: over - len(end)])
    clause(
        "above_maximum",
        bool(end or drain),
        f"{count(snapshot.workers, 'worker')} of at most {config.max_workers}",
    )
    return end, drain


def _overdue(snapshot: Snapshot, clause: Clause) -> tuple[str, ...]:
    if snapshot.drain_overdue:
        number = len(snapshot.drain_overdue)
        clause("drain_overdue", True, f"{count(number, 'worker')} drained for long enough")
    return snapshot.drain_overdue


def _unregistered(snapshot: Snapshot, clause: Clause) -> tuple[str, ...]:
    if snapshot.unregistered:
        number = len(snapshot.unregistered)
        clause("never_registered", True, f"{count(number, 'worker')} never came to the server")
    return snapshot.unregistered


def _silent(snapshot: Snapshot, clause: Clause) -> tuple[str, ...]:
    if snapshot.silent:
        number = len(snapshot.silent)
        clause("silent", True, f"the server has not heard of {count(number, 'worker')} for long")
    return snapshot.silent


def _spared(snapshot: Snapshot, clause: Clause) -> tuple[str, ...]:
    """What a pool in quarantine has on its way, but for the oldest, which is the probe."""
    if not snapshot.is_quarantined or len(snapshot.withdrawable) < 2:
        return ()
    end = snapshot.withdrawable[:-1]
    clause(
        "quarantined", True, f"{count(len(end), 'pending worker')} spared: {snapshot.hold_reason}"
    )
    return end


def _rate_allows(snapshot: Snapshot, config: PoolConfig, wanted: int, clause: Clause) -> int:
    most = config.max_launches_per_minute
    if most is None or wanted == 0:
        return wanted
    allowed = max(0, most - snapshot.launched_lately)
    clause(
        "launch_rate",
        wanted > allowed,
        f"{count(snapshot.launched_lately, 'launch', 'launches')} in the last minute "
        f"of at most {most}",
    )
    return min(wanted, allowed)


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


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 worker`, `3 workers`, `no workers`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number or 'no'} {plural or noun + 's'}"
