from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundles.errors import UsageError
from manager.money import Account, Budget, Period, Purse, Terms, Window, window, windows

NOON = datetime(2026, 12, 31, 12, 30, tzinfo=UTC).timestamp()
HOUR = window(Period.HOUR, NOON)
NO_BUDGET = Budget()


def purse(
    *accounts: Account, budget: Budget = NO_BUDGET, now: float = NOON, soft_fraction: float = 0.8
) -> Purse:
    names = ("campus", "spot", "demand")
    return Purse(dict(zip(names, accounts, strict=False)), now, budget, soft_fraction)


def account(
    price: float,
    *,
    living: int = 0,
    spent: dict[Window, float] | None = None,
    stay_seconds: float | None = 3600.0,
    budget: Budget = NO_BUDGET,
) -> Account:
    return Account(Terms(price, budget), spent or {}, living, stay_seconds)


def test_windows_are_calendar_hours_days_and_months_of_utc() -> None:
    def text(when: float) -> str:
        return datetime.fromtimestamp(when, UTC).isoformat(timespec="minutes")[:16]

    assert [(str(w.period), text(w.start), text(w.end)) for w in windows(NOON)] == [
        ("hour", "2026-12-31T12:00", "2026-12-31T13:00"),
        ("day", "2026-12-31T00:00", "2027-01-01T00:00"),
        ("month", "2026-12-01T00:00", "2027-01-01T00:00"),
        ("hour", "2026-12-31T13:00", "2026-12-31T14:00"),
        ("day", "2027-01-01T00:00", "2027-01-02T00:00"),
        ("month", "2027-01-01T00:00", "2027-02-01T00:00"),
    ]


def test_without_a_budget_every_number_of_workers_is_affordable() -> None:
    assert purse(account(3.0)).allowance("campus").affordable is None


def test_a_pool_without_a_price_is_never_stopped_by_a_budget_of_all() -> None:
    full = purse(account(0.0), budget=Budget(per_hour=0.0))
    assert full.allowance("campus").affordable is None


def test_an_hours_budget_also_holds_in_the_next_hour_where_the_workers_run_on() -> None:
    # Half an hour is left: 20 workers would cost 10 of it, and 20 in the next.
    assert purse(account(1.0), budget=Budget(per_hour=10.0)).allowance("campus").affordable == 10


def test_an_hours_budget_does_not_hope_that_workers_leave_soon() -> None:
    lately = account(1.0, stay_seconds=60)
    assert purse(lately, budget=Budget(per_hour=10.0)).allowance("campus").affordable == 10


def test_what_lives_and_what_was_spent_is_taken_off() -> None:
    spent = {HOUR: 6.0}
    found = purse(account(1.0, living=2, spent=spent), budget=Budget(per_hour=10.0))
    # 6 spent, 2 × ½ to come, leaves 3: six halves.
    allowance = found.allowance("campus")
    assert allowance.affordable == 6
    assert allowance.reason == (
        "6.00 of the 10.00 that all pools may cost this hour are spent, 7.00 with what the workers "
        "that there are will cost: 6 more workers"
    )


def test_the_budget_that_holds_is_named_with_whose_it_is_and_which_hour() -> None:
    own = account(1.0, living=2, budget=Budget(per_hour=4.0))
    assert purse(own, account(9.0, living=3)).allowance("campus").reason == (
        "2.00 of the 4.00 that campus may cost in the next hour will go to the workers that there "
        "are: 2 more workers"
    )


def test_a_days_budget_reckons_with_the_longest_stay_and_with_all_day_when_nothing_is_known() -> (
    None
):
    day = Budget(per_day=24.0)
    assert purse(account(1.0, stay_seconds=7200), budget=day).allowance("campus").affordable == 12
    assert purse(account(1.0, stay_seconds=None), budget=day).allowance("campus").affordable == 1


def test_pools_of_a_set_share_the_budget_of_all_with_what_was_decided_before() -> None:
    both = purse(account(1.0), account(2.0), budget=Budget(per_hour=10.0))
    assert both.allowance("spot").affordable == 5
    assert both.allowance("spot", {"campus": 6}).affordable == 2


def test_a_pools_own_budget_concerns_it_alone_and_the_tightest_decides() -> None:
    both = purse(
        account(1.0, budget=Budget(per_hour=3.0)), account(1.0), budget=Budget(per_hour=10.0)
    )
    assert both.allowance("campus").affordable == 3
    assert both.allowance("spot").affordable == 10
    assert both.allowance("campus", {"spot": 8}).affordable == 2


