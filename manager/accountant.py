"""Reads from the ledger what the workers of pools cost. What follows from it is said in money.

Costs what changed since it was last asked, not what the month has seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from backends.base import EndCause, LaunchKey
from manager.ledger import Launch, Ledger, Outcome
from manager.money import MINIMUM_SECONDS, Account, Period, Terms, Window, window, windows

STAYS_REMEMBERED = 100
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


@dataclass
class _PoolBook:
    """One pool: what its ended workers cost, and which were alive when it was last looked at."""

    month: Window
    ended: dict[Window, float] = field(default_factory=dict)
    living: set[str] = field(default_factory=set)
    stays_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=STAYS_REMEMBERED))


class Accountant:
    """Keeps the accounts of the pools of one ledger. Raises sqlite3.Error."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._books: dict[str, _PoolBook] = {}

    def account(self, pool: str, terms: Terms, now: float) -> Account:
        """What a pool has cost by ``now``, seconds since the epoch."""
        book = self._books.get(pool)
        if book is None or not book.month.start <= now < book.month.end:
            book = self._books[pool] = self._open(pool, now)
        places = windows(now)
        book.ended = {place: book.ended.get(place, 0.0) for place in places}
        living = self._ledger.living(pool)
        for text in sorted(book.living - living.keys()):
            key = LaunchKey.parse(text)
            launch = self._ledger.launch(key) if key is not None else None
            if launch is not None:
                _enter(book, launch)
        book.living = set(living)
        seconds = dict(book.ended)
        longest = max(book.stays_seconds, default=None)
        for started in living.values():
            if started is None:
                continue
            if longest is not None:
                longest = max(longest, now - started)
            for place in places:
                seconds[place] += place.overlap(started, now)
        price = terms.price_per_hour / 3600
        return Account(
            terms=terms,
            spent={place: amount * price for place, amount in seconds.items()},
            living=len(living),
            stay_seconds=longest,
        )

    def _open(self, pool: str, now: float) -> _PoolBook:
        """All that the month has seen; windows of the past are of no interest."""
        book = _PoolBook(window(Period.MONTH, now))
        book.ended = dict.fromkeys(windows(now), 0.0)
        since = min(book.month.start - MINIMUM_SECONDS, now - STAYS_SECONDS)
        for launch in self._ledger.ended_since(pool, since):
            _enter(book, launch)
        return book


def _enter(book: _PoolBook, launch: Launch) -> None:
    assert launch.ended is not None
    span = charged(launch, launch.ended)
    if span is None:
        return
    for place in book.ended:
        book.ended[place] += place.overlap(*span)
    book.stays_seconds.append(span[1] - span[0])


def accounts(accountant: Accountant, terms: Mapping[str, Terms], now: float) -> dict[str, Account]:
    """The accounts of several pools."""
    return {pool: accountant.account(pool, its, now) for pool, its in terms.items()}
