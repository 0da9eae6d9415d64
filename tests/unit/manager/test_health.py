from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.base import EndCause, LaunchKey
from bundles.exits import WorkerExit
from manager.health import (
    FIRST_HOLD_SECONDS,
    FIRST_QUARANTINE_SECONDS,
    HOLDS_BEFORE_QUARANTINE_SECONDS,
    LONGEST_HOLD_SECONDS,
    LONGEST_QUARANTINE_SECONDS,
    PROVEN_SECONDS,
    SETTLED_SECONDS,
    SLOW_START,
    WASTED_ALLOWED,
    YOUNG_SECONDS,
    Cause,
    Health,
    cause_of_end,
    failure,
    judge,
)
from manager.ledger import Launch, Outcome, PoolRecord

NOW = 10_000.0
FIRST, SECOND = HOLDS_BEFORE_QUARANTINE_SECONDS


def launch(sequence: int, requested: float, **more: object) -> Launch:
    settings: dict[str, object] = {"outcome": Outcome.LAUNCHED, **more}
    return Launch(LaunchKey("p", sequence, "00000000"), requested, **settings)  # type: ignore[arg-type]


def failed(sequence: int, requested: float, exit_code: int = 3, **more: object) -> Launch:
    return launch(sequence, requested, ended=requested + 1, exit_code=exit_code, **more)


def refused(sequence: int, requested: float, kind: str = "OutOfCapacity", **more: object) -> Launch:
    settings = {"error": "none left", "settled": requested, **more}
    return launch(sequence, requested, outcome=Outcome.REFUSED, error_kind=kind, **settings)


def at_work(sequence: int, requested: float, registered: float) -> Launch:
    return launch(sequence, requested, registered=registered, first_bundle=registered + 1)


def health(
    fates: Sequence[Launch],
    now: float = NOW,
    *,
    in_doubt: int = 0,
    accepted: float | None = None,
    proven: float | None = NOW - 3600,
) -> Health:
    return judge(PoolRecord(tuple(fates), in_doubt, accepted, proven), now)


# What is a failure, and of which cause


@pytest.mark.parametrize(
    ("kind", "words", "cause"),
    [
        ("OutOfCapacity", "none left", Cause.STOCK_OUT),
        ("QuotaExceeded", "no more vCPUs", Cause.QUOTA),
        ("Unauthorized", "token expired", Cause.CREDENTIALS),
        ("Invalid", "no such queue", Cause.INVALID),
        ("Invalid", "No such image: w:1", Cause.IMAGE),
        ("Throttled", "slow down", Cause.THROTTLED),
    ],
)
def test_a_refusal_s_cause_is_the_service_s_error(kind: str, words: str, cause: Cause) -> None:
    found = failure(refused(1, 10.0, kind, error=words))
    assert found is not None
    assert (found.cause, found.is_refusal, found.is_wasted) == (cause, True, False)
    assert words in found.sentence