def test_above_the_soft_fraction_only_the_cheapest_that_could_take_the_bundles_goes_on() -> None:
    both = purse(account(1.0, living=7), account(2.0), account(3.0), budget=Budget(per_hour=10.0))
    dear = both.allowance("spot", rivals=["campus", "demand"])
    assert dear.affordable == 0
    assert "above 80% only the cheapest pool launches, campus" in dear.reason
    assert both.allowance("campus", rivals=["spot", "demand"]).affordable == 3
    assert both.allowance("spot", rivals=["demand"]).affordable == 1, "campus cannot take them"


def test_below_the_soft_fraction_dear_pools_launch_too() -> None:
    both = purse(account(1.0, living=2), account(2.0), budget=Budget(per_hour=10.0))
    assert both.allowance("spot", rivals=["campus"]).affordable == 4


def test_a_budget_that_was_lowered_below_what_is_spent_allows_none_and_not_fewer() -> None:
    over = purse(account(1.0, living=50), budget=Budget(per_hour=10.0))
    assert over.allowance("campus").affordable == 0


def test_a_budget_without_a_price_is_refused_since_nothing_would_use_it_up() -> None:
    with pytest.raises(UsageError, match="needs --price-per-hour"):
        Terms.from_settings({"budget_per_day": 5.0})
    assert Terms.from_settings({}) == Terms()


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    prices=st.lists(st.floats(0.05, 5.0), min_size=1, max_size=3),
    per_hour=st.one_of(st.none(), st.floats(0.0, 50.0)),
    per_day=st.one_of(st.none(), st.floats(0.0, 400.0)),
    own=st.one_of(st.none(), st.floats(0.0, 30.0)),
    stay_seconds=st.floats(60.0, 20_000.0),
)
def test_a_loop_that_obeys_never_passes_a_budget_while_workers_stay_as_reckoned(
    seed: int,
    prices: list[float],
    per_hour: float | None,
    per_day: float | None,
    own: float | None,
    stay_seconds: float,
) -> None:
    """Greedy pools that launch all they may at every tick over two days. Workers wait for their
    machine for any time and stay up to ``stay_seconds``; charged as the clouds do."""
    dice = random.Random(seed)
    budget = Budget(per_hour, per_day)
    spent: dict[str, dict[Window, float]] = {str(n): {} for n in range(len(prices))}
    terms = {str(n): Terms(price, Budget(per_hour=own)) for n, price in enumerate(prices)}
    waiting: list[tuple[str, float]] = []
    running: list[tuple[str, float, float]] = []
    most = 300

    def charge(pool: str, since: float, until: float) -> None:
        for period in Period:
            place = window(period, since)
            while place.start < until:
                cost = place.overlap(since, until) * terms[pool].price_per_hour / 3600
                spent[pool][place] = spent[pool].get(place, 0.0) + cost
                place = window(period, place.end)

    now, end = NOON, NOON + 2 * 86400
    while now < end:
        accounts = {
            name: Account(
                its,
                {
                    w: spent[name].get(w, 0.0)
                    + sum(
                        w.overlap(s, now) * its.price_per_hour / 3600
                        for pool, s, _ in running
                        if pool == name
                    )
                    for w in windows(now)
                },
                sum(p == name for p, _ in waiting) + sum(p == name for p, _, _ in running),
                stay_seconds,
            )
            for name, its in terms.items()
        }
        wallet = Purse(accounts, now, budget)
        launched: dict[str, int] = {}
        for name in terms:
            affordable = wallet.allowance(name, launched).affordable
            room = most - len(waiting) - len(running) - sum(launched.values())
            number = max(0, min(room, room if affordable is None else affordable))
            number = number if dice.random() < 0.7 else dice.randint(0, number)
            launched[name] = number
            waiting += [(name, now + dice.choice([0.0, 30.0, 4000.0, 90_000.0]))] * number
        now += dice.choice([5.0, 600.0, 3000.0, 9000.0])
        # A start is known at the next look at the latest: here it falls on one.
        for name, _ in [w for w in waiting if w[1] <= now]:
            running.append((name, now, now + stay_seconds * dice.random()))
        waiting = [w for w in waiting if w[1] > now]
        # No end is seen before it is there: what lives is charged until the look at it.
        for name, since, until in [r for r in running if r[2] <= now]:
            charge(name, since, max(until, since + 60.0))
        running = [r for r in running if r[2] > now]
    for name, since, until in running:
        charge(name, since, max(until, since + 60.0))
    for place in {place for of_one in spent.values() for place in of_one}:
        whole = sum(of_one.get(place, 0.0) for of_one in spent.values())
        limit = budget.of(place.period)
        assert limit is None or whole <= limit + 1e-6
        if own is not None and place.period is Period.HOUR:
            assert all(of_one.get(place, 0.0) <= own + 1e-6 for of_one in spent.values())
