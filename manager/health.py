"""How a pool is doing, by what became of its launches; and what may be launched while it is ill.

A pure function of the ledger's record and the time. Failures are kept apart by cause. Those of
jobs that were launched and did nothing are *wasted*: three in a row put the pool into quarantine,
which is left by one worker that works. Not for bundles that fail: they fail by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from backends.base import EndCause
from bundles.exits import WorkerExit
from manager.ledger import Launch, Outcome, PoolRecord
from manager.snapshot import Snapshot

FIRST_HOLD_SECONDS = 5.0
"""After a launch that the service refused; doubled by each tick that meets the same, up to …"""
LONGEST_HOLD_SECONDS = 300.0
WASTED_ALLOWED = 3
"""So many launches that did nothing, and the pool is in quarantine."""
HOLDS_BEFORE_QUARANTINE_SECONDS = (10.0, 30.0)
"""After the first and the second of them."""
FIRST_QUARANTINE_SECONDS = 300.0
"""Doubled by each probe that fails, up to …"""
LONGEST_QUARANTINE_SECONDS = 1800.0
SLOW_START = 2
"""So many workers are launched of a pool that is not known to work. With the one probe that
follows when they fail they are the three that may be wasted."""
PROVEN_SECONDS = 7 * 86400.0
"""A pool is known to work for so long after a worker of it came."""
YOUNG_SECONDS = 300.0
"""One that ends so soon after its start, badly and without a bundle, died young."""
SETTLED_SECONDS = 60.0
"""One that lived so long at the server is well, also when no bundle was there for it."""


class Cause(StrEnum):
    """Why a launch failed. Each is on a page of docs/risks."""

    STOCK_OUT = "stock-out"
    """The service has no machine."""
    QUOTA = "quota"
    """The account may not have more."""
    CREDENTIALS = "credentials"
    """The service does not take ours, or the server does not take the worker's."""
    INVALID = "invalid configuration"
    """It will never work as it is."""
    IMAGE = "image"
    """The image of the worker is not there, or may not be had."""
    NEVER_STARTED = "never started"
    """The job ended before its worker ran."""
    NEVER_REGISTERED = "never registered"
    """The worker ran, and the server never heard of it."""
    DIED_YOUNG = "died young"
    """The worker left soon, badly, and without having had a bundle."""
    PREEMPTED = "preempted"
    """The machine was taken back: never a failure."""
    UNREACHABLE = "unreachable"
    """The service did not answer, and did nothing."""
    THROTTLED = "throttled"
    """The service asks for fewer calls."""


_REFUSALS = {
    "OutOfCapacity": Cause.STOCK_OUT,
    "QuotaExceeded": Cause.QUOTA,
    "Unauthorized": Cause.CREDENTIALS,
    "Invalid": Cause.INVALID,
    "Unreachable": Cause.UNREACHABLE,
    "Throttled": Cause.THROTTLED,
}
"""By the class of backends.base."""

_IMAGE_WORDS = re.compile(
    r"no such image|manifest unknown|manifest for .* not found|pull access denied"
    r"|CannotPull|ImagePull|ContainerInvalidImage|invalid reference format"
    r"|repository does not exist|failed to pull|error pulling|cannot pull",
    re.IGNORECASE,
)
"""What registries, engines and clouds say; the taxonomy of errors knows no images."""

_BY_EXIT = {
    WorkerExit.USAGE: Cause.INVALID,
    WorkerExit.UNAUTHORIZED: Cause.CREDENTIALS,
    WorkerExit.UNREACHABLE: Cause.NEVER_REGISTERED,
    WorkerExit.UNUSABLE: Cause.DIED_YOUNG,
    WorkerExit.NO_RUNTIME: Cause.DIED_YOUNG,
    WorkerExit.WRONG_CLOCK: Cause.DIED_YOUNG,
    126: Cause.INVALID,
    127: Cause.INVALID,
}
"""Codes that are failures however old the worker was."""

_NOT_FAILED = frozenset(
    {WorkerExit.FINISHED, WorkerExit.REPLACED, WorkerExit.TERMINATED, WorkerExit.PREEMPTED}
)
_CRASHES = frozenset(128 + signal for signal in (4, 6, 7, 8, 9, 11))
"""ILL, ABRT, BUS, FPE, KILL (out of memory), SEGV: other signals are somebody's wish."""

