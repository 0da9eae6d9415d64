from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from manager.capacity import UNBOUNDED, Demand, Need, Offer, Room, total
from manager.policy import Decision, PoolConfig, decide
from manager.sharing import Share, decide_set
from manager.snapshot import Snapshot

NOW = 1_000_000.0
GIB = 1024**3


def shape(cpus: int, tag: str = "") -> Offer:
    return Offer(Room(cpus=cpus, memory_bytes=2 * cpus * GIB, disk_bytes=UNBOUNDED), tag)


def need(cpus: int, queue: str = "") -> Need:
    return Need(Room(cpus=cpus, memory_bytes=2 * cpus * GIB), queue)


SHAPE = shape(4)
WHOLE = need(4)
"""Takes a worker of its own."""

few = st.integers(0, 6)
moments = st.none() | st.floats(0, 200).map(lambda seconds: NOW - seconds)


@st.composite
def pools(draw: st.DrawFn, *, cpus: int | None = None) -> tuple[Snapshot, PoolConfig]:
    """A pool in any state at all; ``cpus`` of its workers, when they shall be given."""
    offered = shape(cpus or draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(["", "t"])))
    if cpus:
        offered = shape(cpus)
    low, high = sorted((draw(few), draw(few)))
    pending, active, draining = draw(few), draw(few), draw(few)
    room = offered.room
    free = draw(
        st.dictionaries(
            st.integers(1, room.cpus).map(lambda n: shape(n, offered.tag)),
            st.integers(1, 3),
            max_size=2,
        )
    )
    free = free if sum(free.values()) <= active else {}
    failed = draw(st.sampled_from([0.0, 0.0, NOW - 1, NOW + 30]))
    snapshot = Snapshot(
        demand={},
        unfit=0,
        pending=pending,
        active=active,
        ending=draw(few),
        free=free,
        withdrawable=tuple(f"p{n}" for n in range(draw(st.integers(0, pending)))),
        last_launch=draw(moments),
        surplus_since=draw(st.sampled_from([None, NOW - 3600])),
        held_until=failed,
        hold_reason="the last launch failed" if failed else "",
        is_on_probation=failed > 0,
        trial=draw(st.sampled_from([0, 1] if failed else [None, None, 0, 2])),
        impatient=draw(st.integers(0, pending)),
        start_seconds=draw(st.sampled_from([None, 10.0, 900.0])),
        launched_lately=draw(few),
        draining=draining,
        drainable=tuple(f"a{n}" for n in range(active)),
        drain_overdue=tuple(f"d{n}" for n in range(draw(st.integers(0, draining)))),
        affordable=draw(st.none() | few),
        budget_reason="the budget",
    )
    patience = draw(st.sampled_from([None, 300.0]))
    if patience is None:
        snapshot = dataclasses.replace(snapshot, impatient=0)
    config = PoolConfig(
        offered,
        low,
        high,
        draw(st.sampled_from([0.0, 0.0, 60.0])),
        draw(st.none() | few),
        patience,
    )
    return snapshot, config


Set = tuple[dict[str, Snapshot], dict[str, PoolConfig]]


@st.composite
def sets(draw: st.DrawFn, *, cpus: int | None = None, least: int = 1) -> Set:
    drawn = draw(st.lists(pools(cpus=cpus), min_size=least, max_size=4))
    names = "abcd"[: len(drawn)]
    return (
        {name: snapshot for name, (snapshot, _) in zip(names, drawn, strict=True)},
        {name: config for name, (_, config) in zip(names, drawn, strict=True)},
    )


demands = st.dictionaries(
    st.builds(need, st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from(["", "", "t"])),
    st.integers(1, 12),
    max_size=4,
)


def decided(shares: Mapping[str, Share]) -> dict[str, Decision]:
    return {name: share.decision for name, share in shares.items() if share.decision is not None}


def launches(shares: Mapping[str, Share]) -> int:
    return sum(decision.launch for decision in decided(shares).values())


