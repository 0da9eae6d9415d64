from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.base import EndCause, Job, JobState, LaunchKey
from manager.accountant import Accountant, charged
from manager.ledger import Launch, Ledger, Outcome, Pool
from manager.money import Account, Period, Terms, window

NOW = 1_767_225_600.0 + 3600 * 12  # 2026-01-01T12:00Z
TERMS = Terms(price_per_hour=3600.0)  # one a second


class Stand:
    """A ledger with a clock of its own."""

    def __init__(self, path: Path) -> None:
        self.now = NOW
        self.ledger = Ledger(path / "ledger.db", clock=lambda: self.now)
        self.ledger.describe(Pool("p", "local-process", "http://server", {}))
        self.accountant = Accountant(self.ledger)

    def launch(self) -> LaunchKey:
        [key] = self.ledger.intend("p", 1)
        self.ledger.settle(key, Outcome.LAUNCHED, job_id=str(key))
        return key

    def start(self, key: LaunchKey) -> None:
        self.ledger.record_started({key: self.now})

    def end(self, key: LaunchKey, cause: EndCause = EndCause.FINISHED) -> None:
        job = Job(str(key), key, str(key), JobState.ENDED, ended=self.now, cause=cause)
        self.ledger.record_ends([job])

    def account(self) -> Account:
        return self.accountant.account("p", TERMS, self.now)

    def spent(self, period: Period) -> float:
        account = self.account()
        assert account == Accountant(self.ledger).account("p", TERMS, self.now), "read anew"
        return account.spent[window(period, self.now)]


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    stand = Stand(tmp_path)
    yield stand
    stand.ledger.close()


def test_a_worker_is_charged_from_its_start_until_now_and_then_until_its_end(stand: Stand) -> None:
    key = stand.launch()
    stand.now += 100
    assert stand.spent(Period.HOUR) == 0
    stand.start(key)
    stand.now += 300
    assert stand.spent(Period.HOUR) == pytest.approx(300)
    stand.end(key)
    stand.now += 1000
    assert stand.spent(Period.HOUR) == pytest.approx(300)
    assert stand.spent(Period.MONTH) == pytest.approx(300)
    assert stand.account().living == 0
    assert stand.account().stay_seconds == pytest.approx(300)


def test_what_one_hour_cost_is_not_the_next_ones(stand: Stand) -> None:
    key = stand.launch()
    stand.start(key)
    stand.now += 5400
    assert stand.spent(Period.HOUR) == pytest.approx(1800)
    assert stand.spent(Period.DAY) == pytest.approx(5400)
    stand.end(key)
    stand.now += 86400
    assert stand.spent(Period.DAY) == 0
    assert stand.spent(Period.MONTH) == pytest.approx(5400)


def test_a_short_life_is_charged_a_minute(stand: Stand) -> None:
    key = stand.launch()
    stand.start(key)
    stand.now += 5
    stand.end(key)
    assert stand.spent(Period.HOUR) == pytest.approx(60)


def test_what_was_refused_or_withdrawn_costs_nothing_and_an_open_intent_may(stand: Stand) -> None:
    [refused] = stand.ledger.intend("p", 1)
    stand.ledger.settle(refused, Outcome.REFUSED, error="no")
    withdrawn = stand.launch()
    stand.account()
    stand.now += 500
    stand.end(withdrawn, EndCause.KILLED_BY_US)
    stand.ledger.intend("p", 1)
    stand.now += 500
    assert stand.spent(Period.HOUR) == 0
    assert stand.account().living == 1


def test_a_start_that_nobody_told_of_is_taken_to_be_the_launch(stand: Stand) -> None:
    launch = Launch(
        LaunchKey("p", 1, "0" * 8),
        requested=NOW,
        outcome=Outcome.LAUNCHED,
        ended=NOW + 300,
        exit_code=0,
        cause=EndCause.FINISHED,
    )
    assert charged(launch, NOW + 900) == (NOW, NOW + 300)


def test_the_months_turn_is_the_beginning_of_a_new_account_that_knows_how_long_workers_stay(
    stand: Stand,
) -> None:
    stand.now = window(Period.MONTH, NOW).end - 7200
    key = stand.launch()
    stand.start(key)
    stand.now += 3600
    stand.end(key)
    stand.account()
    stand.now += 3600 + 60
    assert stand.spent(Period.MONTH) == 0
    assert stand.account().stay_seconds == pytest.approx(3600)


def test_what_began_and_ended_between_two_looks_is_charged(stand: Stand) -> None:
    stand.account()
    key = stand.launch()
    stand.start(key)
    stand.now += 100
    stand.end(key)
    assert stand.spent(Period.HOUR) == pytest.approx(100)
    assert stand.spent(Period.HOUR) == pytest.approx(100), "once"
