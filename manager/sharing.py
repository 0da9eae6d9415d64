"""How the queue is shared among the pools of a set, in the order of preference. Pure.

What a pool may not launch, or what waits for its workers for too long, is left to the next. What
each pool does with its share is decided by policy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from manager.capacity import (
    Demand,
    Need,
    Shelf,
    coarse_demand,
    coarse_offers,
    open_workers,
    place,
    total,
)
from manager.policy import Decision, PoolConfig, decide
from manager.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many more workers a pool may launch, None: as many as it likes; and why."""

    affordable: int | None = None
    reason: str = ""


Allow = Callable[[str, Mapping[str, int], Collection[str]], Allowance]
"""What the budgets allow a pool, after so many launches of others that are decided already, when
these other pools could take its bundles, too (`manager.money`)."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one pool of a set has to do with the queue, and what is decided for it.

    ``decide`` of ``snapshot`` is ``decision``; None for a pool whose jobs are not known.
    """

    snapshot: Snapshot
    decision: Decision | None


def decide_set(
    demand: Demand,
    snapshots: Mapping[str, Snapshot],
    configs: Mapping[str, PoolConfig],
    now: float,
    unknown: Collection[str] = (),
    allow: Allow | None = None,
) -> dict[str, Share]:
    """The decisions of one tick for pools in the order of ``configs``, which is that of preference.

    ``demand``: the staged bundles of the whole set. ``snapshots``: of every pool, whose own
    ``demand`` is not looked at; of a pool that is ``unknown`` the last one known: its workers may
    have taken bundles or be about to, and nothing is launched or ended there.

    Bundles go into the room of workers that run, in any pool, then into that of workers on their
    way, then to new workers, pool by pool: what a pool may not launch is left to the next.
    ``allow``: None when there is no budget.
    """
    if allow is not None:
        snapshots = {n: _with(snapshots[n], allow(n, {}, ())) for n in configs}
    launched: dict[str, int] = {}
    demand = left = coarse_demand(demand, [config.shape.room for config in configs.values()])
    snapshots = {
        n: replace(snapshots[n], free=coarse_offers(snapshots[n].free, c.shape.room, demand))
        for n, c in configs.items()
    }
    taken: dict[str, dict[Need, int]] = {name: {} for name in configs}
    for name in configs:
        left = _take(taken[name], left, place(left, Shelf(snapshots[name].free)))
    for name, config in configs.items():
        patient = _patient(snapshots[name], config) + snapshots[name].settling
        left = _take(taken[name], left, open_workers(left, config.shape, patient)[1])
    shares: dict[str, Share] = {}
    names = list(configs)
    for position, name in enumerate(names):
        snapshot, config = snapshots[name], configs[name]
        concerns = {need: number for need, number in demand.items() if config.shape.takes(need)}
        mine = _sum(taken[name], {n: k for n, k in left.items() if config.shape.takes(n)})
        snapshot = replace(snapshot, demand=mine, elsewhere=max(0, total(concerns) - total(mine)))
        if name in unknown:
            shares[name] = Share(snapshot, None)
            continue
        later = {n: (snapshots[n], configs[n]) for n in names[position + 1 :] if n not in unknown}
        is_late = _is_late(snapshot, config)
        if is_late and _is_taken_by(later, left, config, now):
            snapshot = replace(snapshot, is_slow=True)
        if allow is not None:
            others = {n: (snapshots[n], configs[n]) for n in names if n not in (name, *unknown)}
            snapshot = _with(snapshot, allow(name, launched, _rivals(others, left, config, now)))
        decision = decide(snapshot, config, now)
        launched[name] = decision.launch
        shares[name] = Share(snapshot, decision)
        left = _left_to_others(snapshot, config, decision, left)
    return shares


def _with(snapshot: Snapshot, allowance: Allowance) -> Snapshot:
    return replace(snapshot, affordable=allowance.affordable, budget_reason=allowance.reason)


def _rivals(
    pools: Mapping[str, tuple[Snapshot, PoolConfig]], left: Demand, config: PoolConfig, now: float
) -> list[str]:
    """The pools that could take all that this one would launch for, now or when there is room."""
    mine = [need for need in left if config.shape.takes(need)]
    return [
        name
        for name, (other, theirs) in pools.items()
        if theirs.max_workers > 0
        and other.held_until <= now
        and all(theirs.shape.takes(need) for need in mine)
    ]


def _left_to_others(
    snapshot: Snapshot, config: PoolConfig, decision: Decision, left: Demand
) -> dict[Need, int]:
    """The bundles that the pools after this one may take."""
    if snapshot.is_slow:
        return dict(left)
    lowering = {"too_soon", "launch_rate", "at_maximum", "budget", "held", "probation"}
    if not any(reason.held and reason.code in lowering for reason in decision.reasons):
        # What it does not launch for, it has room for; packed as it is, not as it was here.
        return {need: number for need, number in left.items() if not config.shape.takes(need)}
    return open_workers(left, config.shape, decision.launch)[1]


def _patient(snapshot: Snapshot, config: PoolConfig) -> int:
    """For how many of the pending workers bundles wait, whoever else could take them."""
    if _starts_late(snapshot, config):
        return 0
    over = max(0, snapshot.workers - config.max_workers)
    withdrawn = min(over, len(snapshot.withdrawable))
    return max(0, snapshot.pending - max(snapshot.impatient, withdrawn))


def _is_late(snapshot: Snapshot, config: PoolConfig) -> bool:
    return snapshot.impatient > 0 or _starts_late(snapshot, config)


def _starts_late(snapshot: Snapshot, config: PoolConfig) -> bool:
    patience, lately = config.patience_seconds, snapshot.start_seconds
    return patience is not None and lately is not None and lately > patience


def _is_taken_by(
    pools: Mapping[str, tuple[Snapshot, PoolConfig]], left: Demand, config: PoolConfig, now: float
) -> bool:
    """Whether one of the pools could launch for bundles that wait for this one's workers."""
    return any(
        other.jobs < theirs.max_workers
        and other.held_until <= now
        and other.affordable != 0
        and other.trial != 0
        and not _is_late(other, theirs)
        and any(theirs.shape.takes(need) for need in left if config.shape.takes(need))
        for other, theirs in pools.values()
    )


def _take(into: dict[Need, int], before: Demand, after: dict[Need, int]) -> dict[Need, int]:
    for need, number in before.items():
        gone = number - after.get(need, 0)
        if gone:
            into[need] = into.get(need, 0) + gone
    return after


def _sum(one: Demand, other: Demand) -> dict[Need, int]:
    return {need: one.get(need, 0) + other.get(need, 0) for need in {**one, **other}}
