from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from manager.policy import Decision, PoolConfig, decide
from manager.snapshot import Snapshot

NOW = 1_000_000.0


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
        Snapshot(
            staged=draw(small),
            unfit=draw(small),
            pending=draw(small),
            active=draw(small),
            last_launch=last,
        ),
        PoolConfig(low, high, draw(st.sampled_from([0.0, 1.0, 60.0]))),
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
    decision = decide(Snapshot(16, 0, 0, 0), PoolConfig(0, 3), NOW)
    assert decision.launch == 3
    assert held(decision) == {"at_maximum", "staged"}


def test_workers_that_are_pending_are_not_launched_again() -> None:
    decision = decide(Snapshot(4, 0, 4, 0), PoolConfig(0, 10), NOW)
    assert decision.launch == 0
    assert held(decision) == {"enough_pending"}


def test_an_interval_allows_one_launch_and_then_none() -> None:
    config = PoolConfig(0, 10, min_seconds_between_workers=60)
    assert decide(Snapshot(5, 0, 0, 0), config, NOW).launch == 1
    soon = decide(Snapshot(5, 0, 1, 0, last_launch=NOW - 59), config, NOW)
    assert soon.launch == 0
    assert held(soon) == {"too_soon"}
    assert decide(Snapshot(5, 0, 1, 0, last_launch=NOW - 60), config, NOW).launch == 1


def test_a_clock_set_back_does_not_stop_launches() -> None:
    config = PoolConfig(0, 10, min_seconds_between_workers=60)
    assert decide(Snapshot(5, 0, 0, 0, last_launch=NOW + 3600), config, NOW).launch == 1


def test_the_minimum_is_restored_in_one_tick_whatever_the_interval() -> None:
    config = PoolConfig(4, 10, min_seconds_between_workers=60)
    decision = decide(Snapshot(0, 0, 0, 1, last_launch=NOW - 1), config, NOW)
    assert decision.launch == 3
    assert held(decision) == {"nothing_staged", "below_minimum"}


def test_bundles_that_fit_no_worker_are_named_as_the_reason_to_launch_none() -> None:
    decision = decide(Snapshot(staged=0, unfit=2, pending=0, active=0), PoolConfig(0, 3), NOW)
    assert decision.launch == 0
    assert (
        decision.reason("unfit").sentence == "2 staged bundles would not fit a worker of this pool"
    )


def test_nothing_is_ever_ended_for_workers_leave_by_themselves() -> None:
    assert decide(Snapshot(0, 0, 5, 5), PoolConfig(0, 3), NOW).end == ()
