"""What goes wrong, when, and how often it did. Every call of a fake, and every write of the
ledger, asks here first."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter

from backends.base import (
    BackendError,
    Invalid,
    OutOfCapacity,
    QuotaExceeded,
    Throttled,
    Unauthorized,
    Unreachable,
)
from bundles import errors
from simulation.timeline import Timeline


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the manager runs after it."""


class Violation(AssertionError):
    """An invariant does not hold. Raised as soon as it shows, and never caught by the manager."""


LAUNCH_FAULTS = (
    "throttled",
    "throttled for long",
    "out of capacity",
    "over quota",
    "unauthorized",
    "invalid",
    "unreachable before",
    "unreachable after",
)
LIST_FAULTS = ("throttled", "throttled for long", "unauthorized", "unreachable", "truncated")
TERMINATE_FAULTS = ("throttled", "unauthorized", "unreachable before", "unreachable after")
SERVER_FAULTS = ("unreachable before", "unreachable after", "fault", "refused")


def backend_error(kind: str) -> BackendError:
    match kind:
        case "throttled":
            return Throttled("too many calls")
        case "throttled for long":
            return Throttled("too many calls", 40.0)
        case "out of capacity":
            return OutOfCapacity("no such machine")
        case "over quota":
            return QuotaExceeded("not more than these")
        case "unauthorized":
            return Unauthorized("the token has expired")
        case "invalid":
            return Invalid("no such queue")
    return Unreachable("no answer")


def server_error(kind: str) -> errors.BundlesError:
    match kind:
        case "fault":
            return errors.ServerFault("503")
        case "refused":
            return errors.NotAuthenticated("no longer")
    return errors.Unreachable("no answer")


class Faults:
    """``chance`` decides, ``level`` is the share of calls that fail: 0 in calm."""

    def __init__(self, chance: random.Random, timeline: Timeline) -> None:
        self.chance = chance
        self.counted: Counter[str] = Counter()
        self.level = 0.0
        self.slowness = 0.0
        self._timeline = timeline
        self._points_to_live: int | None = None

    # The end of the manager

    def kill_after(self, points: int | None) -> None:
        """Kill the manager at its ``points``-th next step in the world; None: let it live."""
        self._points_to_live = points

    def point(self) -> None:
        """Between two effects: the manager may die here."""
        if self._points_to_live is not None:
            self._points_to_live -= 1
            if self._points_to_live <= 0:
                self._points_to_live = None
                self.counted["kill"] += 1
                self._timeline.tell("the manager is killed")
                raise Killed

    # Calls

    def strike(self, call: str, kinds: tuple[str, ...]) -> str | None:
        """How this call fails, None when it does not. It may also take its time."""
        if not self.level:
            return None
        chance = self.chance
        if self.slowness and chance.random() < self.slowness:
            self.counted["slow call"] += 1
            self._timeline.advance(chance.uniform(0.1, 60.0))
        if chance.random() >= self.level:
            return None
        kind = chance.choice(kinds)
        self.counted[f"{call}: {kind}"] += 1
        self._timeline.tell(call, "fails:", kind)
        return kind

    def strike_ledger(self) -> None:
        """Raises sqlite3.OperationalError now and then."""
        if self.level and self.chance.random() < self.level / 4:
            self.counted["ledger: disk full"] += 1
            self._timeline.tell("the ledger fails: disk full")
            raise sqlite3.OperationalError("database or disk is full")