@pytest.mark.parametrize(
    ("fate", "cause"),
    [
        ({"cause": EndCause.OUT_OF_CAPACITY}, Cause.STOCK_OUT),
        ({"exit_code": 3, "cause": EndCause.FAILED}, Cause.CREDENTIALS),
        ({"exit_code": 2, "cause": EndCause.FAILED}, Cause.INVALID),
        ({"exit_code": 127, "cause": EndCause.FAILED}, Cause.INVALID),
        ({"cause": EndCause.FAILED, "why": "CannotPullContainerError: x"}, Cause.IMAGE),
        ({"cause": EndCause.FAILED, "why": "host terminated"}, Cause.NEVER_STARTED),
        ({"exit_code": 4, "cause": EndCause.FAILED}, Cause.NEVER_REGISTERED),
        ({"cause": EndCause.UNKNOWN, "why": "no longer listed"}, Cause.NEVER_REGISTERED),
        ({"exit_code": 1, "cause": EndCause.FAILED}, Cause.DIED_YOUNG),
        ({"exit_code": 9, "cause": EndCause.FAILED}, Cause.DIED_YOUNG),
        ({"exit_code": 10, "cause": EndCause.FAILED}, Cause.DIED_YOUNG),
        ({"exit_code": 139, "cause": EndCause.KILLED_BY_OTHERS}, Cause.DIED_YOUNG),
        ({"cause": EndCause.PREEMPTED}, Cause.PREEMPTED),
        ({"exit_code": 8, "cause": EndCause.FAILED}, Cause.PREEMPTED),
        ({"exit_code": 0, "cause": EndCause.FINISHED}, None),
        ({"exit_code": 143, "cause": EndCause.KILLED_BY_OTHERS}, None),
        ({"exit_code": 1, "cause": EndCause.KILLED_BY_OTHERS}, None),
        ({"exit_code": 1, "cause": EndCause.KILLED_BY_US}, None),
        ({"exit_code": 6, "cause": EndCause.FAILED}, None),
        ({"exit_code": 7, "cause": EndCause.FAILED}, None),
    ],
)
def test_an_end_has_a_cause_of_its_own(fate: dict[str, object], cause: Cause | None) -> None:
    assert cause_of_end(launch(1, 10.0, ended=15.0, **fate)) is cause


def test_a_worker_that_was_preempted_is_never_a_failure() -> None:
    assert failure(launch(1, 10.0, ended=12.0, cause=EndCause.PREEMPTED)) is None
    assert failure(failed(1, 10.0, WorkerExit.PREEMPTED)) is None


def test_a_worker_that_had_a_bundle_does_not_die_young() -> None:
    for code in (1, 137):
        assert failure(failed(1, 10.0, code, registered=10.1, first_bundle=10.2)) is None


def test_one_that_worked_and_lost_its_credentials_is_a_failure_and_not_wasted() -> None:
    found = failure(failed(1, 10.0, 3, registered=10.1, first_bundle=10.2))
    assert found is not None
    assert (found.cause, found.is_wasted, found.is_refusal) == (Cause.CREDENTIALS, False, False)


def test_a_worker_that_failed_after_long_life_is_no_failure_of_its_pool() -> None:
    assert failure(launch(1, 10.0, ended=11.0 + YOUNG_SECONDS, exit_code=1)) is None
    late = launch(1, 10.0, started=5000.0, ended=5001.0, exit_code=1)
    assert failure(late) is not None, "its life begins when its job does"


def test_one_that_was_given_up_is_a_failure_at_once_and_its_end_is_no_other() -> None:
    found = failure(launch(1, 10.0, given_up=700.0))
    assert found is not None
    assert (found.when, found.cause, found.is_wasted) == (700.0, Cause.NEVER_REGISTERED, True)
    assert failure(launch(1, 10.0, given_up=700.0, ended=720.0, exit_code=1)) == found


def test_a_lost_answer_is_a_failure_when_nothing_came_of_it() -> None:
    lost = launch(1, 10.0, outcome=None, error="timed out", error_kind="Unreachable", settled=11.0)
    assert failure(lost) is None
    undone = launch(
        1, 10.0, outcome=Outcome.UNDONE, error="timed out", error_kind="Unreachable", settled=41.0
    )
    found = failure(undone)
    assert found is not None
    assert (found.cause, found.is_refusal) == (Cause.UNREACHABLE, True)
    assert failure(launch(1, 10.0, outcome=Outcome.UNDONE)) is None, "a manager died, no more"


# How long nothing is launched


def test_a_pool_whose_workers_live_and_leave_as_they_should_is_well() -> None:
    well = Health()
    assert health([]) == well
    assert health([launch(1, 10.0)]) == well
    assert health([launch(1, 10.0, ended=20.0, exit_code=0, cause=EndCause.FINISHED)]) == well
    assert health([launch(1, 10.0, ended=20.0, exit_code=143)]) == well


