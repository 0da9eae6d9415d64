from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from manager.capacity import UNBOUNDED, Need, Offer, Room
from manager.policy import SURPLUS_SECONDS, Decision, PoolConfig, decide, surplus
from manager.snapshot import Snapshot

NOW = 1_000_000.0
GIB = 1024**3
SHAPE = Offer(Room(0, 8, 16 * GIB, UNBOUNDED, UNBOUNDED))
WHOLE = Need(Room(cpus=8, memory_bytes=GIB))
"""Takes a worker of its own."""
SMALL = Need(Room(cpus=1, memory_bytes=GIB))


def seen(staged: int, unfit: int, pending: int, active: int, **more: Any) -> Snapshot:
    """Bundles that take a worker each, and workers that have no room left."""
    return Snapshot({WHOLE: staged} if staged else {}, unfit, pending, active, **more)


def wanted(low: int, high: int, interval: float = 0.0) -> PoolConfig:
    return PoolConfig(SHAPE, low, high, interval)


def test_bundles_seen_beside_workers_that_have_just_come_may_be_theirs_already() -> None:
    decision = decide(seen(3, 0, 0, 3, settling=2), wanted(0, 9), NOW)
    assert decision.launch == 1
    assert decide(seen(2, 0, 1, 3, settling=2), wanted(0, 9), NOW).launch == 0
    assert surplus(seen(2, 0, 2, 2, settling=2), wanted(0, 9)) == 0, "nor are those withdrawn"


def codalab_wants_one(
    *,
    staged: int,
    pending: int,
    jobs: int,
    minimum: int,
    maximum: int,
    seconds_since_last: float | None,
    interval: float,
) -> bool:
    """worker_manager.py, run_one_iteration, said over again: whether to start one worker."""
    want = staged > 0
    if seconds_since_last is not None and seconds_since_last < interval:
        want = False
    if pending >= staged:
        want = False
    if jobs >= maximum:
        want = False
    if jobs < minimum:
        want = True
    return want


def asked_until_no(snapshot: Snapshot, config: PoolConfig) -> int:
    """How often CodaLab's rule says yes when each yes is a pending worker at once."""
    launched = 0
    since = None if snapshot.last_launch is None else NOW - snapshot.last_launch
    while codalab_wants_one(
        staged=snapshot.staged,
        pending=snapshot.pending + launched,
        jobs=snapshot.jobs + launched,
        minimum=config.min_workers,
        maximum=config.max_workers,
        seconds_since_last=0.0 if launched else since,
        interval=config.min_seconds_between_workers,
    ):
        launched += 1
    return launched


small = st.integers(min_value=0, max_value=40)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Snapshot, PoolConfig]:
    low, high = sorted((draw(small), draw(small)))
    last = draw(st.none() | st.floats(min_value=0, max_value=200).map(lambda s: NOW - s))
    return (
        seen(draw(small), draw(small), draw(small), draw(small), last_launch=last),
        wanted(low, high, draw(st.sampled_from([0.0, 1.0, 60.0]))),
    )


@given(situations())
def test_launches_as_often_as_codalabs_rule_says_yes(
    situation: tuple[Snapshot, PoolConfig],
) -> None:
    snapshot, config = situation
    assert decide(snapshot, config, NOW).launch == asked_until_no(snapshot, config)


@given(situations())
def test_never_launches_above_the_maximum(situation: tuple[Snapshot, PoolConfig]) -> None:
    snapshot, config = situation
    launch = decide(snapshot, config, NOW).launch
    assert launch == 0 or snapshot.jobs + launch <= config.max_workers


@given(situations())
def test_never_leaves_fewer_than_the_minimum(situation: tuple[Snapshot, PoolConfig]) -> None:
    snapshot, config = situation
    assert snapshot.jobs + decide(snapshot, config, NOW).launch >= config.min_workers


@given(situations())
def test_a_decision_carried_out_leaves_nothing_to_decide(
    situation: tuple[Snapshot, PoolConfig],
) -> None:
    snapshot, config = situation
    launch = decide(snapshot, config, NOW).launch
    after = dataclasses.replace(snapshot, pending=snapshot.pending + launch, last_launch=NOW)
    if launch or config.min_seconds_between_workers:
        assert decide(after, config, NOW).launch == 0


