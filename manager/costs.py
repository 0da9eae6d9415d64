"""Who used what pools cost: the time of their workers, shared out among the owners of the bundles
that ran there. Pure.

A bundle uses the share of its worker that it asked for: the largest of its shares of cpus, gpus
and memory. What no bundle used is idle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from manager.capacity import Room
from manager.money import NO_BUDGET, Account, Budget, Period, PoolSet, windows


@dataclass(frozen=True, slots=True)
class Run:
    """One bundle on one worker, as far as its server tells. Times in seconds since the epoch."""

    owner: str
    asked: Room
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class PoolCosts:
    """What one pool has cost since a moment. ``worker_seconds``: that were charged; ``used``: of
    these, by owner; None: nobody knows, and then it is not known either what was idle."""

    pool: str
    price_per_hour: float
    workers: int
    worker_seconds: float
    used: Mapping[str, float] | None
    account: Account

    @property
    def spent(self) -> float:
        return self.worker_seconds * self.price_per_hour / 3600

    @property
    def idle_seconds(self) -> float | None:
        if self.used is None:
            return None
        return max(0.0, self.worker_seconds - sum(self.used.values()))


def used_seconds(
    runs: Iterable[Run], worker: Room, worker_seconds: float, since: float, now: float
) -> dict[str, float]:
    """Seconds of whole workers by owner, since then; never more in all than there were."""
    used: dict[str, float] = {}
    for run in runs:
        seconds = min(run.until, now) - max(run.since, since)
        if seconds > 0:
            used[run.owner] = used.get(run.owner, 0.0) + seconds * share(run.asked, worker)
    whole = sum(used.values())
    if whole > worker_seconds:
        return {owner: seconds / whole * worker_seconds for owner, seconds in used.items()}
    return used


def share(asked: Room, worker: Room) -> float:
    """How much of a worker a bundle takes, 0 to 1."""
    shares = [
        part / whole
        for part, whole in (
            (asked.cpus, worker.cpus),
            (asked.gpus, worker.gpus),
            (asked.memory_bytes, worker.memory_bytes),
        )
        if whole
    ]
    return min(1.0, max(shares, default=1.0))


@dataclass(frozen=True, slots=True)
class Costs:
    """What pools have cost since ``since``; ``sets``: those of them that have a budget together,
    each with the names of all whose costs count for it."""

    since: float
    now: float
    pools: Sequence[PoolCosts]
    sets: Mapping[PoolSet, Sequence[str]] = field(default_factory=dict)

    @property
    def budget(self) -> Budget:
        """Of all of the pools together."""
        everyone = {pool.pool for pool in self.pools}
        whole = [one.budget for one, names in self.sets.items() if everyone == {*names}]
        return whole[0] if whole else NO_BUDGET

    def by_owner(self) -> dict[str, float]:
        """What was spent for each owner, over the pools of which that is known."""
        spent: dict[str, float] = {}
        for pool in self.pools:
            for owner, seconds in (pool.used or {}).items():
                spent[owner] = spent.get(owner, 0.0) + seconds * pool.price_per_hour / 3600
        return spent

    def to_document(self) -> dict[str, Any]:
        return {
            "since": self.since,
            "until": self.now,
            "spent": round(sum(pool.spent for pool in self.pools), 6),
            "owners": {owner: round(spent, 6) for owner, spent in self.by_owner().items()},
            "windows": _windows([pool.account for pool in self.pools], self.budget, self.now),
            "sets": [self._set_document(one, names) for one, names in self.sets.items()],
            "pools": [self._pool_document(pool) for pool in self.pools],
        }

    def _set_document(self, one: PoolSet, names: Sequence[str]) -> dict[str, Any]:
        accounts = [pool.account for pool in self.pools if pool.pool in names]
        return {"pools": list(names), "windows": _windows(accounts, one.budget, self.now)}

    def _pool_document(self, pool: PoolCosts) -> dict[str, Any]:
        idle = pool.idle_seconds
        return {
            "pool": pool.pool,
            "price_per_hour": pool.price_per_hour,
            "spent": round(pool.spent, 6),
            "workers": pool.workers,
            "worker_seconds": round(pool.worker_seconds, 3),
            "used_seconds": None
            if pool.used is None
            else {owner: round(seconds, 3) for owner, seconds in pool.used.items()},
            "idle_seconds": None if idle is None else round(idle, 3),
            "windows": _windows([pool.account], pool.account.terms.budget, self.now),
        }


def _windows(accounts: Sequence[Account], budget: Budget, now: float) -> list[dict[str, Any]]:
    """The running hour, day and month: spent, what it will be at their end, what it may be."""
    return [
        {
            "period": str(place.period),
            "start": place.start,
            "end": place.end,
            "spent": round(sum(account.spent.get(place, 0.0) for account in accounts), 6),
            "forecast": round(sum(account.forecast(place, now) for account in accounts), 6),
            "budget": budget.of(place.period),
        }
        for place in windows(now)[: len(Period)]
    ]