def test_what_the_service_refuses_is_tried_again_ever_later_one_at_a_time() -> None:
    held = health([refused(1, 100.0)], 101.0)
    assert (held.until, held.trial) == (100.0 + FIRST_HOLD_SECONDS, 1)
    assert (held.cause, held.is_quarantined) == (Cause.STOCK_OUT, False)
    twice = health([refused(2, 200.0), refused(1, 100.0)], 201.0)
    assert twice.until == 200.0 + 2 * FIRST_HOLD_SECONDS
    often = health([refused(n, 100.0 * n) for n in range(60, 0, -1)])
    assert often.until == 6000.0 + LONGEST_HOLD_SECONDS
    assert not often.is_quarantined, "nothing was wasted"


def test_refusals_of_one_tick_count_once() -> None:
    held = health([refused(n, 100.0) for n in range(9, 0, -1)], 101.0)
    assert held.until == 100.0 + FIRST_HOLD_SECONDS
    assert held.failures == {Cause.STOCK_OUT: 9}


def test_a_launch_that_the_service_takes_ends_what_it_refused_before() -> None:
    assert health([refused(1, 100.0)], 110.0, accepted=105.0, in_doubt=1) == Health()
    assert health([refused(2, 100.0)], 101.0, accepted=100.0).cause is Cause.STOCK_OUT, "in part"


def test_workers_on_their_way_do_not_keep_a_refused_launch_from_being_tried_again() -> None:
    assert health([refused(2, 100.0)], 110.0, accepted=99.0, in_doubt=7).trial == 1


def test_the_first_wasted_launches_are_followed_by_one_probe_each() -> None:
    one = health([failed(1, 100.0)], 102.0)
    assert (one.until, one.trial, one.wasted) == (101.0 + FIRST, 1, 1)
    two = health([failed(2, 150.0), failed(1, 100.0)], 152.0)
    assert (two.until, two.is_quarantined) == (151.0 + SECOND, False)
    assert health([failed(1, 100.0)], 120.0, in_doubt=1).trial == 0, "the probe is out"


def test_the_third_wasted_launch_puts_the_pool_into_quarantine() -> None:
    ill = health([failed(n, 100.0 * n) for n in (3, 2, 1)], 302.0)
    assert ill.is_quarantined
    assert ill.until == 301.0 + FIRST_QUARANTINE_SECONDS
    assert ill.reason.startswith("3 launches in a row did nothing, the last one (credentials): ")
    assert "quarantined for another 299 s: 3 launches in a row" in ill.sentence(302.0)


def test_a_crowd_that_fails_at_once_is_one_quarantine_of_the_first_length() -> None:
    ill = health([failed(n, 100.0) for n in range(100, 0, -1)], 102.0)
    assert ill.until == 101.0 + FIRST_QUARANTINE_SECONDS


def test_each_probe_that_fails_doubles_the_quarantine_up_to_the_longest() -> None:
    fates = [failed(n, 1000.0 * n) for n in (4, 3, 2, 1)]
    assert health(fates, 4002.0).until == 4001.0 + 2 * FIRST_QUARANTINE_SECONDS
    many = [failed(n, 100.0 * n) for n in range(40, 0, -1)]
    assert health(many, 4002.0).until == 4001.0 + LONGEST_QUARANTINE_SECONDS


def test_a_worker_that_works_ends_the_episode() -> None:
    fates = [failed(n, 100.0 * n) for n in (3, 2, 1)]
    assert health([at_work(4, 700.0, 705.0), *fates], 710.0) == Health()
    come = launch(4, 700.0, registered=705.0)
    assert health([come, *fates], 710.0).is_quarantined, "it has done nothing yet"
    assert health([come, *fates], 705.0 + SETTLED_SECONDS) == Health(), "and lives"


def test_a_worker_that_came_before_the_failure_ends_nothing() -> None:
    assert health([failed(2, 200.0), at_work(1, 100.0, 110.0)], 202.0).cause is Cause.CREDENTIALS