@given(situations())
def test_nothing_is_launched_while_launches_are_held(
    situation: tuple[Snapshot, PoolConfig],
) -> None:
    snapshot, config = situation
    held = dataclasses.replace(snapshot, held_until=NOW + 1, hold_reason="the last launch failed")
    assert decide(held, config, NOW).launch == 0
    assert decide(held, config, NOW + 2) == decide(snapshot, config, NOW + 2)


@given(situations())
def test_every_decision_says_why_in_codes_and_sentences(
    situation: tuple[Snapshot, PoolConfig],
) -> None:
    decision = decide(*situation, NOW)
    assert decision.reasons
    assert all(reason.code and reason.sentence for reason in decision.reasons)
    assert decision.summary()
    assert decision.to_document()["launch"] == decision.launch


def held(decision: Decision) -> set[str]:
    return {reason.code for reason in decision.reasons if reason.held}


def test_sixteen_staged_bundles_get_as_many_workers_as_allowed_in_one_tick() -> None:
    decision = decide(seen(16, 0, 0, 0), wanted(0, 3), NOW)
    assert decision.launch == 3
    assert held(decision) == {"at_maximum", "staged"}


def test_workers_that_are_pending_are_not_launched_again() -> None:
    decision = decide(seen(4, 0, 4, 0), wanted(0, 10), NOW)
    assert decision.launch == 0
    assert held(decision) == {"enough_pending"}


def test_an_interval_allows_one_launch_and_then_none() -> None:
    config = wanted(0, 10, 60)
    assert decide(seen(5, 0, 0, 0), config, NOW).launch == 1
    soon = decide(seen(5, 0, 1, 0, last_launch=NOW - 59), config, NOW)
    assert soon.launch == 0
    assert held(soon) == {"too_soon"}
    assert decide(seen(5, 0, 1, 0, last_launch=NOW - 60), config, NOW).launch == 1


def test_a_clock_set_back_does_not_stop_launches() -> None:
    config = wanted(0, 10, 60)
    assert decide(seen(5, 0, 0, 0, last_launch=NOW + 3600), config, NOW).launch == 1


def test_the_minimum_is_restored_in_one_tick_whatever_the_interval() -> None:
    config = wanted(4, 10, 60)
    decision = decide(seen(0, 0, 0, 1, last_launch=NOW - 1), config, NOW)
    assert decision.launch == 3
    assert held(decision) == {"nothing_staged", "below_minimum"}


def test_bundles_that_fit_no_worker_are_named_as_the_reason_to_launch_none() -> None:
    decision = decide(seen(staged=0, unfit=2, pending=0, active=0), wanted(0, 3), NOW)
    assert decision.launch == 0
    assert (
        decision.reason("unfit").sentence == "2 staged bundles would not fit a worker of this pool"
    )


def test_workers_that_run_are_not_ended_for_they_leave_by_themselves() -> None:
    assert decide(seen(0, 0, 0, 9, surplus_since=NOW - 3600), wanted(0, 3), NOW).end == ()


# By what bundles ask for


def test_eight_bundles_of_one_cpu_are_one_worker_of_eight() -> None:
    assert decide(Snapshot({SMALL: 8}, 0, 0, 0), wanted(0, 10), NOW).launch == 1
    assert decide(Snapshot({SMALL: 9}, 0, 0, 0), wanted(0, 10), NOW).launch == 2


def test_memory_counts_as_cpus_do() -> None:
    heavy = Need(Room(cpus=1, memory_bytes=8 * GIB))
    assert decide(Snapshot({heavy: 8}, 0, 0, 0), wanted(0, 10), NOW).launch == 4


def test_small_bundles_go_beside_large_ones() -> None:
    large = Need(Room(cpus=6, memory_bytes=GIB))
    decision = decide(Snapshot({large: 3, SMALL: 6}, 0, 0, 0), wanted(0, 10), NOW)
    assert decision.launch == 3


def test_room_in_workers_that_run_is_used_before_a_new_one_is_launched() -> None:
    room = Offer(Room(cpus=3, memory_bytes=4 * GIB, disk_bytes=GIB))
    snapshot = Snapshot({SMALL: 6}, 0, 0, 2, free={room: 2})
    decision = decide(snapshot, wanted(0, 10), NOW)
    assert decision.launch == 0
    assert held(decision) == {"room_left"}
    assert decide(Snapshot({SMALL: 7}, 0, 0, 2, free={room: 2}), wanted(0, 10), NOW).launch == 1


