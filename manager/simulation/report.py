"""What came of a simulation, in numbers: a value, and how it is written as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PoolReport:
    """``workers``: those whose machine started; ``ran_nothing``: of these, those that left, or were
    taken away, without a bundle. ``worker_seconds``: from the start of a machine to its end;
    ``idle_seconds``: of these, with a worker that had no bundle."""

    launched: int
    refused: int
    withdrawn: int
    workers: int
    ran_nothing: int
    preempted: int
    died: int
    peak: int
    worker_seconds: float
    idle_seconds: float
    cost: float

    @property
    def idle_fraction(self) -> float:
        return self.idle_seconds / self.worker_seconds if self.worker_seconds else 0.0

    @property
    def ran_nothing_fraction(self) -> float:
        return self.ran_nothing / self.workers if self.workers else 0.0

    def to_document(self) -> dict[str, Any]:
        document = {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }
        return document | {
            "idle_fraction": round(self.idle_fraction, 5),
            "ran_nothing_fraction": round(self.ran_nothing_fraction, 5),
        }


@dataclass(frozen=True, slots=True)
class Moment:
    """The state at one of the evenly spaced times that a plot shows."""

    seconds: float
    staged: int
    running: int
    pending: int
    active: tuple[int, ...]
    """Of each pool."""
    cost: float


@dataclass(frozen=True, slots=True)
class Report:
    """``waiting_seconds``: from staged to given to a worker, of the bundles that were; by percent
    of them. ``seconds``: until everything was over, or nothing more was simulated."""

    description: str
    seconds: float
    ticks: int
    came: int
    done: int
    failed: int
    taken_back: int
    left: int
    restarts: int
    waiting_seconds: dict[str, float]
    peak: int
    pools: dict[str, PoolReport]
    moments: tuple[Moment, ...]

    @property
    def whole(self) -> PoolReport:
        """All pools together; its ``peak`` is of one moment."""
        pools = list(self.pools.values())

        def of(name: str) -> Any:
            return sum(getattr(pool, name) for pool in pools)

        return PoolReport(
            **{name: of(name) for name in PoolReport.__dataclass_fields__ if name != "peak"},
            peak=self.peak,
        )

    def to_document(self) -> dict[str, Any]:
        return {
            "description": self.description,
            "seconds": round(self.seconds, 3),
            "ticks": self.ticks,
            "bundles": {
                "came": self.came,
                "done": self.done,
                "failed": self.failed,
                "taken_back": self.taken_back,
                "left": self.left,
                "restarts": self.restarts,
                "waiting_seconds": {k: round(v, 3) for k, v in self.waiting_seconds.items()},
            },
            "whole": self.whole.to_document(),
            "pools": {name: pool.to_document() for name, pool in self.pools.items()},
            "moments": [asdict(moment) for moment in self.moments],
        }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """`p50`, `p90`, `p99` and `most`, of the values in order; nothing of none."""
    if not values:
        return {}
    last = len(values) - 1
    return {f"p{n}": values[round(last * n / 100)] for n in (50, 90, 99)} | {"most": values[last]}
