"""What workers cost, what they may cost, and how many more that allows. Pure; amounts have no
currency, windows are calendar hours, days and months of UTC.

A worker is charged from its start to its end by the second, and for MINIMUM_SECONDS at least, as
EC2 (https://aws.amazon.com/ec2/pricing/on-demand/) and Compute Engine
(https://cloud.google.com/compute/vm-instance-pricing) charge machines. Reading the ledger is left
to accountant.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from math import floor, inf
from typing import Any, NamedTuple

from bundles.errors import UsageError
from manager.policy import count
from manager.sharing import Allowance

MINIMUM_SECONDS = 60.0
SHORTEST_STAY_SECONDS = 3600.0
"""A worker is reckoned to stay at least so long: with this an hour's budget holds whatever
workers do, since no hour has more seconds."""
SOFT_FRACTION = 0.8
STAYS_REMEMBERED = 100
"""How long workers stay is reckoned by the longest of so many that ended last."""


class Period(StrEnum):
    """What a budget is for."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class Window(NamedTuple):
    """One hour, day or month, [``start``, ``end``) in seconds since the epoch."""

    period: Period
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def overlap(self, since: float, until: float) -> float:
        """How many seconds from ``since`` to ``until`` are in it."""
        return max(0.0, min(until, self.end) - max(since, self.start))


def window(period: Period, when: float) -> Window:
    """The window that ``when`` is in."""
    moment = datetime.fromtimestamp(when, UTC).replace(minute=0, second=0, microsecond=0)
    if period is Period.HOUR:
        start = moment.timestamp()
        return Window(period, start, start + 3600)
    moment = moment.replace(hour=0)
    if period is Period.DAY:
        start = moment.timestamp()
        return Window(period, start, start + 86400)
    moment = moment.replace(day=1)
    year, month = moment.year + moment.month // 12, moment.month % 12 + 1
    return Window(period, moment.timestamp(), moment.replace(year=year, month=month).timestamp())


