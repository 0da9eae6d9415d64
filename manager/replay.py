"""What would have been decided with other settings over what a journal says was seen. Pure.

A replay decides as the manager does, with the same function, over the same observations. It knows
nothing of the queue that other workers would have left: what was seen waiting is what it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from bundles.errors import UsageError
from manager.capacity import total
from manager.history import Entry
from manager.journal import HEARTBEAT_SECONDS
from manager.policy import Decision, PoolConfig, decide
from manager.snapshot import Snapshot

Change = Callable[[PoolConfig | None], PoolConfig | None]
"""The configuration that a line has, to the one that is replayed; None: there is none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one side did at one tick, and how many workers it had before."""

    workers: int
    launched: int
    ended: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick both ways. ``same_rule``: today's rule gives the decision that was taken then."""

    time: float
    staged: int
    was: Outcome
    would: Outcome
    same_rule: bool | None

    @property
    def differs(self) -> bool:
        return (self.was.launched, self.was.ended) != (self.would.launched, self.would.ended)

    def to_document(self) -> dict[str, Any]:
        return {
            "time": self.time,
            "staged": self.staged,
            **{
                name: {
                    "workers": side.workers,
                    "launched": side.launched,
                    "ended": side.ended,
                    "sentence": side.sentence,
                }
                for name, side in (("was", self.was), ("would", self.would))
            },
        }


@dataclass(frozen=True, slots=True)
class Sum:
    """One side over all ticks: launches, those withdrawn, workers at most and over time, and what
    they cost, None: nobody said what one costs."""

    launched: int
    ended: int
    peak_workers: int
    worker_seconds: float
    cost: float | None = None

    def to_document(self) -> dict[str, Any]:
        return {
            "launched": self.launched,
            "ended": self.ended,
            "peak_workers": self.peak_workers,
            "worker_seconds": round(self.worker_seconds, 3),
            "cost": None if self.cost is None else round(self.cost, 4),
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """``waiting_seconds``: bundles times seconds that they were seen staged, as it was;
    ``failed_ticks``: ticks that saw nothing, which no settings would have changed."""

    ticks: int
    failed_ticks: int
    other_rule_ticks: int
    waiting_seconds: float
    was: Sum
    would: Sum

    def to_document(self) -> dict[str, Any]:
        return {
            "ticks": self.ticks,
            "failed_ticks": self.failed_ticks,
            "other_rule_ticks": self.other_rule_ticks,
            "waiting_seconds": round(self.waiting_seconds, 3),
            "was": self.was.to_document(),
            "would": self.would.to_document(),
        }


def replay(entries: Iterable[Entry], change: Change) -> Iterator[Tick]:
    """Every tick that saw something, both ways.

    A worker that only the replay launched counts as on its way for as long as bundles are seen
    waiting, and is gone at the first tick that sees none; one that it would not have launched is
    taken from those that were seen. Launches that were refused then are refused in the replay,
    too. Raises UsageError for a line without a configuration that ``change`` cannot make up for.
    """
    more = 0
    last_launch: float | None = None
    for entry, is_written in each_tick(entries):
        seen, decided = entry.snapshot, entry.decision
        if seen is None or decided is None:
            continue
        config = change(entry.config)
        if config is None:
            raise UsageError(
                "the journal is of before it had the pool's configuration in it: give "
                "--min-workers, --max-workers, --cpus and --memory-mb"
            )
        if not seen.staged:
            more = min(more, max(0, config.min_workers - seen.workers))
        more = max(more, -seen.workers)
        snapshot = _adjusted(seen, config, more, last_launch)
        would = decide(snapshot, config, entry.time)
        ended = sum("end" in result and not result.get("error") for result in entry.results)
        launched = _come_of(would.launch, decided.launch, entry.launched)
        would_end = _come_of(len(would.end), len(decided.end), ended)
        if would.launch:
            # What was launched then, too, is in what is seen from then on.
            last_launch = None if decided.launch else entry.time
        elif decided.launch:
            last_launch = snapshot.last_launch or 0.0
        same = decide(seen, entry.config, entry.time) if entry.config and is_written else None
        yield Tick(
            time=entry.time,
            staged=seen.staged,
            was=Outcome(seen.workers, entry.launched, ended, _sentence(decided)),
            would=Outcome(snapshot.workers, launched, would_end, _sentence(would)),
            same_rule=None if same is None else _deeds(same) == _deeds(decided),
        )
        more += launched - entry.launched - (would_end - ended)


def _come_of(wanted: int, decided: int, done: int) -> int:
    """What so many deeds would have come to, when of those decided so many came to be done."""
    return 0 if decided and not done else max(0, wanted - (decided - done))


def each_tick(entries: Iterable[Entry]) -> Iterator[tuple[Entry, bool]]:
    """The lines, and between them the ticks alike that went unwritten, evenly apart; with each
    whether it was written."""
    before: Entry | None = None
    for entry in entries:
        if before is not None and entry.repeats:
            step = (entry.time - before.time) / (entry.repeats + 1)
            for number in range(1, entry.repeats + 1):
                time = before.time + step * number
                yield replace(before, time=time, results=(), repeats=0), False
        yield entry, True
        before = entry


def _adjusted(seen: Snapshot, config: PoolConfig, more: int, last_launch: float | None) -> Snapshot:
    """What was seen, with so many workers more or fewer, and the bundles that fit the shape."""
    demand = {need: n for need, n in seen.demand.items() if config.shape.takes(need)}
    fewer = max(0, -more)
    from_pending = min(fewer, seen.pending)
    return replace(
        seen,
        demand=demand,
        unfit=seen.unfit + seen.staged - total(demand),
        pending=seen.pending - from_pending + max(0, more),
        active=seen.active - (fewer - from_pending),
        withdrawable=seen.withdrawable[from_pending:],
        last_launch=seen.last_launch if last_launch is None else last_launch,
    )


def summarize(
    entries: list[Entry], ticks: list[Tick], price_per_hour: float | None = None
) -> Summary:
    """Both sides in numbers; ``price_per_hour``: of a worker. No tick stands for longer than a
    journal may be silent."""
    lengths = [
        max(0.0, min(after.time - tick.time, HEARTBEAT_SECONDS)) for tick, after in pairwise(ticks)
    ]
    lengths += [0.0] * min(1, len(ticks))

    def side(pick: Callable[[Tick], Outcome]) -> Sum:
        worker_seconds = sum(
            (pick(tick).workers + pick(tick).launched) * length
            for tick, length in zip(ticks, lengths, strict=True)
        )
        return Sum(
            launched=sum(pick(tick).launched for tick in ticks),
            ended=sum(pick(tick).ended for tick in ticks),
            peak_workers=max(
                (pick(t).workers + pick(t).launched - pick(t).ended for t in ticks), default=0
            ),
            worker_seconds=worker_seconds,
            cost=None if price_per_hour is None else worker_seconds / 3600 * price_per_hour,
        )

    return Summary(
        ticks=len(ticks),
        failed_ticks=sum(entry.decision is None for entry, _ in each_tick(entries)),
        other_rule_ticks=sum(tick.same_rule is False for tick in ticks),
        waiting_seconds=sum(
            tick.staged * length for tick, length in zip(ticks, lengths, strict=True)
        ),
        was=side(lambda tick: tick.was),
        would=side(lambda tick: tick.would),
    )


def _deeds(decision: Decision) -> tuple[int, tuple[str, ...]]:
    return decision.launch, decision.end


def _sentence(decision: Decision) -> str:
    return decision.summary() if decision.reasons else ""
