"""How many workers there should be: CodaLab's rule, for as many workers as are needed at once.

A pure function of what was seen, what is wanted, and the time. No clock, no I/O.

CodaLab (worker_manager.py, run_one_iteration) launches at most one worker a tick: when a bundle
is staged, unless the last launch was less than the interval ago, as many workers are pending as
bundles are staged, or there are as many jobs as allowed; and below the minimum whatever else
holds. Here the same question is asked again until the answer is no, in one tick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from manager.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """What the operator wants of one pool: 0 ≤ ``min_workers`` ≤ ``max_workers``.

    ``min_seconds_between_workers``: above 0, one launch at most in each such interval.
    """

    min_workers: int = 1
    max_workers: int = 10
    min_seconds_between_workers: float = 0.0


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

    def summary(self) -> str:
        """One sentence: what is decided and what decided it."""
        deciding = [reason for reason in self.reasons if reason.held]
        sentence = (deciding[-1] if deciding else self.reasons[-1]).sentence
        if self.launch == 0:
            return f"launch none: {sentence}"
        return f"launch {count(self.launch, 'worker')}: {sentence}"


def decide(snapshot: Snapshot, config: PoolConfig, now: float) -> Decision:
    """The decision of one tick. ``now`` in seconds since the epoch.

    Each clause may lower what the queue asks for; the last clause that did is what decided. Below
    the minimum the difference is launched whatever the clauses of the queue say. Nothing is
    launched while launches are held because they failed (``held_until``). Nothing is ended:
    workers leave by themselves when they are idle.
    """
    reasons: list[Reason] = []

    def clause(code: str, held: bool, sentence: str) -> bool:
        reasons.append(Reason(code, held, sentence))
        return held

    staged, pending = snapshot.staged, snapshot.pending
    wanted = staged
    if snapshot.unfit:
        clause(
            "unfit",
            staged == 0,
            f"{count(snapshot.unfit, 'staged bundle')} would not fit a worker of this pool",
        )
    if not clause("nothing_staged", staged == 0, f"{count(staged, 'bundle')} staged"):
        wanted = max(0, staged - pending)
        clause(
            "enough_pending",
            wanted == 0,
            f"{count(pending, 'worker')} pending for {count(staged, 'staged bundle')}",
        )
        wanted = _interval_allows(snapshot, config, now, wanted, clause)
        room = max(0, config.max_workers - snapshot.jobs)
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

    missing = max(0, config.min_workers - snapshot.jobs)
    clause(
        "below_minimum",
        missing > wanted,
        f"{count(snapshot.jobs, 'job')} of at least {config.min_workers}",
    )
    wanted = max(wanted, missing)

    if wanted and snapshot.held_until > now:
        clause(
            "held",
            True,
            f"{snapshot.hold_reason}; next try in {snapshot.held_until - now:.0f} s",
        )
        wanted = 0
    return Decision(launch=wanted, reasons=tuple(reasons))


def _interval_allows(
    snapshot: Snapshot,
    config: PoolConfig,
    now: float,
    wanted: int,
    clause: Callable[[str, bool, str], bool],
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