def plain(**more: Any) -> Snapshot:
    return Snapshot({}, 0, **{"pending": 0, "active": 0, **more})


# Bounds


@given(demands, sets())
def test_no_pool_is_ever_brought_above_its_maximum(demand: Demand, those: Set) -> None:
    snapshots, configs = those
    for name, decision in decided(decide_set(demand, snapshots, configs, NOW)).items():
        assert decision.launch >= 0
        above = snapshots[name].jobs + decision.launch - configs[name].max_workers
        assert decision.launch == 0 or above <= 0


@given(demands, sets())
def test_what_is_ended_waits_or_is_overdue_and_what_is_drained_runs(
    demand: Demand, those: Set
) -> None:
    snapshots, configs = those
    for name, decision in decided(decide_set(demand, snapshots, configs, NOW)).items():
        snapshot, config = snapshots[name], configs[name]
        assert set(decision.end) <= {*snapshot.withdrawable, *snapshot.drain_overdue}
        assert set(snapshot.drain_overdue) <= set(decision.end)
        assert set(decision.drain) <= set(snapshot.drainable)
        assert len({*decision.end, *decision.drain}) == len(decision.end) + len(decision.drain)
        left = snapshot.workers - len(decision.drain)
        left -= len(set(decision.end) - set(snapshot.drain_overdue))
        assert left >= min(config.min_workers, snapshot.workers)


@given(demands, sets())
def test_the_minimum_is_kept_by_every_pool_that_may_launch(demand: Demand, those: Set) -> None:
    snapshots, configs = those
    for name, decision in decided(decide_set(demand, snapshots, configs, NOW)).items():
        snapshot, config = snapshots[name], configs[name]
        if snapshot.trial is not None or snapshot.affordable is not None:
            continue
        assert snapshot.jobs + decision.launch >= config.min_workers


@given(demands, sets())
def test_the_budget_is_never_passed(demand: Demand, those: Set) -> None:
    snapshots, configs = those
    for name, decision in decided(decide_set(demand, snapshots, configs, NOW)).items():
        affordable = snapshots[name].affordable
        assert affordable is None or decision.launch <= affordable


@given(demands, sets())
def test_failed_pools_launch_nothing_or_one_to_find_out(demand: Demand, those: Set) -> None:
    snapshots, configs = those
    for name, decision in decided(decide_set(demand, snapshots, configs, NOW)).items():
        if snapshots[name].held_until > NOW:
            assert decision.launch == 0
        elif (trial := snapshots[name].trial) is not None:
            assert decision.launch <= trial


@given(demands, sets(), st.data())
def test_nothing_is_decided_for_a_pool_whose_jobs_are_not_known(
    demand: Demand, those: Set, data: st.DataObject
) -> None:
    snapshots, configs = those
    unknown = data.draw(st.sets(st.sampled_from(sorted(configs))))
    shares = decide_set(demand, snapshots, configs, NOW, unknown)
    assert {name for name, share in shares.items() if share.decision is None} == unknown


# Each pool's part


@given(demands, sets())
def test_each_pools_snapshot_gives_its_decision_again(demand: Demand, those: Set) -> None:
    snapshots, configs = those
    for name, share in decide_set(demand, snapshots, configs, NOW).items():
        assert share.decision == decide(share.snapshot, configs[name], NOW)
        again = Snapshot.from_document(share.snapshot.to_document())
        assert share.decision == decide(again, configs[name], NOW)


@given(demands, pools())
def test_a_set_of_one_pool_decides_as_the_pool_alone(
    demand: Demand, pool: tuple[Snapshot, PoolConfig]
) -> None:
    snapshot, config = pool
    share = decide_set(demand, {"a": snapshot}, {"a": config}, NOW)["a"]
    fitting = {kind: number for kind, number in demand.items() if config.shape.takes(kind)}
    alone = dataclasses.replace(snapshot, demand=fitting)
    assert share.decision == decide(alone, config, NOW)