def test_room_of_a_worker_of_another_tag_is_no_room() -> None:
    others = Offer(Room(cpus=8, memory_bytes=16 * GIB), tag="t", tag_exclusive=True)
    assert decide(Snapshot({SMALL: 1}, 0, 0, 1, free={others: 1}), wanted(0, 3), NOW).launch == 1


def test_workers_on_their_way_take_as_many_bundles_as_they_will_have_room_for() -> None:
    assert decide(Snapshot({SMALL: 16}, 0, 2, 0), wanted(0, 10), NOW).launch == 0
    assert decide(Snapshot({SMALL: 17}, 0, 2, 0), wanted(0, 10), NOW).launch == 1


needs = st.builds(
    Need,
    st.builds(
        Room,
        gpus=st.just(0),
        cpus=st.integers(0, 8),
        memory_bytes=st.integers(1, 16).map(lambda n: n * GIB),
        disk_bytes=st.just(0),
        time_seconds=st.sampled_from((0, 0, 3600)),
    ),
    queue=st.just(""),
)
offers = st.builds(
    Offer,
    st.builds(
        Room,
        gpus=st.just(0),
        cpus=st.integers(0, 8),
        memory_bytes=st.integers(0, 16).map(lambda n: n * GIB),
        disk_bytes=st.just(UNBOUNDED),
        time_seconds=st.sampled_from((1800, 3600, UNBOUNDED)),
    ),
    tag=st.just(""),
    tag_exclusive=st.just(False),
)


@st.composite
def mixtures(draw: st.DrawFn) -> Snapshot:
    demand = draw(st.dictionaries(needs, st.integers(1, 30), max_size=6))
    free = draw(st.dictionaries(offers, st.integers(1, 5), max_size=6))
    pending = draw(st.integers(0, 10))
    return Snapshot(demand, 0, pending, sum(free.values()), free=free)


@given(mixtures())
def test_every_bundle_has_a_place_when_there_is_no_maximum(snapshot: Snapshot) -> None:
    decision = decide(snapshot, wanted(0, 1000), NOW)
    after = dataclasses.replace(snapshot, pending=snapshot.pending + decision.launch)
    assert decide(after, wanted(0, 1000), NOW).launch == 0
    asked = sum(need.room.cpus * number for need, number in snapshot.demand.items())
    room = sum(offer.room.cpus * number for offer, number in snapshot.free.items())
    assert room + 8 * after.pending >= asked


@given(mixtures(), needs)
def test_one_bundle_more_never_takes_more_than_one_worker_more(
    snapshot: Snapshot, need: Need
) -> None:
    """It may take one fewer: first-fit decreasing is no exact science."""
    more = dict(snapshot.demand)
    more[need] = more.get(need, 0) + 1
    before = decide(snapshot, wanted(0, 1000), NOW).launch
    after = decide(dataclasses.replace(snapshot, demand=more), wanted(0, 1000), NOW).launch
    assert after <= before + 2
    assert after >= before - 1


@given(mixtures())
def test_a_snapshot_is_read_back_from_the_journal(snapshot: Snapshot) -> None:
    document = json.loads(json.dumps(snapshot.to_document()))
    assert Snapshot.from_document(document) == snapshot


def test_ten_thousand_kinds_are_decided_in_rounded_ones_and_never_too_few() -> None:
    generator = random.Random(1)
    demand = {
        Need(Room(cpus=generator.randint(1, 8), memory_bytes=generator.randint(1, 16 * GIB))): 1
        for _ in range(10_000)
    }
    exact = sum(need.room.cpus for need in demand) / 8
    launch = decide(Snapshot(demand, 0, 0, 0), wanted(0, 10**6), NOW).launch
    assert exact <= launch <= 1.5 * exact


# Withdrawing what is not needed any more


def test_pending_workers_that_nothing_needs_are_withdrawn_newest_first() -> None:
    snapshot = seen(1, 0, 3, 0, withdrawable=("c", "b", "a"))
    assert surplus(snapshot, wanted(0, 10)) == 2
    young = dataclasses.replace(snapshot, surplus_since=NOW - 1)
    assert decide(young, wanted(0, 10), NOW).end == ()
    old = dataclasses.replace(snapshot, surplus_since=NOW - SURPLUS_SECONDS)
    assert decide(old, wanted(0, 10), NOW).end == ("c", "b")
    assert decide(old, wanted(2, 10), NOW).end == ("c",)