_MEANINGS = {
    WorkerExit.FAILED: "something unforeseen",
    WorkerExit.USAGE: "an option makes no sense to it",
    WorkerExit.UNAUTHORIZED: "the server does not take its credentials",
    WorkerExit.UNREACHABLE: "it could not reach the server",
    WorkerExit.UNUSABLE: "its work directory cannot be used",
    WorkerExit.NO_RUNTIME: "its machine has no engine that answers",
    WorkerExit.WRONG_CLOCK: "its machine's clock is wrong",
    126: "its executable cannot be run",
    127: "its executable was not found",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """One launch that failed. ``when`` it was known, in seconds since the epoch.

    ``is_refusal``: there was no job; ``is_wasted``: there was one, and it did nothing.
    """

    when: float
    cause: Cause
    sentence: str
    is_refusal: bool = False
    is_wasted: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """Launch nothing before ``until`` (seconds since the epoch), for ``reason``; then no more
    than ``trial`` workers before one of them has shown that they work, None: any number.

    ``cause``: of the last failure of this episode, None when all is well. ``failures``: how many
    by cause since the last worker that worked, ``wasted``: how many of them did nothing.
    """

    until: float = 0.0
    reason: str = ""
    cause: Cause | None = None
    trial: int | None = None
    is_quarantined: bool = False
    wasted: int = 0
    failures: Mapping[Cause, int] = field(default_factory=dict)

    def on(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with what the policy asks of the health of its pool."""
        return replace(
            snapshot,
            held_until=self.until,
            hold_reason=self.reason,
            is_on_probation=self.cause is not None,
            is_quarantined=self.is_quarantined,
            trial=self.trial,
        )

    def sentence(self, now: float) -> str:
        """Why nothing, or little, is launched; "" when all is well. ``now`` as ``until``."""
        if self.cause is None:
            if self.trial is None:
                return ""
            return "not known to work yet: a worker has to come before more are launched"
        state = "quarantined" if self.is_quarantined else "held"
        if self.until <= now:
            return f"{state}, one worker may show that it is over: {self.reason}"
        return f"{state} for another {self.until - now:.0f} s: {self.reason}"


def judge(record: PoolRecord, now: float) -> Health:
    """How a pool is doing. ``now`` in seconds since the epoch.

    A worker that works closes what failed before it worked; so does a launch that the service
    takes, for what the service refused before.
    """
    well = max((when for launch in record.fates if (when := _worked(launch, now))), default=0.0)
    accepted = record.accepted or 0.0
    failures: list[tuple[Failure, float]] = []
    for launch in record.fates:
        found = failure(launch)
        if found is None:
            continue
        # A clock that was set back, or another's, must not put a failure into the future.
        found = replace(found, when=min(found.when, now))
        # Of one call some may be taken and others not: that ends nothing.
        if found.when > well and not (found.is_refusal and accepted > found.when):
            failures.append((found, launch.requested))
    is_proven = record.proven is not None and now - record.proven < PROVEN_SECONDS
    start = None if is_proven else max(0, SLOW_START - record.in_doubt)
    if not failures:
        return Health(trial=start)
    wasted = [(found, tick) for found, tick in failures if found.is_wasted]
    refused = [(found, tick) for found, tick in failures if not found.is_wasted]
    last = max((found for found, _ in failures), key=lambda found: found.when)
    is_quarantined = len(wasted) >= WASTED_ALLOWED
    until = max(_hold(refused), _isolation(wasted))
    only_refused = all(found.is_refusal for found, _ in failures)
    in_doubt = record.in_doubt + sum(_is_unsettled(launch, now) for launch in record.fates)
    trial = 1 if only_refused else max(0, 1 - in_doubt)
    causes = [found.cause for found, _ in failures]
    return Health(
        until=until,
        reason=_reason(last, len(wasted)),
        cause=last.cause,
        trial=trial if start is None else min(trial, start),
        is_quarantined=is_quarantined,
        wasted=len(wasted),
        failures={cause: causes.count(cause) for cause in Cause if cause in causes},
    )


def _reason(last: Failure, wasted: int) -> str:
    if wasted >= WASTED_ALLOWED:
        return (
            f"{wasted} launches in a row did nothing, the last one ({last.cause}): {last.sentence}"
        )
    return f"the last launch failed ({last.cause}): {last.sentence}"


def _hold(refused: Sequence[tuple[Failure, float]]) -> float:
    """Until when nothing is launched, for what the service refused."""
    if not refused:
        return 0.0
    ticks = len({tick for _, tick in refused})
    length = min(FIRST_HOLD_SECONDS * 2.0 ** (ticks - 1), LONGEST_HOLD_SECONDS)
    return max(found.when for found, _ in refused) + length


def _isolation(wasted: Sequence[tuple[Failure, float]]) -> float:
    """Until when nothing is launched, for what was launched and did nothing."""
    if not wasted:
        return 0.0
    oldest_first = sorted((found.when for found, _ in wasted))
    last = oldest_first[-1]
    if len(wasted) < WASTED_ALLOWED:
        return last + HOLDS_BEFORE_QUARANTINE_SECONDS[len(wasted) - 1]
    # Several of one tick fail at about the same time: probes are what came after.
    opened = sorted({tick for _, tick in wasted})
    counted = 0
    for position, tick in enumerate(opened):
        counted += sum(1 for _, other in wasted if other == tick)
        if counted >= WASTED_ALLOWED:
            probes = len(opened) - 1 - position
            break
    length = FIRST_QUARANTINE_SECONDS * 2.0 ** min(probes, 16)
    return last + min(length, LONGEST_QUARANTINE_SECONDS)


def _worked(launch: Launch, now: float) -> float | None:
    """When a worker came that has shown by ``now`` that it works; None: it has not."""
    if launch.first_bundle is not None:
        return min(launch.registered or launch.first_bundle, now)
    if launch.outcome is not Outcome.LAUNCHED or launch.given_up is not None:
        return None
    left_well = launch.cause is EndCause.FINISHED or launch.exit_code == WorkerExit.FINISHED
    if launch.ended is not None and left_well:
        return min(launch.registered or launch.ended, now)
    if launch.registered is None:
        return None
    last_seen = now if launch.ended is None else min(launch.ended, now)
    return launch.registered if last_seen - launch.registered >= SETTLED_SECONDS else None


def _is_unsettled(launch: Launch, now: float) -> bool:
    """Whether a worker has come, and has not shown yet that it works."""
    is_there = launch.registered is not None and launch.ended is None and launch.given_up is None
    return is_there and _worked(launch, now) is None


def failure(launch: Launch) -> Failure | None:
    """When and why a launch failed; None when it did not, or not yet."""
    if launch.outcome in (Outcome.REFUSED, Outcome.UNDONE):
        return _refusal(launch)
    if launch.first_bundle is None and launch.given_up is not None:
        sentence = f"{launch.key} ran, and the server never heard of it"
        return Failure(launch.given_up, Cause.NEVER_REGISTERED, sentence, is_wasted=True)
    cause = cause_of_end(launch)
    if launch.ended is None or cause is None or cause is Cause.PREEMPTED:
        return None
    has_worked = _worked(launch, launch.ended) is not None
    is_wasted = not has_worked and cause is not Cause.STOCK_OUT
    return Failure(launch.ended, cause, _sentence(launch, cause), is_wasted=is_wasted)


def _refusal(launch: Launch) -> Failure | None:
    cause = _REFUSALS.get(launch.error_kind or "")
    if cause is None:  # undone after a crash, or written by an earlier version
        if launch.outcome is Outcome.UNDONE:
            return None
        cause = Cause.INVALID
    words = launch.error or "the backend refused"
    if cause is Cause.INVALID and _IMAGE_WORDS.search(words):
        cause = Cause.IMAGE
    when = launch.settled if launch.settled is not None else launch.requested
    return Failure(when, cause, words, is_refusal=True)


def cause_of_end(launch: Launch) -> Cause | None:
    """What went wrong with a launch whose job ended, by its exit code, the service's words and
    its age; None: nothing that is known, and for what somebody wanted."""
    if launch.ended is None:
        return None
    if launch.cause is EndCause.PREEMPTED or launch.exit_code == WorkerExit.PREEMPTED:
        return Cause.PREEMPTED
    if launch.cause is EndCause.OUT_OF_CAPACITY:
        return Cause.STOCK_OUT
    if launch.cause in (EndCause.KILLED_BY_US, EndCause.FINISHED):
        return None
    age_seconds = launch.ended - (launch.started or launch.requested)
    is_young = age_seconds < YOUNG_SECONDS and launch.first_bundle is None
    if launch.exit_code is None:
        return _cause_without_code(launch, is_young=is_young)
    if launch.exit_code in _NOT_FAILED:
        return None
    if launch.exit_code in _CRASHES:
        return Cause.DIED_YOUNG if is_young and launch.registered is None else None
    if launch.exit_code > 128 or launch.cause is EndCause.KILLED_BY_OTHERS:
        return None
    if launch.exit_code in _BY_EXIT:
        return _BY_EXIT[launch.exit_code]
    if launch.exit_code == WorkerExit.FAILED and not is_young:
        return None
    return Cause.DIED_YOUNG


def _cause_without_code(launch: Launch, *, is_young: bool) -> Cause | None:
    if launch.cause is EndCause.FAILED:
        if _IMAGE_WORDS.search(launch.why or ""):
            return Cause.IMAGE
        if launch.started is None and launch.registered is None:
            return Cause.NEVER_STARTED
        return Cause.DIED_YOUNG if is_young else None
    if launch.cause is EndCause.UNKNOWN and launch.registered is None and is_young:
        return Cause.NEVER_REGISTERED
    return None


def _sentence(launch: Launch, cause: Cause) -> str:
    if launch.exit_code is None:
        if cause is Cause.DIED_YOUNG:
            return f"{launch.key} ended at its start: {launch.why or launch.cause}"
        return f"{launch.key} never came to work: {launch.why or launch.cause}"
    return f"{launch.key} left with exit code {launch.exit_code}{meaning(launch.exit_code)}"


def meaning(exit_code: int) -> str:
    """` (…)` with what a worker's exit code says, "" when it says nothing in particular."""
    text = _MEANINGS.get(exit_code)
    return f" ({text})" if text else ""