@given(demands, sets())
def test_no_bundle_is_counted_for_new_workers_of_two_pools(demand: Demand, those: Set) -> None:
    """With bundles that take a worker each: no more workers than bundles, and the minimums."""
    snapshots, configs = those
    shares = decide_set({WHOLE: total(demand)}, snapshots, configs, NOW)
    missing = sum(
        max(0, config.min_workers - snapshots[name].workers) for name, config in configs.items()
    )
    slow = sum(share.snapshot.is_slow for share in shares.values())
    assert launches(shares) <= total(demand) + missing + slow


# The order of the pools


def may_launch(snapshot: Snapshot, config: PoolConfig) -> int:
    """How many a pool may launch at most, said over again."""
    room = max(0, config.max_workers - snapshot.jobs)
    since = None if snapshot.last_launch is None else NOW - snapshot.last_launch
    interval = config.min_seconds_between_workers
    if interval:
        room = min(room, 0 if since is not None and since < interval else 1)
    if config.max_launches_per_minute is not None:
        room = min(room, max(0, config.max_launches_per_minute - snapshot.launched_lately))
    return room


def may_finally(wanted: int, snapshot: Snapshot, config: PoolConfig) -> int:
    """What is left of a wish, the minimum included, by money and failures."""
    space = max(0, config.max_workers - snapshot.jobs)
    wanted = max(wanted, min(space, max(0, config.min_workers - snapshot.workers)))
    if snapshot.affordable is not None:
        wanted = min(wanted, snapshot.affordable)
    if snapshot.held_until > NOW:
        return 0
    return wanted if snapshot.trial is None else min(wanted, snapshot.trial)


def staying(snapshot: Snapshot, config: PoolConfig) -> int:
    """The pending workers, but for those that are withdrawn because they are too many."""
    over = max(0, snapshot.pending + snapshot.active - config.max_workers)
    return snapshot.pending - min(over, len(snapshot.withdrawable))


@given(few, sets(cpus=4))
def test_pools_alike_are_filled_one_after_the_other(staged: int, those: Set) -> None:
    """An independent statement: what one pool may not launch, the next one is asked for."""
    snapshots, configs = those
    snapshots = {
        name: dataclasses.replace(snapshot, free={}, impatient=0, start_seconds=None)
        for name, snapshot in snapshots.items()
    }
    left = max(0, staged - sum(staying(s, configs[name]) for name, s in snapshots.items()))
    expected = {}
    for name, snapshot in snapshots.items():
        wanted = min(left, may_launch(snapshot, configs[name]))
        expected[name] = may_finally(wanted, snapshot, configs[name])
        left = max(0, left - expected[name])
    shares = decide_set({WHOLE: staged} if staged else {}, snapshots, configs, NOW)
    assert {name: decision.launch for name, decision in decided(shares).items()} == expected


@given(demands, sets(least=2))
def test_a_pool_that_may_do_all_leaves_nothing_to_those_after_it(
    demand: Demand, those: Set
) -> None:
    snapshots, configs = those
    first = next(iter(configs))
    demand = {kind: number for kind, number in demand.items() if configs[first].shape.takes(kind)}
    snapshots[first] = plain(active=0)
    configs[first] = PoolConfig(configs[first].shape, 0, 1000)
    shares = decide_set(demand, snapshots, configs, NOW)
    for name, decision in list(decided(shares).items())[1:]:
        missing = max(0, configs[name].min_workers - snapshots[name].workers)
        assert decision.launch <= missing


def test_a_pool_that_is_held_leaves_its_bundles_to_the_next_one_in_the_same_tick() -> None:
    held = plain(held_until=NOW + 30, hold_reason="no such machine", is_on_probation=True)
    config = PoolConfig(SHAPE, 0, 10)
    shares = decide_set({WHOLE: 3}, {"a": held, "b": plain()}, {"a": config, "b": config}, NOW)
    assert [decision.launch for decision in decided(shares).values()] == [0, 3]


