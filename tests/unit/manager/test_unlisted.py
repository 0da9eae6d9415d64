from __future__ import annotations

from dataclasses import replace

from pool_fakes import NOW

from backends.base import LaunchKey
from manager.ledger import Launch, Outcome
from manager.unlisted import Unlisted

KEY = LaunchKey("p", 1, "00000000")
INTENT = Launch(KEY, requested=NOW)


def test_a_job_may_be_unlisted_for_the_lag_after_its_call_has_come_back() -> None:
    unlisted = Unlisted(30.0)
    unlisted.begin(NOW - 1)
    assert unlisted.may_be(INTENT, NOW + 29)
    assert not unlisted.may_be(INTENT, NOW + 30)
    unlisted.answered([KEY], NOW + 50)
    assert unlisted.may_be(INTENT, NOW + 79)
    assert not unlisted.may_be(INTENT, NOW + 80)
    written = replace(INTENT, outcome=Outcome.LAUNCHED, settled=NOW + 60)
    assert unlisted.may_be(written, NOW + 89)
    assert not unlisted.may_be(written, NOW + 90)


def test_the_call_of_a_manager_that_died_may_have_lasted_until_the_next_one_began() -> None:
    unlisted = Unlisted(30.0)
    unlisted.begin(NOW + 100)
    assert unlisted.may_be(INTENT, NOW + 129)
    assert not unlisted.may_be(INTENT, NOW + 130)


def test_without_a_lag_a_list_has_everything() -> None:
    unlisted = Unlisted(0.0)
    unlisted.begin(NOW)
    assert not unlisted.may_be(INTENT, NOW)
