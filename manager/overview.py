"""What the managers of a home have written down of their pools: for `status` and `top`.

Reads ledger, journals and locks; asks no service and no server, so that it may be read often.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from manager.accountant import Accountant
from manager.health import failure
from manager.installation import Installation
from manager.journal import last_entry
from manager.ledger import Launch, Ledger, Outcome, Pool
from manager.lock import holder
from manager.money import Period, Terms, window
from manager.policy import Decision

RECENT_SECONDS = 3600.0
"""Launches and failures are counted so far back."""
RECENT_LAUNCHES = 500
"""And no more of them than this."""

NO_MANAGER = "no manager"
STARTING = "starting"
FAILING = "failing"
HELD = "held"
QUARANTINED = "quarantined"
PROBATION = "on probation"
NO_BUDGET = "no budget"
KEEPING = "keeping"


class Overview:
    """The pools of one home. Kept open: money is added up from what changed."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._ledger: Ledger | None = None
        self._accountant: Accountant | None = None

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = self._accountant = None

    def __enter__(self) -> Overview:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def pools(self) -> list[Pool]:
        """Every pool that a manager of this home ever kept. Raises sqlite3.Error."""
        if self._ledger is None:
            self._ledger = Ledger.read_only(self._installation.ledger_path)
            if self._ledger is None:
                return []
            self._accountant = Accountant(self._ledger)
        return self._ledger.pools()

    def document(self, pool: Pool, now: float) -> dict[str, Any]:
        """One of ``pools``, as JSON. Times are seconds since the epoch.

        ``state`` is a word, ``why`` a sentence, and ``until`` when it may change by itself. What
        was seen and decided last is in ``workers``, ``staged``, ``unfit`` and ``last``, None as
        long as nothing was. Raises sqlite3.Error.
        """
        assert self._ledger is not None
        assert self._accountant is not None
        entry: dict[str, Any] | None = None
        with suppress(OSError):
            entry = last_entry(self._installation.journal_path(pool.name))
        manager = holder(self._installation.lock_path(pool.name))
        snapshot = (entry or {}).get("snapshot")
        state, why, until = _state(manager, entry, now)
        recent = self._ledger.recent(pool.name, RECENT_LAUNCHES)
        return {
            "pool": pool.name,
            "backend": pool.backend,
            "server": pool.server,
            "manager": manager,
            "state": state,
            "why": why,
            "until": until,
            "min_workers": pool.settings.get("min_workers"),
            "max_workers": pool.settings.get("max_workers"),
            "staged": snapshot and snapshot["staged"],
            "unfit": snapshot and snapshot["unfit"],
            "workers": snapshot and _workers(snapshot),
            "launched": self._ledger.launched(pool.name),
            "launched_lately": sum(
                launch.outcome is Outcome.LAUNCHED and launch.requested >= now - RECENT_SECONDS
                for launch in recent
            ),
            "failures_lately": _failures(recent, now - RECENT_SECONDS),
            "cost": _cost(self._accountant, pool, now),
            "file_problems": _file_problems(self._installation.refusal_path(pool.name), manager),
            "last_launch": pool.last_launch,
            "last": entry,
        }


def _file_problems(path: Path, manager: int | None) -> list[str]:
    """Why the pools file as it is now is not what the pool is kept by."""
    if manager is None:
        return []
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _workers(snapshot: Mapping[str, Any]) -> dict[str, int]:
    return {state: snapshot.get(state, 0) for state in ("pending", "active", "draining", "ending")}


def _state(
    manager: int | None, entry: Mapping[str, Any] | None, now: float
) -> tuple[str, str, float | None]:
    """A word, a sentence, and when it may change."""
    if manager is None:
        return NO_MANAGER, "no manager runs", None
    if entry is None:
        return STARTING, "nothing decided yet", None
    if entry.get("error"):
        return FAILING, str(entry["error"]), None
    decision = Decision.from_document({"end": (), **entry["decision"]})
    held = {reason.code: reason.sentence for reason in decision.reasons if reason.held}
    snapshot = entry["snapshot"]
    until, why = snapshot.get("held_until") or 0.0, str(snapshot.get("hold_reason") or "")
    if until > now or snapshot.get("is_quarantined"):
        word = QUARANTINED if snapshot.get("is_quarantined") else HELD
        return word, why, until if now < until < math.inf else None
    if "probation" in held:
        return PROBATION, held["probation"], None
    if "budget" in held:
        return NO_BUDGET, held["budget"], None
    return KEEPING, decision.summary(), None


def _failures(recent: list[Launch], since: float) -> dict[str, int]:
    """How many launches failed since then, by cause."""
    causes: Counter[str] = Counter()
    for launch in recent:
        found = failure(launch)
        if found is not None and found.when >= since:
            causes[str(found.cause)] += 1
    return dict(causes.most_common())


def _cost(accountant: Accountant, pool: Pool, now: float) -> dict[str, Any] | None:
    """What a pool of which a price is known has cost, will have, and may; by window."""
    terms = Terms.from_settings(pool.settings)
    if not terms.price_per_hour:
        return None
    account = accountant.account(pool.name, terms, now)
    windows = [window(period, now) for period in Period]
    return {
        "per_hour": account.living * terms.price_per_hour,
        "spent": {str(place.period): account.spent.get(place, 0.0) for place in windows},
        "forecast": {str(place.period): account.forecast(place, now) for place in windows},
        "budget": terms.budget.to_document(),
    }