def test_workers_that_wait_beyond_the_patience_are_not_waited_for() -> None:
    config = PoolConfig(SHAPE, 0, 10, patience_seconds=300.0)
    waiting = plain(pending=3, impatient=2)
    both = {"a": waiting, "b": plain()}
    shares = decide_set({WHOLE: 3}, both, {"a": config, "b": PoolConfig(SHAPE, 0, 10)}, NOW)
    assert [decision.launch for decision in decided(shares).values()] == [0, 2]
    alone = decide_set({WHOLE: 3}, {"a": waiting}, {"a": config}, NOW)
    assert launches(alone) == 0, "there is nobody else to take them"


# Monotony: with bundles of one kind, for packing several kinds is no exact science


@given(few, few, sets(cpus=4))
def test_more_staged_bundles_never_launch_fewer_workers(fewer: int, more: int, those: Set) -> None:
    one = decide_set({WHOLE: fewer} if fewer else {}, *those, NOW)
    other = decide_set({WHOLE: fewer + more} if fewer + more else {}, *those, NOW)
    assert launches(one) <= launches(other)


@given(few, few, sets(cpus=4), st.data())
def test_a_larger_maximum_never_launches_fewer_workers(
    staged: int, more: int, those: Set, data: st.DataObject
) -> None:
    snapshots, configs = those
    name = data.draw(st.sampled_from(sorted(configs)))
    larger = dict(configs)
    maximum = configs[name].max_workers + more
    larger[name] = dataclasses.replace(configs[name], max_workers=maximum)
    demand = {WHOLE: staged} if staged else {}
    before, after = (decide_set(demand, snapshots, some, NOW) for some in (configs, larger))
    assert decided(before)[name].launch <= decided(after)[name].launch
    assert launches(before) <= launches(after)


# Room


@given(demands, sets())
def test_every_bundle_that_fits_somewhere_has_a_place_when_nothing_forbids_it(
    demand: Demand, those: Set
) -> None:
    snapshots, configs = those
    snapshots = {
        name: plain(pending=one.pending, active=one.active, free=one.free)
        for name, one in snapshots.items()
    }
    configs = {name: PoolConfig(config.shape, 0, 1000) for name, config in configs.items()}
    shares = decide_set(demand, snapshots, configs, NOW)
    after = {
        name: dataclasses.replace(one, pending=one.pending + decided(shares)[name].launch)
        for name, one in snapshots.items()
    }
    fitting = {
        kind: number
        for kind, number in demand.items()
        if any(config.shape.takes(kind) for config in configs.values())
    }
    asked = sum(kind.room.cpus * number for kind, number in fitting.items())
    room = sum(
        configs[name].shape.room.cpus * one.pending
        + sum(offer.room.cpus * number for offer, number in one.free.items())
        for name, one in after.items()
    )
    assert room >= asked
    assume(len(demand) <= 1)  # several kinds may be packed in another order then
    assert launches(decide_set(demand, after, configs, NOW)) == 0


# CodaLab


@given(few, few, few, few, few, moments, st.sampled_from([0.0, 60.0]))
def test_the_first_launch_of_a_set_of_one_pool_is_codalabs(
    staged: int, pending: int, active: int, one: int, other: int, last: float | None, pause: float
) -> None:
    """worker_manager.py, run_one_iteration, for bundles that take a worker each."""
    low, high = sorted((one, other))
    wants = staged > 0 and pending < staged and pending + active < high
    wants = wants and (last is None or NOW - last >= pause)
    wants = wants or pending + active < low
    snapshot = plain(pending=pending, active=active, last_launch=last)
    config = PoolConfig(SHAPE, low, high, pause)
    shares = decide_set({WHOLE: staged} if staged else {}, {"a": snapshot}, {"a": config}, NOW)
    assert (launches(shares) > 0) == wants