def test_preemption_and_stock_out_waste_nothing() -> None:
    gone = [launch(n, 100.0 * n, ended=100.0 * n + 1, cause=EndCause.PREEMPTED) for n in (9, 8, 7)]
    assert health(gone, 902.0) == Health()
    dry = [
        launch(n, 100.0 * n, ended=100.0 * n + 1, cause=EndCause.OUT_OF_CAPACITY)
        for n in (9, 8, 7, 6)
    ]
    held = health(dry, 902.0, accepted=901.5)
    assert (held.wasted, held.is_quarantined, held.cause) == (0, False, Cause.STOCK_OUT)
    assert held.until == 901.0 + 8 * FIRST_HOLD_SECONDS


def test_a_service_whose_clock_is_ahead_holds_nothing_for_longer() -> None:
    assert health([failed(1, 90_000.0)], 100.0).until == 100.0 + FIRST


def test_an_engine_that_is_away_and_a_wrong_clock_are_told_as_such() -> None:
    assert "no engine that answers" in health([failed(1, 10.0, WorkerExit.NO_RUNTIME)]).reason
    assert "clock is wrong" in health([failed(1, 10.0, WorkerExit.WRONG_CLOCK)]).reason


# Pools of which nothing is known


def test_a_new_pool_starts_slowly_until_a_worker_of_it_has_come() -> None:
    assert health([], proven=None).trial == SLOW_START
    assert health([], proven=None, in_doubt=1).trial == SLOW_START - 1
    assert health([], proven=None, in_doubt=SLOW_START).trial == 0
    assert "not known to work yet" in health([], proven=None).sentence(NOW)
    assert health([], proven=NOW - 1).trial is None
    assert health([], proven=NOW - PROVEN_SECONDS).trial == SLOW_START


def test_what_a_slow_start_and_the_first_probe_can_waste_is_what_may_be_wasted() -> None:
    assert SLOW_START + 1 == WASTED_ALLOWED
    assert len(HOLDS_BEFORE_QUARANTINE_SECONDS) == WASTED_ALLOWED - 1


class Clumsy:
    """A pool that launches all that its health lets it, and whose workers never work."""

    def __init__(self, lives: Sequence[float]) -> None:
        self.lives = lives
        self.fates: list[Launch] = []
        self.out: list[tuple[float, Launch]] = []

    def run(self, until: float) -> None:
        now = 0.0
        while now < until:
            for ended, begun in [entry for entry in self.out if entry[0] <= now]:
                fate = launch(begun.key.sequence, begun.requested, ended=ended, exit_code=1)
                self.fates.append(fate)
            self.out = [entry for entry in self.out if entry[0] > now]
            self.fates.sort(key=lambda fate: -fate.key.sequence)
            ill = judge(PoolRecord(tuple(self.fates), len(self.out), None, None), now)
            if ill.until <= now:
                for _ in range(ill.trial if ill.trial is not None else 100):
                    number = len(self.fates) + len(self.out) + 1
                    life = self.lives[number % len(self.lives)]
                    self.out.append((now + life, launch(number, now)))
            now = min((ended for ended, _ in self.out), default=max(ill.until, now + 1.0))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.1, YOUNG_SECONDS - 6), min_size=1, max_size=10))
def test_no_more_than_three_are_wasted_before_quarantine_and_one_in_each_after(
    lives: list[float],
) -> None:
    pool = Clumsy(lives)
    pool.run(6 * 3600.0)
    ends = sorted(fate.ended for fate in pool.fates if fate.ended is not None)
    assert len(ends) > WASTED_ALLOWED
    opened = ends[WASTED_ALLOWED - 1]
    after = sorted(fate.requested for fate in pool.fates if fate.requested > opened)
    assert len(pool.fates) - len(after) == WASTED_ALLOWED
    assert after[0] >= opened + FIRST_QUARANTINE_SECONDS
    assert all(later - earlier >= FIRST_QUARANTINE_SECONDS for earlier, later in pairwise(after))