def windows(now: float) -> tuple[Window, ...]:
    """The running hour, day and month, and the next of each."""
    running = [window(period, now) for period in Period]
    return (*running, *(window(one.period, one.end) for one in running))


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent in each hour, day and month; None: as much as you like."""

    per_hour: float | None = None
    per_day: float | None = None
    per_month: float | None = None

    def of(self, period: Period) -> float | None:
        return {
            Period.HOUR: self.per_hour,
            Period.DAY: self.per_day,
            Period.MONTH: self.per_month,
        }[period]

    def __bool__(self) -> bool:
        return any(self.of(period) is not None for period in Period)

    def to_document(self) -> dict[str, float | None]:
        return {str(period): self.of(period) for period in Period}


NO_BUDGET = Budget()


@dataclass(frozen=True, slots=True)
class Terms:
    """What one worker of a pool costs, and what the pool alone may cost."""

    price_per_hour: float = 0.0
    budget: Budget = NO_BUDGET

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Terms:
        """From the options of a pool, as given or as the ledger keeps them; without a price its
        workers cost nothing. Raises UsageError for a budget that no price can use up."""
        terms = cls(
            settings.get("price_per_hour") or 0.0,
            Budget(
                settings.get("budget_per_hour"),
                settings.get("budget_per_day"),
                settings.get("budget_per_month"),
            ),
        )
        if terms.budget and not terms.price_per_hour:
            raise UsageError("a budget of a pool needs --price-per-hour, above 0")
        return terms


FREE = Terms()


@dataclass(frozen=True, slots=True)
class PoolSet:
    """The pools of a file, and what they may cost together."""

    pools: tuple[str, ...]
    budget: Budget

    def to_settings(self) -> dict[str, Any]:
        """Among the options of each of the pools, for the ledger; nothing without a budget."""
        if not self.budget:
            return {}
        return {"together": {"pools": list(self.pools), "budget": self.budget.to_document()}}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> PoolSet | None:
        said = settings.get("together")
        if said is None:
            return None
        budget = said["budget"]
        return cls(tuple(said["pools"]), Budget(*(budget[period] for period in Period)))


def former(
    settings: Mapping[str, Mapping[str, Any]], kept: Collection[str]
) -> dict[str, Mapping[str, Any]]:
    """Of the settings of pools by name those of pools that had a budget together with one that is
    ``kept``, and are kept no more: what they have cost is spent."""
    sets = {name: PoolSet.from_settings(own) for name, own in settings.items()}
    return {
        name: settings[name]
        for name, one in sets.items()
        if name not in kept and one is not None and not set(kept).isdisjoint(one.pools)
    }


def sets_of(settings: Mapping[str, Mapping[str, Any]]) -> list[PoolSet]:
    """The sets with a budget, from the settings of pools by name. A set counts as long as each of
    its pools says so: one that was taken out of its file still says what it was part of."""
    said = {name: PoolSet.from_settings(own) for name, own in settings.items()}
    found = {one: None for one in said.values() if one is not None}
    return [one for one in found if all(said.get(name) == one for name in one.pools)]


@dataclass(frozen=True, slots=True)
class Account:
    """What the workers of one pool have cost by now, and how many there are.

    ``spent``: by window, of all its workers. ``living``: workers that may still cost something,
    those included that are asked for and those that were told to end. ``stay_seconds``: the
    longest that one of them stayed lately, None: none has ended yet.
    """

    terms: Terms
    spent: Mapping[Window, float] = field(default_factory=dict)
    living: int = 0
    stay_seconds: float | None = None

    def cost(self, place: Window, now: float, workers: int) -> float:
        """What so many workers will cost in a window from now on, as they are reckoned to stay.

        In a window that is to come, one that waits for its machine may do so all of its stay.
        """
        stay_seconds = inf
        if self.stay_seconds is not None:
            stay_seconds = max(self.stay_seconds, SHORTEST_STAY_SECONDS)
        seconds = min(stay_seconds, place.end - max(now, place.start))
        return workers * self.terms.price_per_hour * seconds / 3600

    def forecast(self, place: Window, now: float) -> float:
        """What will have been spent at the end of a window if nothing more is launched."""
        return self.spent.get(place, 0.0) + self.cost(place, now, self.living)


class Book:
    """What the ended workers of one pool have cost in the windows that now matter."""

    def __init__(self, now: float) -> None:
        self.month = window(Period.MONTH, now)
        self._seconds = dict.fromkeys(windows(now), 0.0)
        self._stays_seconds: deque[float] = deque(maxlen=STAYS_REMEMBERED)

    def enter(self, since: float, until: float) -> None:
        """One has ended that is charged from then to then."""
        for place in self._seconds:
            self._seconds[place] += place.overlap(since, until)
        self._stays_seconds.append(until - since)

    def account(self, terms: Terms, living: Iterable[float | None], now: float) -> Account:
        """``living``: when each of the others started, None for one that has not."""
        places = windows(now)
        # What has passed is forgotten. No stay that was entered reaches beyond the next window.
        self._seconds = {place: self._seconds.get(place, 0.0) for place in places}
        seconds = dict(self._seconds)
        longest = max(self._stays_seconds, default=None)
        number = 0
        for started in living:
            number += 1
            if started is None:
                continue
            if longest is not None:
                longest = max(longest, now - started)
            for place in places[: len(Period)]:
                seconds[place] += place.overlap(started, now)
        price = terms.price_per_hour / 3600
        return Account(
            terms, {place: amount * price for place, amount in seconds.items()}, number, longest
        )


@dataclass(frozen=True, slots=True)
class Purse:
    """The accounts of a set of pools, and what they may cost together.

    Its promise: nothing is launched that would pass a budget, if every worker, those that live and
    the new ones, stayed for as long as the longest-lived of its pool lately did, an hour at least;
    all the time, where none has ended yet. What runs is not ended for money.
    """

    accounts: Mapping[str, Account]
    now: float
    budget: Budget = NO_BUDGET
    soft_fraction: float = SOFT_FRACTION

    def allowance(
        self, pool: str, launched: Mapping[str, int] | None = None, rivals: Collection[str] = ()
    ) -> Allowance:
        """``launched``: by pool, what is decided already and not in the accounts yet.

        ``rivals``: other pools that could take all the bundles that this one would launch for;
        above the soft fraction of a budget one that is cheaper is left to take them.
        """
        launched = launched or {}
        account = self.accounts[pool]
        if account.terms.price_per_hour <= 0:
            return Allowance()
        cheaper = self._cheapest(
            [rival for rival in rivals if self.allowance(rival, launched).affordable != 0],
            than=account.terms.price_per_hour,
        )
        found = Allowance()
        for place in windows(self.now):
            each = account.cost(place, self.now, 1)
            for budget, whose, pools in self._budgets(pool, place):
                expected = sum(self._expected(name, place, launched) for name in pools)
                if cheaper and expected + each > self.soft_fraction * budget:
                    return Allowance(
                        0,
                        f"{self._state(budget, whose, place, pools, expected)}: above "
                        f"{self.soft_fraction:.0%} only the cheapest pool launches, {cheaper}",
                    )
                # A rounding error is no reason to leave the last worker out.
                number = max(0, floor((budget - expected) / each + 1e-9))
                if found.affordable is None or number < found.affordable:
                    state = self._state(budget, whose, place, pools, expected)
                    found = Allowance(number, f"{state}: {count(number, 'more worker')}")
        return found

    def _cheapest(self, pools: Iterable[str], than: float) -> str | None:
        """Of the pools that cost less, the one that costs least."""
        prices = {self.accounts[pool].terms.price_per_hour: pool for pool in pools}
        least = min(prices, default=than)
        return prices[least] if least < than else None

    def _budgets(self, pool: str, place: Window) -> Iterable[tuple[float, str, Collection[str]]]:
        """The budgets of a window that the pool has to keep: how much, whose, of which pools."""
        own = self.accounts[pool].terms.budget.of(place.period)
        if own is not None:
            yield own, pool, (pool,)
        whole = self.budget.of(place.period)
        if whole is not None:
            yield whole, "all pools", self.accounts.keys()

    def _expected(self, pool: str, place: Window, launched: Mapping[str, int]) -> float:
        account = self.accounts[pool]
        more = account.cost(place, self.now, launched.get(pool, 0))
        return account.forecast(place, self.now) + more

    def _state(
        self, budget: float, whose: str, place: Window, pools: Collection[str], expected: float
    ) -> str:
        if place.start > self.now:
            return (
                f"{expected:.2f} of the {budget:.2f} that {whose} may cost in the next "
                f"{place.period} will go to the workers that there are"
            )
        spent = sum(self.accounts[name].spent.get(place, 0.0) for name in pools)
        return (
            f"{spent:.2f} of the {budget:.2f} that {whose} may cost this {place.period} are spent, "
            f"{expected:.2f} with what the workers that there are will cost"
        )