@given(situations(), st.integers(0, 40))
def test_withdrawing_leaves_the_minimum_and_what_bundles_need(
    situation: tuple[Snapshot, PoolConfig], number: int
) -> None:
    snapshot, config = situation
    config = dataclasses.replace(config, max_workers=max(config.max_workers, snapshot.workers))
    ids = tuple(str(i) for i in range(min(number, snapshot.pending)))
    snapshot = dataclasses.replace(snapshot, withdrawable=ids, surplus_since=NOW - 3600)
    decision = decide(snapshot, config, NOW)
    assert not (decision.end and decision.launch)
    left = snapshot.workers - len(decision.end)
    assert not decision.end or left >= config.min_workers
    assert not decision.end or snapshot.pending - len(decision.end) >= snapshot.staged


def test_jobs_that_are_being_ended_take_a_place_and_give_no_room() -> None:
    decision = decide(seen(5, 0, 0, 0, ending=2), wanted(1, 3), NOW)
    assert decision.launch == 1
    assert decide(seen(0, 0, 0, 0, ending=3), wanted(1, 3), NOW).launch == 0


# After failures


def test_after_failures_one_worker_alone_shows_whether_they_are_over() -> None:
    failed = {
        "held_until": NOW - 1,
        "hold_reason": "the last launch failed",
        "is_on_probation": True,
    }
    assert decide(seen(9, 0, 0, 0, trial=1, **failed), wanted(3, 20), NOW).launch == 1
    waits = decide(seen(9, 0, 1, 0, trial=0, **failed), wanted(3, 20), NOW)
    assert waits.launch == 0
    assert "probation" in held(waits)


def test_a_pool_of_which_nothing_is_known_starts_with_a_few() -> None:
    first = decide(seen(9, 0, 0, 0, trial=2), wanted(3, 20), NOW)
    assert first.launch == 2
    assert "slow_start" in held(first)
    assert decide(seen(9, 0, 2, 0, trial=0), wanted(3, 20), NOW).launch == 0
    assert decide(seen(1, 0, 0, 0, trial=2), wanted(0, 20), NOW).launch == 1


def test_a_pool_in_quarantine_spares_all_that_has_not_started_but_one() -> None:
    ill = {
        "held_until": NOW + 300,
        "hold_reason": "3 launches in a row did nothing",
        "is_on_probation": True,
        "trial": 0,
        "is_quarantined": True,
        "withdrawable": ("new", "older", "oldest"),
    }
    decision = decide(seen(9, 0, 3, 0, **ill), wanted(3, 20), NOW)
    assert (decision.launch, decision.end) == (0, ("new", "older"))
    assert "quarantined" in held(decision)
    ill["withdrawable"] = ("oldest",)
    assert decide(seen(9, 0, 1, 0, **ill), wanted(3, 20), NOW).end == ()


def test_a_worker_that_never_registered_is_ended_whatever_else_is_decided() -> None:
    decision = decide(seen(1, 0, 0, 3, unregistered=("a",)), wanted(0, 20), NOW)
    assert (decision.launch, decision.end) == (1, ("a",))
    assert "never_registered" in held(decision)


def test_one_that_went_silent_is_drained_and_counts_among_those_above_the_maximum() -> None:
    snapshot = seen(0, 0, 0, 3, drainable=("a", "b", "c"), silent=("c",))
    decision = decide(snapshot, wanted(0, 1), NOW)
    assert decision.drain == ("c", "a")
    assert {"silent", "above_maximum"} <= held(decision)
    assert decide(snapshot, wanted(0, 2), NOW).drain == ("c",)
    assert Snapshot.from_document(snapshot.to_document()) == snapshot


def test_the_probation_of_an_old_journal_is_read_as_one_worker_alone() -> None:
    old = seen(9, 0, 0, 0, is_on_probation=True).to_document()
    del old["trial"], old["is_quarantined"], old["unregistered"]
    assert Snapshot.from_document(old).trial == 1
    assert Snapshot.from_document(old | {"pending": 1}).trial == 0
    assert Snapshot.from_document(old | {"is_on_probation": False}).trial is None
