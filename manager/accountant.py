"""Reads from the ledger what the workers of pools cost. What follows from it is said in money.

Costs what changed since it was last asked, not what the month has seen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from backends.base import EndCause, LaunchKey
from manager.ledger import Launch, Ledger, Outcome
from manager.money import MINIMUM_SECONDS, Account, Book, Period, Terms, former, window

STAYS_SECONDS = 7 * 86400.0
"""How long ago a worker may have ended that says how long workers stay."""


def charged(launch: Launch, now: float) -> tuple[float, float] | None:
    """From when to when a worker costs, in seconds since the epoch; None when it does not.

    From its start if its service told it, else from its launch; one that was withdrawn, or that
    its service found no machine for, costs nothing. One that lives has cost until ``now``.
    """
    if launch.outcome is not Outcome.LAUNCHED:
        return None
    if launch.ended is None:
        return None if launch.started is None else (launch.started, max(launch.started, now))
    if launch.started is not None:
        since = launch.started
    elif launch.exit_code is None and launch.cause in _NEVER_RAN:
        return None
    else:
        since = launch.requested
    return since, max(launch.ended, since + MINIMUM_SECONDS)


_NEVER_RAN = frozenset({EndCause.KILLED_BY_US, EndCause.OUT_OF_CAPACITY})


def drained(ledger: Ledger, kept: Collection[str]) -> dict[str, Terms]:
    """Pools that had a budget together with one that is ``kept``, were taken out of it, and have
    no worker any more, and their terms: what they have cost is spent.

    Of one that was not drained nobody would see the workers end: it would pay for ever.
    """
    settings = {pool.name: pool.settings for pool in ledger.pools()}
    return {
        name: Terms.from_settings(own)
        for name, own in former(settings, kept).items()
        if not ledger.living(name)
    }


class Accountant:
    """Keeps the accounts of the pools of one ledger. Raises sqlite3.Error."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._books: dict[str, Book] = {}
        self._living: dict[str, set[str]] = {}
        self._sequences: dict[str, int] = {}
        """Of the last launch of each pool that its book knows of."""

    def account(self, pool: str, terms: Terms, now: float) -> Account:
        """What a pool has cost by ``now``, seconds since the epoch."""
        book = self._books.get(pool)
        living = self._ledger.living(pool)
        if book is None or book.month != window(Period.MONTH, now):
            book = self._books[pool] = self._open(pool, now)
        else:
            for text in sorted(self._living[pool] - living.keys()):
                key = LaunchKey.parse(text)
                launch = self._ledger.launch(key) if key is not None else None
                if launch is not None:
                    _enter(book, launch)
            # Some may have begun and ended since it was last asked.
            for launch in self._ledger.later(pool, self._sequences[pool]):
                _enter(book, launch)
        self._living[pool] = set(living)
        last = self._ledger.recent(pool, 1)
        self._sequences[pool] = last[0].key.sequence if last else 0
        return book.account(terms, living.values(), now)

    def accounts(self, terms: Mapping[str, Terms], now: float) -> dict[str, Account]:
        """As ``account``, of several pools."""
        return {pool: self.account(pool, its, now) for pool, its in terms.items()}

    def _open(self, pool: str, now: float) -> Book:
        book = Book(now)
        since = min(book.month.start - MINIMUM_SECONDS, now - STAYS_SECONDS)
        for launch in self._ledger.ended_since(pool, since):
            _enter(book, launch)
        return book


def _enter(book: Book, launch: Launch) -> None:
    if launch.ended is not None:
        span = charged(launch, launch.ended)
        if span is not None:
            book.enter(*span)
